"""Which rows of a training step's batch one forward pass holds.

Random numbers are drawn for the whole batch and each pass takes its rows, so that noise, times and dropped conditions
are functions of (seed, step, position), the same for any number of processes and of passes per step.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Positions begin .. end - 1 of a batch of `total` rows."""

    begin: int
    end: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= self.total:
            raise ValueError(f"a share needs 0 <= begin < end <= total, got {self.begin}, {self.end}, {self.total}")

    @classmethod
    def whole(cls, total: int) -> "Share":
        """All rows."""
        return cls(0, total, total)

    def __len__(self) -> int:
        return self.end - self.begin

    def of(self, drawn: Tensor, dim: int = 0) -> Tensor:
        """The rows of this share of a tensor drawn for the whole batch, of length `total` along `dim`."""
        return drawn.narrow(dim, self.begin, len(self))


def shares(total: int, *, process: int, processes: int, micro_batch: int | None) -> list[Share]:
    """The shares of one process, one per forward pass, in order: equal blocks of `micro_batch` rows.

    None is the process's whole part at once. Raises ValueError unless all blocks come out equal, which averaging
    gradients over processes and passes relies on.
    """
    part, rest = divmod(total, processes)
    if rest or part == 0:
        raise ValueError(f"batch_size {total} does not divide over {processes} processes")
    size = micro_batch or part
    if part % size:
        raise ValueError(f"micro_batch {size} does not divide the {part} sounds of each process")
    first = process * part
    return [Share(begin, begin + size, total) for begin in range(first, first + part, size)]
