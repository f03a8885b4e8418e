"""What a metric is: one object with its texts, its direction, its place in every table and the way it is computed.

`SetMetric` is computed from the features of two sets of clips, `ClipMetric` clip by clip. Each file of this package
declares its metrics, and `eval.metrics.METRICS` lists them; page, paper, console, cautions and checks read them there.
Importing the declarations loads neither torch nor any network: the functions that compute import what they need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.metrics.uncertainty import Estimate, bootstrap_interval

if TYPE_CHECKING:
    from torch import Tensor

    from eval.metrics.embeddings import Embeddings
    from teacher.features.store import Record

Task = Literal["vta", "tta"]
"""vta: sound from video (and its caption); tta: sound from text alone."""
Better = Literal["lower", "higher"]
Aspect = Literal["distance", "kind", "clarity", "picture", "caption", "timing", "events"]
"""The property that a metric measures, in the order of a summary: distance to real sound as a set, the right kind of
sound, clear and varied classes, fit to the picture, fit to the caption, timing, onsets at known events."""
Formula = Literal["frechet", "kernel", "inception"]
"""Published formulas that another package computes as well: FD, KAD and the inception score."""
EMBEDDED = "embedded"
"""Source of metrics of the project's own features, which need no weights."""
EVENTS = "events"
"""Source of metrics against the known events of a clip."""
Values = Mapping[str, float]
Estimates = Mapping[str, Estimate]
Scores = dict[str, float]
"""Values of one clip by name."""
Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PaperColumn:
    """How a paper prints a metric."""

    name: str
    sub: str = ""
    """Index after the name: the network the metric uses."""
    digits: int = 2
    scale: float = 1.0
    """The printed value is the value of a row times this."""
    tables: tuple[Task, ...] = ()
    """Tasks whose table in MMAudio (arXiv 2412.15322: table 1 for vta, table 3 for tta) has this column; in the other
    tables it follows where it was computed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """One number of a row: its name and how it is printed. Counts are plain metrics; subclasses compute values."""

    key: str
    """Name of the metric in rows.jsonl and clips.jsonl."""
    label: str
    better: Better | None
    """None for counts and deviations, of which none is better."""
    digits: int
    explanation: str
    source: str = ""
    """The model whose features it is made of, EMBEDDED or EVENTS; empty for a fact about the comparison itself."""
    main: bool = False
    """Whether it stands in the main table of the page; the others follow in a second one."""
    aspect: Aspect | None = None
    """One metric of each aspect stands in a summary: the first of METRICS that a row has."""
    leads: bool = False
    """Whether it stands for its aspect even where an earlier one was computed."""
    paper: PaperColumn | None = None
    """None where a paper has no column of it."""
    dimensions: int | None = None
    """Number of dimensions of the features of a Frechet distance, which needs twice as many clips."""
    costly: bool = False
    """Whether it needs many distances instead of one; such metrics are computed on request."""

    @property
    def arrow(self) -> str:
        return {"lower": "↓", "higher": "↑", None: ""}[self.better]

    @property
    def title(self) -> str:
        """Label and arrow."""
        return f"{self.label} {self.arrow}".strip()

    @property
    def embedded(self) -> bool:
        """Whether it is computed from the project's own features."""
        return self.source == EMBEDDED

    @property
    def published(self) -> bool:
        """Whether it is computed from a published network's features."""
        return self.source not in ("", EMBEDDED, EVENTS)


@dataclass(frozen=True, kw_only=True, eq=False)
class SetMetric(Metric):
    """A metric of a whole set of clips, made of the features or logits that one model gives both sets.

    `value` and `estimate` take the embeddings of the real and of the generated clips and return numbers by key: that
    of the metric, those beside it (KEY_std), and those of all metrics of the same computation. They return nothing
    where there are too few clips.
    """

    needs: Literal["features", "logits"]
    value: Callable[[Embeddings, Embeddings], Values]
    estimate: Callable[[Embeddings, Embeddings], Estimates] = lambda reference, generated: {}
    """Interval and bias."""
    uses_reference: bool = True
    """False for the inception score, which does not use the real clips."""
    formula: Formula | None = None
    """The formula by which `eval.compare.cross_check` computes it a second time; None where no other package has it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipMetric(Metric):
    """A metric of single clips. A row holds the mean over the clips that have it, or a ratio of sums over them."""

    tasks: tuple[Task, ...] = ("vta", "tta")
    """Tasks in which a clip can have it."""
    scorer: Callable[[], ClipScorer] | None = None
    """Makes the scorer that computes it, where no published model is needed."""
    compared: bool = True
    """Whether every comparison runs `scorer`; otherwise it runs on request."""
    divergence: Callable[[Tensor, Tensor], Tensor] | None = None
    """(logits of the real clips, logits of the generated clips), both (clips, classes) by `source` -> (clips,)."""
    columns: tuple[str, ...] = ()
    """Counts of a clip that are summed over clips before `ratio` is taken; empty for the mean of the key itself."""
    ratio: Callable[[Vector], Vector] | None = None
    """Rows of sums or means of `columns`, (rows, columns) -> (rows,)."""
    count_key: str = ""
    """Key of the number of clips that have a value. If empty it is KEY_clips, and only where not all clips have one."""
    tolerance: tuple[float, float] = (2e-3, 2e-3)
    """Relative and absolute: how far the value of a clip may move when its wave is read from a file of 16 bits. Over
    60 files of the demo the divergence of a clip moves by 6e-4 at most."""

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the values of a clip from which it is computed."""
        return self.columns or (self.key,)

    def rows(self, per_clip: Sequence[Values]) -> Vector:
        """(clips, columns) of the clips that have it."""
        return np.array([[entry[name] for name in self.names] for entry in per_clip if self.names[0] in entry])

    def pooled(self, per_clip: Sequence[Values]) -> dict[str, float]:
        """Mean or ratio over the clips that have it, and how many these are; empty where none has."""
        rows = self.rows(per_clip)
        if not len(rows):
            return {}
        if self.ratio is not None:
            found = {self.key: float(self.ratio(rows.sum(axis=0, keepdims=True))[0])}
        else:
            found = {self.key: float(rows[:, 0].sum() / len(rows))}
        if self.count_key:
            found[self.count_key] = float(len(rows))
        elif len(rows) < len(per_clip):
            found[f"{self.key}_clips"] = float(len(rows))
        return found

    def interval(self, per_clip: Sequence[Values]) -> dict[str, Estimate]:
        """Percentile bootstrap over the clips that have it; nothing for fewer than two."""
        rows = self.rows(per_clip)
        if len(rows) < 2:
            return {}
        if self.ratio is None:
            return {self.key: Estimate.of_mean(bootstrap_interval(rows[:, 0]))}
        interval = bootstrap_interval(rows, statistic=self.ratio)
        return {self.key: Estimate.of_mean(interval, bias_method="a ratio of sums, 0 to first order")}


class ClipScorer(Protocol):
    """Computes metrics of single clips with a loaded model. A clip that has no such value gets an empty entry."""

    @property
    def name(self) -> str:
        """Everything that decides the values; part of the configuration of every row."""
        ...

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks in which the scorer runs."""
        ...

    def scores(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        """waves (clips, samples) of the records, in their order -> values by key."""
        ...


class SoundModel(Protocol):
    """An embedding model with the policy by which sound reaches it."""

    @property
    def name(self) -> str:
        """Model, digest of its weights, and policy."""
        ...

    def prepared(self, waves: Tensor, sample_rate: int) -> Tensor:
        """waves (clips, samples) at the model's rate and length."""
        ...

    def embed(self, waves: Tensor, sample_rate: int) -> Embeddings:
        """waves (clips, samples) -> their embeddings."""
        ...


def clip_scores(
    scorers: Sequence[ClipScorer], records: Sequence[Record], waves: Tensor, sample_rate: int, task: Task
) -> list[Scores]:
    """Values by clip of all scorers that a task runs."""
    found: list[Scores] = [{} for _ in records]
    for scorer in scorers:
        if task in scorer.tasks:
            for entry, more in zip(found, scorer.scores(records, waves, sample_rate), strict=True):
                entry.update(more)
    return found
