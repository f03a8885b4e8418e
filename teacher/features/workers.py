"""A pool of processes that map a function over many files: results in order, bounded memory, deaths survived."""

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
MOST_DEATHS = 32
"""Jobs on which a worker may die before the work is given up: so many mean that something else is wrong."""
DIED = "a worker process died while reading it (damaged, or too large for the memory?)"
"""Why the job is left out."""


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
    """Worker processes that map a picklable function over jobs; a context manager. workers=0: all in this process.

    A job on which a worker dies is found by trying the jobs that were running one by one, and left out; new workers do
    the others.
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
        """Jobs with their results, in the order of `jobs`; at most `ahead` results a worker wait to be read.

        `died(job)` stands for the result of a job on which a worker dies (killed, out of memory). Raises
        ChildProcessError (an OSError) in one line when workers cannot be started, or die on too many jobs.
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
        """The first of those that wait, with its result."""
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
        """New workers, and every job without a result again, one at a time: the one that is alone with a worker that
        dies is the reason. A worker that was killed for the memory that all took together does not die again."""
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
                "with fewer workers to go on from the last finished shard"
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
