"""Compares files with their recorded digests: digests.json, the manifests of checkpoints, digests in config.json.

Folders may contain one another (a demo's folder holds features, teacher and student), so the whole tree is walked.
Files without a recorded digest, such as logs, media and what earlier versions wrote, are counted.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from distill.checkpoints.store import DamagedError, verified
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
"""Most characters of a line about a fault; file names may be longer."""
Others = Callable[[Path, Sequence[str]], Iterable[tuple[Path, str | None]]]
"""(folder, names of its files) -> the files recorded by a format outside this module, and what is wrong with each."""
EDITED = "; if you changed it on purpose, remove its entry from digests.json"


@dataclass
class FolderCheck:
    """Compares the files of folders with their recorded digests, and counts the files by outcome."""

    report: Callable[[str], None] = lambda fault: None
    """Called with every fault as soon as it is found."""
    others: Others = lambda place, names: ()
    files: int = 0
    """Files compared."""
    bytes: int = 0
    unrecorded: int = 0
    """Number of files without a recorded digest."""
    faults: list[str] = field(default_factory=list)
    """One line for each fault, with what to do."""
    _recorded: set[Path] = field(default_factory=set)
    """Files of the folder at hand that something records."""

    def __call__(self, folder: Path) -> None:
        """Compare a folder and all folders in it.

        Files that a running training or comparison replaces or removes meanwhile are compared again and are no fault.
        Links to folders are not followed. Raises NotADirectoryError where there is no such folder.
        """
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is no folder")
        self._recorded = set()
        found: set[Path] = set()
        for place, files in _walk(folder, self._unreadable):
            here = {place / name for name in files if name != LOCK}
            if CHECKPOINT.fullmatch(place.name) and place.parent.name == "trainer":
                if not self._checkpoint(place, files):
                    continue
            else:
                self._folder(place, files)
            found |= here
        self.unrecorded += len(found - self._recorded)

    def _checkpoint(self, place: Path, files: Sequence[str]) -> bool:
        """Compare a checkpoint with its manifest; False where it was pruned meanwhile."""
        wrong = _damage(place)
        if not place.is_dir():
            return False
        for name in files:
            self._compared(place / name)
        if wrong is not None:
            self._fault(f"{place} is damaged: {wrong}", "checkpoint")
        return True

    def _folder(self, place: Path, files: Sequence[str]) -> None:
        """Compare the files of a folder with digests.json, with the digest that config.json states, and with what
        others record of them."""
        kind, weights = _kind(place), place / "model.safetensors"
        if DIGESTS in files:
            self._recorded.add(place / DIGESTS)
            try:
                names = list(read_digests(place))
            except (OSError, ValueError) as error:
                self._add(str(error))
                names = []
            for name in names:
                self._compared(place / name)
                for line in settled_faults(place, name):
                    self._fault(line, "snapshots" if name.startswith(f"{SNAPSHOTS}/") else kind)
        if {"config.json", weights.name} <= set(files) and weights not in self._recorded:
            stated = _stated(place / "config.json")
            if stated is not None:
                self._compared(weights)
                other = _unlike(weights, stated)
                if other is not None and _stated(place / "config.json") == stated:
                    self._fault(other, kind)
        for path, unlike in self.others(place, files):
            self._compared(path)
            if unlike is not None:
                self._add(f"{unlike}: {REMEDIES['comparison']}")

    def _compared(self, path: Path) -> None:
        self._recorded.add(path)
        self.files += 1
        with suppress(OSError, ValueError):  # missing, or a name that no file can have
            self.bytes += path.stat().st_size

    def _fault(self, line: str, kind: str) -> None:
        self._add(f"{_cut(line)}: {REMEDIES[kind]}{'' if kind == 'checkpoint' else EDITED}")

    def _add(self, line: str) -> None:
        self.faults.append(_cut(visible(line)))
        self.report(self.faults[-1])

    def _unreadable(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            self._add(f"{error.filename} cannot be read, and was not compared: {error.strerror}; give yourself access")


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, also when verified a second time: it may just have been replaced."""
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
