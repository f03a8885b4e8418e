"""Safetensors files with checksums of their rows, as those of features are, read row by row.

Opening reads only their headers, reading only the requested rows.

Rows are read at their positions, not through memory maps: under a map, a file that is cut short or a disk that fails
ends the process by SIGBUS, and a file system that hangs holds the interpreter's lock.

All data are compared with the file's checksums, if it has any: a row of a large tensor with its CRC-32 when a process
first reads it, everything else with one SHA-256 when the file is opened (`intact`).
"""

import json
import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from teacher.files.digests import json_digest, tensor_bytes
from teacher.files.errors import FeatureError
from teacher.files.safetensors import Entry, Written, read_header, write_tensors
from teacher.files.text import as_json

MAX_OPEN = 128
"""Most open files of one split, as a process may often open only 1024; beyond, the least recently used is closed."""
CHECKS = ".crc"
"""Suffix of the name of a tensor's checksums."""
BY_ROW = ("mean", "std", "clip", "sync", "shared", "text")
WHOLE = ("records", "captions")
"""Tensors with a checksum for each row, and tensors with a single one."""


class DamagedRow(FeatureError):
    """A row is damaged: its CRC-32 is not the recorded one."""

    def __init__(self, file: "TensorFile", name: str, row: int) -> None:
        super().__init__(f"{file.path}: row {row} of {name} is damaged; {RESTORE}")
        self.file, self.name, self.row = file, name, row


def row_checks(name: str, tensor: Tensor) -> Tensor | None:
    """CRC-32 of each row of a large tensor, int64 (rows,); of text (1,); None for other tensors."""
    if name not in (*BY_ROW, *WHOLE):
        return None
    content = tensor.contiguous().flatten().view(torch.uint8).numpy().data
    count = 1 if name in WHOLE else tensor.shape[0]
    size = len(content) // count if count else 0
    return torch.tensor([zlib.crc32(content[k * size : (k + 1) * size]) for k in range(count)], dtype=torch.int64)


def small_digest(
    described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    content: Callable[[str], bytes],
    metadata: Mapping[str, Any],
) -> str:
    """SHA-256 of names, types and shapes of all tensors, of the metadata, and of the bytes of the small tensors, among
    them the checks of the large ones."""
    named = {name: [str(dtype), list(shape)] for name, (dtype, shape) in described.items()}
    small = (name for name in sorted(described) if name not in (*BY_ROW, *WHOLE))
    return json_digest([named, metadata], map(content, small))


def write_checked(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Written:
    """Replace a safetensors file whole, with one JSON string as metadata and the checks of everything in it; its length
    and SHA-256."""
    made = {n: t.detach().cpu().contiguous() for n, t in tensors.items() if not n.endswith(CHECKS)}
    made |= {f"{name}{CHECKS}": checks for name in list(made) if (checks := row_checks(name, made[name])) is not None}
    described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in made.items()}
    plain = {name: value for name, value in metadata.items() if name != "digest"}
    digest = small_digest(described, lambda name: tensor_bytes(made[name]), plain)
    return write_tensors(path, made, {"json": as_json(plain | {"digest": digest})})


BITS = {torch.float32: np.float32, torch.bfloat16: np.uint16}
"""How features are read: bfloat16 as its bits."""


class Place(NamedTuple):
    """Rows of a tensor in its file: the first begins at byte `begin`, each takes `size` bytes."""

    begin: int
    size: int
    shape: tuple[int, ...]
    dtype: type[Any]


def _place(entry: Entry) -> Place:
    """The position, size, shape and type of a tensor's rows."""
    return Place(entry.begin, math.prod(entry.shape[1:]) * entry.dtype.itemsize, entry.shape[1:], BITS[entry.dtype])


@dataclass(frozen=True, slots=True)
class TensorFile:
    """The header of a file written by `write_checked`; made with `open`."""

    path: Path
    size: int
    entries: dict[str, Entry]
    metadata: dict[str, Any]
    head: bytes
    """The first bytes of the file, for `tensor`."""
    mtime_ns: int
    """When the file was last written to."""

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Read and check the header; FeatureError naming the file when it is missing, cut off or damaged."""
        try:
            header = read_header(path)
            metadata = json.loads(header.metadata.get("json", "{}"))
            for entry in header.entries.values():
                if entry.begin % entry.dtype.itemsize:
                    raise ValueError(f"offset {entry.begin} is not a multiple of {entry.dtype.itemsize}")
            if not isinstance(metadata, dict):
                raise ValueError("its metadata are no JSON object")
            _check_checks(header.entries, metadata)
        except (OSError, ValueError, RecursionError) as error:
            raise FeatureError(f"{path}: cannot be read ({error}); {AGAIN}") from error
        return cls(path, header.size, header.entries, metadata, header.head, header.mtime_ns)

    @property
    def has_checks(self) -> bool:
        """Whether the file has checksums; files of older versions have none."""
        return "digest" in self.metadata

    def intact(self) -> "TensorFile":
        """This file, after comparing all but the large tensors with its digest; FeatureError if it is damaged."""
        if self.has_checks:
            described = {name: (entry.dtype, entry.shape) for name, entry in self.entries.items()}
            metadata = {name: value for name, value in self.metadata.items() if name != "digest"}
            if small_digest(described, self._bytes, metadata) != self.metadata["digest"]:
                raise FeatureError(f"{self.path}: is damaged, its digest is not the recorded one; {AGAIN}")
        return self

    def verify(self) -> None:
        """Read the whole file once; raises FeatureError if it is damaged."""
        self.intact()
        for name in (*BY_ROW, *WHOLE):
            if name in self.entries:
                self.tensor(name)

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

    def tensor(self, name: str) -> Tensor:
        """A whole tensor by value, compared with its checks; FeatureError where the file is gone, ends early or is
        damaged."""
        entry, data = self.entries[name], bytearray(self._bytes(name))
        found = (
            torch.frombuffer(data, dtype=entry.dtype).view(entry.shape)
            if data
            else torch.zeros(entry.shape, dtype=entry.dtype)
        )
        if name + CHECKS in self.entries and (checks := row_checks(name, found)) is not None:
            differing = torch.nonzero(checks != self.tensor(name + CHECKS)).flatten().tolist()
            if differing:
                raise DamagedRow(self, name, differing[0])
        return found

    def _bytes(self, name: str) -> bytes:
        entry = self.entries[name]
        if entry.end <= len(self.head):
            return self.head[entry.begin : entry.end]
        try:
            with self.path.open("rb") as stream:
                stream.seek(entry.begin)
                data = stream.read(entry.end - entry.begin)
            if len(data) != entry.end - entry.begin:
                raise ValueError(f"it ends inside {name}")
        except (OSError, ValueError) as error:
            raise FeatureError(f"{self.path}: cannot be read ({error}); {RESTORE}") from error
        return data

    def without_head(self) -> "TensorFile":
        """A copy without the cached first bytes, so that `tensor` reads the file."""
        return TensorFile(self.path, self.size, self.entries, self.metadata, b"", self.mtime_ns)


AGAIN = "extract again: the same mf-extract command makes the damaged files anew, and no others"
RESTORE = f"restore it from a copy or {AGAIN}"
"""Remedy for a file that was intact when the folder was opened."""


def _check_checks(entries: Mapping[str, Entry], metadata: Mapping[str, Any]) -> None:
    """Raise ValueError if a file has only some checksums, or checksums that do not fit its tensors."""
    checks = {name for name in entries if name.endswith(CHECKS)}
    if not checks and "digest" not in metadata:
        return
    expected = {name + CHECKS for name in (*BY_ROW, *WHOLE) if name in entries}
    if checks != expected or "digest" not in metadata:
        raise ValueError("its checks are incomplete")
    for name in checks:
        of = name.removesuffix(CHECKS)
        count = 1 if of in WHOLE else entries[of].shape[0]
        if entries[name].dtype != torch.int64 or entries[name].shape != (count,):
            raise ValueError(f"{name} does not fit {of}")


Pending = dict[str, np.ndarray]
"""By tensor, what the CRC-32 of each row must be, uint32 (rows,); 0 where the row was compared already."""


class OpenFile:
    """A file opened to read rows, checked to be the one whose header was read; closed when it is garbage collected."""

    def __init__(self, file: TensorFile) -> None:
        self._descriptor = -1
        self.file = file
        self.pending: Pending = {}
        self._shared: np.ndarray | None = None
        self._places = {name: _place(entry) for name, entry in file.entries.items() if entry.dtype in BITS}
        self._descriptor = os.open(file.path, os.O_RDONLY)
        found = os.fstat(self._descriptor)
        self.stamp = (found.st_mtime_ns, found.st_size)
        if found.st_size != file.size:
            raise ValueError(f"{found.st_size} bytes now, {file.size} when the folder was opened")
        if found.st_mtime_ns != file.mtime_ns and TensorFile.open(file.path).entries != file.entries:
            raise ValueError("its header is not the one it had when the folder was opened")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when the interpreter ends
        if self._descriptor >= 0:
            close(self._descriptor)

    @property
    def current(self) -> bool:
        """Whether the file has been neither removed nor modified since it was opened."""
        found = os.fstat(self._descriptor)
        return found.st_nlink > 0 and (found.st_mtime_ns, found.st_size) == self.stamp

    def prefetch(self, name: str, row: int) -> None:
        """Announce a row to the kernel, so that it reads many rows from the disk at the same time."""
        if hasattr(os, "posix_fadvise"):
            place = self._places[name]
            begin = place.begin + row * place.size
            with suppress(OSError):  # only advice
                os.posix_fadvise(self._descriptor, begin, place.size, os.POSIX_FADV_WILLNEED)

    def read(self, name: str, row: int) -> np.ndarray:
        """One row as stored; bfloat16 as its bits, uint16.

        Raises FeatureError naming the file where it ends early or cannot be read, and where the row is not the one
        that was written (DamagedRow) or holds NaN or infinity.
        """
        place = self._places[name]
        made = np.empty(place.shape, place.dtype)
        self._read_into(made, place.begin + row * place.size)
        if self.file.has_checks:
            pending = self.pending.get(name)
            if pending is None:
                pending = self.pending[name] = self._checks(name)
            if pending[row]:
                if zlib.crc32(made.data) != pending[row]:
                    raise DamagedRow(self.file, name, row)
                pending[row] = 0
        if not is_finite(made):
            raise FeatureError(f"{self.file.path}: {name} {row} holds NaN or infinity; {RESTORE}")
        return made

    def _checks(self, name: str) -> np.ndarray:
        entry = self.file.entries[name + CHECKS]
        made = np.empty(entry.shape, np.int64)
        if len(made):
            self._read_into(made, entry.begin)
        return made.astype(np.uint32)

    def _read_into(self, made: np.ndarray, begin: int) -> None:
        try:
            count = os.preadv(self._descriptor, [made], begin)  # type: ignore[list-item]
            if count != made.nbytes:
                self._rest(made, begin, count)
        except (OSError, ValueError) as error:
            raise FeatureError(f"{self.file.path}: cannot be read ({error}); {RESTORE}") from error

    @property
    def shared(self) -> np.ndarray:
        """The rows of a text file that all captions have in common; read once, not to be written to."""
        if self._shared is None:
            rows = [self.read("shared", k) for k in range(self.file.entries["shared"].shape[0])]
            place = self._places["shared"]
            self._shared = np.stack(rows) if rows else np.empty((0, *place.shape), place.dtype)
        return self._shared

    def _rest(self, made: np.ndarray, begin: int, done: int) -> None:
        """Read the bytes that the first read did not return."""
        memory = made.data.cast("B")
        while done < len(memory):
            count = os.preadv(self._descriptor, [memory[done:]], begin + done)
            if count == 0:
                raise ValueError(f"it ends before byte {begin + len(memory)}, to which a row reaches")
            done += count


class OpenFiles:
    """Opens files when they are first read; the `limit` last used stay open. A pickled copy is empty."""

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self._limit = limit
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._pending: dict[int, tuple[TensorFile, tuple[int, int], Pending]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[int]]:
        return OpenFiles, (self._limit,)

    def __call__(self, file: TensorFile) -> OpenFile:
        """The open file; FeatureError when it is gone or is not what it was when its folder was opened."""
        found = self._open.get(id(file))  # an open file refers to its TensorFile, so the id stays unique
        if found is None or not found.current:
            try:
                found = self._open[id(file)] = OpenFile(file)
                _, stamp, pending = self._pending.get(id(file), (file, None, {}))
                if stamp == found.stamp:  # rows compared before need not be compared again, unless the file changed
                    found.pending = pending
                self._pending[id(file)] = (file, found.stamp, found.pending)
            except FeatureError:
                self._open.pop(id(file), None)
                raise
            except (OSError, ValueError) as error:
                self._open.pop(id(file), None)
                raise FeatureError(f"{file.path}: cannot be read ({error}); {RESTORE}") from error
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        elif len(self._open) == self._limit:
            self._open.move_to_end(id(file))
        return found


def is_finite(stored: np.ndarray) -> bool:
    """Whether no value is NaN or infinite, of float32 or of bfloat16 bits: there the exponent's 8 bits are all ones,
    0x7f80 .. 0x7fff, the largest positive int16, and with the sign 0xff80 .. 0xffff, the largest uint16."""
    if stored.dtype == np.uint16:
        return bool(stored.max() < 0xFF80 and stored.view(np.int16).max() < 0x7F80)
    return bool(np.isfinite(stored).all())


def widen(source: np.ndarray, out: np.ndarray) -> None:
    """Copy float32, or bfloat16 bits, to float32. The bits are the upper half of a float32's.

    NumPy, because it uses the calling thread alone: hundreds of small copies a batch would each wake all threads.
    """
    if source.dtype == np.uint16:
        np.left_shift(source, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
    else:
        np.copyto(out, source)
