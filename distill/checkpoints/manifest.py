"""The manifest of a checkpoint, and whether a checkpoint is exactly what was written.

manifest.json lists the length and SHA-256 of every other file in the folder, the step, the version of the layout and a
digest of itself. A checkpoint verifies if the folder holds exactly these files and they are what the manifest says.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher.files import Written, check_regular, read_bytes, read_json
from teacher.files.components import read_tensors
from teacher.files.digests import reread_sha256
from teacher.files.safetensors import Tensors

FORMAT = 1
"""Version of the layout of a checkpoint."""
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 24
"""Longest manifest that is read, in bytes; one of ours names a few files."""
STATE = "state.json"
HASHERS = 4
"""Files hashed at the same time."""


class DamagedError(ValueError):
    """What is wrong with a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    """Steps done."""
    state: dict[str, Any]
    """state.json: the step and whatever else the loop keeps."""

    def tensors(self, name: str) -> Tensors:
        """One of its sets of tensors: model, optimizer, ema-0.05; WeightsError if it has none of that name."""
        return read_tensors(self.folder / f"{name}.safetensors")


def read_manifest(folder: Path) -> dict[str, Written]:
    """Length and digest of every file of a checkpoint; DamagedError where its manifest is absent or not intact."""
    path = folder / MANIFEST
    try:
        content = read_bytes(path, MANIFEST_LIMIT)
    except FileNotFoundError as error:
        raise DamagedError(
            f"it has no {MANIFEST}, so it is incomplete or from a version that wrote none and cannot be gone on from"
        ) from error
    except OSError as error:
        raise DamagedError(f"{MANIFEST} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedError(f"{MANIFEST} cannot be read: {error}") from error
    try:
        plain = json.loads(content)
        version = plain["format"]
        if not isinstance(version, int | str):
            raise ValueError("a version is a number")
        files = {name: Written(int(f["bytes"]), str(f["sha256"])) for name, f in plain["files"].items()}
        intact = version != FORMAT or content == manifest(plain["step"], files)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is damaged") from error
    if not intact:
        raise DamagedError(f"{MANIFEST} is damaged")
    if version != FORMAT:
        raise DamagedError(f"its format is {version!r}, this version reads {FORMAT}")
    if plain["step"] != step_of(folder):
        raise DamagedError(f"{MANIFEST} says step {plain['step']}")
    return files


def manifest(step: int, files: Mapping[str, Written]) -> bytes:
    """The one way of writing a manifest, with a digest of its own: no byte can change unnoticed."""
    plain: dict[str, object] = {"format": FORMAT, "step": step, "files": {n: w._asdict() for n, w in files.items()}}
    plain["sha256"] = hashlib.sha256(json.dumps(plain).encode()).hexdigest()
    return json.dumps(plain, indent=2).encode()


def verified(folder: Path, *, digests: bool = True) -> Checkpoint:
    """The checkpoint in a folder; DamagedError, saying what is wrong, unless it is exactly what was written."""
    files = read_manifest(folder)
    try:
        found = {path.name for path in folder.iterdir()} - {MANIFEST}
        if missing := sorted(set(files) - found):
            raise DamagedError(f"{missing[0]} is missing")
        if extra := sorted(found - set(files)):
            raise DamagedError(f"{extra[0]} is not in {MANIFEST}")
        for name, written in files.items():
            size = check_regular(folder / name).st_size
            if size != written.bytes:
                raise DamagedError(f"{name} has {size} bytes instead of {written.bytes}")
        if digests:
            _check_digests(folder, files)
        state = read_json(folder / STATE)
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"a file cannot be read: {error}") from error
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if state.get("step") != step_of(folder):
        raise DamagedError(f"{STATE} does not say step {step_of(folder)}")
    return Checkpoint(folder=folder, step=step_of(folder), state=state)


def verifies(folder: Path, *, digests: bool = True) -> bool:
    """Whether `verified` finds nothing wrong."""
    try:
        verified(folder, digests=digests)
    except DamagedError:
        return False
    return True


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def _check_digests(folder: Path, files: Mapping[str, Written]) -> None:
    with ThreadPoolExecutor(max_workers=HASHERS) as pool:
        for name, digest in zip(files, pool.map(reread_sha256, [folder / name for name in files]), strict=True):
            if digest != files[name].sha256:
                raise DamagedError(f"{name} is damaged: its digest is not the recorded one")
