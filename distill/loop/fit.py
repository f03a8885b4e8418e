"""The training loop shared by teacher and student: data, step, backward, averages, log, evaluation, save, resume.

`fit` runs it, `Feed` reads its batches; what is saved and resumed is in distill/loop/session.py, what is logged in
distill/loop/tracking.py, what ends it early in distill/loop/watchdog.py.
"""

import hashlib
import resource
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from tqdm import tqdm

from distill.engines import choose_engine
from distill.engines.optim import learning_rate
from distill.loop.session import Session, TrainingTask, everywhere
from distill.loop.tracking import Means, Pace, Tracker
from distill.loop.watchdog import Signals, SkippedSteps, Watchdog, signal_status
from distill.processes import this_process
from teacher.features.dataset import Examples, batch_indices
from teacher.files import FolderLock
from teacher.files.errors import WRONG_INPUT, FeatureError, TrainingError
from teacher.network.batch import Batch, BatchSlice, batch_slices

NUMBERS = 65
"""One more than the largest signal."""


def fit(task: TrainingTask, run: Path) -> Path:
    """Train until loop.steps, from the newest checkpoint of `run` that verifies if there is one; return the run folder.

    Data order and random numbers derive from (seed, step, position in the batch), so that a resumed run repeats the
    uninterrupted one, also with another number of processes. SIGINT, SIGTERM and SIGUSR1 save at the end of the current
    step and leave with a status of their own (`teacher.files.errors`).

    The main process holds the run folder's lock from before its first file is written to the end, so that a second
    training into the folder is refused. Where the run is finished and its checkpoints were removed, nothing is done but
    to print that.
    """
    loop, process = task.loop, this_process()
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(loop.timeout_s, process=process.rank, processes=process.world_size))
        watchdog.beat("waiting for the other processes")
        engine = choose_engine(timeout_s=loop.timeout_s)
        check_precision(task.float32_only, engine.precision)
        watchdog.beat("preparing")
        with everywhere(engine, status=WRONG_INPUT):
            if engine.main:
                stack.enter_context(FolderLock(run, what="the run"))
        session = Session(task, run, engine)
        if session.finished:
            return run
        feed = Feed(
            task.data,
            steps=loop.steps,
            batch_size=loop.batch_size,
            seed=loop.seed,
            process=engine.process,
            processes=engine.processes,
            micro_batch=loop.micro_batch,
        )
        session.begin(micro_batch=len(feed.batch_slices[0]), accumulation=len(feed.batch_slices))
        stack.enter_context(feed)
        signals = stack.enter_context(Signals())
        with writing(run):
            tracker = stack.enter_context(Tracker(run, first=session.first)) if engine.main else None
            _Loop(session, feed, watchdog, signals, tracker).go()
    return run


def check_precision(float32_only: bool, precision: torch.dtype) -> None:
    """Raises ValueError, naming what to launch with, for a step that takes differences in less than float32."""
    if float32_only and precision != torch.float32:
        raise ValueError(
            "this objective takes its derivative by differences, which need float32: launch with a file of "
            "distill/configs that has float32 in its name, such as ddp_float32_8gpu.yaml, or with --mixed_precision no"
        )


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Context in which errors of a full disk or damaged data become a TrainingError, since no input is wrong."""
    try:
        yield
    except (OSError, FeatureError) as error:
        raise TrainingError(f"training into {run} cannot go on: {error}; the last checkpoint is intact") from error


class Feed:
    """The rows of each step's batch that belong to this process, read one pass ahead by a thread.

    Batches are a function of (seed, step, position), the same for any number of processes and of passes per step.
    """

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
        """`steps` is the last step, beyond which nothing is read ahead."""
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
    """Random numbers of one step, derived from (seed, step, purpose): those of the step itself and of reading its data
    are independent."""
    mixed = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(mixed[:7], "big"))


class _Loop:
    """The steps of one run; what needs no state between steps is elsewhere."""

    def __init__(
        self, session: Session, feed: Feed, watchdog: Watchdog, signals: Signals, tracker: Tracker | None
    ) -> None:
        self.session, self.feed, self.watchdog, self.signals, self.tracker = session, feed, watchdog, signals, tracker
        self.task, self.engine, self.loop = session.task, session.engine, session.task.loop
        self.means = Means()
        self.means.load(session.log, main=self.engine.main, device=self.engine.device)
        self.pace = Pace(session.first, self.loop.steps, self.loop.batch_size)
        self.skipped = SkippedSteps(
            session.run,
            self.loop.max_bad_steps,
            write=self.engine.main,
            in_a_row=session.bad_in_a_row,
            first=session.first,
        )

    def go(self) -> None:
        """All steps that are left."""
        loop, session = self.loop, self.session
        progress = tqdm(
            total=loop.steps,
            initial=session.first,
            desc=self.task.kind,
            disable=not self.engine.main,
            mininterval=2.0,
            file=sys.stdout,
        )
        with progress:
            for step in range(session.first, loop.steps):
                self.watchdog.beat(f"step {step + 1}", checkpoint=self._last_checkpoint())
                signal = self._update(step)
                done = step + 1
                progress.update()
                self._report(done, progress)
                session.snapshot(done)
                best = self._evaluate(done)
                if done % loop.save_every == 0 or done == loop.steps or best or signal:
                    self.watchdog.beat(f"saving step {done}")
                    session.save(done, self.means.state(self.engine.total), self.skipped.in_a_row)
                if signal and done < loop.steps:
                    progress.close()
                    if self.engine.main:
                        print(f"saved at step {done} in {session.run}; the same command goes on from there", flush=True)
                    raise SystemExit(signal_status(signal))

    def _update(self, step: int) -> int:
        """One optimiser step, left out where loss or gradient is not finite; the signal that asks to stop, or 0."""
        engine, loop, task = self.engine, self.loop, self.task
        rate = learning_rate(step, loop.steps, loop.optim)
        logs: list[dict[str, Tensor]] = []
        losses: list[Tensor] = []
        passes = len(self.feed.batch_slices)
        for k, (batch_slice, batch) in enumerate(self._passes(step)):
            with engine.micro(last=k == passes - 1):
                with engine.autocast():
                    numbers = generator(loop.seed, step, "step", engine.device)
                    terms = task.step(
                        engine.model,
                        engine.plain,
                        self.session.averaged,
                        batch.to(engine.device),
                        numbers,
                        step / loop.steps,
                        batch_slice,
                    )
                engine.backward(terms.loss.mean() / passes)
            logs.append(terms.logs)
            losses.append(terms.loss.detach())
        loss = torch.cat(losses)
        bad = torch.nonzero(~torch.isfinite(loss)).flatten()
        healthy, signal = self._agreed(len(bad) == 0)
        norm = engine.step(rate, loop.optim.clip_norm, healthy=healthy)
        self.session.averages.update(step + 1)  # after a skip too: the weights stand for this stretch of time
        if norm is None:
            self._skip(step, [(int(k) + self.feed.batch_slices[0].begin, float(loss[k])) for k in bad])
            return signal
        self.skipped.fine()
        for values in logs:
            self.means.add(values)
        self.means.add({"norm/gradient": norm})
        return signal

    def _passes(self, step: int) -> Iterator[tuple[BatchSlice, Batch]]:
        try:
            yield from self.feed.passes(step)
        except (FeatureError, OSError) as error:
            raise TrainingError(f"the data of step {step + 1} cannot be read: {error}") from error

    def _agreed(self, healthy: bool) -> tuple[bool, int]:
        """Whether every loss of every process is finite, and the signal that any of them was sent, or 0."""
        flags = torch.zeros(NUMBERS, device=self.engine.device)
        flags[0] = not healthy
        if self.signals.number:
            flags[self.signals.number] = 1
        found = self.engine.total(flags).tolist()
        return not found[0], max((n for n in range(1, NUMBERS) if found[n]), default=0)

    def _skip(self, step: int, bad: list[tuple[int, float]]) -> None:
        """Write down which clips it was, by position in the batch and loss; an end after too many in a row."""
        found = [pair for part in self.engine.gather(bad) for pair in part]
        rows = self.feed.rows(step)
        chosen = rows[[position for position, _ in found]] if found else rows
        ids = [self.task.data.records[int(row)].id for row in chosen]
        losses = [loss for _, loss in found] or None
        self.skipped.add(step + 1, reason="loss" if found else "gradient", ids=ids, losses=losses)

    def _report(self, done: int, progress: "tqdm[None]") -> None:
        loop = self.loop
        if done % loop.log_every and done != loop.steps:
            return
        values = self.means.take(self.engine.total) | self.pace.at(done)
        values["lr"] = learning_rate(done - 1, loop.steps, loop.optim)
        values["skipped_in_a_row"] = float(self.skipped.in_a_row)
        values["memory_gib"] = max(self.engine.gather(_peak_memory(self.engine.device)))
        if self.tracker is not None:
            self.tracker.scalars(done, values)
            progress.set_postfix(error=f"{values.get('error', values.get('loss', float('nan'))):.3f}")

    def _evaluate(self, done: int) -> bool:
        """Whether this is the best evaluation so far."""
        every = self.loop.evaluation.every
        if not every or done % every:
            return False
        self.watchdog.beat(f"evaluation at step {done}")
        found, best = self.session.evaluate(done)
        if found is not None and self.tracker is not None:
            self.tracker.scalars(done, found.scalars)
            if found.preview is not None:
                self.tracker.preview(done, found.preview)
        return best

    def _last_checkpoint(self) -> str:
        saved = self.session.saved
        return "" if saved is None else f"step {saved} in {self.session.run}"


def _peak_memory(device: torch.device) -> float:
    """GiB: of the device's memory, or of the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**30 if sys.platform == "darwin" else 2**20)
