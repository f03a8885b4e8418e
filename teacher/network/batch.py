"""A training batch of normalised latents with their conditions, and which of its rows one forward pass holds.

Random numbers are drawn for the whole batch and each pass takes its rows, so that noise, times and dropped conditions
are functions of (seed, step, position), the same for any number of processes and of passes per step.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from teacher.network.conditions import Conditions


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalised latents (B, N, C) and their conditions, both float32, with their rows in the data set (B,)."""

    latents: Float[Tensor, "batch frames channels"]
    conditions: Conditions
    indices: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            latents=self.latents.to(device), conditions=self.conditions.to(device), indices=self.indices.to(device)
        )


@dataclass(frozen=True)
class BatchSlice:
    """Which rows of a batch of `total` rows one forward pass holds: positions begin .. end - 1."""

    begin: int
    end: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= self.total:
            raise ValueError(
                f"a batch slice needs 0 <= begin < end <= total, got {self.begin}, {self.end}, {self.total}"
            )

    @classmethod
    def whole(cls, total: int) -> "BatchSlice":
        """The slice that holds all `total` rows."""
        return cls(0, total, total)

    def __len__(self) -> int:
        return self.end - self.begin

    def of(self, drawn: Tensor, dim: int = 0) -> Tensor:
        """The rows of this slice of a tensor drawn for the whole batch, of length `total` along `dim`."""
        return drawn.narrow(dim, self.begin, len(self))


def batch_slices(total: int, *, process: int, processes: int, micro_batch: int | None) -> list[BatchSlice]:
    """The slices of one process, one per forward pass, in order: equal blocks of `micro_batch` rows.

    None makes one slice of all rows of the process. Raises ValueError unless all blocks are equally large, which
    averaging gradients over processes and passes requires.
    """
    part, rest = divmod(total, processes)
    if rest or part == 0:
        raise ValueError(f"batch_size {total} does not divide over {processes} processes")
    size = micro_batch or part
    if part % size:
        raise ValueError(f"micro_batch {size} does not divide the {part} sounds of each process")
    first = process * part
    return [BatchSlice(begin, begin + size, total) for begin in range(first, first + part, size)]
