"""Work on many files at once, in order, with bounded memory.

Several processes that work on one folder: who is alive, who is ready, and waiting without waiting for ever.

Each process rewrites a small file every half second (a beat). Whoever waits for another's work watches its beats: a
process that failed, left or fell silent ends the wait with an error. Only the shared folder is needed, no network.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from teacher.files.tensor_file import FeatureError

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
    """A context manager whose `ordered` maps a picklable function over jobs; workers=0 works in this process.

    A job on which a worker dies is found by trying those that were under way one by one, and left out; the work goes
    on with new workers.
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


BEAT_S = 0.5
POLL_S = 0.05
PATIENCE_S = 180.0
"""How long a process may be silent, or take to start, before it counts as dead."""
AGAIN = "run the same command again: finished files are kept"


@dataclass
class _Watched:
    """What was last read of another process. It lives once its beat has changed while we watched."""

    first: str | None = None
    last: str | None = None
    content: dict[str, Any] = field(default_factory=dict)
    changed_s: float = field(default_factory=time.monotonic)
    alive: bool = False
    left: bool = False


class Processes:
    """Process `rank` of `world` working on `folder`; a context manager. With one process, nothing is written.

    `run` tells processes that were started together from those of another start that has the same folder.
    """

    def __init__(
        self, folder: Path, rank: int = 0, world: int = 1, *, patience_s: float = PATIENCE_S, run: str = ""
    ) -> None:
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"part must be (rank, world) with 0 <= rank < world, got ({rank}, {world})")
        self.rank, self.world = rank, world
        self._folder, self._patience_s = folder, patience_s
        self._prefix = f"{hashlib.sha256(run.encode()).hexdigest()[:8]}-" if run else ""
        self._content: dict[str, Any] = {
            "id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "stage": "start", "failed": None
        }  # fmt: skip
        self._count = 0
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: dict[int, _Watched] = {}

    @property
    def lead(self) -> bool:
        """Whether this is the process that decides and finishes."""
        return self.rank == 0

    @property
    def others(self) -> list[int]:
        """Ranks of the other processes."""
        return [rank for rank in range(self.world) if rank != self.rank]

    def mine(self, number: int) -> bool:
        """Whether piece of work `number` is this process's; the split does not change what is in a piece."""
        return number % self.world == self.rank

    def __enter__(self) -> Self:
        if self.world > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._watched = {rank: _Watched(first=self._read(rank)) for rank in self.others}
            self._beat()
            self._thread = threading.Thread(target=self._keep_beating, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None and self.lead:
            self._await_leaving()
        if self._thread is not None:
            self._leaving.set()
            self._thread.join()
            if error is not None:
                self._content["failed"] = " ".join(str(error).split()) or type(error).__name__
                self._beat()
            else:
                self._path(self.rank).unlink(missing_ok=True)
        if error is None and self.lead:
            shutil.rmtree(self._folder, ignore_errors=True)  # with what killed runs left

    def say(self, stage: str) -> None:
        """Tell the others how far this process is."""
        if self.world > 1:
            self._content["stage"] = stage
            self._beat()

    def meet(self) -> None:
        """The lead returns once it has seen every process alive; the others go on and wait for what it says."""
        if self.lead:
            alive = lambda: all(watched.alive for watched in self._watched.values())  # noqa: E731
            self.wait(alive, what="the start of all processes", on=self.others)

    def wait_for_stage(self, stage: str, *, what: str) -> None:
        """Wait until the lead has said `stage`."""
        if not self.lead:
            self.wait(
                lambda: self._watched[0].alive and self._watched[0].content.get("stage") == stage, what=what, on=[0]
            )

    def wait(self, done: Callable[[], bool], *, what: str, on: Iterable[int]) -> None:
        """Return once `done()`. Raises FeatureError when a process failed, or one of `on` left or fell silent."""
        expected = list(on)
        while True:
            for rank in self._watched:
                self._look(rank)
            if done():
                return
            for rank, watched in self._watched.items():
                if watched.alive and watched.content.get("failed"):
                    raise FeatureError(f"process {rank} of {self.world} failed: {watched.content['failed']}")
            for rank in expected:
                if rank in self._watched and self._lost(rank) and not done():
                    raise FeatureError(
                        f"process {rank} of {self.world} gives no sign of life while process {self.rank} waits for "
                        f"{what} (killed, out of memory, or never started?); {AGAIN}"
                    )
            time.sleep(POLL_S)

    def _await_leaving(self) -> None:
        """The lead leaves last: whoever still reads what it said finds it there."""
        while not all(watched.left or self._lost(rank) for rank, watched in self._watched.items()):
            time.sleep(POLL_S)
            for rank in self._watched:
                self._look(rank)

    def _lost(self, rank: int) -> bool:
        watched = self._watched[rank]
        if watched.left or time.monotonic() - watched.changed_s > self._patience_s:
            return True
        here = watched.content.get("host") == self._content["host"]
        return watched.alive and here and not _runs(int(watched.content.get("pid", 0)))

    def _look(self, rank: int) -> None:
        watched, text = self._watched[rank], self._read(rank)
        if text is None:
            watched.left = watched.alive
            return
        if text in (watched.last, watched.first):
            return
        watched.last, watched.changed_s, watched.alive, watched.left = text, time.monotonic(), True, False
        watched.content = json.loads(text)

    def _read(self, rank: int) -> str | None:
        try:
            return self._path(rank).read_text(encoding="utf-8")
        except OSError:
            return None

    def _path(self, rank: int) -> Path:
        return self._folder / f"{self._prefix}{rank}.json"

    def _keep_beating(self) -> None:
        while not self._leaving.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        with self._lock:
            self._count += 1
            temporary = self._folder / f".{self._prefix}{self.rank}.json"
            try:
                temporary.write_text(json.dumps(self._content | {"count": self._count}), encoding="utf-8")
                temporary.replace(self._path(self.rank))
            except OSError:
                pass  # a full or slow disk: whoever waits decides by the time that passes


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended but was not collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        return state != "Z"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
