"""Files of one record a line: whole lines are appended, and a line that a killed process left unfinished is no line."""

import os
from collections.abc import Iterable
from pathlib import Path

from teacher.files.locks import wait_for_lock

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
