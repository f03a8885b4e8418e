"""Ranks several sounds for one picture or one text by one metric of single clips, to choose the best."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from eval.features.published_models import PublishedModels
from eval.metrics import EVENTS, ClipMetric, ClipScorer, Task, clip_metrics, clip_scores
from teacher.features.store import Record
from teacher.sampling.scene import Scene


def _ranks(metric: ClipMetric) -> bool:
    """Whether it can be computed from a sound with its picture or caption alone, and one end of it is better."""
    free = metric.scorer is not None and not metric.compared and metric.source != EVENTS
    return metric.better is not None and metric.divergence is None and (free or metric.published)


RANKING = {metric.key: metric for metric in clip_metrics() if _ranks(metric)}
"""motion needs no weights; the others need the --judges file of their model."""
if TYPE_CHECKING:
    Score = str
else:
    Score = Literal[tuple(sorted(RANKING, key=lambda key: RANKING[key].published))]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranker:
    """Scores sounds of one scene by one metric."""

    metric: ClipMetric
    scorers: tuple[ClipScorer, ...]
    cache: tempfile.TemporaryDirectory[str] | None = None
    """Removed with the ranker."""

    @classmethod
    def load(cls, score: Score, files: PublishedModels, *, duration_s: float, device: str) -> "Ranker":
        """Load the model that the metric needs, whose file must be given.

        Raises:
            ValueError: an unknown metric, or the file was not given.
        """
        if score not in RANKING:
            raise ValueError(f"--score must be one of {', '.join(RANKING)}, got {score}")
        metric = RANKING[score]
        if metric.scorer is not None:
            return cls(metric=metric, scorers=(metric.scorer(),))
        if getattr(files, metric.source) is None:
            raise ValueError(f"--score {score} needs --judges.{metric.source.replace('_', '-')}, the file of its model")
        cache = tempfile.TemporaryDirectory(prefix="mf-best-")
        _, scorers = files.load(duration_s=duration_s, device=device, cache=Path(cache.name))
        return cls(metric=metric, scorers=scorers, cache=cache)

    def values(self, scene: Scene, waves: Tensor, sample_rate: int) -> list[float]:
        """One value per wave (seeds, samples) of the scene; larger is better, so a metric of which less is better is
        given negative.

        Raises:
            ValueError: a metric of the picture for a scene without one, or one the model cannot give.
        """
        key = self.metric.key
        if self.metric.tasks == ("vta",) and scene.video is None:
            raise ValueError(f"--score {key} scores sound against a picture; for text alone use clap_laion")
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
        found = clip_scores(self.scorers, [record] * len(waves), waves, sample_rate, task)
        if any(key not in entry for entry in found):
            raise ValueError(f"--score {key} cannot score this sound: it has no caption, or the clip is too short")
        sign = -1.0 if self.metric.better == "lower" else 1.0
        return [sign * entry[key] for entry in found]
