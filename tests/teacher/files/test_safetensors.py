"""Safetensors files: bytes as the package writes them, headers that are checked, tensors that come back."""

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from teacher.files.safetensors import (
    DTYPES,
    Described,
    read_content,
    read_header,
    stream_tensors,
    stream_values,
    total_bytes,
    write_tensors,
)


def mixed():
    """A tensor of every type, names that JSON escapes, a scalar, an empty and a transposed one."""
    g = torch.Generator().manual_seed(0)
    made = {
        f'{"zyx"[k % 3]}{k}é"\n': torch.randint(0, 2, (k % 4, 3), generator=g).to(d)
        for k, d in enumerate(DTYPES.values())
    }
    return made | {"one": torch.tensor(1.5), "none": torch.zeros(0, 4), "turned": torch.arange(6.0).view(2, 3).T}


@pytest.mark.parametrize("metadata", [None, {}, {"json": '{"a": "é\u2028\x1f"}'}])
def test_bytes_are_those_of_the_package(tmp_path, metadata):
    """With one entry of metadata; several come in any order there, and in the given one here."""
    written = write_tensors(tmp_path / "a.safetensors", mixed(), metadata)
    content = (tmp_path / "a.safetensors").read_bytes()
    assert content == save({name: tensor.contiguous() for name, tensor in mixed().items()}, metadata=metadata)
    assert written == (len(content), hashlib.sha256(content).hexdigest())


def test_tensors_and_metadata_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, mixed(), {"b": "1", "a": "2"})
    tensors, metadata = read_content(path)
    assert metadata == {"a": "2", "b": "1"}
    assert tensors.keys() == mixed().keys()
    assert all(
        torch.equal(tensors[name].double(), tensor.double())
        for name, tensor in mixed().items()
        if not tensor.is_complex()
    )
    assert list(read_content(path, ["one"]).tensors) == ["one"]
    header = read_header(path)
    assert list(header.metadata) == ["b", "a"]
    assert {name: (e.dtype, e.shape) for name, e in header.entries.items()} == {
        name: (t.dtype, tuple(t.shape)) for name, t in mixed().items()
    }


def test_tensors_begin_at_multiples_of_their_elements(tmp_path):
    write_tensors(tmp_path / "a.safetensors", mixed())
    header = read_header(tmp_path / "a.safetensors")
    assert all(entry.begin % entry.dtype.itemsize == 0 for entry in header.entries.values())
    assert total_bytes(mixed()) == sum(entry.end - entry.begin for entry in header.entries.values())


def test_values_made_one_by_one_keep_their_order(tmp_path):
    described = [Described("b", torch.float32, (2,)), Described("a", torch.float32, ())]
    stream_values(tmp_path / "a.safetensors", described, iter([torch.ones(2), torch.tensor(3.0)]))
    assert list(read_header(tmp_path / "a.safetensors").entries) == ["b", "a"]
    assert load_file(tmp_path / "a.safetensors")["a"] == 3
    with pytest.raises(OSError, match="bytes after"):  # fewer values than described
        stream_values(tmp_path / "b.safetensors", described, iter([torch.ones(2)]))


def test_a_type_that_the_format_lacks_and_a_file_that_is_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"z is of type torch.complex128"):
        write_tensors(tmp_path / "a.safetensors", {"z": torch.zeros(2, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.safetensors").write_text("old")
    with pytest.raises(FileExistsError):
        stream_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})


def header_of(entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
NOT_HEADERS = {
    "nothing": (b"", "no safetensors header"),
    "a header of terabytes": (b"\xff" * 7 + b"\0" * 9, "no safetensors header"),
    "cut off": (header_of({"a": A})[:20], "Expecting|Unterminated|delimiter"),
    "no data": (header_of({"a": A}), "its header says"),
    "data too long": (header_of({"a": A}) + bytes(5), "its header says"),
    "overlapping": (header_of({"a": A, "b": A}) + bytes(4), "overlap"),
    "a name twice": ((25).to_bytes(8, "little") + b'{"a":1,"a":1}'.ljust(25), "twice"),
    "another shape": (header_of({"a": A | {"shape": [2]}}) + bytes(4), "do not fit shape"),
    "a negative shape": (header_of({"a": A | {"shape": [-1, -1]}}) + bytes(4), "do not fit shape"),
    "an unknown type": (header_of({"a": A | {"dtype": "F3"}}) + bytes(4), "header is damaged"),
    "a list": (header_of([A]) + bytes(4), "header is damaged"),
    "nested": ((100_000).to_bytes(8, "little") + b"[" * 100_000, "header is damaged"),
}


@pytest.mark.parametrize("name", NOT_HEADERS)
def test_what_is_no_header_is_a_value_error(tmp_path, name):
    content, words = NOT_HEADERS[name]
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_header(tmp_path / "a")
    with pytest.raises(ValueError):  # noqa: PT011 - the words are the package's
        read_content(tmp_path / "a")


def test_neither_pipes_nor_missing_names_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_header, read_content):
        with pytest.raises(ValueError, match="no regular file"):
            read(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "gone")
    save_file({"a": torch.zeros(1)}, tmp_path / "a")
    with pytest.raises(ValueError, match="b"):
        read_content(tmp_path / "a", ["b"])
