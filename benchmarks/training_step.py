"""Cost of a training step compared with its matrix products alone: `python -m benchmarks.training_step`.

Prints a Markdown table. FLOPs are counted on the modules (2 per multiply-add); the floor is FLOPs over the rate of a
1024 x 1024 x 1024 float32 product measured in the same run.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.config import FromTeacher, Method
from distill.method.step import train_step
from distill.method.student import student_from_teacher
from distill.presets.students import student_demo
from eval.ledger import NumberTable, record
from meanflow import TimePairs
from teacher.flow_matching import FlowMatching, flow_matching_step
from teacher.network.batch import Batch
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.sequence import image_frames, sync_frames
from teacher.network.variants import variant

DURATION_S = 2.0
BATCH = 16


def batch() -> Batch:
    """Random features of the right shapes; values do not change the cost."""
    g = torch.Generator().manual_seed(0)
    draw = lambda n, d: torch.randn(BATCH, n, d, generator=g)  # noqa: E731
    has = torch.ones(BATCH, dtype=torch.bool)
    conditions = Conditions(
        clip=draw(image_frames(DURATION_S), 1024),
        sync=draw(sync_frames(DURATION_S), 768),
        text=draw(77, 1024),
        has_clip=has,
        has_sync=has,
        has_text=has,
    )
    return Batch(latents=draw(63, 20), conditions=conditions, indices=torch.arange(BATCH))


def seconds(call: Callable[[], object], repeats: int = 15) -> float:
    """Median wall time after two untimed calls."""
    times = []
    for k in range(repeats + 2):
        began = time.perf_counter()
        call()
        if k >= 2:
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="also write the figures to this file of the ledger")
    args = parser.parse_args()
    square = torch.randn(1024, 1024)
    rate = 2 * 1024**3 / seconds(lambda: square @ square)
    config = variant("tiny_16k")
    teacher = MMAudio(config)
    teacher.initialise_unit()
    student = student_from_teacher(teacher)
    data = batch()

    def learn(loss: Callable[[], torch.Tensor], net: MMAudio) -> Callable[[], None]:
        def step() -> None:
            net.zero_grad(set_to_none=True)
            loss().mean().backward()

        return step

    def distil(method: Method) -> Callable[[], torch.Tensor]:
        return lambda: train_step(student, student, teacher, data, method, generator=torch.Generator()).loss

    plain = FlowMatching()
    only_fm = Method(times=TimePairs(fm_fraction=1.0))
    some = Method(times=TimePairs(fm_fraction=0.75))
    every = Method(times=TimePairs(fm_fraction=0.0))
    demo = student_demo().method
    assert isinstance(demo.velocity, FromTeacher)
    rows = {
        "flow matching (teacher)": learn(
            lambda: flow_matching_step(teacher, data, plain, generator=torch.Generator()).loss, teacher
        ),
        "student, r = t everywhere": learn(distil(only_fm), student),
        "student, derivative on 25 % of the rows": learn(distil(some), student),
        "student, derivative on every row": learn(distil(every), student),
        "student, the demo's recipe (70 %, velocity from the teacher)": learn(distil(demo), student),
    }
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {rate / 1e9:.0f} GFLOP/s in a square product\n"
    )
    base, measured = None, []
    for name, call in rows.items():
        with FlopCounterMode(display=False) as counter:
            call()
        flops, wall = counter.get_total_flops(), seconds(call)
        base = base or wall
        floor = flops / rate
        measured.append((name, flops / 1e9, 1e3 * floor, 1e3 * wall, wall / floor, wall / base))
    size = sum(p.numel() for p in teacher.parameters()) / 1e6
    table = NumberTable(
        columns=(
            f"step, batch {BATCH} of {DURATION_S:g} s, {size:.1f} M parameters",
            "GFLOP", "floor ms", "measured ms", "over floor", "over flow matching",
        ),
        formats=("", ".1f", ".0f", ".0f", ".1f", ".2f"),
        rows=tuple(measured),
    )  # fmt: skip
    print(table.markdown())
    if args.record:
        record(args.record, tables={"steps": table}, text={"rate": f"{rate / 1e9:.0f} GFLOP/s in a square product."})


if __name__ == "__main__":
    main()
