"""Files of one JSON value a line: whole lines are appended, and what a killed process left unfinished is no line.

`read_lines` and `append_lines` are of all such files. `last_line` and `drop_later` are of the logs of a training, whose
lines have a "step" and come again when the training goes on from an earlier checkpoint.
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
    """Complete lines of a file, empty ones left out; none if it does not exist. A last line without an end is what a
    killed process left and is not counted.

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
    """Append whole lines with a single write; an unfinished last line is cut off first. Of the file only its end is
    read.

    Several processes may append to one file: each waits until the other is done. Without `wait_for_disk`, lines may be
    lost when the machine stops; so for what can be computed again.
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
    """The last whole line of a log; None where there is none."""
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
