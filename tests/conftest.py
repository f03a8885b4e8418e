"""Shared fixtures; shape annotations of meanflow are checked at run time in every test."""

import os
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from jaxtyping import install_import_hook

install_import_hook(["meanflow"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def recordings() -> Path:
    """The folder of recorded reference numbers that lives beside the project, where there is one."""
    folder = SHARED / "golden" / "open"
    if not folder.is_dir():
        pytest.skip("the recorded numbers (shared/golden beside the project) are not here")
    return folder
