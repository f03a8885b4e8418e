"""SHA-256 of files, tensors and plain values; and digests.json, the recorded digests of a folder's files.

digests.json = {"format": 1, "files": {relative name: {"bytes": n, "sha256": hexadecimal}}}

An entry of a training's weights also has "step", the step at which they were saved.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from teacher.files.text import check_regular, read_json, write_text

if TYPE_CHECKING:
    from torch import Tensor

DIGEST = re.compile(r"[0-9a-f]{12,64}")
"""Matches a SHA-256 in hexadecimal digits, or its beginning of at least 12 digits."""
DIGESTS = "digests.json"
FORMAT = 1
HASHED_AT_ONCE = 2**22
"""Numbers of a tensor that are copied to the CPU and hashed at a time."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; it is cached until the file's inode, size or times change.

    Raises ValueError if it is not a regular file, because a pipe or a device may never end.
    """
    status = check_regular(Path(path))
    path = Path(path).resolve()
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, *stamp: int) -> str:
    del stamp  # part of the key only
    return reread_sha256(path)


def reread_sha256(path: Path) -> str:
    """SHA-256 of a file that is always read, without a cache, because damage on the disk does not change its times."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """First 12 hexadecimal digits of a file's SHA-256."""
    return file_sha256(path)[:12]


def parts_digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of named pieces of content, sorted by name; names and lengths are hashed too."""
    found = hashlib.sha256()
    for name, content in sorted(parts, key=lambda part: part[0]):
        found.update(json.dumps([name, len(content)]).encode())
        found.update(content)
    return found.hexdigest()


def json_digest(plain: object, contents: Iterable[bytes] = (), *, sort_keys: bool = True) -> str:
    """SHA-256 of the JSON text of plain values, and of the bytes in `contents` after it.

    With `sort_keys`, the order of dictionary keys does not matter.
    """
    found = hashlib.sha256(json.dumps(plain, sort_keys=sort_keys).encode())
    for content in contents:
        found.update(content)
    return found.hexdigest()


def tensors_digest(tensors: Mapping[str, "Tensor"]) -> str:
    """First 12 hexadecimal digits of a SHA-256 over names, types, shapes and values of tensors, sorted by name."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in tensor.detach().contiguous().flatten().split(HASHED_AT_ONCE):
            found.update(tensor_bytes(part))
    return found.hexdigest()[:12]


def tensor_parts(tensors: Mapping[str, "Tensor"]) -> list[tuple[str, bytes]]:
    """A pair (name with type and shape, bytes) for every tensor, as input of `parts_digest`."""
    return [(f"{name} {one.dtype} {list(one.shape)}", tensor_bytes(one)) for name, one in tensors.items()]


def tensor_bytes(tensor: "Tensor") -> bytes:
    """The values of a tensor of any type."""
    import torch  # takes a second; whoever makes a report from rows needs digests of files alone

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def same_digest(one: str, other: str) -> bool:
    """Whether two digests agree in their common length, which must be at least 12 digits."""
    length = min(len(one), len(other))
    return length >= 12 and one[:length] == other[:length]


def read_digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Length and SHA-256 by relative name, from digests.json; empty if the folder has none, as in older versions.

    Raises ValueError naming the file if it is damaged.
    """
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in _entries(Path(folder)).items()}


def recorded_steps(folder: Path) -> dict[str, int]:
    """The step at which each file of weights was saved, for files whose step is recorded in digests.json."""
    return {name: entry["step"] for name, entry in _entries(Path(folder)).items() if "step" in entry}


def write_digests(
    folder: Path,
    names: Iterable[str],
    *,
    known: Mapping[str, tuple[int, str]] | None = None,
    step: int | None = None,
    forget: Iterable[str] = (),
) -> None:
    """Record the files `names` of a folder in digests.json, in addition to recorded files that still exist.

    To replace a recorded file, first drop its entry (`forget`) and record it again afterwards; otherwise a kill between
    the two would make an intact file look damaged.

    known: length and SHA-256 of files that were hashed while they were written; the others are read once.
    step: the training step that the files belong to.
    forget: files whose entries are dropped.
    """
    folder, known, dropped = Path(folder), known or {}, set(forget)
    before = _entries(folder)
    files = {n: entry for n, entry in before.items() if n not in dropped and (folder / n).is_file()}
    for name in names:
        path = folder / name
        size, digest = known[name] if name in known else (path.stat().st_size, file_sha256(path))
        files[name] = {"bytes": size, "sha256": digest} | ({} if step is None else {"step": step})
    if files == before:
        return
    plain = {"format": FORMAT, "files": dict(sorted(files.items()))}
    write_text(folder / DIGESTS, json.dumps(plain, indent=1) + "\n")


def compare_recorded(path: Path, *, folder: Path | None = None) -> None:
    """Compare a file with its entry in digests.json of `folder` (by default its own); without an entry it passes.

    The file is read once to the end (`file_sha256`). Raises ValueError, one line with the difference and what to do, if
    its length or digest is not the recorded one.
    """
    path = Path(path)
    folder = path.parent if folder is None else folder
    name = path.relative_to(folder).as_posix()
    if faults := settled_faults(folder, name):
        raise ValueError(
            f"{faults[0]}: restore the file, or, if you replaced it on purpose, remove its entry from "
            f"{folder / DIGESTS}"
        )


def settled_faults(folder: Path, name: str) -> list[str]:
    """As `check_digests` of one file, but repeated if its entry changed in the meantime."""
    while True:
        recorded = read_digests(folder).get(name)
        faults = check_digests(folder, [name])
        if not faults or read_digests(folder).get(name) == recorded:
            return faults


def check_digests(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """Differences from digests.json, one line per file. `names` None checks every recorded file.

    A file without an entry is not compared. Lengths are compared first, so a truncated file is not read.
    """
    folder, faults = Path(folder), []
    recorded = read_digests(folder)
    for name in recorded if names is None else names:
        if name not in recorded:
            continue
        (size, digest), path = recorded[name], folder / name
        try:
            found = check_regular(path).st_size
            if found != size:
                faults.append(f"{path} has {found} bytes instead of {size}")
            elif file_sha256(path) != digest:
                faults.append(f"{path} is damaged: its SHA-256 is not the recorded one")
        except (FileNotFoundError, NotADirectoryError):
            faults.append(f"{path} is missing")
        except OSError as error:  # a name longer than the file system takes, no access
            faults.append(f"{path} cannot be read: {error.strerror or 'it is a folder'}")
        except UnicodeEncodeError:
            faults.append(f"{path} is missing: no file can have this name")
        except ValueError as error:
            faults.append(str(error))
    return faults


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of digests.json with checked types. Raises ValueError for a name outside the folder."""
    path = folder / DIGESTS
    try:
        plain = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{error}; {_REMEDY}") from error
    try:
        if plain["format"] != FORMAT:
            raise ValueError(f"its format is {plain['format']!r}, this version reads {FORMAT}")
        entries = {}
        for name, entry in plain["files"].items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
                raise ValueError(f"it names {name!r}, which is outside the folder")
            step = {"step": int(entry["step"])} if "step" in entry else {}
            entries[name] = {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} | step
        return entries
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; {_REMEDY}") from error


_REMEDY = "restore it, or remove it to read the folder's files without comparing them"
