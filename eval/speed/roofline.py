"""Measured limits of a machine, in floating-point operations and bytes per second, and the least time of a call.

A call that needs f floating-point operations and b bytes from memory takes at least max(f / F, b / B) seconds on a
device that does F operations and moves B bytes a second (Williams, Waterman and Patterson, "Roofline", CACM 2009).
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from eval.speed.budget import Roofline
from eval.speed.timing import measure, synchroniser

CPU_SIZE, GPU_SIZE = 2048, 8192
"""Rows of the square matrices: 17 GFLOP and 1.1 TFLOP a product, enough to be bound by arithmetic."""
CPU_BYTES, GPU_BYTES = 128 * 2**20, 1024 * 2**20
"""Bytes of each of the three blocks that are streamed. A cache that holds them shows as a faster memory."""


@functools.cache
def roofline_of(dtype: torch.dtype, device: str) -> Roofline:
    """`measure_roofline`, once for a process, so that all its budgets are compared with the same rates."""
    return measure_roofline(dtype, device)


def measure_roofline(
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    size: int | None = None,
    block_bytes: int | None = None,
    warmup: int = 2,
    repeats: int = 7,
) -> Roofline:
    """Rates in `dtype` with the process's own threads and TF32 settings: each the median of `repeats` calls.

    `size` and `block_bytes` replace the defaults of the device. Raises ValueError for sizes below 1.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    rows = size or (GPU_SIZE if on_gpu else CPU_SIZE)
    numel = (block_bytes or (GPU_BYTES if on_gpu else CPU_BYTES)) // dtype.itemsize
    if rows < 1 or numel < 1:
        raise ValueError(f"size and block_bytes must hold at least one element, got {rows} and {numel}")

    def seconds(call: Callable[[], object]) -> float:
        return measure(call, warmup=warmup, repeats=repeats, synchronise=synchroniser(device)).median_s

    with torch.no_grad():
        a, b = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
        made = torch.empty_like(a)
        flops_per_s = 2 * rows**3 / seconds(lambda: torch.mm(a, b, out=made))
        bytes_per_s = max(moved / seconds(call) for moved, call in _streams(numel, dtype, device))
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    return Roofline(
        flops_per_s=flops_per_s, bytes_per_s=bytes_per_s, dtype=str(dtype).removeprefix("torch."), device=name
    )


def _streams(numel: int, dtype: torch.dtype, device: torch.device) -> list[tuple[int, Callable[[], Tensor]]]:
    """(bytes read and written, call) of a sum, a copy and the triad a = b + s c over blocks of `numel` numbers.

    What a processor reads in order to write (write allocation) is not counted: reading alone usually wins there.
    """
    a, b, c = (torch.full((numel,), value, dtype=dtype, device=device) for value in (0.0, 1.0, 2.0))
    block = numel * dtype.itemsize
    return [
        (block, lambda: b.sum()),
        (2 * block, lambda: a.copy_(b)),
        (3 * block, lambda: torch.add(b, c, alpha=0.5, out=a)),
    ]
