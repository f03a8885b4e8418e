"""Disks that fill up: `python -m tests.stress.disk --demo runs/demo` (as root: it mounts small file systems in memory).

Trainings, sampling and extraction on file systems of a few sizes. Each must end with one line on standard error and its
own exit status, without a traceback or a half-written file; a training must keep its last checkpoint and go on from it
once there is room. Leaves with status 1 where one does not.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distill.checkpoints import store as checkpoint
from eval.ledger import NumberTable, record
from teacher.files.errors import CANNOT_GO_ON, WRONG_INPUT

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SIZES = ("200k", "4m", "14m", "44m")


class Disk:
    """A file system in memory of a given size."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)

    def grow(self, size: str) -> None:
        """More room."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def end(self) -> None:
        """Everything on it is gone."""
        subprocess.run(["umount", str(self.folder)], check=True)


def run(*words: object) -> tuple[int, str]:
    """Exit status and standard error of a command of ours."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stderr


def one_line(said: str) -> bool:
    """Whether the errors are one line, without a traceback."""
    errors = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("error:")]
    return len(errors) == 1 and "Traceback" not in said


def training(demo: Path, out: Path, steps: int, *more: object) -> list[object]:
    """The smallest preset, saving often."""
    return [
        "scripts.train_teacher", "debug", "--data", demo / "features", "--out", out, "--loop.steps", steps,
        "--loop.batch-size", 4, "--loop.log-every", 1, "--loop.save-every", 2, "--loop.evaluation.every", 0, *more,
    ]  # fmt: skip


def filled(demo: Path, folder: Path, size: str) -> tuple[bool, bool]:
    """Whether a training on a small disk ended in a line with the right status; whether it went on once it had room."""
    disk = Disk(folder, size)
    try:
        status, said = run(*training(demo, folder / "run", 6))
        in_order = status in (CANNOT_GO_ON, WRONG_INPUT) and one_line(said)
        if (folder / "run").is_dir():
            checkpoint.newest(folder / "run")  # complete, or none: never a damaged one
        disk.grow("300m")
        status, _ = run(*training(demo, folder / "run", 6))
        found = checkpoint.newest(folder / "run")
        return in_order, status == 0 and found is not None and found.step == 6
    finally:
        disk.end()


def filled_while_logging(demo: Path, folder: Path) -> tuple[bool, bool]:
    """The same for a disk that somebody else fills while a training writes nothing but its log."""
    disk = Disk(folder, "100m")
    try:
        words = training(demo, folder / "run", 4000, "--loop.save-every", 4000)
        command = [sys.executable, "-m", *map(str, words)]
        process = subprocess.Popen(
            command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        log = folder / "run" / "metrics.jsonl"
        until = time.monotonic() + 120
        while not (log.is_file() and log.stat().st_size) and time.monotonic() < until:
            time.sleep(0.1)
        with (folder / "filling").open("wb", buffering=0) as stream:
            size = 1 << 20
            while size:
                try:
                    stream.write(bytes(size))
                except OSError:
                    size //= 2
        _, said = process.communicate(timeout=120)
        return process.returncode == CANNOT_GO_ON and one_line(said), True
    finally:
        disk.end()


def left(folder: Path) -> list[Path]:
    """Files without those that hold nothing but a lock."""
    return [path for path in folder.rglob("*") if path.is_file()]


def sampled(demo: Path, folder: Path) -> tuple[bool, bool]:
    """A sound and its film on a full disk: one line, nothing left."""
    film = next((demo / "world").rglob("*.mp4"))
    disk = Disk(folder, "16k")
    try:
        status, said = run("scripts.sample", "--run", demo / "student", "--video", film, "--out", folder / "out")
        return status == WRONG_INPUT and one_line(said), not left(folder)
    finally:
        disk.end()


def extracted(demo: Path, folder: Path) -> tuple[bool, bool]:
    """An extraction on a full disk: one line, no temporary file left."""
    disk = Disk(folder, "300k")
    try:
        data = ["--data", demo / "world" / "manifest.jsonl", "--duration-s", 1, "--workers", 1, "--shard-size", 4]
        status, said = run("scripts.extract", *data, "--out", folder / "features")
        return status == WRONG_INPUT and one_line(said), not [p for p in left(folder) if p.name.startswith(".")]
    finally:
        disk.end()


def main() -> int:
    """Run all of it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--record", type=Path, help="also write what came out to this file of the ledger")
    args = parser.parse_args()
    demo, rows = args.demo.resolve(), []
    with tempfile.TemporaryDirectory(prefix="disk-") as temporary:
        folder = Path(temporary) / "full"
        cases = [(f"training, disk of {size}", lambda size=size: filled(demo, folder, size)) for size in SIZES]
        cases += [
            ("training, filled while logging", lambda: filled_while_logging(demo, folder)),
            ("mf-sample, full disk", lambda: sampled(demo, folder)),
            ("mf-extract, full disk", lambda: extracted(demo, folder)),
        ]
        for name, case in cases:
            in_order, kept = case()
            rows.append((name, "yes" if in_order else "NO", "yes" if kept else "NO"))
            print(*rows[-1], flush=True)
    table = NumberTable(
        columns=("case", "one line and its status", "nothing lost or left"), formats=("", "", ""), rows=tuple(rows)
    )
    print(table.markdown())
    if args.record:
        record(args.record, tables={"disk": table})
    return int(any("NO" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
