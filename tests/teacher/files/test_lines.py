"""Lines are appended whole: an unfinished one is cut off, and of a long file only the end is read."""

import os
import threading

import pytest

from teacher.files import wait_for_lock
from teacher.files.lines import TAIL_BYTES, append_lines, read_lines


def test_whoever_appends_waits_for_a_line_that_is_being_written(tmp_path):
    path, done = tmp_path / "files-0.jsonl", threading.Event()
    with path.open("ab") as other:
        wait_for_lock(other.fileno())
        other.write(b'["a", 1')
        other.flush()
        mine = threading.Thread(target=lambda: (append_lines(path, ["mine"]), done.set()))
        mine.start()
        assert not done.wait(0.3)
        other.write(b', 2, "d"]\n')
    mine.join(10)
    assert path.read_text() == '["a", 1, 2, "d"]\nmine\n'


@pytest.mark.parametrize("unfinished", ["", "cut", "c" * (2 * TAIL_BYTES + 5)])
@pytest.mark.parametrize("whole", [0, 1, TAIL_BYTES])
def test_an_unfinished_last_line_is_no_line_and_gives_way_to_the_next(tmp_path, whole, unfinished):
    path = tmp_path / "lines"
    before = ["é" * whole] if whole else []
    path.write_text("".join(f"{line}\n" for line in before) + unfinished, encoding="utf-8")
    assert read_lines(path) == before
    append_lines(path, ["next", "last"])
    assert path.read_text(encoding="utf-8").split("\n") == [*before, "next", "last", ""]


def test_of_a_long_file_only_the_end_is_read(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "lines"
    append_lines(path, ["x" * (10 * TAIL_BYTES)])
    append_lines(path, ["y"])
    read, synced = [], []
    opened = type(path).open

    def counted(self, *mode):
        file = opened(self, *mode)
        whole = file.read
        file.read = lambda size: (read.append(size), whole(size))[1]
        return file

    monkeypatch.setattr(type(path), "open", counted)
    monkeypatch.setattr(os, "fsync", synced.append)
    append_lines(path, ["z"])
    append_lines(path, ["lost when the machine stops"], wait_for_disk=False)
    assert read == [TAIL_BYTES, TAIL_BYTES]
    assert len(synced) == 1


def test_what_is_not_text_is_named(tmp_path):
    (tmp_path / "lines").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="lines is damaged: it is not UTF-8"):
        read_lines(tmp_path / "lines")
    assert read_lines(tmp_path / "absent") == []
