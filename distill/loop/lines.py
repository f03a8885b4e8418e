"""Logs of one JSON object a line, each with its step."""

import json
import math
from pathlib import Path
from typing import Any

from teacher.files import replacing, split_lines


def drop_later(path: Path, first: int | None) -> int:
    """Drop the lines after step `first` (None keeps all), whose steps come again; the number that are left.

    Half a line, which a kill may leave, goes as well; one that lacks its end alone gets it. A file with nothing to mend
    is left alone; no file is no lines.
    """
    if not path.exists():
        return 0
    text, last = _text(path), math.inf if first is None else first
    kept = [line for line in split_lines(text) if _step(line) <= last]
    whole = "".join(f"{line}\n" for line in kept)
    if whole != text:
        with replacing(path) as staging:
            staging.write_text(whole, encoding="utf-8", newline="")
    return len(kept)


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line; None where there is none."""
    if not path.exists():
        return None
    return next((json.loads(line) for line in reversed(split_lines(_text(path))) if not math.isnan(_step(line))), None)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        return stream.read()


def _step(line: str) -> float:
    """nan, which is not at most anything, where there is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.nan
