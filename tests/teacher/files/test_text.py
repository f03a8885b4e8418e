"""Text and JSON of strangers: lines end at line feeds alone, and files take bounded time and memory."""

import os

import pytest

from teacher.files import (
    read_json,
    split_lines,
)


def test_lines_end_at_line_feeds_alone():
    assert split_lines("a\u2028b\n\x85c\x0c\r\nd") == ["a\u2028b", "\x85c\x0c", "d"]
    assert split_lines("") == []
    assert split_lines("a\n\n") == ["a", ""]


def test_json_of_strangers(tmp_path):
    path = tmp_path / "c.json"
    for content, words in (
        ("[" * 100_000, "nested too deep"),
        ("[1]", "not a JSON object"),
        ('{"a": 1', "not valid JSON"),
        ('{"a": "' + "x" * 100 + '"}', "more than 64 bytes"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            read_json(path, limit=64 if "more" in words else 1 << 20)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="not valid JSON"):
        read_json(path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match="no regular file"):
            read_json(tmp_path / name)
