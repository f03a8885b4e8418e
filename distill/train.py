"""The training loop shared by teacher and student: data, step, backward, averages, log, save, resume."""

import hashlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from distill import checkpoint
from distill.checkpoint import Tensors
from distill.config import LoopConfig
from distill.ema import PowerEMA
from distill.engine import Engine, start
from distill.optim import adamw, learning_rate, set_learning_rate
from distill.posthoc import write_snapshot
from distill.tracking import Averages, Preview, Tracker
from teacher.audio.codec import AudioCodec
from teacher.data.dataset import Batch, Examples, batch_indices
from teacher.network import MMAudio
from teacher.train import Terms

INTERRUPTED = 130
"""Exit status after an interruption that saved at the step boundary."""

Step = Callable[[nn.Module, MMAudio, Batch, torch.Generator, float], Terms]
"""(wrapped network, the same network plain, batch, generator, share of training done) -> terms."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, and the last checkpoint is intact."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the loop trains: a network, its step, and a way to hear it."""

    kind: str
    config: Any
    """The run's dataclass, written to config.json."""
    loop: LoopConfig
    data: Examples
    """The training split, in the network's units."""
    features: Path
    """The feature folder whose description goes into the run folder."""
    codec: AudioCodec
    """The codec that decodes what the network makes; written into the run folder."""
    net: MMAudio
    step: Step
    preview: Callable[[MMAudio], Preview]
    frozen: tuple[nn.Module, ...] = ()
    """Networks the step uses but does not train; moved to the device."""
    digests: dict[str, str]
    """Digests of everything the run starts from."""
    licence: str | None = None
    """Licence inherited from weights the run starts from."""
    publish: Callable[[str, Tensors], dict[str, Tensors]] | None = None
    """Turns a state dict of `net` into files for use, where training changes the names (adapters)."""


def fit(task: Task, run: Path) -> Path:
    """Train until loop.steps, from the newest checkpoint of `run` if there is one; the run folder.

    Data order, noise and times derive from (seed, step, rank), so a resumed run repeats the uninterrupted one. SIGINT
    and SIGTERM save at the end of the current step and leave with status 130.
    """
    loop, engine = task.loop, start()
    a = engine.accelerator
    data = task.data
    if loop.batch_size % a.num_processes:
        raise ValueError(f"batch_size {loop.batch_size} does not divide over {a.num_processes} processes")
    if a.is_main_process:
        checkpoint.write_config(run, task.kind, task.config, task.net.config, task.digests, task.licence)
        if task.codec.digest == data.info["codec"]["digest"]:
            shutil.copyfile(task.features / "codec.safetensors", run / "codec.safetensors")
        else:
            task.codec.save(run / "codec.safetensors")
        shutil.copyfile(task.features / "features.json", run / "features.json")
    a.wait_for_everyone()
    plain = task.net.to(a.device).train()
    for module in task.frozen:
        module.to(a.device).eval()
    inner = adamw(plain, loop.optim)
    averages = [PowerEMA(plain, std, corrected=loop.ema_correction) for std in loop.ema_std]
    folder = checkpoint.latest(run)
    first = checkpoint.resume(folder, plain, None if engine.sharded else inner, averages) if folder else 0
    model, optimizer = engine.prepare(plain, inner, loop.batch_size // a.num_processes)
    if folder and engine.sharded:
        a.load_state(str(folder / "engine"))
    if a.is_main_process:
        count = sum(p.numel() for p in plain.parameters() if p.requires_grad)
        print(
            f"{task.kind}: {count / 1e6:.2f} M trainable parameters, {len(data)} clips, {engine.describe()}", flush=True
        )
    state = _State(task, run, engine, plain, model, inner, optimizer, averages)
    with _interruptible() as interrupted:
        _loop(state, data, first, interrupted)
    return run


@dataclass(frozen=True)
class _State:
    task: Task
    run: Path
    engine: Engine
    plain: MMAudio
    model: nn.Module
    inner: torch.optim.Optimizer
    optimizer: torch.optim.Optimizer
    averages: list[PowerEMA]

    def save(self, step: int) -> None:
        a = self.engine.accelerator
        if self.engine.sharded:
            a.save_state(str(self.run / "trainer" / f"step-{step:07d}.tmp" / "engine"))
        if a.is_main_process:
            optimizer = None if self.engine.sharded else self.inner
            checkpoint.save(self.run, step, self.plain, optimizer, self.averages, self.task.publish)
        a.wait_for_everyone()

    def snapshot(self, done: int) -> None:
        """Keep the averages for good where the configuration asks for it, the last step included."""
        every = self.task.loop.ema_snapshot_every
        if every and self.engine.accelerator.is_main_process and (done % every == 0 or done == self.task.loop.steps):
            for average in self.averages:
                write_snapshot(self.run, average, done)


def _loop(s: _State, data: Examples, first: int, interrupted: Callable[[], bool]) -> None:
    loop, a = s.task.loop, s.engine.accelerator
    main, means, bad, began = a.is_main_process, Averages(), 0, time.perf_counter()
    with Tracker(s.run) if main else _nothing() as tracker:
        progress = tqdm(
            total=loop.steps, initial=first, desc=s.task.kind, disable=not main, mininterval=2.0, file=sys.stdout
        )
        for step in range(first, loop.steps):
            terms = _update(s, data, step)
            bad = 0 if terms is not None else bad + 1
            if bad > loop.max_bad_steps:
                raise TrainingError(f"{bad} steps in a row were not finite at step {step}; lower optim.lr")
            if terms is not None:
                means.add(terms)
            done = step + 1
            progress.update()
            if tracker is not None and (done % loop.log_every == 0 or done == loop.steps):
                values = means.take()
                values["lr"] = learning_rate(step, loop.steps, loop.optim)
                values["sounds_per_second"] = (done - first) * loop.batch_size / (time.perf_counter() - began)
                values["skipped_in_a_row"] = float(bad)
                tracker.scalars(done, values)
                progress.set_postfix(error=f"{values.get('error', values.get('loss', float('nan'))):.3f}")
            if tracker is not None and loop.preview_every and done % loop.preview_every == 0:
                s.plain.eval()
                tracker.preview(done, s.task.preview(s.plain))
                s.plain.train()
            s.snapshot(done)
            stop = interrupted()
            if done % loop.save_every == 0 or done == loop.steps or stop:
                s.save(done)
            if stop and done < loop.steps:
                progress.close()
                if main:
                    print(
                        f"interrupted: saved at step {done} in {s.run}; the same command goes on from there", flush=True
                    )
                raise SystemExit(INTERRUPTED)
        progress.close()


def _update(s: _State, data: Examples, step: int) -> dict[str, torch.Tensor] | None:
    """One optimiser step; None, with the weights untouched, where loss or gradient is not finite."""
    loop, a = s.task.loop, s.engine.accelerator
    share = loop.batch_size // a.num_processes
    order = batch_indices(len(data), loop.batch_size, seed=loop.seed, step=step)
    rows = order[a.process_index * share : (a.process_index + 1) * share].tolist()
    posterior = _generator(loop.seed, step, a.process_index, torch.device("cpu"), "posterior")
    batch = data.batch(rows, generator=posterior).to(a.device)
    set_learning_rate(s.inner, learning_rate(step, loop.steps, loop.optim))
    with a.autocast():
        draws = _generator(loop.seed, step, a.process_index, a.device)
        terms = s.task.step(s.model, s.plain, batch, draws, step / loop.steps)
        loss = terms.loss.mean()
    a.backward(loss)
    if s.engine.sharded:
        s.optimizer.step()
        s.optimizer.zero_grad()
    else:
        norm = a.clip_grad_norm_(s.plain.parameters(), loop.optim.clip_norm)
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(a.reduce(loss.detach(), "mean")))
        if finite:
            s.optimizer.step()
        s.optimizer.zero_grad()
        if not finite:
            return None
        terms.logs["norm/gradient"] = norm.detach()
    for average in s.averages:
        average.update(s.plain, step + 1)
    return terms.logs


def _generator(seed: int, step: int, rank: int, device: torch.device, purpose: str = "") -> torch.Generator:
    """Each step draws its own numbers; so does each purpose that the step itself knows nothing of."""
    mixed = hashlib.sha256(f"{seed}/{step}/{rank}{purpose and '/' + purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(mixed[:7], "big"))


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM set a flag, read at step boundaries; a second SIGINT interrupts at once."""
    flag: list[int] = []
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        if flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.append(number)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield lambda: bool(flag)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
