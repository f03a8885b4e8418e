"""Work on many files at once, in order, with bounded memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self, TypeVar

import torch

J = TypeVar("J")
R = TypeVar("R")
AHEAD_PER_WORKER = 16
"""Results that may wait for the reader, for each worker."""
AHEAD_LARGE = 2
"""The same for large results: the frames of a window of 8 s take about 60 MB."""


def _start_worker() -> None:
    """One thread each; the keyboard interrupt is left to the parent, which then stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class WorkerPool:
    """A context manager whose `ordered` maps a picklable function over jobs; workers=0 works in this process."""

    def __init__(self, workers: int) -> None:
        if workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers}")
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._workers:
            # A fork would copy the locks of the tensor library's threads in whatever state they are.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_start_worker)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def ordered(self, function: Callable[[J], R], jobs: Iterable[J], *, ahead: int = AHEAD_PER_WORKER) -> Iterator[R]:
        """Results in the order of `jobs`; at most `ahead` results a worker wait to be read.

        Raises ChildProcessError (an OSError) in one line when a worker dies (killed, out of memory).
        """
        if self._executor is None:
            yield from map(function, jobs)
            return
        waiting: deque[Future[R]] = deque()
        try:
            for job in jobs:
                waiting.append(self._executor.submit(function, job))
                if len(waiting) >= ahead * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process died while reading files (out of memory?); rerun the command to go on from the last "
                "finished shard, or with fewer workers"
            ) from error
        finally:
            for future in waiting:
                future.cancel()
