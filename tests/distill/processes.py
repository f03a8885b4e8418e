"""Several processes that talk over gloo on this machine's CPU, as a launcher would start them.

    answers = launch("tests.distill.engine_checks:every_fact", {"seed": 1}, environment={"ACCELERATE_USE_FSDP": "true"})

A hang, a crash or a wrong exit code fails the test and shows how the output of every process ends.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
HANG_S = 900.0
"""What runs longer than this hangs. The longest takes a minute on two quiet cores and six where others are at work."""
LAUNCHERS = ("ACCELERATE_", "FSDP_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_RANK", "MASTER_", "TORCHELASTIC_", "DS_")
"""Beginnings of the variables that launchers set; none of the caller's reach the processes."""


class Processes:
    """Running processes; a context manager that kills whatever is left at its end.

    `count` of them with RANK, WORLD_SIZE and so on; None is one process that no launcher started. `command` replaces
    `python -m tests.distill.worker ...`, for programs that are tested whole.
    """

    def __init__(
        self,
        target: str = "",
        arguments: Mapping[str, Any] | None = None,
        *,
        count: int | None = 2,
        environment: Mapping[str, str] | None = None,
        command: list[str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.running: list[subprocess.Popen[bytes]] = []
        port = _free_port()
        for rank in range(count or 1):
            worker = [sys.executable, "-m", "tests.distill.worker", target, json.dumps(arguments or {})]
            rendezvous = {} if count is None else _rendezvous(rank, count, port)
            with (self.folder / f"{rank}.log").open("wb") as log:
                process = subprocess.Popen(
                    command or [*worker, str(self.folder / f"{rank}.json")],
                    env=_inherited() | rendezvous | dict(environment or {}),
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self.running.append(process)

    def codes(self, timeout_s: float, *, grace_s: float | None = None) -> list[int]:
        """Exit codes in order of rank, negative for signals, once all have ended.

        After `timeout_s` seconds the rest is killed, and `grace_s` seconds after the first failure (None: no hurry).
        """
        end = time.monotonic() + timeout_s
        while any(process.poll() is None for process in self.running) and time.monotonic() < end:
            if grace_s is not None and any(process.poll() for process in self.running):
                end, grace_s = min(end, time.monotonic() + grace_s), None
            time.sleep(0.02)
        self.kill()
        return [process.wait() for process in self.running]

    def answers(self, timeout_s: float) -> list[Any]:
        """What each process returned; AssertionError with the tails of their output unless all of them ended well."""
        began = time.monotonic()
        codes = self.codes(timeout_s, grace_s=5.0)
        if any(codes):
            raise AssertionError(f"exit codes {codes} after {time.monotonic() - began:.0f} s\n{self.tails()}")
        return [json.loads((self.folder / f"{rank}.json").read_text()) for rank in range(len(codes))]

    def output(self, rank: int) -> str:
        """Everything a process has printed so far."""
        return (self.folder / f"{rank}.log").read_text(errors="replace")

    def tails(self, characters: int = 3000) -> str:
        """The ends of all outputs."""
        return "\n".join(f"--- process {k} ---\n{self.output(k)[-characters:]}" for k in range(len(self.running)))

    def kill(self) -> None:
        """SIGKILL to whatever still runs."""
        for process in self.running:
            if process.poll() is None:
                process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for process in self.running:
            process.wait()
        self._folder.cleanup()


def launch(
    target: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    count: int | None = 2,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = HANG_S,
) -> list[Any]:
    """Call `module:function` in `count` processes; what each returned (it must be JSON), in order of rank."""
    with Processes(target, arguments, count=count, environment=environment) as processes:
        return processes.answers(timeout_s)


def installed(folder: Path) -> dict[str, str]:
    """An environment whose programs find this checkout as an installed project: on the path, with its entry points."""
    described = folder / "checkout-0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: checkout\nVersion: 0\n")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *_assignments(points))]
    (described / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return _inherited() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}


def _assignments(points: Mapping[str, str]) -> list[str]:
    return [f"{name} = {value}" for name, value in points.items()]


def _rendezvous(rank: int, count: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _inherited() -> dict[str, str]:
    """The caller's environment without a launcher's variables, on one thread and without a GPU."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
