"""The whole way in one command: render or read clips, extract, train a teacher, distil, compare, report."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from distill.loop.faults import INTERRUPTED, SAVED_AND_LEFT
from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Runs the pipeline's commands in a row, each printed before it runs; finished work is kept when run again."""

    data: Path | None = None
    """A folder of videos, a JSONL/CSV manifest, or a folder with manifests; without it, the procedural world."""
    out: Path | None = None
    """Run folder; runs/demo for the procedural world, runs/<name of data> otherwise."""
    num_clips: int = 960
    """Clips of the procedural world."""
    duration_s: float = 2.0
    """Length of the pieces that are learnt from, in seconds."""
    teacher_steps: int | None = None
    """Training steps of the teacher; None keeps the preset's."""
    student_steps: int | None = None
    """Distillation steps of the student; None keeps the preset's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the comparison."""
    num_processes: int = 1
    """Processes for the two trainings."""


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Demo, description=__doc__)
    out = args.out or Path("runs") / ("demo" if args.data is None else args.data.stem)
    began = time.perf_counter()
    for command in commands(args, out):
        started = time.perf_counter()
        print(f"\n$ {shlex.join(command)}", flush=True)
        status = subprocess.run([sys.executable, *command[1:]], check=False).returncode
        if status:
            again = (
                "start it again to go on from there"
                if status in (INTERRUPTED, SAVED_AND_LEFT)
                else "put right what it says, or use another --out"
            )
            print(f"stopped: the command above ended with status {status}; {again}")
            sys.exit(status)
        print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    minutes = (time.perf_counter() - began) / 60
    print(f"\n{out / 'report.html'} is ready after {minutes:.1f} minutes; open it in a browser.")


def commands(args: Demo, out: Path) -> list[list[str]]:
    """The commands in order, as a user would type them."""
    world, features, teacher, student = out / "world", out / "features", out / "teacher", out / "student"
    data = args.data or world / "manifest.jsonl"
    length = ["--duration-s", str(args.duration_s)]
    render = _python("scripts.make_world", "--out", world, "--num-clips", args.num_clips, *length)
    file = "one_gpu_float32" if args.num_processes == 1 else "ddp_float32_8gpu"
    threads = max(1, (os.cpu_count() or 1) // args.num_processes)  # accelerate's own default is a single thread
    launch = ["distill.configs.launch", "--config_file", file, "--num_processes", args.num_processes]
    launch += ["--num_cpu_threads_per_process", threads, "-m"]
    learn = [*launch, "scripts.train_teacher", "demo", "--data", features, "--out", teacher]
    distil = [*launch, "scripts.distill", "demo", "--data", features, "--teacher", teacher, "--out", student]
    compare = ["scripts.compare", "--data", features, "--teacher", teacher, "--student", student, "--out", out]
    return [
        *([render] if args.data is None else []),
        _python("scripts.extract", "--data", data, "--out", features, *length),
        _python(*learn, *_steps(args.teacher_steps)),
        _python(*distil, *_steps(args.student_steps)),
        _python(*compare, "--seeds", *args.seeds, "--timing-batches", 1, 4),
        _python("scripts.report", "--rows", out / "rows.jsonl"),
    ]


def _steps(count: int | None) -> list[str]:
    return [] if count is None else ["--loop.steps", str(count)]


def _python(module: object, *arguments: object) -> list[str]:
    return ["python", "-m", *map(str, (module, *arguments))]


if __name__ == "__main__":
    cli()
