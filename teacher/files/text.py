"""Text and JSON files: read within bounds on time and memory, and replaced atomically.

Lines end at a line feed alone, and reading a file takes bounded time and memory.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from teacher.files.replace import replacing

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
    """The text with all non-printable characters (line ends, control characters) written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_regular(path: Path) -> os.stat_result:
    """Status of a regular file, without opening it; IsADirectoryError for a folder, ValueError for a pipe or device."""
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


def read_json(path: Path, *, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """A JSON object from a file. Pipes and devices are not opened, longer files not read.

    Raises:
        OSError: the file is absent or cannot be read.
        ValueError: it is no regular file, longer than `limit` bytes, not UTF-8, no JSON object, or nested too deep.
    """
    content = read_bytes(path, limit)
    try:
        plain = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(plain, dict):
        raise ValueError(f"{path} is not a JSON object")
    return plain


def as_json(content: Any, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """JSON as readable text; names of files that are not UTF-8 are written as escapes."""
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent, separators=separators)
    return text


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Replace a JSON file whole (`replacing`); its text is that of `as_json` and a line feed."""
    write_text(path, as_json(content, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole (`replacing`), in UTF-8 and with the line ends of the text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
