"""Safetensors files, the only format of tensors on disk: written in one pass with their digest, read by their header.

file = 8 bytes header length n (little endian) + n bytes JSON {name: {dtype, shape, data_offsets}} + data

The JSON may also hold {"__metadata__": {text: text}}. The tensors follow one another without gaps, the widest types
first and by name within a type, so that each begins at a multiple of its element's size; the order, and with it every
byte, is that of the safetensors package, whose metadata however come in any order and here in the given one. The digest
is taken from the bytes handed to the file system, while it writes them: a file that later reads otherwise, be it
through a fault on the way to the disk, does not have it. Memory for one tensor is enough, whatever the file.

Nothing else in this project imports the safetensors package. Weights with strict names and shapes are read by
`teacher.files.components`, single rows of features by `teacher.files.tensor_file`.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from teacher.files.replace import Written, replacing, write_blocks
from teacher.files.text import check_regular

Tensors: TypeAlias = dict[str, Tensor]

DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by their name in a header, in the order in which their tensors are written."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ORDER = {dtype: place for place, dtype in enumerate(DTYPES.values())}
ALIGNMENT = 8
"""The header is filled with spaces to a multiple of so many bytes."""
BLOCK = 2**24
"""Bytes hashed and written at a time."""
FIRST_READ = 16_384
"""Bytes read at once when a file is opened: the header, and the small tensors behind it, in most files."""
LARGEST_HEADER = 100_000_000
"""Longest header in bytes that is read; that of a network of 5,000 tensors has half a million."""


class Described(NamedTuple):
    """Name, type and shape of a tensor in a header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Size of the tensor's values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Written:
    """Replace a safetensors file atomically; returns its length and digest.

    Raises OSError if it cannot be written, ValueError for a tensor of a type that the format does not have.
    """
    with replacing(path) as staging:
        return stream_tensors(staging, tensors, metadata)


def stream_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Written:
    """Write a new safetensors file tensor by tensor and flush it to disk; returns its length and digest.

    Raises FileExistsError if the file exists, ValueError for a tensor of a type that the format does not have.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise ValueError(f"{name} is of type {tensor.dtype}, which is not written to safetensors files")
    ordered = sorted(tensors.items(), key=lambda item: (ORDER[item[1].dtype], item[0]))
    described = [Described(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered]
    return stream_values(path, described, (tensor for _, tensor in ordered), metadata)


def stream_values(
    path: Path, described: Sequence[Described], values: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> Written:
    """As `stream_tensors`, but with tensors from an iterator, in the order of `described`."""
    header = _header(described, metadata)
    return write_blocks(path, _blocks(header, values), len(header) + sum(one.size for one in described))


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size in bytes of all values in a file, without its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _header(described: Sequence[Described], metadata: Mapping[str, str] | None) -> bytes:
    """Length of the description in 8 bytes, then the description, filled with spaces."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for one in described:
        end = offset + one.size
        entries[one.name] = {"dtype": NAMES[one.dtype], "shape": list(one.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _blocks(header: bytes, values: Iterable[Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in values:
        plain = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        content = plain.numpy().data
        yield from (content[k : k + BLOCK] for k in range(0, len(content), BLOCK))


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's type, shape and position: bytes [begin, end) of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The checked header of a file, whose tensors do not overlap and end with the file."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    size: int
    """Length of the file in bytes."""
    mtime_ns: int
    """Time of the file's last modification, in nanoseconds."""
    head: bytes
    """The first bytes of the file: the header, and at least `FIRST_READ` bytes if the file is that long."""


def read_header(path: Path) -> Header:
    """Read and check a header, without the tensors. Raises OSError, or ValueError if it is truncated or damaged."""
    check_regular(path)
    with path.open("rb", buffering=0) as stream:
        head = stream.read(FIRST_READ)
        length = int.from_bytes(head[:8], "little")
        if len(head) < 8 or length > LARGEST_HEADER:
            raise ValueError("no safetensors header")
        while len(head) < 8 + length and (more := stream.read(8 + length - len(head))):
            head += more
        found = os.fstat(stream.fileno())
    try:
        plain = json.loads(head[8 : 8 + length], object_pairs_hook=_distinct)
        metadata = {str(name): str(text) for name, text in (plain.pop("__metadata__", None) or {}).items()}
        entries = {name: _entry(described, 8 + length) for name, described in plain.items()}
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its header is damaged: {error!r}") from error
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin < end:
            raise ValueError("tensors overlap")
        end = entry.end
    if end != found.st_size:
        raise ValueError(f"{found.st_size} bytes, its header says {end}")
    return Header(entries, metadata, found.st_size, found.st_mtime_ns, head)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _entry(described: dict[str, Any], data_begin: int) -> Entry:
    dtype, shape = DTYPES[described["dtype"]], tuple(int(n) for n in described["shape"])
    begin, end = (data_begin + int(offset) for offset in described["data_offsets"])
    if begin < data_begin or end - begin != math.prod(shape) * dtype.itemsize or any(n < 0 for n in shape):
        raise ValueError(f"offsets {described['data_offsets']} do not fit shape {shape}")
    return Entry(dtype, shape, begin, end)


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A file whose tensors are mapped into memory by the safetensors package and read when they are used.

    Raises OSError, or ValueError where the file is damaged or a tensor is asked for that it does not hold.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(str(error)) from error


class Content(NamedTuple):
    """Tensors and metadata of a file."""

    tensors: Tensors
    metadata: dict[str, str]


def read_content(path: Path, names: Iterable[str] | None = None) -> Content:
    """Whole tensors, all or those of these names, and the metadata. Raises OSError, or ValueError for damage."""
    with opened(path) as file:
        wanted = file.keys() if names is None else names
        return Content({name: file.get_tensor(name) for name in wanted}, dict(file.metadata() or {}))
