"""Safetensors files read through memory maps: opening costs their headers, reading costs the rows asked for.

file = 8 bytes header length n (little endian) + n bytes JSON {name: {dtype, shape, data_offsets}} + data
"""

import ctypes
import functools
import json
import math
import mmap
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIRST_READ = 16_384
"""Bytes read at once when a file is opened: header and the index tensors behind it, in most files."""
LARGEST_HEADER = 100_000_000
MAX_MAPS = 4096
"""Files mapped at a time; the kernel allows a process 65,530 maps by default. The oldest is let go."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class FeatureError(ValueError):
    """A feature folder cannot be used or made. The message is one line that says what to do."""


BITS = {torch.float32: np.float32, torch.bfloat16: np.uint16}
"""How the features in a mapped file show."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: bytes [begin, end) of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorFile:
    """The header of a file that `store.write_tensors` wrote. Make one with `open`."""

    path: Path
    size: int
    entries: dict[str, Entry]
    metadata: dict[str, Any]
    head: bytes
    """The first bytes of the file, for `small`."""

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Read and check the header; FeatureError naming the file when it is missing, cut off or damaged."""
        try:
            with path.open("rb") as stream:
                head = stream.read(FIRST_READ)
                length = int.from_bytes(head[:8], "little")
                if len(head) < 8 or length > LARGEST_HEADER:
                    raise ValueError("no safetensors header")
                if 8 + length > len(head):
                    head += stream.read(8 + length - len(head))
                header = json.loads(head[8 : 8 + length])
                size = stream.seek(0, 2)
            metadata = json.loads(header.pop("__metadata__", {}).get("json", "{}"))
            entries = {name: _entry(described, 8 + length) for name, described in header.items()}
            end = max((entry.end for entry in entries.values()), default=8 + length)
            if end != size:
                raise ValueError(f"{size} bytes, its header says {end}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FeatureError(f"{path}: cannot be read ({error}); {AGAIN}") from error
        return cls(path, size, entries, metadata, head)

    def expect(self, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> int:
        """Check a tensor's dtype and shape, None standing for any length; returns its first length."""
        entry = self.entries.get(name)
        if entry is None:
            raise FeatureError(f"{self.path}: has no tensor {name!r}, found {sorted(self.entries)}; {AGAIN}")
        fits = len(shape) == len(entry.shape)
        if not fits or any(want not in (None, have) for want, have in zip(shape, entry.shape, strict=True)):
            raise FeatureError(f"{self.path}: {name} has shape {entry.shape}, features.json says {shape}; {AGAIN}")
        if entry.dtype != dtype:
            raise FeatureError(f"{self.path}: {name} is {entry.dtype}, expected {dtype}; {AGAIN}")
        return entry.shape[0]

    def small(self, name: str) -> Tensor:
        """A whole tensor by value, without mapping the file."""
        entry = self.entries[name]
        if entry.end <= len(self.head):
            data = bytearray(self.head[entry.begin : entry.end])
        else:
            try:
                with self.path.open("rb") as stream:
                    stream.seek(entry.begin)
                    data = bytearray(stream.read(entry.end - entry.begin))
            except OSError as error:
                raise FeatureError(f"{self.path}: cannot be read ({error}); {AGAIN}") from error
        if not data:
            return torch.zeros(entry.shape, dtype=entry.dtype)
        return torch.frombuffer(data, dtype=entry.dtype).view(entry.shape)

    def without_head(self) -> "TensorFile":
        """The same without the bytes kept for `small`, which then reads the file."""
        return TensorFile(self.path, self.size, self.entries, self.metadata, b"")


AGAIN = "extract again with --overwrite"


def _entry(described: dict[str, Any], data_begin: int) -> Entry:
    dtype, shape = DTYPES[described["dtype"]], tuple(int(n) for n in described["shape"])
    begin, end = (data_begin + int(offset) for offset in described["data_offsets"])
    if begin % dtype.itemsize:
        raise ValueError(f"offset {begin} is not a multiple of {dtype.itemsize}")
    if begin < data_begin or end - begin != math.prod(shape) * dtype.itemsize or any(n < 0 for n in shape):
        raise ValueError(f"offsets {described['data_offsets']} do not fit shape {shape}")
    return Entry(dtype, shape, begin, end)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapped file: views of its tensors, to be read only; bfloat16 shows as its bits, uint16."""

    file: TensorFile
    data: Tensor
    """All bytes of the file."""
    arrays: dict[str, np.ndarray]

    places: dict[str, tuple[int, int]]
    """Address and bytes of a row of each tensor."""

    def ask(self, name: str, row: int) -> None:
        """Tell the kernel that a row will be read, so that it fetches many rows from the disk at a time."""
        address, row_bytes = self.places[name]
        begin = address + row * row_bytes
        page = begin - begin % mmap.PAGESIZE
        advise = _advise()
        if advise is not None:
            advise(page, begin + row_bytes - page, mmap.MADV_WILLNEED)


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    """The C library's madvise(address, bytes, advice); None where there is none."""
    if not hasattr(mmap, "MADV_WILLNEED"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function  # type: ignore[no-any-return]


class Maps:
    """Memory maps of files, opened when first needed; no file descriptor stays open. Pickles as an empty one."""

    def __init__(self, limit: int = MAX_MAPS) -> None:
        self._limit = limit
        self._open: OrderedDict[int, Mapped] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def __reduce__(self) -> tuple[type["Maps"], tuple[int]]:
        return Maps, (self._limit,)

    def __call__(self, file: TensorFile) -> Mapped:
        """The map of a file; FeatureError when it is gone or has changed since it was opened."""
        found = self._open.get(id(file))  # a map keeps its file, so no other file takes its id
        if found is None:
            found = self._open[id(file)] = _map(file)
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        elif len(self._open) == self._limit:
            self._open.move_to_end(id(file))
        return found


def _map(file: TensorFile) -> Mapped:
    try:
        size = file.path.stat().st_size
        if size != file.size:
            raise ValueError(f"{size} bytes now, {file.size} when the folder was opened")
        # Unlike mmap.mmap, whose copy of the file descriptor stays open, and without a copy of the data.
        storage = torch.UntypedStorage.from_file(str(file.path), False, size)
        data = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
    except (OSError, ValueError, RuntimeError) as error:
        raise FeatureError(f"{file.path}: cannot be read ({error}); {AGAIN}") from error
    content = data.numpy()
    arrays = {
        name: content[entry.begin : entry.end].view(BITS[entry.dtype]).reshape(entry.shape)
        for name, entry in file.entries.items()
        if entry.dtype in BITS
    }
    places = {name: (data.data_ptr() + entry.begin, entry.row_bytes) for name, entry in file.entries.items()}
    return Mapped(file, data, arrays, places)


def widen(source: np.ndarray, out: np.ndarray) -> None:
    """Copy float32, or bfloat16 bits, to float32. The bits are the upper half of a float32's.

    NumPy, because it uses the calling thread alone: hundreds of small copies a batch would each wake all threads.
    """
    if source.dtype == np.uint16:
        np.left_shift(source, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
    else:
        np.copyto(out, source)
