"""Text from strangers: lines end at a line feed alone, and reading a file takes bounded time and memory."""

import os
import stat
from pathlib import Path

JSON_LIMIT = 1 << 28
"""Largest JSON file that is read, in bytes; the largest of ours, a features.json that names a million skipped clips,
stays below."""


def split_lines(text: str) -> list[str]:
    """Lines of a text, without their ends. A line ends at "\\n" (or "\\r\\n") only: `str.splitlines` also cuts at the
    line separators that captions and file names may hold (U+0085, U+2028, form feed). An unfinished last line counts.
    """
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def visible(text: str) -> str:
    """The text with everything that is not printed as itself (line ends, escapes) written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_regular(path: Path) -> os.stat_result:
    """The status of a regular file; IsADirectoryError of a folder, ValueError of a pipe or device, none is opened."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path} is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no regular file")
    return found


def read_bytes(path: Path, limit: int = JSON_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        OSError: the file is absent or cannot be read.
        ValueError: it is no regular file, which is not opened, or longer, which is not read.
    """
    path = Path(path)
    check_regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes")
    return content
