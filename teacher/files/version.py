"""The version of this package, which run folders, features and sounds note of themselves."""

import importlib.metadata

PACKAGE = "mf-mjt"


def package_version() -> str:
    """Version of the installed package, or "source tree" where it is not installed."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "source tree"
