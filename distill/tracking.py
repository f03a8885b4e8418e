"""What a run writes while it trains: metrics.jsonl always, TensorBoard scalars, sounds and spectrograms beside it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class Preview:
    """Sounds (B, samples) at `sample_rate` and their log-mel pictures (B, bins, frames)."""

    waves: Tensor
    sample_rate: int
    pictures: Tensor
    captions: list[str]


class Tracker:
    """Writer for one run folder; only the main process makes one."""

    def __init__(self, run: Path) -> None:
        self.stream = (run / "metrics.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(run / "tensorboard")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of JSON and one TensorBoard point per finite value."""
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        self.stream.write(json.dumps({"step": step} | {k: _short(v) for k, v in finite.items()}) + "\n")
        for name, value in finite.items():
            self.board.add_scalar(name, value, step)

    def preview(self, step: int, preview: Preview) -> None:
        """A few sounds with their spectrograms and captions."""
        for i, (wave, picture) in enumerate(zip(preview.waves, preview.pictures, strict=True)):
            self.board.add_audio(f"sound/{i}", wave.clamp(-1, 1)[None], step, preview.sample_rate)
            low, high = picture.min(), picture.max()
            shown = ((picture - low) / (high - low + 1e-6)).flip(0)
            self.board.add_image(f"spectrogram/{i}", shown[None], step)
            self.board.add_text(f"caption/{i}", preview.captions[i], step)
        self.board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.close()
        self.board.close()


def _short(value: float) -> float:
    """Six decimals, or six digits of what is smaller than a thousandth, as learning rates are."""
    return round(value, 6) if abs(value) >= 1e-3 else float(f"{value:.6g}")


class Averages:
    """Running means of logged tensors between two lines of the log, without a device synchronisation per step."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, logs: dict[str, Tensor]) -> None:
        for name, value in logs.items():
            finite = torch.isfinite(value)
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + torch.where(finite, value, 0.0)
            self.counts[name] = self.counts.get(name, torch.zeros_like(value)) + finite

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: float(self.sums[name] / self.counts[name]) for name in self.sums}
        self.sums, self.counts = {}, {}
        return means
