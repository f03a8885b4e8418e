"""Of several sounds the best by one metric: what can be asked for, which way is better, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eval.compare.ranker import RANKING, Ranker
from eval.features.published_models import PublishedModels


@dataclass
class Peaks:
    """Gives the largest sample of each wave as the value of a metric; nothing without a caption."""

    key: str
    name: str = "peaks"
    tasks: tuple[str, ...] = ("vta", "tta")

    def scores(self, records, waves, sample_rate):
        return [{self.key: float(wave.max())} if one.caption else {} for one, wave in zip(records, waves, strict=True)]


def scene(prompt="a dog", video=None):
    return SimpleNamespace(prompt=prompt, video=video, total_s=1.0)


WAVES = torch.tensor([[0.1, 0.5], [0.9, 0.2]])


def test_metrics_that_need_neither_reference_nor_events_can_be_asked_for():
    assert list(RANKING) == [
        "ib_score",
        "desync",
        "clap_laion",
        "clap_ms",
        "pam",
        "aes_pq",
        "aes_ce",
        "aes_cu",
        "motion",
    ]


def test_larger_is_better_whichever_way_the_metric_goes():
    ranker = Ranker(metric=RANKING["clap_ms"], scorers=(Peaks("clap_ms"),))
    assert ranker.values(scene(), WAVES, 16_000) == pytest.approx([0.5, 0.9])
    film = scene(video=Path("film.mp4"))
    ranker = Ranker(metric=RANKING["desync"], scorers=(Peaks("desync"),))
    assert ranker.values(film, WAVES, 16_000) == pytest.approx([-0.5, -0.9])


def test_what_cannot_be_scored_is_refused_by_name():
    words = scene()
    with pytest.raises(ValueError, match=r"--score must be one of .*, got fd_passt"):
        Ranker.load("fd_passt", PublishedModels(), duration_s=1.0, device="cpu")
    with pytest.raises(ValueError, match=r"--score aes_pq needs --judges\.aesthetics"):
        Ranker.load("aes_pq", PublishedModels(), duration_s=1.0, device="cpu")
    with pytest.raises(ValueError, match="--score motion scores sound against a picture"):
        Ranker.load("motion", PublishedModels(), duration_s=1.0, device="cpu").values(words, WAVES, 16_000)
    silent = scene(prompt=None, video=Path("film.mp4"))
    with pytest.raises(ValueError, match="--score clap_ms cannot score this sound"):
        Ranker(metric=RANKING["clap_ms"], scorers=(Peaks("clap_ms"),)).values(silent, WAVES, 16_000)
