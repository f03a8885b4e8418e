"""JSON files, read with bounds and replaced whole, and JSON lines: logs and lists of one JSON object a line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teacher.files.replace import replacing
from teacher.files.text import JSON_LIMIT, read_bytes, split_lines


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
    """JSON as text for people. Names of files that are not UTF-8, which UTF-8 cannot hold, are written escaped."""
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


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Add a line to a file of JSON lines, which is made where it is missing."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(content, ensure_ascii=False) + "\n")


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a log whose lines have a "step"; None where there is none."""
    if not path.exists():
        return None
    return next((json.loads(line) for line in reversed(split_lines(_text(path))) if not math.isnan(_step(line))), None)


def drop_later(path: Path, first: int | None) -> int:
    """Drop the lines of a log after step `first` (None keeps all), whose steps come again; the number that are left.

    Half a line, which a kill may leave, goes as well; one that lacks its end alone gets it. A file with nothing to mend
    is left alone; no file is no lines.
    """
    if not path.exists():
        return 0
    text, last = _text(path), math.inf if first is None else first
    kept = [line for line in split_lines(text) if _step(line) <= last]
    whole = "".join(f"{line}\n" for line in kept)
    if whole != text:
        write_text(path, whole)
    return len(kept)


def _text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        return stream.read()


def _step(line: str) -> float:
    """nan, which is not at most anything, where there is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.nan
