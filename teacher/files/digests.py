"""SHA-256 of files, of tensors and of plain values; and digests.json: what the files of a folder held when written.

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
"""A SHA-256 in hexadecimal digits, or the beginning of one."""
DIGESTS = "digests.json"
FORMAT = 1
HASHED_AT_ONCE = 2**22
"""Numbers of a tensor that are brought to the CPU and hashed at a time."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read once as long as its inode, size and times of change stay the same.

    Raises ValueError where it is no regular file: a pipe or a device may never end.
    """
    status = check_regular(Path(path))
    path = Path(path).resolve()
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, *stamp: int) -> str:
    del stamp  # part of the key only
    return reread_sha256(path)


def reread_sha256(path: Path) -> str:
    """SHA-256 of a file that is read now, also where `file_sha256` knows it: damage on the disk changes no times."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """First 12 hexadecimal digits of a file's SHA-256."""
    return file_sha256(path)[:12]


def parts_digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of named pieces of content, in the order of their names; the lengths count too."""
    found = hashlib.sha256()
    for name, content in sorted(parts, key=lambda part: part[0]):
        found.update(json.dumps([name, len(content)]).encode())
        found.update(content)
    return found.hexdigest()


def json_digest(plain: object, contents: Iterable[bytes] = (), *, sort_keys: bool = True) -> str:
    """SHA-256 of the JSON text of plain values, and of the bytes in `contents` after it.

    With `sort_keys`, the order of dictionaries does not count.
    """
    found = hashlib.sha256(json.dumps(plain, sort_keys=sort_keys).encode())
    for content in contents:
        found.update(content)
    return found.hexdigest()


def tensors_digest(tensors: Mapping[str, "Tensor"]) -> str:
    """First 12 hexadecimal digits of a SHA-256 over names, types, shapes and values, whatever file they came in."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in tensor.detach().contiguous().flatten().split(HASHED_AT_ONCE):
            found.update(tensor_bytes(part))
    return found.hexdigest()[:12]


def tensor_parts(tensors: Mapping[str, "Tensor"]) -> list[tuple[str, bytes]]:
    """Name, type and shape of every tensor with its bytes, the pieces of a digest of their content (`parts_digest`)."""
    return [(f"{name} {one.dtype} {list(one.shape)}", tensor_bytes(one)) for name, one in tensors.items()]


def tensor_bytes(tensor: "Tensor") -> bytes:
    """The values of a tensor of any type."""
    import torch  # takes a second; whoever makes a report from rows needs digests of files alone

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def same_digest(one: str, other: str) -> bool:
    """Whether two digests agree as far as both go; never on fewer than 12 digits."""
    length = min(len(one), len(other))
    return length >= 12 and one[:length] == other[:length]


def read_digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Length and SHA-256 by relative name, from digests.json; none where the folder has none, as in older versions.

    Raises ValueError, naming the file, where it is damaged.
    """
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in _entries(Path(folder)).items()}


def recorded_steps(folder: Path) -> dict[str, int]:
    """The step at which each file of weights was saved, of those that digests.json knows it of."""
    return {name: entry["step"] for name, entry in _entries(Path(folder)).items() if "step" in entry}


def write_digests(
    folder: Path,
    names: Iterable[str],
    *,
    known: Mapping[str, tuple[int, str]] | None = None,
    step: int | None = None,
    forget: Iterable[str] = (),
) -> None:
    """Record the files `names` of a folder, beside what is recorded already and still there.

    Whoever replaces a recorded file lets it be forgotten first and records it afterwards: should it be killed between
    the two, no whole file looks damaged.

    known: length and SHA-256 of files that were digested while they were written; the others are read once.
    step: the step of the training that the files belong to.
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
    """Compare a file that is about to be read with digests.json in `folder`, by default the one that the file lies in;
    nothing where that does not record it.

    The file is read once to the end (`file_sha256`). Raises ValueError, in one line that says what was found and what
    to do, where it is not what was recorded.
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
    """As `check_digests` of one file, looking again where it was recorded anew or its record dropped meanwhile."""
    while True:
        recorded = read_digests(folder).get(name)
        faults = check_digests(folder, [name])
        if not faults or read_digests(folder).get(name) == recorded:
            return faults


def check_digests(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """What differs from digests.json, one line a file; none if nothing does. `names` None: every file recorded.

    A file that is not recorded is not compared. Lengths come first, so a file that was cut short is not read.
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
    """What digests.json says of each file, in known types. Names stay inside the folder."""
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


_REMEDY = "restore it, or remove it, and the folder's files are read without being compared"
