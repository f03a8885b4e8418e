"""The settings of a comparison: rows of one task, model, number of steps and guidance scale, averaged over seeds; how
settings are called, and the intervals of their scores."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

from eval.compare.rows import ClipScores, Kind, Row, ScoresKey, Task

T = TypeVar("T")
SettingKey = tuple[Task, str, int, float]
"""Task, model, number of steps and guidance scale."""
TASK_TITLES: Mapping[Task, str] = {"vta": "Video to audio", "tta": "Text to audio"}
TASK_TOTALS: Mapping[Task, str] = {"vta": "video-to-audio", "tta": "text-to-audio"}
"""By task, the total (see TOTALS) that covers everything from the user's input to the sound."""
MODEL_TITLES: Mapping[str, str] = {
    "teacher": "Teacher",
    "student": "Student",
    "codec": "Codec round trip",
    "reference": "Real sound",
}
GENERATORS = ("teacher", "student")
"""Kinds of models that generate sound; the other kinds are floors and ceilings."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Interval and bias of a score of one setting, averaged over its seeds."""

    value: float
    low: float
    high: float
    level: float
    bias: float
    count: int
    """Clips; the fewest of any seed."""
    method: str
    bias_method: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One task, model, number of steps and guidance scale: its rows by seed, and their numbers averaged over seeds."""

    task: Task
    model: str
    steps: int
    nfe: int
    guidance: float
    num_clips: int
    seeds: tuple[int, ...]
    mean: Mapping[str, float]
    std: Mapping[str, float | None]
    """Sample standard deviation over seeds (divisor n - 1); None with a single seed."""
    rtf: Mapping[str, float]
    """Median over seeds."""
    params: int | None = None
    duration_s: float | None = None
    kind: Kind
    several_scales: bool = False
    """Whether the same model was run with other guidance scales too, so that names have to contain the scale."""
    rows: Mapping[int, Row]
    """By seed."""
    clips: Mapping[int, ClipScores]
    """Scores of single clips by seed, where there are any."""

    @property
    def key(self) -> SettingKey:
        """Task, model, steps and guidance."""
        return self.task, self.model, self.steps, self.guidance

    @property
    def generated(self) -> bool:
        """Whether its sounds were generated; real sound and the codec round trip were not."""
        return self.kind in GENERATORS

    @property
    def name(self) -> str:
        """The model as tables call it."""
        return MODEL_TITLES.get(self.model, self.model)

    @property
    def model_title(self) -> str:
        """The name, with the guidance scale where the model was run with several."""
        return f"{self.name}, guidance {self.guidance:g}" if self.several_scales else self.name

    @property
    def title(self) -> str:
        """Model and number of steps."""
        return f"{self.model_title}, {self.steps} step{'s' * (self.steps != 1)}"

    def span(self, key: str) -> Span | None:
        """Means over the seeds of low, high and bias of a score; None where a row has no estimate of it."""
        rows = list(self.rows.values())
        if not rows or any(key not in row.estimates for row in rows):
            return None
        found = [row.estimates[key] for row in rows]
        return Span(
            value=self.mean[key],
            low=statistics.fmean(e.low for e in found),
            high=statistics.fmean(e.high for e in found),
            level=found[0].level,
            bias=statistics.fmean(e.bias for e in found),
            count=min(e.count for e in found),
            method=found[0].method,
            bias_method=found[0].bias_method,
        )


def settings(rows: Iterable[Row], clips: Mapping[ScoresKey, ClipScores] | None = None) -> list[Setting]:
    """The settings of some rows in the order task, kind, model, guidance, steps.

    Models of a kind come in the order in which they first appear. `clips`: scores of single clips (`read_clip_scores`).

    Raises:
        ValueError: rows of one group that differ in number of clips or evaluations; they do not average.
    """
    groups: dict[SettingKey, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.model, row.steps, row.guidance), []).append(row)
    rank = {name: k for k, name in enumerate((*get_args(Task), *get_args(Kind)))}
    order = {model: k for k, model in enumerate(dict.fromkeys(key[1] for key in groups))}

    def place(key: SettingKey) -> tuple[int, int, int, float, int]:
        task, model, steps, guidance = key
        return rank[task], rank[groups[key][0].kind], order[model], guidance, steps

    scales: dict[tuple[Task, str], set[float]] = {}
    for task, model, _, guidance in groups:
        scales.setdefault((task, model), set()).add(guidance)
    return [
        _setting(groups[key], clips or {}, several_scales=len(scales[key[0], key[1]]) > 1)
        for key in sorted(groups, key=place)
    ]


def _setting(rows: Sequence[Row], clips: Mapping[ScoresKey, ClipScores], *, several_scales: bool) -> Setting:
    first = rows[0]
    facts = {(row.num_clips, row.nfe, row.kind) for row in rows}
    if len(facts) > 1:
        raise ValueError(
            f"rows of {first.task} {first.model}, {first.steps} steps, guidance {first.guidance:g} differ in "
            f"(clips, evaluations, kind): {sorted(facts)}; rerun the comparison into a fresh folder"
        )
    num_clips, nfe, kind = facts.pop()
    names = [name for name in first.metrics if all(name in row.metrics for row in rows)]
    values = {name: [row.metrics[name] for row in rows] for name in names}
    stages = [stage for stage in first.rtf if all(stage in row.rtf for row in rows)]
    return Setting(
        task=first.task,
        model=first.model,
        steps=first.steps,
        nfe=nfe,
        guidance=first.guidance,
        num_clips=num_clips,
        seeds=tuple(sorted(row.seed for row in rows)),
        mean={name: statistics.fmean(v) for name, v in values.items()},
        std={name: statistics.stdev(v) if len(v) > 1 else None for name, v in values.items()},
        rtf={stage: statistics.median(row.rtf[stage] for row in rows) for stage in stages},
        params=_agreed([row.params for row in rows]),
        duration_s=_agreed([row.duration_s for row in rows]),
        kind=kind,
        several_scales=several_scales,
        rows={row.seed: row for row in rows},
        clips={row.seed: clips[row.scores_key] for row in rows if row.scores_key in clips},
    )


def _agreed(values: list[T | None]) -> T | None:
    """The value all rows have, None where they do not agree."""
    return values[0] if len(set(values)) == 1 else None
