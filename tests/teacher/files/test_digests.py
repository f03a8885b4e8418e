"""digests.json: what differs is named, and files are compared with their record when they are opened."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch

from teacher.files import (
    check_digests,
    compare_recorded,
    file_sha256,
    json_digest,
    parts_digest,
    read_digests,
    recorded_steps,
    tensors_digest,
    write_digests,
)
from teacher.files.digests import tensor_parts


def test_damage_is_named_and_nothing_else(tmp_path):
    for name in ("a", "b", "c", "new"):
        (tmp_path / name).write_bytes(name.encode() * 10)
    write_digests(tmp_path, ["a", "b"], known={"a": (10, file_sha256(tmp_path / "a"))})
    write_digests(tmp_path, ["c"])
    assert check_digests(tmp_path) == []
    (tmp_path / "a").write_bytes(b"aaaaaaaaab")
    (tmp_path / "b").write_bytes(b"b")
    (tmp_path / "c").unlink()
    (tmp_path / "new").write_bytes(b"")
    found = check_digests(tmp_path)
    assert [line.split()[0].rpartition("/")[2] for line in found] == ["a", "b", "c"]
    assert ["damaged" in found[0], "1 bytes instead of 10" in found[1], "missing" in found[2]] == [True] * 3
    assert check_digests(tmp_path, ["new"]) == []


def test_a_file_is_compared_with_its_record_when_it_is_opened(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345678")
    compare_recorded(path)  # nothing is recorded
    write_digests(tmp_path, ["a.bin"], step=3)
    compare_recorded(path)
    assert recorded_steps(tmp_path) == {"a.bin": 3}
    path.write_bytes(b"12345679")
    with pytest.raises(
        ValueError, match=r"a.bin is damaged.*restore the file, or, if you replaced it on purpose, remove"
    ):
        compare_recorded(path)
    write_digests(tmp_path, (), forget=["a.bin"])
    compare_recorded(path)
    assert read_digests(tmp_path) == {}


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b"])
def test_a_record_that_leaves_its_folder_is_refused(tmp_path, name):
    (tmp_path / "digests.json").write_text(json.dumps({"format": 1, "files": {name: {"bytes": 1, "sha256": "0" * 64}}}))
    with pytest.raises(ValueError, match="outside the folder"):
        check_digests(tmp_path)


def test_the_front_of_the_package_needs_no_torch():
    """A report from rows, and every command that fails early, would wait for it."""
    code = "import sys, teacher.files, teacher.files.lines, teacher.files.errors; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_digests_of_plain_values_and_tensors_are_what_they_always_were():
    """Kept features, caches and rows are found by them: computed here from their definitions alone."""
    plain = {"b": [1, "é"], "a": None}
    assert json_digest(plain) == hashlib.sha256(b'{"a": null, "b": [1, "\\u00e9"]}').hexdigest()
    assert json_digest(plain, sort_keys=False) == hashlib.sha256(b'{"b": [1, "\\u00e9"], "a": null}').hexdigest()
    assert json_digest([1], [b"x", b"y"]) == hashlib.sha256(b"[1]xy").hexdigest()
    tensors = {"b": torch.tensor([1, 2], dtype=torch.bfloat16), "a": torch.tensor(1, dtype=torch.int8)}
    content = b"a torch.int8 ()\n\x01" + b"b torch.bfloat16 (2,)\n\x80\x3f\x00\x40"
    assert tensors_digest(tensors) == hashlib.sha256(content).hexdigest()[:12]
    parts = b'["a torch.int8 []", 1]\x01["b torch.bfloat16 [2]", 4]\x80\x3f\x00\x40'
    assert parts_digest(tensor_parts(tensors)) == hashlib.sha256(parts).hexdigest()
