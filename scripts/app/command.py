"""A web page for sampling: upload a video or type a prompt, and compare teacher and student side by side."""

import importlib.util
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import tyro

from scripts.app.studio import Limits, Model, ModelSetting, Studio
from scripts.app.workspace import Workspace
from scripts.errors import one_line_errors
from teacher.network.sequence import MIN_DURATION_S
from teacher.sampling.pipeline import Pipeline

CLOSING_S = 10.0
"""Longest wait, when the page is closed, for a running click to reach its next step."""


@dataclass(frozen=True, kw_only=True)
class App:
    """Serve the page until Ctrl-C. Needs the extra `app` (gradio); loads nothing from the network."""

    run: Path = Path("runs/demo/student")
    """Run folder of the student, or of any single network."""
    teacher: Path | None = Path("runs/demo/teacher")
    """Run folder of the teacher; None for a page with one model."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is open to other machines, without a password."""
    port: int = 7860
    max_seconds: float = 60.0
    """Longest video that is accepted and longest sound that is generated, in seconds."""
    max_megabytes: int = 200
    """Largest file that is accepted, in megabytes."""
    max_gigapixels: float = 4.0
    """Largest video in billions of pixels, width x height x frames; a minute of 1920 x 1080 at 30/s has 3.7."""
    max_work: float = 4000.0
    """Largest cost of a click: seconds of sound x seeds x steps, twice that under guidance."""
    allow_host: tuple[str, ...] = ()
    """Host names, besides localhost and --host, under which the page is reached, for example behind a proxy."""
    guidance: float = 1.4
    """Initial guidance of the student's slider; 1 is off."""
    teacher_steps: int = 25
    """Initial number of steps of the teacher's slider."""
    teacher_guidance: float = 1.4
    """Initial guidance of the teacher's slider; the published networks need 4.5."""
    share: bool = False
    """Publish the page through gradio's tunnel: its program is downloaded, and all traffic passes gradio's servers."""
    weights_dir: Path | None = None
    """Folder of codec and encoder files, when it is not the one recorded in the run folders."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"

    def __post_init__(self) -> None:
        if not MIN_DURATION_S <= self.max_seconds <= 3600.0:
            raise ValueError(f"max_seconds must be from {MIN_DURATION_S} to 3600, got {self.max_seconds:g}")
        if not 0 < self.port < 65536:
            raise ValueError(f"port must be from 1 to 65535, got {self.port}")
        if self.max_megabytes < 1:
            raise ValueError(f"max_megabytes must be at least 1, got {self.max_megabytes}")
        for name in ("max_gigapixels", "max_work"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name):g}")

    @property
    def limits(self) -> Limits:
        """Limits of one click, from the flags."""
        return Limits(seconds=self.max_seconds, pixels=1e9 * self.max_gigapixels, evaluated_s=self.max_work)

    @property
    def settings(self) -> tuple[ModelSetting, ...]:
        """Initial steps and guidance of student and teacher. Raises ValueError for values out of range."""
        student = ModelSetting(model="student", steps=1, guidance=self.guidance)
        if self.teacher is None:
            return (student,)
        return (student, ModelSetting(model="teacher", steps=self.teacher_steps, guidance=self.teacher_guidance))


@one_line_errors
def cli() -> None:
    """Entry point."""
    serve(tyro.cli(App, description=__doc__))


def serve(args: App) -> None:
    """Load the networks, show the page, and remove every file of it at the end."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio, which is not installed: pip install 'mf-mjt[app]'")
    starts = {setting.model: (setting.steps, setting.guidance) for setting in args.settings}
    runs = {"student": args.run} | ({"teacher": args.teacher} if args.teacher is not None else {})
    models = [
        Model(name=name, pipeline=Pipeline.load(run, weights_dir=args.weights_dir, device=args.device))
        for name, run in runs.items()
    ]
    with Stop() as stop, Workspace.temporary() as workspace:
        # Read by gradio when it is imported and when the page is built.
        os.environ |= {"GRADIO_TEMP_DIR": str(workspace.uploads), "GRADIO_ANALYTICS_ENABLED": "False"}
        from scripts.app.guard import Hosts, Visitors
        from scripts.app.page import build, launch_options

        studio, visitors = Studio(models=models, workspace=workspace, limits=args.limits), Visitors()
        hosts = Hosts(host=args.host, extra=args.allow_host, share=args.share)
        page = build(studio, visitors, starts=starts)
        options = launch_options(studio, visitors, hosts, port=args.port, max_megabytes=args.max_megabytes)
        page.launch(prevent_thread_lock=True, **options)
        print(f"http://{args.host}:{args.port} (Ctrl-C ends)", flush=True)
        try:
            stop.wait()
        finally:
            visitors.closing.set()
            page.close(verbose=False)
            studio.finish(CLOSING_S)
    if stop.signal is not None:
        # Threads of the server may still run; ending the interpreter under them would crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + stop.signal)


class Stop:
    """Context that catches Ctrl-C, SIGTERM and SIGHUP (service manager, closed terminal), so that the page is closed in
    order and its files are removed."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The first signal that was received."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        if self.signal is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _received(self, number: int, frame: object) -> None:
        if self.signal is None:
            self.signal = number

    def wait(self) -> None:
        """Wait until a signal is received."""
        while self.signal is None:
            time.sleep(0.1)
