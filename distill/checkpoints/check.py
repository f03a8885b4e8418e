"""Everything that a folder records of itself, compared: digests.json, the manifests of checkpoints, stated digests.

Folders hold one another (a demo's folder holds features, teacher and student), so the whole tree is walked. Files that
nothing records, such as logs, media and what earlier versions wrote, are counted.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill.checkpoints.manifest import DamagedError, verified
from teacher.files import (
    DIGEST,
    DIGESTS,
    LOCK,
    file_sha256,
    read_digests,
    read_json,
    same_digest,
    settled_faults,
    visible,
)
from teacher.weights.run_folder import SNAPSHOTS

CHECKPOINT = re.compile(r"step-\d{7,}")
REMEDIES = {
    "checkpoint": "training goes on from the checkpoint before it; remove this folder",
    "run": "start the training's command again, which publishes its weights from the last checkpoint, or restore it",
    "features": "remove it and start the mf-extract command again, or restore it",
    "comparison": "remove it and start the mf-compare command again, or restore it",
    "snapshots": "restore it, or remove it, and mf-ema does without it",
    "other": "restore it from where the folder came from",
}
LONGEST_LINE = 1000
"""Characters of a line about a fault; names of strangers may be longer."""
Others = Callable[[Path, Sequence[str]], Iterable[tuple[Path, str | None]]]
"""Files of a folder, whose names are given, that others keep records of, and what is wrong with each."""
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


def check_folder(
    folder: Path,
    found: Checked,
    *,
    report: Callable[[str], None] = lambda fault: None,
    others: Others = lambda place, names: (),
) -> None:
    """Compare everything in a folder, adding to `found`; every fault is reported as soon as it is known.

    What a training or comparison that runs meanwhile replaces or removes is looked at again, and is no fault. Links
    to folders are not followed. Raises NotADirectoryError where there is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    recorded: set[Path] = set()
    seen: set[Path] = set()

    def say(line: str) -> None:
        line = visible(line)
        found.faults.append(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ...")
        report(found.faults[-1])

    def fault(line: str, kind: str) -> None:
        line = line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."
        say(f"{line}: {REMEDIES[kind]}{'' if kind == 'checkpoint' else EDITED}")

    def compared(path: Path) -> None:
        recorded.add(path)
        found.files += 1
        try:
            found.bytes += path.stat().st_size
        except (OSError, ValueError):  # missing, or a name that no file can have
            return

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            say(f"{error.filename} cannot be read, and was not compared: {error.strerror}; give yourself access")

    for place, files in _walk(folder, unreadable):
        seen.update(place / name for name in files if name != LOCK)
        if CHECKPOINT.fullmatch(place.name) and place.parent.name == "trainer":
            wrong = _damage(place)
            if not place.is_dir():  # pruned meanwhile
                seen.difference_update(place / name for name in files)
                continue
            for name in files:
                compared(place / name)
            if wrong is not None:
                fault(f"{place} is damaged: {wrong}", "checkpoint")
            recorded.update(place / name for name in files)  # what is not in the manifest was said to be too much
            continue
        kind = _kind(place)
        if DIGESTS in files:
            recorded.add(place / DIGESTS)
            try:
                names = list(read_digests(place))
            except (OSError, ValueError) as error:
                say(str(error))
                names = []
            for name in names:
                compared(place / name)
                for line in settled_faults(place, name):
                    fault(line, "snapshots" if name.startswith(f"{SNAPSHOTS}/") else kind)
        if "config.json" in files and "model.safetensors" in files and place / "model.safetensors" not in recorded:
            stated = _stated(place / "config.json")
            if stated is not None:
                compared(place / "model.safetensors")
                other = _unlike(place / "model.safetensors", stated)
                if other is not None and _stated(place / "config.json") == stated:
                    fault(other, kind)
        for path, unlike in others(place, files):
            compared(path)
            if unlike is not None:
                say(f"{unlike}: {REMEDIES['comparison']}")
    found.unrecorded += len(seen - recorded)


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, also at a second look: it may just have been replaced."""
    for last in (False, True):
        try:
            verified(checkpoint)
        except DamagedError as error:
            if last or not checkpoint.is_dir():
                return str(error)
        else:
            return None
    return None


def _unlike(path: Path, stated: str) -> str | None:
    try:
        same = same_digest(file_sha256(path), stated)
    except (OSError, ValueError) as error:
        return f"{path} cannot be compared ({error})"
    return None if same else f"{path} is damaged: its SHA-256 is not the one in config.json"


def _walk(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str]]]:
    """Folders with the names of their files, in order."""
    for place, folders, files in os.walk(folder, onerror=onerror):
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
