"""JSON from strangers takes bounded time and memory."""

import os

import pytest

from teacher.files import (
    read_json,
)


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
