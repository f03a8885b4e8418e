"""A pool of processes that map a function over many files in order, with bounded memory, and survive crashes."""

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
"""Finished results per worker that may wait to be read."""
AHEAD_LARGE = 2
"""AHEAD_PER_WORKER for large results: the frames of a window of 8 s take about 60 MB."""
MOST_DEATHS = 32
"""Jobs on which a worker may die before the pool gives up, because that many are not due to single files."""
DIED = "a worker process died while reading it (damaged, or too large for the memory?)"
"""The reason why such a job is skipped."""


def _start_worker() -> None:
    """Use one thread, and ignore keyboard interrupts, on which the parent stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End the worker when its parent was killed; otherwise it would wait for a job forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class WorkerPool:
    """Worker processes that map a picklable function over jobs; a context manager. workers=0: all in this process.

    When a worker dies, the jobs that were running are repeated one by one with new workers; a job on which a worker
    dies again is skipped.
    """

    def __init__(self, workers: int) -> None:
        if workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers}")
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        self._deaths = 0

    def __enter__(self) -> Self:
        if self._workers:
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def ordered(
        self,
        function: Callable[[J], R],
        jobs: Iterable[J],
        *,
        died: Callable[[J], R],
        ahead: int = AHEAD_PER_WORKER,
    ) -> Iterator[tuple[J, R]]:
        """Yield jobs with their results, in the order of `jobs`; at most `ahead` results per worker are buffered.

        The result of a job on which a worker dies (killed, out of memory) is `died(job)`. Raises ChildProcessError (an
        OSError) in one line when workers cannot be started, or die on too many jobs.
        """
        if self._executor is None:
            yield from ((job, function(job)) for job in jobs)
            return
        waiting: deque[tuple[J, Future[R]]] = deque()
        try:
            for job in jobs:
                waiting.append((job, self._submit(function, job, waiting, died)))
                if len(waiting) >= ahead * self._workers:
                    yield self._first(function, waiting, died)
            while waiting:
                yield self._first(function, waiting, died)
        finally:
            for _, future in waiting:
                future.cancel()

    def _first(
        self, function: Callable[[J], R], waiting: "deque[tuple[J, Future[R]]]", died: Callable[[J], R]
    ) -> tuple[J, R]:
        """The first waiting job, with its result."""
        job, future = waiting[0]
        try:
            result = future.result()
        except BrokenProcessPool:
            self._retry(function, waiting, died)
            job, future = waiting[0]
            result = future.result()
        waiting.popleft()
        return job, result

    def _submit(
        self, function: Callable[[J], R], job: J, waiting: "deque[tuple[J, Future[R]]]", died: Callable[[J], R]
    ) -> "Future[R]":
        assert self._executor is not None
        try:
            return self._executor.submit(function, job)
        except BrokenProcessPool:
            self._retry(function, waiting, died)
            return self._executor.submit(function, job)

    def _retry(self, function: Callable[[J], R], waiting: "deque[tuple[J, Future[R]]]", died: Callable[[J], R]) -> None:
        """Start new workers and repeat every unfinished job on its own, which shows the job on which a worker dies.

        If a worker was killed because all together took too much memory, it does not die again.
        """
        self._count_death()
        self._start()
        for k, (job, future) in enumerate(waiting):
            if future.done() and not future.cancelled() and not isinstance(future.exception(), BrokenProcessPool):
                continue
            assert self._executor is not None
            again = self._executor.submit(function, job)
            if isinstance(again.exception(), BrokenProcessPool):
                self._count_death()
                self._start()
                again = Future()
                again.set_result(died(job))
            waiting[k] = (job, again)

    def _count_death(self) -> None:
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise ChildProcessError(
                f"worker processes died {self._deaths} times while reading files (out of memory?); rerun the command "
                "with fewer workers to continue from the last finished shard"
            )

    def _start(self) -> None:
        """A pool whose workers answer."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        # A fork would copy the locks of the tensor library's threads in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_start_worker)
        if self._deaths:
            try:
                self._executor.submit(os.getpid).result()
            except BrokenProcessPool as error:
                raise ChildProcessError("worker processes cannot be started, they die at once") from error
