"""Reading a model's sizes off its tensors, and a name for what they hold."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from teacher.weights.errors import WeightsError

HASHED_AT_ONCE = 1 << 24
"""Elements that are copied to the processor for hashing at a time."""


def shape_of(tensors: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """Shape of a tensor that must be there with `dims` dimensions; WeightsError otherwise."""
    if name not in tensors:
        raise WeightsError(f"lacks the tensor {name}")
    shape = tuple(tensors[name].shape)
    if len(shape) != dims:
        raise WeightsError(f"holds {name} of shape {shape}, which should have {dims} dimensions")
    return shape


def count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the largest n of the names `prefix` n `.`...; WeightsError when there is none."""
    places = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    numbers = [int(place) for place in places if place.isdecimal()]
    if not numbers:
        raise WeightsError(f"lacks the tensors {prefix}0.*")
    return 1 + max(numbers)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """First 12 hexadecimal digits of a SHA-256 over names, types, shapes and values, whatever file they came in."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in tensor.detach().contiguous().flatten().split(HASHED_AT_ONCE):
            sha.update(part.cpu().view(torch.uint8).numpy())
    return sha.hexdigest()[:12]
