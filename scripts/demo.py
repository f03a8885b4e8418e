"""The whole pipeline in one command: render or read clips, extract, train a teacher, distil, compare, report."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from eval.report.trainings import record_trainings
from scripts.errors import one_line_errors
from teacher.files.errors import INTERRUPTED, SAVED_AND_LEFT


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Runs the pipeline's commands in order and prints each before it runs; finished steps are skipped on a rerun."""

    data: Path | None = None
    """A folder of videos, a JSONL/CSV manifest, or a folder with manifests; without it, the procedural world."""
    out: Path | None = None
    """Run folder; runs/demo for the procedural world, runs/<name of data> otherwise."""
    num_clips: int = 960
    """Clips of the procedural world."""
    duration_s: float = 2.0
    """Length of the training clips, in seconds."""
    teacher_steps: int | None = None
    """Training steps of the teacher; None takes the preset's."""
    student_steps: int | None = None
    """Distillation steps of the student; None takes the preset's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the comparison."""
    training_seeds: tuple[int, ...] = (0,)
    """Seeds of the two trainings. With several, teacher and student are trained and compared once for each; the first
    makes the page, the others go into folders of their own (seed-1, ...)."""
    record: Path | None = None
    """Also write the results of all training seeds to this file (results/NAME.json), from which `make tables`
    makes the tables of the documents. Times are those of this run; a command that was finished before takes none."""
    num_processes: int = 1
    """Processes for the two trainings."""


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Demo, description=__doc__)
    out = args.out or Path("runs") / ("demo" if args.data is None else args.data.stem)
    began, seconds = time.perf_counter(), []
    for command in commands(args, out):
        started = time.perf_counter()
        print(f"\n$ {shlex.join(command)}", flush=True)
        status = subprocess.run([sys.executable, *command[1:]], check=False).returncode
        if status:
            again = (
                "start it again to continue from there"
                if status in (INTERRUPTED, SAVED_AND_LEFT)
                else "correct what its message names, or use another --out"
            )
            print(f"stopped: the command above ended with status {status}; {again}")
            sys.exit(status)
        seconds.append((_short(command), time.perf_counter() - started))
        print(f"  ({seconds[-1][1]:.0f} s)", flush=True)
    if args.record is not None:
        trainings = dict(zip(args.training_seeds, folders(args, out), strict=True))
        record_trainings(args.record, trainings, noise_seeds=args.seeds, seconds=seconds)
        print(f"recorded in {args.record}")
    minutes = (time.perf_counter() - began) / 60
    print(f"\n{out / 'report.html'} is ready after {minutes:.1f} minutes; open it in a browser.")


def commands(args: Demo, out: Path) -> list[list[str]]:
    """The commands in order, as a user would type them."""
    if not args.training_seeds:
        raise ValueError("--training-seeds must hold at least one number")
    world, features = out / "world", out / "features"
    data = args.data or world / "manifest.jsonl"
    length = ["--duration-s", str(args.duration_s)]
    render = _python("scripts.make_world", "--out", world, "--num-clips", args.num_clips, *length)
    trained = [
        command
        for folder, seed in zip(folders(args, out), args.training_seeds, strict=True)
        for command in _trained(args, features, folder, seed)
    ]
    return [
        *([render] if args.data is None else []),
        _python("scripts.extract", "--data", data, "--out", features, *length),
        *trained,
        _python("scripts.report", "--rows", out / "rows.jsonl"),
    ]


def folders(args: Demo, out: Path) -> list[Path]:
    """The folder of runs and rows of each training seed."""
    return [out, *(out / f"seed-{seed}" for seed in args.training_seeds[1:])]


def _trained(args: Demo, features: Path, folder: Path, seed: int) -> list[list[str]]:
    """Teacher, student and their comparison, from one training seed."""
    teacher, student = folder / "teacher", folder / "student"
    file = "one_gpu_float32" if args.num_processes == 1 else "ddp_float32_8gpu"
    threads = max(1, (os.cpu_count() or 1) // args.num_processes)  # accelerate's own default is a single thread
    launch = ["distill.launch.launcher", "--config_file", file, "--num_processes", args.num_processes]
    launch += ["--num_cpu_threads_per_process", threads, "-m"]
    seeded = ["--loop.seed", str(seed)] if seed else []
    learn = [*launch, "scripts.train_teacher", "demo", "--data", features, "--out", teacher, *seeded]
    distil = [*launch, "scripts.distill", "demo", "--data", features, "--teacher", teacher, "--out", student, *seeded]
    compare = ["scripts.compare", "--data", features, "--teacher", teacher, "--student", student, "--out", folder]
    return [
        _python(*learn, *_steps(args.teacher_steps)),
        _python(*distil, *_steps(args.student_steps)),
        _python(*compare, "--seeds", *args.seeds, "--timing-batches", 1, 4),
    ]


def _short(command: list[str]) -> str:
    """A short name of a command, such as "scripts.distill demo"."""
    at = next(k for k, word in enumerate(command) if word.startswith("scripts."))
    return " ".join(word for word in command[at : at + 2] if not word.startswith("--"))


def _steps(count: int | None) -> list[str]:
    return [] if count is None else ["--loop.steps", str(count)]


def _python(module: object, *arguments: object) -> list[str]:
    return ["python", "-m", *map(str, (module, *arguments))]


if __name__ == "__main__":
    cli()
