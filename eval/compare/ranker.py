"""Which of several sounds for one picture or one text to keep."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from eval.compare.rows import Task
from eval.features.published_models import PublishedModels
from eval.metrics.clip_metrics import ClipMetric
from eval.metrics.motion import motion_score, read_motion
from teacher.features.store import Record
from teacher.sampling.scene import Scene

Score = Literal["motion", "desync", "ib_score", "clap_laion", "clap_ms", "pam"]
"""motion: onsets against motion, no weights, video only; the others need --judges files."""
LOWER_IS_BETTER = ("desync",)
FILES = {
    "desync": "synchformer",
    "ib_score": "imagebind",
    "clap_laion": "clap_laion",
    "clap_ms": "clap_ms",
    "pam": "clap_ms",
}
VIDEO_ONLY = ("motion", "desync", "ib_score")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranker:
    """Scores sounds of one scene by one measure."""

    score: Score
    judges: tuple[ClipMetric, ...] = ()
    cache: tempfile.TemporaryDirectory[str] | None = None
    """Removed with the ranker."""

    @classmethod
    def load(cls, score: Score, files: PublishedModels, *, duration_s: float, device: str) -> "Ranker":
        """With the model that the score needs, of which its file must be given.

        Raises:
            ValueError: the file was not given.
        """
        if score == "motion":
            return cls(score=score)
        needed = FILES[score]
        if getattr(files, needed) is None:
            raise ValueError(f"--score {score} needs --judges.{needed.replace('_', '-')}, the file of its model")
        cache = tempfile.TemporaryDirectory(prefix="mf-best-")
        _, judges = files.load(duration_s=duration_s, device=device, cache=Path(cache.name))
        return cls(score=score, judges=judges, cache=cache)

    def values(self, scene: Scene, waves: Tensor, sample_rate: int) -> list[float]:
        """One value per wave (seeds, samples) of the scene; larger is better, as `desync` is given negative.

        Raises:
            ValueError: a score of the picture for a scene without one, or a score the model cannot give.
        """
        if self.score in VIDEO_ONLY and scene.video is None:
            raise ValueError(f"--score {self.score} judges sound against a picture; for words alone use clap_laion")
        if self.score == "motion":
            assert scene.video is not None
            moved = read_motion(scene.video, duration_s=scene.total_s)
            return [motion_score(moved, wave.numpy(), sample_rate) for wave in waves]
        task: Task = "vta" if scene.video is not None else "tta"
        record = Record(
            id="sound",
            item_id="sound",
            path=str(scene.video or ""),
            start_s=0.0,
            duration_s=scene.total_s,
            caption=scene.prompt or "",
            label="",
            events_s=None,
            has_video=scene.video is not None,
            has_audio=True,
        )
        entries = [
            entry
            for judge in self.judges
            if task in judge.tasks
            for entry in [judge.judge([record] * len(waves), waves, sample_rate)]
        ]
        found = [[e[self.score] for e in entry] for entry in entries if all(self.score in e for e in entry)]
        if not found:
            raise ValueError(f"--score {self.score} says nothing about this sound (no caption, or too short a clip)")
        sign = -1.0 if self.score in LOWER_IS_BETTER else 1.0
        return [sign * value for value in found[0]]
