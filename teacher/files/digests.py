"""SHA-256 of files, and digests.json: what the files of a folder held when they were written.

digests.json = {"format": 1, "files": {relative name: {"bytes": n, "sha256": hexadecimal}}}
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from teacher.files.replace import replacing
from teacher.files.text import read_json

DIGEST = re.compile(r"[0-9a-f]{12,64}")
"""A SHA-256 in hexadecimal digits, or the beginning of one."""
DIGESTS = "digests.json"
FORMAT = 1


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read once as long as its inode, size and times of change stay the same."""
    path = Path(path).resolve()
    status = path.stat()
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, *stamp: int) -> str:
    del stamp  # part of the key only
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def parts_digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of named pieces of content, in the order of their names; the lengths count too."""
    found = hashlib.sha256()
    for name, content in sorted(parts, key=lambda part: part[0]):
        found.update(json.dumps([name, len(content)]).encode())
        found.update(content)
    return found.hexdigest()


def same_digest(one: str, other: str) -> bool:
    """Whether two digests agree as far as both go; never on fewer than 12 digits."""
    length = min(len(one), len(other))
    return length >= 12 and one[:length] == other[:length]


def read_digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Length and SHA-256 by relative name, from digests.json; none where the folder has none, as in older versions.

    Raises ValueError, naming the file, where it is damaged.
    """
    path = Path(folder) / DIGESTS
    try:
        plain = read_json(path)
    except FileNotFoundError:
        return {}
    try:
        if plain["format"] != FORMAT:
            raise ValueError(f"its format is {plain['format']!r}, this version reads {FORMAT}")
        return {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in plain["files"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_digests(folder: Path, names: Iterable[str], *, known: Mapping[str, tuple[int, str]] | None = None) -> None:
    """Record the files `names` of a folder, beside what is recorded already and still there.

    known: length and SHA-256 of files that were digested while they were written; the others are read once.
    """
    folder, known = Path(folder), known or {}
    files = {name: entry for name, entry in read_digests(folder).items() if (folder / name).is_file()}
    for name in names:
        path = folder / name
        files[name] = known[name] if name in known else (path.stat().st_size, file_sha256(path))
    plain = {"format": FORMAT, "files": {n: {"bytes": b, "sha256": s} for n, (b, s) in sorted(files.items())}}
    with replacing(folder / DIGESTS) as temporary:
        temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def check_digests(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """What differs from digests.json, one line a file; none if nothing does. `names` None: every file recorded.

    A file that is not recorded is not judged. Lengths come first, so a file that was cut short is not read.
    """
    folder, faults = Path(folder), []
    recorded = read_digests(folder)
    for name in recorded if names is None else names:
        if name not in recorded:
            continue
        (size, digest), path = recorded[name], folder / name
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif path.stat().st_size != size:
            faults.append(f"{path} has {path.stat().st_size} bytes instead of {size}")
        elif file_sha256(path) != digest:
            faults.append(f"{path} is damaged: its SHA-256 is not the recorded one")
    return faults
