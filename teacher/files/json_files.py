"""JSON files, read with bounds and replaced whole."""

import json
from pathlib import Path
from typing import Any

from teacher.files.replace import replacing
from teacher.files.text import JSON_LIMIT, read_bytes


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
