"""Sounds per second and peak memory of training, by method, precision, blocks and engine.

    python -m benchmarks.training_throughput                                                  # one GPU, all rows
    python -m benchmarks.training_throughput --network debug_16k --duration-s 1 --micro-batch 4 --seconds 1     # a CPU
    python -m benchmarks.training_throughput --configs ddp_8gpu,fsdp2_8gpu,zero2_8gpu --num-processes 8

Every row runs in processes of its own, started by distill.launch.launcher with a shipped configuration: a real step
with optimiser, averages and, for a student, the frozen teacher in memory; random weights and features, no files.
Without --micro-batch the batch doubles until memory is exhausted, beginning where the row before ended. Rows go to
--out, one JSON object a line, as they are measured; a Markdown table ends the output.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.meanflow_step import opened, random_conditions
from distill.checkpoints.ema import SharedAverages, trained_names
from distill.config import Method, OptimConfig
from distill.engines import Engine, choose_engine
from distill.loop.session import prepare_blocks
from distill.method.step import train_step
from distill.method.student import student_from_teacher
from distill.presets.students import student_mf_mjt
from meanflow import TimePairs
from teacher.flow_matching import FlowMatching, Terms, flow_matching_step
from teacher.network.batch import Batch, BatchSlice
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import variant

METHODS: dict[str, Callable[[], FlowMatching | Method]] = {
    "flow": FlowMatching,
    "meanflow": lambda: Method(times=TimePairs(fm_fraction=0.75)),
    "mf-mjt": lambda: student_mf_mjt().method,
}
"""Flow matching of a teacher; MeanFlow with a quarter of the rows at r < t; the same with guided targets."""
BLOCKS = {"eager": (False, False), "compiled": (False, True), "checkpointed": (True, False), "both": (True, True)}
"""Treatment of the network's blocks: (checkpointed, compiled)."""
EXHAUSTED = 3
"""Exit status of a process without memory left."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The setting that one row measures."""

    config: str
    precision: str
    method: str
    blocks: str

    def __post_init__(self) -> None:
        for name, known in (("precision", ("no", "bf16")), ("method", tuple(METHODS)), ("blocks", tuple(BLOCKS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)}")


def default_rows() -> list[Row]:
    """Rows for one GPU, the most important first, because time may run out."""
    one = [
        Row(config="one_gpu", precision=precision, method=method, blocks=blocks)
        for precision in ("bf16", "no")
        for blocks in ("eager", "compiled", "checkpointed")
        for method in ("flow", "meanflow")
    ]
    guided = Row(config="one_gpu", precision="bf16", method="mf-mjt", blocks="eager")
    zero = [Row(config=f"zero{k}_8gpu", precision="bf16", method="meanflow", blocks="eager") for k in (1, 2, 3)]
    return [*one[:6], *zero, guided, *one[6:]]


class Training:
    """A started engine with everything that a run has in memory, and its step on random features."""

    def __init__(self, method: FlowMatching | Method, args: argparse.Namespace) -> None:
        self.engine: Engine = choose_engine(timeout_s=120.0)
        self.method, self.args = method, args
        self.config = variant(args.network)
        draws = torch.Generator().manual_seed(0)
        net = opened(MMAudio(self.config), draws)
        self.teacher: MMAudio | None = None
        if isinstance(method, Method):
            self.teacher, net = net.to(self.engine.device).eval(), opened(student_from_teacher(net), draws)
        net.train()
        checkpoint, compiled = BLOCKS[args.blocks]
        names = trained_names(net)
        prepare_blocks(net, checkpoint=checkpoint, compile=compiled)
        self.optim = OptimConfig()
        self.engine.prepare(net, self.optim, micro_batch=args.start, accumulation=1)
        self.averages = SharedAverages(self.engine, names, (0.05, 0.1), corrected=False)
        self.done = 0

    def batch(self, size: int) -> Batch:
        """Random features of `size` sounds for this process; values do not change the cost."""
        draws = torch.Generator().manual_seed(self.engine.process)
        frames = self.config.sequence.latent_frames(self.args.duration_s)
        latents = torch.randn(size, frames, self.config.latent_channels, generator=draws)
        conditions = random_conditions(self.config, size, self.args.duration_s, draws)
        return Batch(latents=latents, conditions=conditions, indices=torch.arange(size)).to(self.engine.device)

    def step(self, batch: Batch) -> None:
        """Forward, backward, optimiser and averages, as the loop does them."""
        engine, size = self.engine, len(batch.latents)
        batch_slice = BatchSlice(engine.process * size, (engine.process + 1) * size, engine.processes * size)
        draws = torch.Generator(engine.device).manual_seed(self.done)
        with engine.micro(last=True):
            with engine.autocast():
                loss = self.terms(batch, draws, batch_slice).loss.mean()
            engine.backward(loss)
        if engine.step(self.optim.lr, self.optim.clip_norm, healthy=True) is None:
            raise RuntimeError("the gradient is not finite")
        self.done += 1
        self.averages.update(self.done)

    def terms(self, batch: Batch, draws: torch.Generator, batch_slice: BatchSlice) -> Terms:
        net, plain, method = self.engine.model, self.engine.plain, self.method
        if isinstance(method, FlowMatching):
            return flow_matching_step(net, batch, method, generator=draws, batch_slice=batch_slice)
        assert self.teacher is not None
        return train_step(net, plain, self.teacher, batch, method, generator=draws, batch_slice=batch_slice)

    def measure(self, size: int) -> dict[str, Any]:
        """Mean time of at least three steps and `--seconds` after two untimed ones, and the peak over all of them."""
        batch, cuda = self.batch(size), self.engine.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            self.step(batch)
        began, steps, seconds = self.now(), 0, 0.0
        while steps < 3 or seconds < self.args.seconds:
            self.step(batch)
            steps += 1
            seconds = max(self.engine.gather(self.now() - began))  # the same in every process
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "engine": self.engine.name,
            "micro_batch": size,
            "processes": self.engine.processes,
            "step_s": seconds / steps,
            "sounds_per_s": size * self.engine.processes * steps / seconds,
            "peak_bytes": max(self.engine.gather(peak)),
            "peak_of": "allocated on the GPU" if cuda else "resident memory",
            "on": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} thread(s)",
            "torch": torch.__version__,
        }

    def now(self) -> float:
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure_row(args: argparse.Namespace) -> None:
    """Measure a row, in each of its processes; prints a line for every batch size that fits into memory."""
    size = args.start
    try:
        training = Training(METHODS[args.method](), args)
        while True:
            measured = training.measure(size)
            if training.engine.main:
                print("MEASURED " + json.dumps(measured), flush=True)
            if args.micro_batch is not None or size >= args.most:
                return
            size *= 2
    except torch.cuda.OutOfMemoryError:
        print(f"EXHAUSTED at {size} sounds", flush=True)
        sys.stdout.flush()
        os._exit(EXHAUSTED)  # the other processes may be waiting in a collective: the launcher ends them


def run(row: Row, begin: int, args: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Measure a row in its own processes, halving the first batch until it fits into memory."""
    launch = [sys.executable, "-m", "distill.launch.launcher", "--config_file", row.config]
    launch += ["--num_processes", str(args.num_processes), "--mixed_precision", row.precision]
    flags = ["--network", args.network, "--duration-s", str(args.duration_s), "--seconds", str(args.seconds)]
    flags += ["--method", row.method, "--blocks", row.blocks, "--most", str(args.most)]
    flags += [] if args.micro_batch is None else ["--micro-batch", str(args.micro_batch)]
    while begin >= 1:
        command = [*launch, "-m", "benchmarks.training_throughput", "--worker", *flags, "--start", str(begin)]
        out, err = _outcome(command, min(args.row_limit_s, deadline - time.time()))
        lines = [line.split("MEASURED ", 1)[1] for line in out.splitlines() if "MEASURED " in line]
        if lines:
            largest = "EXHAUSTED" in out
            return asdict(row) | json.loads(lines[-1]) | {"network": args.network, "largest": largest}
        if "EXHAUSTED" not in out or args.micro_batch is not None:
            return asdict(row) | {"failed": "out of memory" if "EXHAUSTED" in out else _last(err)}
        begin //= 2
    return asdict(row) | {"failed": "out of memory with a single sound"}


def _outcome(command: list[str], limit_s: float) -> tuple[str, str]:
    """Standard output and error of a command; after the time limit the launcher is asked to end its processes."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            return launcher.communicate(timeout=max(limit_s, 1.0))
        except subprocess.TimeoutExpired:
            launcher.terminate()
            out, _ = launcher.communicate()
            return out, f"not within {limit_s:.0f} s"


def _last(text: str) -> str:
    """The last line of a failed row's output that is not the launcher's."""
    lines = [
        line for line in text.splitlines() if line.strip() and "launch: " not in line and "failed (exitcode" not in line
    ]
    return lines[-1].strip() if lines else "no output"


def measured(rows: list[Row], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows in turn, until the time is over."""
    deadline = time.time() + args.time_limit_s
    begin = {"no": args.start, "bf16": args.start}
    for row in rows:
        if time.time() > deadline:
            yield asdict(row) | {"failed": "not begun within the time limit"}
            continue
        found = run(row, begin[row.precision], args, deadline)
        if row.blocks == "eager" and "micro_batch" in found:
            begin[row.precision] = found["micro_batch"]
        yield found


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; its last column is relative to flow matching with the same engine, precision and blocks."""
    head = "| engine | precision | method | blocks | sounds a pass | s a step | sounds/s | of flow matching | peak GB |"
    lines = [head, "|---" * 9 + "|"]
    flow = {
        (r["config"], r["precision"], r["blocks"]): r["sounds_per_s"]
        for r in rows
        if r["method"] == "flow" and "sounds_per_s" in r
    }
    for r in rows:
        engine = f"{r['engine']} x {r['processes']}" if r.get("processes", 1) > 1 else r.get("engine", r["config"])
        cells = [engine, {"no": "float32"}.get(r["precision"], "bfloat16"), r["method"], r["blocks"]]
        if "failed" in r:
            cells += [r["failed"], *[""] * 4]
        else:
            base = flow.get((r["config"], r["precision"], r["blocks"]))
            cells += [f"{r['micro_batch']}{'' if r['largest'] else ' (given)'}", f"{r['step_s']:.3f}"]
            cells += [f"{r['sounds_per_s']:.1f}", f"{r['sounds_per_s'] / base:.2f}" if base else ""]
            cells += [f"{r['peak_bytes'] / 1e9:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print, or be one of the processes of a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="small_16k")
    parser.add_argument("--duration-s", type=float, default=8.0)
    parser.add_argument(
        "--micro-batch", type=int, help="sounds per process and pass; without it, the largest that fits"
    )
    parser.add_argument("--start", type=int, default=32, help="where the search for the largest begins")
    parser.add_argument("--most", type=int, help="where it ends at the latest; 4096 on a GPU")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured per batch size, at least")
    parser.add_argument("--configs", help="shipped configurations; without them, the rows for one GPU")
    parser.add_argument("--precisions", default="bf16,no")
    parser.add_argument("--methods", default="flow,meanflow")
    parser.add_argument("--blocks", default="eager,compiled,checkpointed")
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--time-limit-s", type=float, default=570.0, help="no row is begun or waited for after this")
    parser.add_argument("--row-limit-s", type=float, default=120.0, help="the same for a single row")
    parser.add_argument("--out", type=Path, default=Path("runs/throughput.jsonl"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.micro_batch is not None:
        args.start = args.micro_batch
    if args.worker:
        measure_row(args)
        return
    if args.most is None:
        if args.micro_batch is None and not torch.cuda.is_available():
            parser.error("--micro-batch or --most is needed without a GPU, because full memory is not reported there")
        args.most = args.micro_batch or 4096
    rows = default_rows()
    if args.configs:
        rows = [
            Row(config=config, precision=precision, method=method, blocks=blocks)
            for config in args.configs.split(",")
            for precision in args.precisions.split(",")
            for blocks in args.blocks.split(",")
            for method in args.methods.split(",")
        ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    found = []
    with args.out.open("w") as out:
        for row in measured(rows, args):
            found.append(row)
            print(json.dumps(row), flush=True)
            out.write(json.dumps(row) + "\n")
            out.flush()
    print("\n" + table(found))


if __name__ == "__main__":
    main()
