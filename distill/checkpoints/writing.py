"""Writing safetensors files in one pass, with their digest, and making sure that they are on disk.

The digest is taken from the bytes handed to the file system, while it writes them: a file that later reads otherwise,
be it through a fault on the way to the disk, does not have it. Memory for one tensor is enough, whatever the file.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from teacher.files import replacing

Tensors: TypeAlias = dict[str, Tensor]

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in a safetensors header."""
ALIGNMENT = 8
BLOCK = 2**24
"""Bytes hashed and written at a time."""


class Written(NamedTuple):
    """What a file holds, by its length in bytes and its SHA-256."""

    bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Written:
    """Write a safetensors file under a temporary name, then rename it into place; its size and digest.

    Access is as the user's umask says.
    """
    with replacing(path) as staging:
        return stream_tensors(staging, tensors, metadata)


def stream_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Written:
    """Write a new safetensors file tensor by tensor and flush it to disk; its size and digest.

    Raises FileExistsError where there is a file, ValueError for a tensor of a type that the format does not know.
    """
    # Wide types first, by name within one: every tensor then starts at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header = _header(ordered, metadata)
    return _write(path, _blocks(header, ordered), len(header) + total_bytes(tensors))


def write_new(path: Path, content: bytes) -> Written:
    """Write a new file and flush it to disk; its size and digest."""
    return _write(path, iter([memoryview(content)]), len(content))


def copy_file(source: Path, target: Path) -> Written:
    """Copy into a new file, flushed to disk; its size and digest."""
    with source.open("rb", buffering=0) as stream:
        return _write(target, _pieces(stream), source.stat().st_size)


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What the values take in a file, without its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _header(tensors: list[tuple[str, Tensor]], metadata: Mapping[str, str] | None) -> bytes:
    """Length of the description in 8 bytes, then the description, filled with spaces to a multiple of 8."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is of type {tensor.dtype}, which is not written to safetensors files")
        end = offset + total_bytes({name: tensor})
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    described = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    described += b" " * (-len(described) % ALIGNMENT)
    return len(described).to_bytes(8, "little") + described


def _blocks(header: bytes, tensors: list[tuple[str, Tensor]]) -> Iterator[memoryview]:
    yield memoryview(header)
    for _, tensor in tensors:
        plain = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        content = plain.numpy().data
        yield from (content[k : k + BLOCK] for k in range(0, len(content), BLOCK))


def _pieces(stream: FileIO) -> Iterator[memoryview]:
    while piece := stream.read(BLOCK):
        yield memoryview(piece)


def _write(path: Path, blocks: Iterator[memoryview], size: int) -> Written:
    digest = hashlib.sha256()
    with path.open("xb", buffering=0) as stream, ThreadPoolExecutor(max_workers=1) as hasher:
        for block in blocks:
            hashed = hasher.submit(digest.update, block)
            done = 0
            while done < len(block):
                done += os.write(stream.fileno(), block[done:])
            hashed.result()
        os.fsync(stream.fileno())
        found = os.fstat(stream.fileno()).st_size
    if found != size:
        raise OSError(f"{path} has {found} bytes after {size} were written")
    return Written(size, digest.hexdigest())
