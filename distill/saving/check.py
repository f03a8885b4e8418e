"""Everything that a folder records of itself, compared: digests.json, the manifests of checkpoints, stated digests.

Folders hold one another (a demo's folder holds features, teacher and student), so the whole tree is walked. Files that
nothing records, such as logs, media and what earlier versions wrote, are counted.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from distill.saving.manifest import MANIFEST, DamagedError, read_manifest, verified
from teacher.files import DIGEST, DIGESTS, LOCK, check_digests, file_sha256, read_digests, read_json, same_digest

CHECKPOINT = re.compile(r"step-\d{7,}")
REMEDIES = {
    "checkpoint": "training goes on from the checkpoint before it; remove this folder",
    "run": "start the training's command again, which publishes its weights from the last checkpoint, or restore it",
    "features": "remove it and start the mf-extract command again, or restore it",
    "comparison": "remove it and start the mf-compare command again, or restore it",
    "snapshots": "restore it, or remove it, and mf-ema does without it",
    "other": "restore it from where the folder came from",
}
EDITED = "; if you changed it on purpose, remove its entry from digests.json"


@dataclass
class Checked:
    """What was found in one or several folders."""

    files: int = 0
    """Files compared."""
    bytes: int = 0
    unrecorded: int = 0
    """Files that nothing records."""
    faults: list[str] = field(default_factory=list)
    """One line each, with what to do."""


def check_folder(folder: Path, found: Checked, *, report: Callable[[str], None] = lambda fault: None) -> None:
    """Compare everything in a folder, adding to `found`; every fault is reported as soon as it is known.

    Links to folders are not followed. Raises NotADirectoryError where there is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    recorded: set[Path] = set()
    seen: set[Path] = set()

    def fault(line: str, kind: str) -> None:
        found.faults.append(f"{line}: {REMEDIES[kind]}{'' if kind == 'checkpoint' else EDITED}")
        report(found.faults[-1])

    def compared(path: Path) -> None:
        recorded.add(path)
        found.files += 1
        with suppress(OSError):  # a recorded name that no file can have
            found.bytes += path.stat().st_size if path.is_file() else 0

    def unreadable(error: OSError) -> None:
        fault(f"{error.filename} cannot be read ({error.strerror})", "other")

    for place, files in _walk(folder, unreadable):
        seen.update(place / name for name in files if name != LOCK)
        if CHECKPOINT.fullmatch(place.name) and place.parent.name == "trainer":
            try:
                for name in (MANIFEST, *read_manifest(place)):
                    compared(place / name)
                verified(place)
            except DamagedError as error:
                if place.is_dir():  # else a training that goes on has removed it meanwhile
                    fault(f"{place} is damaged: {error}", "checkpoint")
            recorded.update(place / name for name in files)  # what is not in the manifest was said to be too much
            continue
        kind = _kind(place)
        if DIGESTS in files:
            recorded.add(place / DIGESTS)
            try:
                names = list(read_digests(place))
            except (OSError, ValueError) as error:
                found.faults.append(str(error))
                report(found.faults[-1])
                names = []
            for name in names:
                compared(place / name)
                for line in check_digests(place, [name]):
                    fault(line, "snapshots" if name.startswith("ema_ckpts/") else kind)
        if "config.json" in files and "model.safetensors" in files and place / "model.safetensors" not in recorded:
            stated = _stated(place / "config.json")
            if stated is not None:
                compared(place / "model.safetensors")
                try:
                    if not same_digest(file_sha256(place / "model.safetensors"), stated):
                        fault(f"{place / 'model.safetensors'} is damaged: its SHA-256 is not that in config.json", kind)
                except ValueError as error:
                    fault(str(error), kind)
    found.unrecorded += len(seen - recorded)


def _walk(folder: Path, unreadable: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str]]]:
    """Folders with the names of their files, in order; `unreadable` hears of those that cannot be listed."""
    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        yield Path(place), sorted(files)


def _kind(folder: Path) -> str:
    """What a folder is, for what to do about damage in it."""
    if (folder / "trainer").is_dir():
        return "run"
    if (folder / "rows.jsonl").is_file() or folder.name == "embeddings":
        return "comparison"
    if (folder / "features.json").is_file() and not (folder / "config.json").is_file():
        return "features"
    return "other"


def _stated(config: Path) -> str | None:
    """The digest of model.safetensors that config.json of a saved folder states."""
    try:
        stated = read_json(config).get("digest")
    except (OSError, ValueError):
        return None
    return stated if isinstance(stated, str) and DIGEST.fullmatch(stated) else None
