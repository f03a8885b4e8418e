"""What a process learns from in each step: its rows of the step's batch, read one pass ahead by a thread."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from teacher.features.dataset import Examples, batch_indices
from teacher.network.batch import Batch, BatchSlice, batch_slices


class Feed:
    """Batches as a function of (seed, step, position), the same for any number of processes and of passes per step."""

    def __init__(
        self,
        data: Examples,
        *,
        steps: int,
        batch_size: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        """`steps` is the end, beyond which nothing is read ahead."""
        self.data, self.steps, self.batch_size, self.seed = data, steps, batch_size, seed
        self.batch_slices = batch_slices(batch_size, process=process, processes=processes, micro_batch=micro_batch)
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self.ahead: dict[tuple[int, int], Future[Batch]] = {}

    def rows(self, step: int) -> Tensor:
        """Rows of the data that the whole batch of a step consists of, (batch_size,)."""
        return batch_indices(len(self.data), self.batch_size, seed=self.seed, step=step)

    def passes(self, step: int) -> Iterator[tuple[BatchSlice, Batch]]:
        """This process's forward passes of a step, in order; raises what reading raised, at the pass it belongs to."""
        for k, batch_slice in enumerate(self.batch_slices):
            coming = self._ask(step, k)
            following = (step, k + 1) if k + 1 < len(self.batch_slices) else (step + 1, 0)
            if following[0] < self.steps:
                self.ahead[following] = self._ask(*following)
            yield batch_slice, coming.result()

    def _ask(self, step: int, k: int) -> "Future[Batch]":
        waiting = self.ahead.pop((step, k), None)
        if waiting is not None:
            return waiting
        batch_slice = self.batch_slices[k]
        return self.reader.submit(self._read, step, batch_slice)

    def _read(self, step: int, batch_slice: BatchSlice) -> Batch:
        rows = batch_slice.of(self.rows(step)).tolist()
        return self.data.batch(rows, generator=generator(self.seed, step, "posterior"), batch_slice=batch_slice)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.shutdown(wait=False, cancel_futures=True)


def generator(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Each step draws its own numbers; so does each purpose that the step itself knows nothing of."""
    mixed = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(mixed[:7], "big"))
