"""Tensors wherever they stand in a module's arguments and results, and how far two of them are apart."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`change` applied to every tensor in nested tuples, lists and dicts; other values stay as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple takes its fields one by one
        return type(value)(*(map_tensors(change, a) for a in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(change, a) for a in value)
    if isinstance(value, dict):
        return {key: map_tensors(change, a) for key, a in value.items()}
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for a in value:
            yield from tensors_in(a)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def first_tensor(value: Any) -> Tensor:
    """The tensor itself, or the first one of a tuple (a network with a velocity head returns (u, v))."""
    found = next(tensors_in(value), None)
    if found is None:
        raise ValueError(f"the module must return a tensor, got {type(value).__name__}")
    return found


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||; 0 where both vanish, infinite where only b does."""
    a, b = a.detach().double(), b.detach().double()
    gap, size = float((a - b).norm()), float(b.norm())
    return 0.0 if gap == 0.0 else float("inf") if size == 0.0 else gap / size


def rms(a: Tensor) -> float:
    """Root mean square over everything."""
    return float(a.detach().double().pow(2).mean().sqrt())


def told(a: Tensor) -> str:
    """Type and shape, for messages."""
    return f"{a.dtype} of shape {tuple(a.shape)}"
