"""digests.json: what differs is named, and files are compared with their record when they are opened."""

import json

import pytest

from teacher.files import (
    check_digests,
    compare_recorded,
    file_sha256,
    read_digests,
    recorded_steps,
    write_digests,
)


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
