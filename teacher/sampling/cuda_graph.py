"""A function of tensors recorded as a CUDA graph: the same kernels in the same memory, launched together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before recording: libraries choose algorithms and set workspaces aside, caches are filled."""


@dataclass(frozen=True, eq=False)
class CudaGraphCall:
    """Takes tensors of the recorded shapes, dtypes and device; its results are copies that the next call leaves alone.

    `keep` holds what the graph reads besides; memory that nobody keeps would be given to others.
    """

    replay: Callable[[], None]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    keep: object = None

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Raises ValueError for tensors unlike the recorded ones."""
        seen, wanted = ([(tuple(x.shape), x.dtype) for x in xs] for xs in (given, self.inputs))
        if seen != wanted:
            raise ValueError(f"a recorded call takes {wanted}, got {seen}")
        for place, x in zip(self.inputs, given, strict=True):
            place.copy_(x)
        self.replay()
        return tuple(x.clone() for x in self.outputs)


@torch.no_grad()
def record(
    call: Callable[..., Sequence[Tensor]],
    example: Sequence[Tensor],
    *,
    told: Callable[[str], None] = print,
    keep: object = None,
) -> CudaGraphCall | None:
    """Warm `call` up on a stream of its own and record it on copies of `example`. `keep`: what it reads from caches.

    None, and one line to `told`, where that is not possible: no CUDA device, an operation that waits for the device,
    not enough memory.
    """
    inputs = tuple(x.clone() for x in example)
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = tuple(call(*inputs))
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        told(f"no CUDA graph ({reason}); operators are launched one by one")
        return None
    return CudaGraphCall(graph.replay, inputs, outputs, keep=(call, keep))
