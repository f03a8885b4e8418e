"""Files of JSON lines: whole lines are appended, and an unfinished line of a killed process is ignored.

`read_lines` and `append_lines` are for all such files. `last_line` and `drop_later` are for the logs of a training,
whose lines have a "step" and are written again when training resumes from an earlier checkpoint.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from teacher.files.folders import wait_for_lock
from teacher.files.text import split_lines, write_text

TAIL_BYTES = 1 << 16


def read_lines(path: Path) -> list[str]:
    """Complete, non-empty lines of a file; none if it does not exist. A last line without a line feed was left by a
    killed process and is ignored.

    Raises:
        ValueError: the file is not UTF-8.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not UTF-8 ({error})") from error
    return [line for line in text.split("\n")[:-1] if line.strip()]


def append_lines(path: Path, lines: Iterable[str], *, wait_for_disk: bool = True) -> None:
    """Append whole lines with a single write, after cutting off an unfinished last line. Only the file's end is read.

    Several processes may append to one file: each waits for the others. Without `wait_for_disk`, lines may be lost when
    the machine stops, which is acceptable for values that can be computed again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    block = "".join(f"{line}\n" for line in lines).encode()
    with path.open("ab+") as file:
        wait_for_lock(file.fileno())
        end = file.seek(0, os.SEEK_END)
        start = end
        while start:
            begin = max(0, start - TAIL_BYTES)
            file.seek(begin)
            newline = file.read(start - begin).rfind(b"\n")
            if newline >= 0:
                start = begin + newline + 1
                break
            start = begin
        if start < end:
            file.truncate(start)
        file.seek(0, os.SEEK_END)
        file.write(block)
        file.flush()
        if wait_for_disk:
            os.fsync(file.fileno())


def last_line(path: Path) -> dict[str, Any] | None:
    """The last complete line of a log; None if there is none."""
    if not path.exists():
        return None
    return next((json.loads(line) for line in reversed(split_lines(_text(path))) if not math.isnan(_step(line))), None)


def drop_later(path: Path, first: int | None) -> int:
    """Remove the lines of a log after step `first` (None removes none), whose steps are repeated; returns the rest's
    number.

    Half a line, which a kill may leave, is removed too; a complete last line without a line feed gets one. A file that
    needs no change is not written; a missing file has no lines.
    """
    if not path.exists():
        return 0
    text, last = _text(path), math.inf if first is None else first
    remaining = [line for line in split_lines(text) if _step(line) <= last]
    whole = "".join(f"{line}\n" for line in remaining)
    if whole != text:
        write_text(path, whole)
    return len(remaining)


def _text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        return stream.read()


def _step(line: str) -> float:
    """The line's step; nan, which compares as False with every number, if it has none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.nan
