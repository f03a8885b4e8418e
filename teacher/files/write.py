"""Writing a component tensor by tensor: memory for one tensor, whatever the size of the file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teacher.files import replacing
from teacher.files.errors import WeightsError
from teacher.files.tensors import ComponentInfo

ALIGNMENT = 8
FLOAT32_BYTES = 4


def write_component(
    path: Path,
    tensors: Mapping[str, Tensor],
    info: ComponentInfo,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write tensors of any floating-point type as float32 safetensors with `info` as metadata.

    Raises WeightsError and leaves nothing behind if a value is NaN or infinite.
    """
    sizes = {name: FLOAT32_BYTES * tensor.numel() for name, tensor in tensors.items()}
    total, done = sum(sizes.values()), 0
    with replacing(path) as temporary, temporary.open("wb") as out:
        out.write(_header(tensors, sizes, info))
        for name, tensor in tensors.items():
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            if not bool(torch.isfinite(values).all()):
                raise WeightsError(f"{info.source}: {name} holds NaN or infinity; the file is damaged")
            out.write(values.numpy().astype(np.dtype("<f4"), copy=False).data)
            done += sizes[name]
            progress(done, total)


def _header(tensors: Mapping[str, Tensor], sizes: Mapping[str, int], info: ComponentInfo) -> bytes:
    """Length of the description as 8 bytes, then the description, filled with spaces to a multiple of 8."""
    entries: dict[str, object] = {"__metadata__": info.metadata()}
    offset = 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + sizes[name]],
        }
        offset += sizes[name]
    described = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    described += b" " * (-len(described) % ALIGNMENT)
    return len(described).to_bytes(8, "little") + described
