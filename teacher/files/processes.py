"""Coordination of several processes on one folder: which are alive, their stages, and waiting that always ends.

Each process rewrites a small file in the folder every half second (a heartbeat). A process that waits for another one
watches its heartbeats; the wait ends with an error when the other failed, left or stopped. Only the common folder is
needed, no network.
"""

import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from teacher.files.errors import FeatureError

BEAT_S = 0.5
POLL_S = 0.05
PATIENCE_S = 180.0
"""Seconds without a heartbeat, or without a start, after which a process counts as dead."""
AGAIN = "run the same command again: finished files stay"


@dataclass
class _Watched:
    """The last heartbeat of another process, which counts as alive once its heartbeat has changed."""

    first: str | None = None
    last: str | None = None
    content: dict[str, Any] = field(default_factory=dict)
    changed_s: float = field(default_factory=time.monotonic)
    alive: bool = False
    left: bool = False


class Processes:
    """Process `rank` of the `world` processes on `folder`; a context manager. A single process writes nothing.

    `run` identifies one start, so that processes of another start on the same folder are ignored.
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
        """Whether this is process 0, the lead, which checks the folder first and finishes it last."""
        return self.rank == 0

    @property
    def others(self) -> list[int]:
        """Ranks of the other processes."""
        return [rank for rank in range(self.world) if rank != self.rank]

    def mine(self, number: int) -> bool:
        """Whether job `number` belongs to this process: number modulo `world` is `rank`."""
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

    def announce(self, stage: str) -> None:
        """Announce to the other processes that this one has reached `stage`."""
        if self.world > 1:
            self._content["stage"] = stage
            self._beat()

    def meet(self) -> None:
        """In the lead, wait until every process has a heartbeat; in the others, return at once."""
        if self.lead:
            alive = lambda: all(watched.alive for watched in self._watched.values())  # noqa: E731
            self.wait(alive, what="the start of all processes", on=self.others)

    def wait_for_stage(self, stage: str, *, what: str) -> None:
        """Wait until the lead has announced `stage`; `what` describes it in the error."""
        if not self.lead:
            self.wait(
                lambda: self._watched[0].alive and self._watched[0].content.get("stage") == stage, what=what, on=[0]
            )

    def wait(self, done: Callable[[], bool], *, what: str, on: Iterable[int]) -> None:
        """Wait until `done()`. Raises FeatureError when a process failed, or one of the ranks `on` left or is dead."""
        expected = list(on)
        while True:
            for rank in self._watched:
                self._update(rank)
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
        """Let the lead leave last, so that the other processes can read its file until they end."""
        while not all(watched.left or self._lost(rank) for rank, watched in self._watched.items()):
            time.sleep(POLL_S)
            for rank in self._watched:
                self._update(rank)

    def _lost(self, rank: int) -> bool:
        watched = self._watched[rank]
        if watched.left or time.monotonic() - watched.changed_s > self._patience_s:
            return True
        here = watched.content.get("host") == self._content["host"]
        return watched.alive and here and not _runs(int(watched.content.get("pid", 0)))

    def _update(self, rank: int) -> None:
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
    """Whether a process of this machine runs; a zombie (ended, but not waited for) does not."""
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
