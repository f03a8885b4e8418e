"""Rows of results averaged over seeds."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, get_args

from eval.compare.rows import Kind, Row, Task

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Rows of one task, model, step count and guidance scale over seeds."""

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
    """Whether the same model was run with other guidance scales too, which names then have to tell apart."""

    @property
    def key(self) -> tuple[Task, str, int, float]:
        """Task, model, steps and guidance."""
        return self.task, self.model, self.steps, self.guidance


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Mean and standard deviation over seeds, in the order task, kind, model, guidance, steps.

    Models of a kind come in the order in which they first appear.

    Raises:
        ValueError: rows of one group that differ in number of clips or evaluations; they do not average.
    """
    groups: dict[tuple[Task, str, int, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.model, row.steps, row.guidance), []).append(row)
    rank = {name: k for k, name in enumerate((*get_args(Task), *get_args(Kind)))}
    order = {model: k for k, model in enumerate(dict.fromkeys(key[1] for key in groups))}

    def place(key: tuple[Task, str, int, float]) -> tuple[int, int, int, float, int]:
        task, model, steps, guidance = key
        return rank[task], rank[groups[key][0].kind], order[model], guidance, steps

    scales: dict[tuple[Task, str], set[float]] = {}
    for task, model, _, guidance in groups:
        scales.setdefault((task, model), set()).add(guidance)
    return [_summary(key, groups[key], len(scales[key[0], key[1]]) > 1) for key in sorted(groups, key=place)]


def _summary(key: tuple[Task, str, int, float], rows: list[Row], several_scales: bool) -> Summary:
    facts = {(row.num_clips, row.nfe, row.kind) for row in rows}
    if len(facts) > 1:
        raise ValueError(
            f"rows of {key[0]} {key[1]}, {key[2]} steps, guidance {key[3]:g} differ in (clips, evaluations, kind): "
            f"{sorted(facts)}; rerun the comparison into a fresh folder"
        )
    num_clips, nfe, kind = facts.pop()
    names = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
    values = {name: [row.metrics[name] for row in rows] for name in names}
    stages = [stage for stage in rows[0].rtf if all(stage in row.rtf for row in rows)]
    return Summary(
        task=key[0],
        model=key[1],
        steps=key[2],
        nfe=nfe,
        guidance=key[3],
        num_clips=num_clips,
        seeds=tuple(sorted(row.seed for row in rows)),
        mean={name: statistics.fmean(v) for name, v in values.items()},
        std={name: statistics.stdev(v) if len(v) > 1 else None for name, v in values.items()},
        rtf={stage: statistics.median(row.rtf[stage] for row in rows) for stage in stages},
        params=_agreed([row.params for row in rows]),
        duration_s=_agreed([row.duration_s for row in rows]),
        kind=kind,
        several_scales=several_scales,
    )


def _agreed(values: list[T | None]) -> T | None:
    """The value all rows have, None where they do not agree."""
    return values[0] if len(set(values)) == 1 else None
