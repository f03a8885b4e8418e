"""The whole way in one command: render or read clips, extract, train a teacher, distil, compare, report."""

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Runs the pipeline's commands in a row, each printed before it runs; finished work is kept when run again."""

    data: Path | None = None
    """A folder of videos, a JSONL/CSV manifest, or a folder with manifests; without it, the procedural world."""
    out: Path | None = None
    """Run folder; runs/demo for the procedural world, runs/<name of data> otherwise."""
    num_clips: int = 640
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
            print(f"stopped: the command above ended with status {status}; the same command goes on from there")
            sys.exit(status)
        print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    print(
        f"\n{out / 'report.html'} is ready after {(time.perf_counter() - began) / 60:.1f} minutes; open it in a browser."
    )


def commands(args: Demo, out: Path) -> list[list[str]]:
    """The commands in order, as a user would type them."""
    data = args.data
    made: list[list[str]] = []
    if data is None:
        data = out / "world" / "manifest.jsonl"
        made.append(
            _python("scripts.make_world", "--out", out / "world", "--num-clips", args.num_clips)
            + ["--duration-s", str(args.duration_s)]
        )
    launch = ["python", "-m", "accelerate.commands.launch", "--num_processes", str(args.num_processes)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    teacher_steps = [] if args.teacher_steps is None else ["--loop.steps", str(args.teacher_steps)]
    student_steps = [] if args.student_steps is None else ["--loop.steps", str(args.student_steps)]
    features, teacher, student = out / "features", out / "teacher", out / "student"
    return [
        *made,
        _python("scripts.extract", "--data", data, "--out", features, "--duration-s", args.duration_s),
        [
            *launch,
            "-m",
            "scripts.train_teacher",
            "demo",
            "--data",
            str(features),
            "--out",
            str(teacher),
            *teacher_steps,
        ],
        [*launch, "-m", "scripts.distill", "demo", "--data", str(features), "--teacher", str(teacher)]
        + ["--out", str(student), *student_steps],
        _python("scripts.compare", "--data", features, "--teacher", teacher, "--student", student, "--out", out)
        + ["--seeds", *map(str, args.seeds)],
        _python("scripts.report", "--rows", out / "rows.jsonl"),
    ]


def _python(module: str, *arguments: object) -> list[str]:
    return ["python", "-m", module, *map(str, arguments)]


if __name__ == "__main__":
    cli()
