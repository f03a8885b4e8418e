"""Feature files that vanish, are cut short or rot while a set is open: one line naming the file, never a signal."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from teacher.features import store
from teacher.features.dataset import FeatureSet
from teacher.files.errors import FeatureError
from teacher.files.tensor_file import TensorFile, is_finite
from tests.teacher.features.test_store import rewrite, write

SHARD, TEXT = ("train-00001", 6), ("texts/00000", 0)
"""A file and a row that needs it."""


def path_of(folder: Path, name: str) -> Path:
    return store.text_path(folder, 0) if "texts" in name else store.shard_path(folder, "train", 1)


def refused(features: FeatureSet, row: int, match: str) -> None:
    """One line that names the file and says what to do; other files still serve."""
    with pytest.raises(FeatureError, match=match) as caught:
        features.batch([row])
    assert "\n" not in str(caught.value)
    assert "extract again" in str(caught.value)
    features.batch([1])  # shard 0, text file 1


@pytest.mark.parametrize("seen", [False, True], ids=["not yet read", "read before"])
@pytest.mark.parametrize(("name", "row"), [SHARD, TEXT])
def test_a_file_that_vanishes(tmp_path, name, row, seen):
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    if seen:
        features.batch(range(7))
    path_of(tmp_path, name).unlink()
    refused(features, row, rf"{name}\.safetensors: cannot be read \(.*No such file")


@pytest.mark.parametrize("seen", [False, True], ids=["not yet read", "read before"])
@pytest.mark.parametrize(("name", "row"), [SHARD, TEXT])
def test_a_file_cut_short_ends_in_an_error_and_not_in_a_signal(tmp_path, name, row, seen):
    """In a process of its own: touching a memory map behind the end of its file is SIGBUS, status -7."""
    write(tmp_path)
    code = f"""
        import os
        from pathlib import Path
        from teacher.files.errors import FeatureError
        from teacher.features.dataset import FeatureSet
        features = FeatureSet.open(Path({str(tmp_path)!r}), "train")
        if {seen}:
            features.batch(range(7))
        os.truncate({str(path_of(tmp_path, name))!r}, 8192)
        try:
            features.batch([{row}])
        except FeatureError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done
    assert f"{name}.safetensors: cannot be read (8192 bytes now" in done.stdout
    assert done.stderr == ""


def test_a_file_cut_short_between_the_check_and_the_read(tmp_path, monkeypatch):
    """What no check beforehand can see, as on a network disk that knows the old size."""
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    features.batch(range(7))
    path = path_of(tmp_path, SHARD[0])
    monkeypatch.setattr("teacher.files.tensor_file.OpenFile.current", True)
    os.truncate(path, 8192)
    refused(features, SHARD[1], r"train-00001\.safetensors: cannot be read \(it ends before byte \d+, to")


def test_reads_that_come_in_pieces_are_put_together(tmp_path, monkeypatch):
    write(tmp_path)
    expected = FeatureSet.open(tmp_path, "train").batch(range(7))
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: whole(fd, [memoryview(into[0]).cast("B")[:1000]], at))
    pieces = FeatureSet.open(tmp_path, "train").batch(range(7))
    assert torch.equal(pieces.latents, expected.latents)
    assert torch.equal(pieces.conditions.sync, expected.conditions.sync)
    assert torch.equal(pieces.conditions.text, expected.conditions.text)


def test_a_disk_that_fails(tmp_path, monkeypatch):
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")

    def failing(*_args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(FeatureError, match=r"\.safetensors: cannot be read \(.*Input/output error\); restore"):
        features.batch([0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["mean", "std", "clip", "sync", "text", "shared"])
def test_numbers_that_are_not_finite_never_reach_a_batch(tmp_path, name, value):
    """One number in one row; rows that do not use it still come."""
    write(tmp_path, shared=3)
    file, row = TEXT if name in ("text", "shared") else SHARD
    path = path_of(tmp_path, file)
    stored = TensorFile.open(path).tensor(name)
    stored[0 if "texts" in file else -1].view(-1)[3] = value
    rewrite(path, **{name: stored})
    features = FeatureSet.open(tmp_path, "train")
    refused(features, row, rf"{file}\.safetensors: {name} \d holds NaN or infinity")


def test_bits_are_finite_exactly_where_their_numbers_are():
    """All 65,536 bfloat16 values, each beside a zero."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    made = [is_finite(np.array([0, one], np.uint16)) for one in bits]
    assert made == torch.isfinite(numbers).tolist()
    assert is_finite(np.array([1.0, -3e38], np.float32))
    assert not is_finite(np.array([1.0, np.nan], np.float32))


def test_a_header_that_is_overwritten_while_the_set_is_open(tmp_path):
    """The size stays, and so would the positions of the rows; what lies there nobody knows."""
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    features.batch(range(7))
    path = path_of(tmp_path, SHARD[0])
    with path.open("r+b") as stream:
        stream.write(b"\xff" * 200)
    os.utime(path, ns=(1, 1))  # a clock too coarse to tell the two writes apart would pass by chance
    refused(features, SHARD[1], r"train-00001\.safetensors: cannot be read \(no safetensors header\)")


def test_a_file_of_other_shape_and_the_same_size_is_not_taken_for_the_old_one(tmp_path):
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    path = path_of(tmp_path, SHARD[0])
    content = path.read_bytes()
    assert content.count(b'"clip":') == content.count(b'"sync":') == 1
    swapped = content.replace(b'"clip":', b'"????":').replace(b'"sync":', b'"clip":').replace(b'"????":', b'"sync":')
    path.write_bytes(swapped)
    os.utime(path, ns=(1, 1))
    refused(features, SHARD[1], r"train-00001\.safetensors: cannot be read \(its header is not the one")


def test_the_same_file_put_back_is_taken(tmp_path):
    """A copy, a restored backup or a touch changes the time alone."""
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    expected = features.batch(range(7)).latents
    path = path_of(tmp_path, SHARD[0])
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert torch.equal(features.batch(range(7)).latents, expected)


@pytest.mark.parametrize("what", ["captions", "records"])
def test_records_of_a_file_cut_short(tmp_path, what):
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    file = TEXT[0] if what == "captions" else SHARD[0]
    path = path_of(tmp_path, file)
    os.truncate(path, TensorFile.open(path).entries[what].begin + 3)
    with pytest.raises(FeatureError, match=rf"{file}\.safetensors: cannot be read \(it ends inside {what}\)"):
        features.records[0 if what == "captions" else 6]
