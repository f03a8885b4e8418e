"""The log of a run: metrics.jsonl, and TensorBoard scalars, sounds and spectrograms beside it."""

import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from distill.evaluation import Preview
from teacher.files.lines import drop_later
from teacher.weights.run_folder import METRICS


class Tracker:
    """Writer for one run folder; only the main process makes one.

    `first` is the step from which training resumes: what an interrupted run logged after its last checkpoint is
    dropped, so that every step is logged once.
    """

    def __init__(self, run: Path, *, first: int = 0) -> None:
        path = run / METRICS
        drop_later(path, first)
        self.stream = path.open("a", buffering=1)
        self.board = SummaryWriter(run / "tensorboard", purge_step=first + 1 if first else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one line of JSON, and one TensorBoard point per finite value."""
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        self.stream.write(json.dumps({"step": step} | {k: _short(v) for k, v in finite.items()}) + "\n")
        for name, value in finite.items():
            self.board.add_scalar(name, value, step)

    def preview(self, step: int, preview: Preview) -> None:
        """Write a few sounds with their spectrograms and captions to TensorBoard."""
        names = preview.names or tuple(str(i) for i in range(len(preview.waves)))
        parts = zip(names, preview.waves, preview.pictures, preview.captions, strict=True)
        for name, wave, picture, caption in parts:
            self.board.add_audio(f"sound/{name}", wave.clamp(-1, 1)[None], step, preview.sample_rate)
            low, high = picture.min(), picture.max()
            shown = ((picture - low) / (high - low + 1e-6)).flip(0)
            self.board.add_image(f"spectrogram/{name}", shown[None], step)
            self.board.add_text(f"caption/{name}", _literal(caption), step)
        self.board.flush()

    def __enter__(self) -> Self:
        self._before, threading.excepthook = threading.excepthook, self._uncaught
        return self

    def _uncaught(self, failed: threading.ExceptHookArgs) -> None:
        """What TensorBoard's writing thread could not write, on a full disk, is raised again where the next value is
        handed over, and reported there in one line; its traceback would only hide that."""
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            self._before(failed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        threading.excepthook = self._before
        try:
            self.stream.close()
            self.board.close()
        except OSError:
            if error is None:  # else the log is not what ended the run
                raise


def _literal(text: str) -> str:
    """The text as a block of code. TensorBoard renders texts as Markdown, in which a caption from untrusted data could
    make the browser fetch a picture from any host, or be a link."""
    return "    " + " ".join(text.split())


def _short(value: float) -> float:
    """Six decimals, or six digits of what is smaller than a thousandth, as learning rates are."""
    return round(value, 6) if abs(value) >= 1e-3 else float(f"{value:.6g}")


class Means:
    """Means over rows, steps and processes of logged values between two lines of the log, without waiting for the
    device in every step."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, logs: dict[str, Tensor]) -> None:
        """Add values per row (B,) or single ones; those that are not finite do not count."""
        for name, value in logs.items():
            value = value.detach().double().flatten()
            finite = torch.isfinite(value)
            both = torch.stack([torch.where(finite, value, 0.0).sum(), finite.sum().double()])
            self.sums[name] = self.sums[name] + both if name in self.sums else both

    def take(self, total: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, float]:
        """The means since the last call, nan where nothing counted; `total` sums over processes, all of which must have
        added the same names."""
        names = sorted(self.sums)
        if not names:
            return {}
        sums = total(torch.stack([self.sums[name] for name in names])).tolist()
        self.sums = {}
        return {name: (value / count if count else math.nan) for name, (value, count) in zip(names, sums, strict=True)}

    def state(self, total: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, list[float]]:
        """{name: [sum, count]} over processes since the last line of the log, for a checkpoint. Collective."""
        names = sorted(self.sums)
        if not names:
            return {}
        return dict(zip(names, total(torch.stack([self.sums[name] for name in names])).tolist(), strict=True))

    def load(self, state: dict[str, list[float]], *, main: bool, device: torch.device) -> None:
        """Restore what `state` returned; one process holds it for all."""
        for name, sums in state.items():
            whole = torch.tensor(sums, dtype=torch.float64, device=device)
            self.sums[name] = whole if main else torch.zeros_like(whole)


class Pace:
    """Sounds per second since the last line of the log, and the seconds that the remaining steps will take."""

    def __init__(self, first: int, steps: int, batch_size: int) -> None:
        self.first, self.steps, self.batch_size = first, steps, batch_size
        self.began = self.logged_at = time.perf_counter()
        self.logged_step = first

    def at(self, done: int) -> dict[str, float]:
        """The pace as numbers for the log after `done` steps."""
        now = time.perf_counter()
        rate = (done - self.logged_step) * self.batch_size / max(now - self.logged_at, 1e-9)
        per_step = (now - self.began) / max(done - self.first, 1)
        self.logged_step, self.logged_at = done, now
        return {"sounds_per_second": rate, "seconds_remaining": per_step * (self.steps - done)}
