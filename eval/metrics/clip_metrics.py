"""Scores that a single clip gets from what is seen, said or known of it: alignment, timing, events, quality."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self, get_args

import numpy as np
import soxr
import torch
from torch import Tensor

from eval.compare.rows import Task
from eval.extractors.base import Embeddings
from eval.extractors.clip_audio import ClipAudio
from eval.features.sources import ModelSource
from eval.metrics.alignment import paired_cosines
from eval.metrics.desync import DeSync
from eval.metrics.greatest_hits import DURATION_S as SCRIPT_DURATION_S
from eval.metrics.greatest_hits import SAMPLE_RATE as SCRIPT_RATE
from eval.metrics.greatest_hits import script_scores
from eval.metrics.onsets import DEFAULT_TOLERANCE_S, detect_onsets, match_onsets
from eval.metrics.pam import PROMPTS, Pam, pam_windows
from teacher.features.store import Record

if TYPE_CHECKING:  # a network is imported by who asks for it
    from eval.extractors.aesthetics import Aesthetics
    from eval.extractors.clap import Clap
    from eval.extractors.synchformer import DesyncExtractor

Scores = dict[str, float]
Side = Callable[[Record], Tensor]
"""What a clip is compared with, (dimensions,): the embedding of its picture or of its caption."""
Against = Literal["picture", "caption"]
AESTHETICS = ("aes_pq", "aes_pc", "aes_ce", "aes_cu")
"""In the order in which the model gives them."""


class ClipMetric(Protocol):
    """Judges clips one by one; a clip it can say nothing about gets an empty entry, never a stand-in."""

    @property
    def name(self) -> str:
        """Everything that decides the values."""
        ...

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks in which it is asked."""
        ...

    def judge(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        """waves (clips, samples) of the records, in their order -> scores by name."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class OnsetJudge:
    """hits, misses and false_alarms: onsets heard against the known events, one to one. Video only."""

    tolerance_s: float = DEFAULT_TOLERANCE_S

    @property
    def name(self) -> str:
        return f"onsets within {self.tolerance_s:g} s"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return ("vta",)

    def judge(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        found: list[Scores] = []
        for record, wave in zip(records, waves.float(), strict=True):
            if record.events_s is None:
                found.append({})
                continue
            counts = match_onsets(record.events_s, detect_onsets(wave.numpy(), sample_rate), self.tolerance_s)
            found.append(
                {
                    "hits": float(counts.hits),
                    "misses": float(counts.misses),
                    "false_alarms": float(counts.false_alarms),
                }
            )
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class ScriptJudge:
    """gh_accuracy, gh_ap, gh_f1: what MMAudio's Greatest Hits script would print, faults included. Video only."""

    @property
    def name(self) -> str:
        return "greatest-hits-script-v1"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return ("vta",)

    def judge(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        found: list[Scores] = []
        for record, wave in zip(records, waves.double().numpy(), strict=True):
            events = sorted(event for event in record.events_s or () if event < SCRIPT_DURATION_S)
            if not events:  # the script cannot score a file without events
                found.append({})
                continue
            if sample_rate != SCRIPT_RATE:
                wave = soxr.resample(wave, sample_rate, SCRIPT_RATE, quality="HQ")
            scores = script_scores(events, wave)
            found.append({"gh_accuracy": scores.accuracy, "gh_ap": scores.average_precision, "gh_f1": scores.f1})
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class CosineJudge:
    """Cosine between the embedding of the sound and that of the picture or the caption; nothing for a clip without."""

    key: str
    listener: ModelSource
    side: Side
    tasks: tuple[Task, ...]
    against: Against

    def __post_init__(self) -> None:
        if self.against not in get_args(Against):
            raise ValueError(f"against must be one of {', '.join(get_args(Against))}, got {self.against!r}")

    @property
    def name(self) -> str:
        return f"{self.key} by {self.listener.name}"

    def judge(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        asked = [k for k, record in enumerate(records) if self._has_side(record)]
        found: list[Scores] = [{} for _ in records]
        if asked:
            heard = self.listener.hear(waves[asked], sample_rate).rows
            other = torch.stack([self.side(records[k]) for k in asked])
            for k, value in zip(asked, paired_cosines(heard, other).tolist(), strict=True):
                found[k] = {self.key: value}
        return found

    def _has_side(self, record: Record) -> bool:
        return record.has_video if self.against == "picture" else bool(record.caption.strip())


@dataclass(frozen=True, kw_only=True, eq=False)
class DesyncJudge:
    """desync: mean |offset| in seconds of the first and the last 4.8 s. Video only."""

    extractor: "DesyncExtractor"
    side: Side
    """Visual features of a clip, (segments, 8, width)."""

    @property
    def name(self) -> str:
        return self.extractor.name

    @property
    def tasks(self) -> tuple[Task, ...]:
        return ("vta",)

    def judge(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        asked = [k for k, record in enumerate(records) if record.has_video]
        found: list[Scores] = [{} for _ in records]
        if asked:
            rate = self.extractor.sample_rate
            # The offset of the wave stays in, as in the published evaluation.
            prepared = [waves[k].double().numpy() for k in asked]
            if sample_rate != rate:
                prepared = [soxr.resample(wave, sample_rate, rate, quality="HQ") for wave in prepared]
            seen = torch.stack([self.side(records[k]) for k in asked])
            heard = self.extractor.audio_features(torch.from_numpy(np.stack(prepared)).float())
            count = min(seen.shape[1], heard.shape[1])  # both begin together, so equal numbers are equal times
            logits = self.extractor.logits(seen[:, :count], heard[:, :count])
            scores = DeSync.from_logits(logits[:, 0], logits[:, 1]).per_clip_s
            for k, value in zip(asked, scores.tolist(), strict=True):
                found[k] = {"desync": value}
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class PamJudge:
    """pam: probability of the clean prompt against the noisy one, 7-s windows with the rest repeated.

    A window is as long as what the model hears, so that nothing is cropped.
    """

    model: "Clap"
    listener: ModelSource
    prompts: Tensor
    """Embeddings of `PROMPTS`, (2, dimensions)."""

    @classmethod
    def of(cls, model: "Clap", *, duration_s: float) -> Self:
        """With the embeddings of the two prompts."""
        listener = ModelSource(source="pam", model=model, duration_s=duration_s)
        return cls(model=model, listener=listener, prompts=model.embed_text(PROMPTS))

    @property
    def name(self) -> str:
        return f"pam-v1 tiled by {self.listener.name}"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return ("vta", "tta")

    def judge(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        length = self.model.spec.samples
        windows = [pam_windows(wave, window=length) for wave in self.listener.prepared(waves, sample_rate)]
        rows = self.model.embed(torch.cat(windows)).rows
        embeddings = Embeddings(rows=rows, counts=tuple(len(some) for some in windows))
        pam = Pam.from_embeddings(embeddings, self.prompts, logit_scale=self.model.logit_scale)
        return [{"pam": value} for value in pam.per_clip.tolist()]


@dataclass(frozen=True, kw_only=True, eq=False)
class AestheticsJudge:
    """aes_pq, aes_pc, aes_ce and aes_cu: production quality and complexity, content enjoyment and usefulness, 1 to 10.

    The mean of the wave stays in, as in the published code.
    """

    model: "Aesthetics"
    duration_s: float

    @property
    def policy(self) -> ClipAudio:
        """How a wave is prepared."""
        return ClipAudio(sample_rate=self.model.sample_rate, duration_s=self.duration_s, remove_dc=False)

    @property
    def name(self) -> str:
        return f"{self.model.name}, {self.policy.name}"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return ("vta", "tta")

    def judge(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        policy = self.policy
        prepared = torch.stack([policy.prepare(wave.double().numpy(), sample_rate) for wave in waves])
        return [dict(zip(AESTHETICS, scores, strict=True)) for scores in self.model(prepared).tolist()]


def judged(
    judges: Sequence[ClipMetric], records: Sequence[Record], waves: Tensor, sample_rate: int, task: Task
) -> list[Scores]:
    """Scores of all judges that are asked in a task, by clip."""
    found: list[Scores] = [{} for _ in records]
    for judge in judges:
        if task in judge.tasks:
            entries: Sequence[Mapping[str, float]] = judge.judge(records, waves, sample_rate)
            for entry, more in zip(found, entries, strict=True):
                entry.update(more)
    return found
