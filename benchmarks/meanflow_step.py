"""Cost of a MeanFlow step relative to a flow-matching step: `python -m benchmarks.meanflow_step`.

Each variant runs in its own process, which gives its peak memory; the steps are timed in turn, so that other load on
the machine affects all of them. Prints a Markdown table with ratios to plain flow matching.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from distill.method.student import student_from_teacher
from eval.ledger import NumberTable, record
from meanflow import AdaptiveL2, MeanFlow, StudentCalls, TimePairs, interpolate, u_only, velocity
from meanflow.shapes import Predict
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.sequence import image_frames, sync_frames
from teacher.network.variants import MMAudioConfig, variant
from teacher.network.velocity import forward_prediction, forward_velocity, student_prediction

MOVING = 0.25
VARIANTS = {
    "plain": "flow matching",
    "project": "MeanFlow, derivative without a graph on the rows with r < t, then one forward",
    "double": "double backward over all rows (`autograd.functional.jvp`, MATH)",
    "joint": "`torch.func.jvp` with its graph over all rows (MATH)",
}
FLOOR = (3 + 2 * MOVING) / 3
"""Least cost relative to flow matching: a forward is 1, its backward 2, a forward with tangents 2 on moving rows."""


FUSED_ON_CPU: dict[Any, tuple[int, int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (0, 2),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 5),
}
"""Position of q among the arguments, and the number of products."""


class Step:
    """One training step of one variant: forward and backward on a fixed batch, without an optimiser."""

    def __init__(
        self, name: str, config: MMAudioConfig, *, batch: int, duration_s: float, device: str, bf16: bool
    ) -> None:
        g = torch.Generator().manual_seed(0)
        teacher = opened(MMAudio(config), g)
        net = teacher if name == "plain" else opened(student_from_teacher(teacher), g)
        del teacher
        self.net = net.to(device)
        self.conditions = random_conditions(config, batch, duration_s, g).to(device)
        x, e = torch.randn(2, batch, config.sequence.latent_frames(duration_s), config.latent_channels, generator=g)
        r, t = TimePairs(fm_fraction=1 - MOVING)(batch, generator=g)
        self.x_t, self.v = interpolate(x, e, t).to(device), velocity(x, e).to(device)
        self.r, self.t = r.to(device), t.to(device)
        self.loss = {"plain": self.plain, "project": self.project, "double": self.double, "joint": self.joint}[name]
        self.precision = torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()

    def __call__(self) -> None:
        self.net.zero_grad(set_to_none=True)
        with self.precision:
            loss = self.loss().mean()
        loss.backward()

    def plain(self) -> Tensor:
        v = forward_velocity(self.net, self.x_t, self.t, self.conditions)
        return (v - self.v).float().pow(2).flatten(1).mean(1)

    def project(self) -> Tensor:
        """As distill.method.step does it: conditions encoded again for the moving rows alone."""
        net, conditions = self.net, self.conditions

        def without_graph(rows: Tensor | None) -> Predict:
            with torch.no_grad():
                chosen = conditions if rows is None else conditions.rows(rows)
                encoded = net.encode_conditions(chosen, self.x_t.shape[1])
            return lambda x_t, r, t: student_prediction(net, x_t, r, t, encoded)

        calls = StudentCalls(train=lambda rows: u_only(self.u), plain=without_graph)
        return MeanFlow()(calls, self.x_t, self.r, self.t, self.v).loss(AdaptiveL2())

    def double(self) -> Tensor:
        with sdpa_kernel([SDPBackend.MATH]):
            u, dudt = torch.autograd.functional.jvp(self.u, self.primals, self.tangents, create_graph=True)
        return self.from_joint(u, dudt)

    def joint(self) -> Tensor:
        with sdpa_kernel([SDPBackend.MATH]):
            made = torch.func.jvp(self.u, self.primals, self.tangents)
        u, dudt = made[0], made[1]
        return self.from_joint(u, dudt)

    def u(self, x_t: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return forward_prediction(self.net, x_t, r, t, self.conditions).u

    def from_joint(self, u: Tensor, dudt: Tensor) -> Tensor:
        target = self.v - (self.t - self.r)[:, None, None] * dudt
        return AdaptiveL2()(u - target.detach())

    @property
    def primals(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x_t, self.r, self.t

    @property
    def tangents(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.v, torch.zeros_like(self.r), torch.ones_like(self.t)


def opened(net: MMAudio, generator: torch.Generator) -> MMAudio:
    """The network with small random numbers instead of initial zeros, so that no branch or gradient vanishes."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    return net


def random_conditions(config: MMAudioConfig, batch: int, duration_s: float, g: torch.Generator) -> Conditions:
    """Every modality present, with the lengths of `duration_s`; image and text features are unit vectors on average."""
    present = torch.ones(batch, dtype=torch.bool)
    return Conditions(
        clip=torch.randn(batch, image_frames(duration_s), config.clip_dim, generator=g) / config.clip_dim**0.5,
        sync=torch.randn(batch, sync_frames(duration_s), config.sync_dim, generator=g),
        text=torch.randn(batch, config.text_tokens, config.text_dim, generator=g) / config.text_dim**0.5,
        has_clip=present,
        has_sync=present,
        has_text=present,
    )


class Products(TorchDispatchMode):
    """Counts products, 2 per multiply-add, by torch's own table of formulas.

    `FlopCounterMode` cannot be used, because its module hooks fail under a double backward. Fused attention on a CPU,
    which the table lacks, is counted as on a GPU: 2 products forward, 5 backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in FUSED_ON_CPU:
            first, products = FUSED_ON_CPU[packet]
            q, k = args[first], args[first + 1]
            self.total += products * 2 * q.numel() * k.shape[2]
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out


def flops(call: Callable[[], object]) -> int:
    """Products counted in one call."""
    with Products() as counter:
        call()
    return counter.total


def serve(step: Step, device: str) -> None:
    """Answer every line on the standard input: FLOPs first, then seconds, then the peaks."""
    cuda = device == "cuda"
    print(flops(step), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        if cuda:
            torch.cuda.synchronize()
        began, busy = time.perf_counter(), time.process_time()
        step()
        if cuda:
            torch.cuda.synchronize()
        print(time.perf_counter() - began, time.process_time() - busy, flush=True)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(torch.cuda.max_memory_allocated() if cuda else resident, flush=True)


class Worker:
    """A variant that runs in its own process."""

    def __init__(self, name: str, options: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.meanflow_step", "--worker", name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.flops = int(self.read())
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with code {self.process.wait()}")
        return line

    def ask(self, line: str) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return [float(word) for word in self.read().split()]

    def step(self) -> None:
        wall, cpu = self.ask("step")
        self.seconds.append(wall)
        self.cpu_seconds.append(cpu)

    def end(self) -> float:
        """Ends the process; its peak memory in bytes."""
        (peak,) = self.ask("end")
        self.process.wait()
        return peak


def main() -> None:
    """Measure and print, or serve as one of the variants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", default="plain,project,double", help=", ".join(VARIANTS))
    parser.add_argument("--network", default="small_16k")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--duration-s", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--record", type=Path, help="also write the figures to this file of the ledger")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(
            Step(
                args.worker,
                variant(args.network),
                batch=args.batch,
                duration_s=args.duration_s,
                device=args.device,
                bf16=args.bf16,
            ),
            args.device,
        )
        return
    options = [f"--network={args.network}", f"--batch={args.batch}", f"--duration-s={args.duration_s}"]
    options += [f"--device={args.device}"] + (["--bf16"] if args.bf16 else [])
    workers = {name: Worker(name, options) for name in args.variants.split(",")}
    for _ in range(args.repeats):
        for name, worker in workers.items():
            worker.step()
            print(f"{name}: {worker.seconds[-1]:.2f} s, {worker.cpu_seconds[-1]:.2f} CPU s", file=sys.stderr)
    report(workers, args)


def report(workers: dict[str, Worker], args: argparse.Namespace) -> None:
    """The table, with ratios to the first variant."""
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    precision = "bfloat16 autocast" if args.bf16 else "float32"
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"{args.network}, batch {args.batch}, {args.duration_s:g} s, {precision}; {where}, torch {torch.__version__}, "
        f"median of {args.repeats} in turns (CPU seconds: least), load averages {load}\n"
    )
    base, measured = None, []
    for name, worker in workers.items():
        cells = (
            worker.flops / 1e12,
            statistics.median(worker.seconds),
            min(worker.cpu_seconds),
            worker.end() / 1e9,
        )
        base = base or cells
        measured.append((VARIANTS[name], *(x for c, b in zip(cells, base, strict=True) for x in (c, c / b))))
    table = NumberTable(
        columns=("step", "TFLOP", "ratio", "s", "ratio", "CPU s, least", "ratio", "peak GB", "ratio"),
        formats=("", ".3f", ".3f", ".2f", ".2f", ".2f", ".2f", ".2f", ".2f"),
        rows=tuple(measured),
    )
    floor = f"Floor of MeanFlow by products, over flow matching: {FLOOR:.3f}."
    print(f"{table.markdown()}\n\n{floor}")
    if args.record:
        record(args.record, tables={"steps": table}, text={"floor": floor})


if __name__ == "__main__":
    main()
