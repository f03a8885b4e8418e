"""A run in progress: what the loop trains (`TrainingTask`), and what is saved, resumed, published and evaluated of it
(`Session`)."""

import filecmp
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.checkpoints import store as checkpoint
from distill.checkpoints.ema import PowerEMA, SharedAverages, holding, trained_names
from distill.checkpoints.posthoc import write_snapshot
from distill.checkpoints.publish import publish, write_config
from distill.config import DistillRun, TeacherRun
from distill.engines import Engine, Tensors
from distill.engines.base import TogetherError, precision_name
from distill.evaluation import Evaluated, HeldOut
from distill.loop_config import LoopConfig
from teacher.audio.codec import AudioCodec
from teacher.features.dataset import Examples
from teacher.files import DIGESTS, read_digests, replacing, write_digests
from teacher.files.components import load_strictly
from teacher.files.errors import CANNOT_GO_ON, WRONG_INPUT, TrainingError
from teacher.files.lines import append_lines, drop_later, last_line
from teacher.files.version import package_version
from teacher.flow_matching import Terms
from teacher.network.batch import Batch, BatchSlice
from teacher.network.mmaudio import MMAudio
from teacher.weights.run_folder import HISTORY, read_run_config

RECOMPILES = 64
"""Versions of a forward that torch.compile keeps before it silently runs further ones uncompiled. Its own limit of 8
counts the joint blocks of both kinds together, and each kind has a version for gradients, for the first size of batch
without, for all other sizes, and as many again in another precision."""

Step = Callable[[nn.Module, MMAudio, MMAudio | None, Batch, torch.Generator, float, BatchSlice], Terms]
"""(network to call with gradients, the same network without a wrapper, the network with averaged weights where the task
asks for one, batch, generator, fraction of training done, which rows of the whole batch these are) -> terms."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What the loop trains: a network, its step, its data, and how the result is evaluated and published."""

    kind: str
    config: TeacherRun | DistillRun
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
    evaluate: HeldOut
    """Evaluates a network; every process calls it, and the main process logs the result."""
    best: str
    """Name of the value of an evaluation that is smallest for the best checkpoint."""
    averaged_targets: bool = False
    """Whether the step takes targets from a network with averaged weights: those of the narrowest of loop.ema_std."""
    float32_only: bool = False
    """Whether the step is refused under mixed precision, because it takes differences of the network."""
    frozen: tuple[MMAudio, ...] = ()
    """Networks the step uses but does not train; moved to the device."""
    digests: dict[str, str]
    """Digests of everything the run starts from."""
    licence: str | None = None
    """Licence inherited from weights the run starts from."""
    publish: Callable[[str, Tensors], dict[str, Tensors]] | None = None
    """Turns a state dict of `net` into files for use, where training changes the names (adapters)."""


@contextmanager
def everywhere(engine: Engine, *, status: int = CANNOT_GO_ON) -> Iterator[None]:
    """Context in which a ValueError or OSError of one process becomes a TrainingError in all, so that none waits.

    With a single process, a ValueError for wrong input stays one. Leaving the context is collective; nothing inside may
    be collective."""
    error: str | None = None
    try:
        yield
    except (ValueError, OSError) as caught:
        if engine.processes == 1 and isinstance(caught, ValueError) and status == WRONG_INPUT:
            raise
        error = str(caught)
    with ending(status):
        engine.together(error)


@contextmanager
def ending(status: int) -> Iterator[None]:
    """Context in which a TogetherError ends this process with the exit status `status`."""
    try:
        yield
    except TogetherError as error:
        raise TrainingError(str(error), status=status) from None


class Session:
    """A task on an engine, with its averages, its best evaluation and its run folder.

    Every process of a run has one and calls its methods in the same order; the main process writes.
    """

    def __init__(self, task: TrainingTask, run: Path, engine: Engine) -> None:
        """Write the description of the run into its folder, or compare it with the one that is there.

        `begin` then restores the newest checkpoint that verifies: `first` is the step from which the run goes on.
        """
        self.task, self.run, self.engine = task, run, engine
        self.first, self.bad_in_a_row = 0, 0
        self.best: tuple[int, float] | None = None
        """Step and value of the best evaluation so far."""
        self.saved: int | None = None
        """Step of the last checkpoint written or read."""
        self.log: dict[str, list[float]] = {}
        """Sums of logged values since the last line of the log, as the checkpoint holds them."""
        self.measured = task.evaluate.measured
        """What `best` was measured with."""
        self.finished = False
        """Whether there is nothing to do: the last step is made, and the checkpoints are gone."""
        with everywhere(engine, status=WRONG_INPUT):
            if engine.main:
                self._describe()
        self.finished = engine.gather(self.finished)[0]

    def begin(self, *, micro_batch: int, accumulation: int) -> None:
        """Prepare networks, optimiser and averages on the device, as the newest checkpoint has them if there is one."""
        engine, task, loop = self.engine, self.task, self.task.loop
        net = task.net.train()
        for teacher in task.frozen:
            prepare_blocks(teacher.to(engine.device).eval(), checkpoint=False, compile=loop.compile_blocks)
        found: checkpoint.Checkpoint | None = None
        with everywhere(engine, status=WRONG_INPUT):  # one process verifies what all of them read
            found = checkpoint.newest(self.run) if engine.main else None
        found = engine.gather(found)[0]
        if found:
            load_strictly(net, found.folder / "model.safetensors")
        self.trained = trained_names(net)
        # Copied before the engine hooks into the network; its weights become those of the average.
        self.averaged = deepcopy(net) if task.averaged_targets and loop.ema_std else None
        """The network that the step takes its targets from, if the task asks for averaged weights."""
        prepare_blocks(net, checkpoint=loop.checkpoint_blocks, compile=loop.compile_blocks)
        engine.prepare(net, loop.optim, micro_batch=micro_batch, accumulation=accumulation)
        if engine.plain is not net:  # a copy, which is not compiled with what it is a copy of
            prepare_blocks(engine.plain, checkpoint=False, compile=loop.compile_blocks)
        if self.averaged is not None:
            prepare_blocks(self.averaged.to(engine.device), checkpoint=False, compile=loop.compile_blocks)
        self.averages = SharedAverages(
            engine, self.trained, loop.ema_std, corrected=loop.ema_correction, network=self.averaged
        )
        if found:
            engine.load_moments(found.tensors("optimizer"))
            self.averages.load(found.tensors)
            self._restore(found)
        if loop.evaluation.every:
            with ending(WRONG_INPUT):
                task.evaluate.open(engine)
        self._report_start()
        with everywhere(engine):
            if engine.main and self.first < loop.steps:
                self._begin_stretch()

    def save(self, step: int, log: dict[str, list[float]], bad_in_a_row: int) -> None:
        """Write a checkpoint after `step` steps, and the weights for use. `log` and `bad_in_a_row` are stored in it and
        restored when the run is resumed."""
        moments, engine = self.engine.moments(), self.engine
        best: dict[str, object] | None = None
        if self.best is not None:
            best = {"step": self.best[0], "metric": self.task.best, "value": self.best[1], "measured": self.measured}
        state = {"step": step, "bad_in_a_row": bad_in_a_row, "best": best, "log": log}
        averages = [self.averages.whole(i) for i in range(len(self.averages.parts))]
        with everywhere(engine):
            if engine.main:
                model = {n: p.detach() for n, p in engine.plain.state_dict().items()}
                tensors = {"model": model, "optimizer": moments}
                for name, average in zip(self.averages.names, averages, strict=True):
                    tensors[name] = model | {n: t.to(model[n].dtype) for n, t in average.items()}
                keep, best_step = self.task.loop.keep_last, None if self.best is None else self.best[0]
                folder = checkpoint.save(self.run, step, tensors, state, keep_last=keep, best=best_step)
                self._publish(folder)
        self.saved = step

    def snapshot(self, done: int) -> None:
        """Write a snapshot of the averages at the steps of the configuration and at the last step."""
        every = self.task.loop.ema_snapshot_every
        if every and (done % every == 0 or done == self.task.loop.steps):
            for index, part in enumerate(self.averages.parts):
                whole = self.averages.whole(index)
                with everywhere(self.engine):
                    if self.engine.main:
                        average = PowerEMA(self.engine.plain, part.std, corrected=part.corrected, names=())
                        average.shadow = whole
                        write_snapshot(self.run, average, done)

    def evaluate(self, done: int) -> tuple[Evaluated | None, bool]:
        """Evaluate the weights that sampling uses, those of the narrowest average, on held-out clips.

        Returns the numbers (in the main process alone) and, in every process, whether they are the best so far."""
        net, stds = self.engine.plain, self.task.loop.ema_std
        narrowest: Tensors = {}
        if stds:
            narrowest = self.averages.whole(stds.index(min(stds)), everywhere=True)
        with holding(net, narrowest), ending(CANNOT_GO_ON):
            found = self.task.evaluate(net, self.engine)
        value = None if found is None else found.scalars.get(self.task.best)
        value = self.engine.gather(value)[0]
        if value is None or (self.best is not None and not value < self.best[1]):
            return found, False
        self.best = (done, value)
        return found, True

    def _describe(self) -> None:
        """Write config.json, codec and features.json beside the weights and their digests into digests.json.

        A finished run is left as it is. Raises ValueError where the folder holds a run of another configuration."""
        task, run = self.task, self.run
        described = (run, task.kind, task.config, task.net.config, task.digests, task.licence)
        _mend_record(run)
        if (run / "config.json").exists():
            write_config(*described)
        self.finished = checkpoint.finished_without_checkpoints(run, task.loop.steps)
        if self.finished:
            print(
                f"{run} is finished (step {task.loop.steps}); its checkpoints in trainer/ were removed, and nothing is "
                "left to do",
                flush=True,
            )
            return
        if not (run / "config.json").exists():
            write_config(*described)
        if task.codec.digest == task.data.info["codec"]["digest"]:
            _copy(task.features / "codec.safetensors", run / "codec.safetensors")
        else:
            write_digests(run, (), forget=["codec.safetensors"])
            task.codec.save(run / "codec.safetensors")
        _copy(task.features / "features.json", run / "features.json")
        # A configuration that is recorded already may have been edited since, which mf-check reports.
        config = [] if "config.json" in read_digests(run) else ["config.json"]
        write_digests(run, ["codec.safetensors", "features.json", *config])

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        """Go on from the state of a checkpoint, and publish its weights again."""
        best = found.state["best"]
        self.first = self.saved = found.step
        self.bad_in_a_row, self.log = int(found.state["bad_in_a_row"]), found.state["log"]
        self.best = None if best is None else (int(best["step"]), float(best["value"]))
        if best is not None:
            self._compare_evaluation(best.get("measured") or self._first_evaluation())
        with everywhere(self.engine):  # a kill may have come between the checkpoint and this
            if self.engine.main:
                self._publish(found.folder)
                checkpoint.drop_later(self.run, found.step)

    def _first_evaluation(self) -> object:
        """Settings of the evaluation at the start of the run, which checkpoints of earlier versions do not hold."""
        plain: Any = read_run_config(self.run)["run"]
        return {name: plain["loop"]["evaluation"].get(name) for name in self.measured}

    def _compare_evaluation(self, measured: object) -> None:
        """Evaluations of other clips, or against other steps of the teacher, cannot be compared: the best starts anew.

        These settings are operational (`distill.loop_config.OPERATIONAL`), since they change no weights.
        """
        if not self.task.loop.evaluation.every and isinstance(measured, dict):
            self.measured = measured  # nothing else will be measured
        if measured == self.measured:
            return
        if self.engine.main and self.best is not None:
            print(
                f"evaluation: {_listed(self.measured)} from now on, {_listed(measured)} before: they cannot be "
                f"compared, so the best evaluation so far (step {self.best[0]}) no longer counts, and the best starts "
                "anew",
                flush=True,
            )
        self.best = None

    def _begin_stretch(self) -> None:
        """Append a line to history.jsonl on the steps from here on; lines on steps that come again are dropped.

        Another precision than before is allowed, as another number of processes is: weights, gradients and moments are
        float32 in both (`Engine.precision`), and a training begun on one machine may have to end on another. The result
        is not that of either precision alone, however, so the log states which steps were made in which.
        """
        path = self.run / HISTORY
        drop_later(path, self.first - 1)
        before, precision = last_line(path), precision_name(self.engine.precision)
        stretch: dict[str, Any] = {
            "step": self.first,
            "precision": precision,
            "engine": self.engine.name,
            "processes": self.engine.processes,
            "device": str(self.engine.device),
            "save_every": self.task.loop.save_every,
            "package_version": package_version(),
            "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        if self.task.averaged_targets:
            stretch["targets"] = self._targets()
            self._report_targets(before)
        append_lines(path, [json.dumps(stretch, ensure_ascii=False)])
        if before is not None and before.get("precision") != precision:
            print(
                f"precision: {precision} from step {self.first + 1} on, {before.get('precision')} before; {path} lists "
                "which steps were made in which",
                flush=True,
            )

    def _publish(self, folder: Path) -> None:
        publish(self.run, folder, ["model", *self.averages.names], self.task.publish)

    def _targets(self) -> str:
        average = self.averages.network_average
        return "the present weights" if average is None else average.name

    def _report_targets(self, before: dict[str, Any] | None) -> None:
        """Print a line where targets come from other weights than expected: none are averaged, or none were before."""
        if self.averages.network_average is None:
            print("targets: from the present weights, since loop.ema_std names no average", flush=True)
        elif before is not None and "targets" not in before:  # a run that an earlier version began
            print(
                f"targets: from averaged weights ({self._targets()}) from step {self.first + 1} on, from the present "
                "weights before",
                flush=True,
            )

    def _report_start(self) -> None:
        """Print how much is trained, on how many clips, and how: one line."""
        if self.engine.main:
            named, task = dict(self.engine.plain.named_parameters()), self.task
            count = sum(named[name].numel() for name in self.trained)
            print(f"{task.kind}: {count / 1e6:.2f} M trainable parameters, {len(task.data)} clips, ", end="")
            print(
                f"{self.engine.describe()}" + (f"; going on from step {self.first}" if self.first else ""), flush=True
            )


def blocks_of(net: MMAudio) -> list[nn.Module]:
    """Joint and fused blocks, those of a velocity head included, in the order in which they run."""
    head = net.velocity_blocks if net.config.velocity_head else ()
    return list(chain(net.joint_blocks, net.fused_blocks, head))


def prepare_blocks(net: MMAudio, *, checkpoint: bool, compile: bool) -> None:
    """Apply the block settings of LoopConfig in place, before an engine wraps `net`; names of parameters stay.

    `checkpoint`: where gradients are recorded, blocks store their inputs alone and compute the rest again in the
    backward pass (torch.utils.checkpoint without reentry). Derivatives, targets and samples, which record none, are not
    affected.

    `compile`: each block is compiled by itself when it is first called, so blocks of a kind share one compilation;
    ForwardAD runs them as written. A deep copy of the network is not compiled: call this on the copy too.
    """
    net.checkpoint_blocks = checkpoint
    if compile:
        import torch._dynamo.config as limits  # takes seconds

        limits.recompile_limit = max(limits.recompile_limit, RECOMPILES)
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * RECOMPILES)
        for block in blocks_of(net):
            block.compile()
    else:
        for block in blocks_of(net):
            block._compiled_call_impl = None


def _copy(source: Path, target: Path) -> None:
    """A copy in one piece, or what was there; nothing if it is the same already."""
    if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
        write_digests(target.parent, (), forget=[target.name])
        with replacing(target) as staging:
            shutil.copyfile(source, staging)


def _mend_record(run: Path) -> None:
    """A damaged digests.json is written anew by the training that owns the folder."""
    try:
        read_digests(run)
    except ValueError as error:
        print(f"{str(error).split(';')[0]}; it is written anew", flush=True)
        (run / DIGESTS).unlink()


def _listed(measured: object) -> str:
    if not isinstance(measured, dict):
        return "others"
    return ", ".join(f"{name} {value}" for name, value in measured.items())
