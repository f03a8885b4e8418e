"""Verify run folders, features, comparisons and saved models against their recorded digests: has a byte changed?"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from distill.checkpoints.check import FolderCheck
from eval.compare.check_files import check_files
from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class Check:
    """Read every file with a recorded digest, in these folders and all folders below them; exit status 1 if any is
    damaged or missing."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, feature folders, saved models, comparisons, or folders that hold several of these."""


def faults(folder: Path) -> list[str]:
    """The damaged or missing files in a folder and all folders below it, one line each."""
    check = FolderCheck(others=check_files)
    check(folder)
    return check.faults


@one_line_errors
def cli() -> None:
    """Entry point."""
    folders = tyro.cli(Check, description=__doc__).folders
    if not folders:
        raise ValueError("name at least one folder to check")
    found = FolderCheck(report=lambda line: print(line, flush=True), others=check_files)
    for folder in folders:
        found(folder)
    damaged = f"{len(found.faults)} damaged" if found.faults else "none damaged"
    print(f"{found.files} files ({found.bytes:,} bytes) compared, {damaged}; {found.unrecorded} without a digest")
    sys.exit(1 if found.faults else 0)


if __name__ == "__main__":
    cli()
