"""What may end a run before its last step: a signal, a process that hangs or has died, too many skipped steps.

The exit statuses are listed in `teacher.files.errors`.
"""

import faulthandler
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Self

from teacher.files.errors import INTERRUPTED, LOST, SAVED_AND_LEFT, TrainingError
from teacher.files.lines import append_lines, drop_later

TWICE_S = 0.5
"""Seconds within which a second SIGINT counts as the same: the terminal and the launcher both pass Ctrl-C on."""
SHOWN = 8
"""Most clips that an error names."""
BROKEN = ("gloo", "nccl", "processgroup", "connection closed by peer", "connection reset by peer", "broken pipe")
"""Texts of the errors of collectives when another process has died."""


def signal_status(number: int) -> int:
    """The exit status of a run that saved because of signal `number`."""
    return INTERRUPTED if number == signal.SIGINT else SAVED_AND_LEFT


class Signals:
    """While open, the first SIGINT, SIGTERM or SIGUSR1 only sets `number`, which the loop reads between steps.

    A second SIGINT interrupts at once (KeyboardInterrupt). Handlers are Python's, so they run when the main thread next
    does: not inside a collective that hangs. Does nothing in other threads, where Python allows no handlers.
    """

    CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.number = 0
        """The first signal that came, 0 if none did."""
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._caught) for number in self.CAUGHT}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _caught(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
        elif number == signal.SIGINT and now - self._since > TWICE_S:
            raise KeyboardInterrupt


class Watchdog:
    """Ends a process in which nothing is finished for `timeout_s` seconds, and explains broken collectives.

    While open, a thread checks the time since the last `beat`. After `timeout_s` it reports the process and its phase,
    prints the stack of every thread and leaves by os._exit(71), without waiting for a main thread that waits for
    others. That needs Python's lock, which torch's collectives release; should something else hold it, faulthandler's
    own timer ends the process a quarter later and prints the stacks alone.

    An error of a collective inside the context means that another process has died: it becomes a TrainingError.
    """

    def __init__(
        self, timeout_s: float, report: Callable[[str], None] | None = None, *, process: int = 0, processes: int = 1
    ) -> None:
        """`report` gets the line about a timeout; by default it is printed on standard error."""
        self.timeout_s = timeout_s
        self._report = report or _to_standard_error
        self._who = f"process {process} of {processes} on {socket.gethostname()}"
        self._last = (time.monotonic(), "starting")
        self._checkpoint = ""
        self._closed = threading.Event()

    def beat(self, phase: str, *, checkpoint: str = "") -> None:
        """State that the loop is alive and begins `phase`, and which checkpoint is the last, if that has changed."""
        self._checkpoint = checkpoint or self._checkpoint
        self._last = (time.monotonic(), phase)

    def __enter__(self) -> Self:
        self.beat(self._last[1])
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()
        if error is not None and is_broken_collective(error):
            text = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"{self._who}: another process died or hangs ({self._last[1]}; {text}); its own output says why"
                f"{self._where_to_go_on()}",
                status=LOST,
            ) from error

    def _watch(self) -> None:
        every = min(5.0, self.timeout_s / 10)
        while not self._closed.is_set():
            since, phase = self._last
            silent_s = time.monotonic() - since
            if silent_s > self.timeout_s:
                self._end(phase, silent_s)
            faulthandler.dump_traceback_later(1.25 * self.timeout_s + every, exit=True, file=2)
            self._closed.wait(every)
        faulthandler.cancel_dump_traceback_later()

    def _end(self, phase: str, silent_s: float) -> None:
        self._report(
            f"error: {self._who} has been in one phase ({phase}) for {silent_s:.0f} s, more than loop.timeout_s; most "
            "often another process is dead or stuck (its own output says more), or a disk or the network no longer "
            f"answers; raise loop.timeout_s if this may take so long{self._where_to_go_on()}"
        )
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(LOST)

    def _where_to_go_on(self) -> str:
        checkpoint = f" ({self._checkpoint})" if self._checkpoint else ""
        return f"; the same command goes on from the last checkpoint{checkpoint}"


def is_broken_collective(error: BaseException) -> bool:
    """Whether an error is torch.distributed's about another process, by its class or, for gloo, by its text."""
    if isinstance(error, TrainingError) or not isinstance(error, RuntimeError):
        return False
    named = any(kind.__name__ in ("DistError", "DistBackendError", "DistNetworkError") for kind in type(error).__mro__)
    return named or any(word in str(error).lower() for word in BROKEN)


def _to_standard_error(text: str) -> None:
    os.write(2, (text + "\n").encode())  # past sys.stderr, whose lock a stuck thread may hold


class SkippedSteps:
    """Steps left out because loss or gradient was not finite: lines of run/skipped.jsonl, and an end after too many.

    A line is {step, reason: "loss" | "gradient", loss: of each clip or null, ids: the clips whose loss was not finite,
    else those of the whole batch}. Steps are counted from 1.
    """

    def __init__(
        self, run: Path, max_in_a_row: int, *, write: bool = True, in_a_row: int = 0, first: int | None = None
    ) -> None:
        """`write` is true in the main process alone. `in_a_row` is that of the checkpoint from which the run resumes,
        `first` its step; lines of later steps are dropped, since those steps are made again."""
        self.path, self.max_in_a_row, self.write = run / "skipped.jsonl", max_in_a_row, write
        self.in_a_row = in_a_row
        self.total = 0
        """Lines in the file, in the process that writes; elsewhere steps left out since the start."""
        if write:
            self.total = drop_later(self.path, first)

    def fine(self) -> None:
        """A step was made."""
        self.in_a_row = 0

    def add(
        self,
        step: int,
        *,
        reason: Literal["loss", "gradient"],
        ids: Sequence[str],
        losses: Sequence[float] | None = None,
    ) -> None:
        """Record a skipped step. Raises TrainingError for the `max_in_a_row`-th in a row, or if writing fails."""
        self.in_a_row += 1
        self.total += 1
        if self.write:
            numbers = None if losses is None else [x if math.isfinite(x) else str(x) for x in losses]
            line = {"step": step, "reason": reason, "loss": numbers, "ids": list(ids)}
            try:
                append_lines(self.path, [json.dumps(line, ensure_ascii=False)])
            except OSError as error:
                raise TrainingError(f"{self.path} cannot be written: {error}") from error
        if self.in_a_row >= self.max_in_a_row:
            rest = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
            raise TrainingError(
                f"{self.in_a_row} steps in a row had a {reason} that is not finite, up to step {step} with the clips "
                f"{', '.join(ids[:SHOWN])}{rest} (all in {self.path}); the weights are those before them: check "
                "these clips if they repeat, else start again, with another --out, at a lower optim.lr or in float32"
            )
