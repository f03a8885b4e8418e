"""The tables of a comparison (quality, further scores, speed by stage, intervals), how their numbers are written, and
what a reader has to know with them: over which seeds means go, and where a Frechet distance is of too few clips."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from eval.metrics import METRICS, Metric, metrics_of
from eval.report.blocks import Cell, Table, TableRow
from eval.report.settings import TASK_TOTALS, Setting, SettingKey, Span
from eval.speed.budget import STAGES

NONE = "–"
"""The text of a cell without a value."""
FEWEST_CALLS = 10
"""Below this number of timed calls no time is marked as the lowest."""
FEWEST_CLIPS = 50
"""Below this number of clips no Frechet distance goes without a caution."""
SEEDS_NOTE = "Where two settings have different seeds, a difference is over those that both have."
INTERVALS_NOTE = (
    "Interval: how far the score would move with other clips from the same source and the same noise. Value, interval "
    "and bias are means over the seeds, so the interval is as wide as that of one seed. Bias: what the method and this "
    "number of clips make by themselves; value − bias is the estimate for infinitely many clips. It is not taken off "
    "anywhere else."
)
NO_ESTIMATES = "These rows were made before intervals and bias were recorded with them."


def quality_table(chosen: Sequence[Setting]) -> Table:
    """Steps, network evaluations and main scores; the best generated value of each column is marked."""
    return _scores_table(chosen, [m for m in shown_metrics(chosen) if m.main])


def more_table(chosen: Sequence[Setting]) -> Table | None:
    """The scores that are not in the main table; None where there are none."""
    metrics = [m for m in shown_metrics(chosen) if not m.main]
    return _scores_table(chosen, metrics) if metrics else None


def _scores_table(chosen: Sequence[Setting], metrics: Sequence[Metric]) -> Table:
    best = {m.key: _best(chosen, m) for m in metrics}
    unequal = seeds_differ(chosen)
    rows = []
    for s in chosen:
        generated = s.generated
        cells = [Cell(text=str(s.steps) if generated else NONE), Cell(text=str(s.nfe) if generated else NONE)]
        cells += [_metric_cell(s, m, best=generated and s.mean.get(m.key) == best[m.key]) for m in metrics]
        cells += [Cell(text=str(len(s.seeds)) if generated else NONE)] * unequal
        cells.append(Cell(text=str(s.num_clips)))
        rows.append(TableRow(model=s.model_title, kind=s.kind, cells=tuple(cells), muted=not generated))
    last = ("Seeds",) * unequal + ("Clips",)
    return Table(columns=("Model", "Steps", "NFE", *(m.title for m in metrics), *last), rows=tuple(rows))


def latency_table(chosen: Sequence[Setting], calls: Mapping[SettingKey, int]) -> Table | None:
    """Real-time factor by stage and total of the settings of one task; None where nothing was timed.

    calls: how many calls are behind the medians of a setting, by its key. The lowest totals are marked only where every
    setting is known to have at least `FEWEST_CALLS`.
    """
    timed = [s for s in chosen if s.generated and s.rtf]
    if not timed:
        return None
    totals = ("generator only", TASK_TOTALS[timed[0].task])
    stages = [name for name in (*STAGES, *totals) if any(name in s.rtf for s in timed)]
    lowest = {}
    if all(calls.get(s.key, 0) >= FEWEST_CALLS for s in timed):
        lowest = {name: min(s.rtf[name] for s in timed if name in s.rtf) for name in totals if name in stages}
    rows = tuple(
        TableRow(
            model=s.model_title,
            kind=s.kind,
            cells=(Cell(text=str(s.steps)), Cell(text=str(s.nfe)), *(_rtf_cell(s, name, lowest) for name in stages)),
        )
        for s in timed
    )
    titles = tuple(f"Σ {name}" if name in totals else name for name in stages)
    return Table(columns=("Model", "Steps", "NFE", *titles), rows=rows)


@dataclass(frozen=True, kw_only=True)
class IntervalTable:
    """All settings of one task with an interval of one score."""

    metric: Metric
    table: Table
    method: str
    """A description of how intervals and bias were found."""


def interval_tables(chosen: Sequence[Setting]) -> Iterator[IntervalTable]:
    """One table for each score of some settings that has intervals."""
    for metric in metrics_of(key for s in chosen for key in s.mean):
        spans = {k: found for k, s in enumerate(chosen) if (found := s.span(metric.key)) is not None}
        if spans:
            rows = tuple(_interval_row(chosen[k], found, metric.digits) for k, found in spans.items())
            level = f"{100 * next(iter(spans.values())).level:g} % interval"
            columns = ("Model", "Steps", metric.title, level, "Bias", "Value − bias", "Clips")
            yield IntervalTable(metric=metric, table=Table(columns=columns, rows=rows), method=_method(spans))


def interval_text(low: float, high: float, digits: int, *, plus: bool = False) -> str:
    """An interval as [low, high]."""
    return f"[{signed(low, digits, plus=plus)}, {signed(high, digits, plus=plus)}]"


def spread_text(chosen: Sequence[Setting]) -> str:
    """A sentence naming the seeds of values and deviations, and the missing ones where settings differ."""
    seeds = seeds_of(chosen)
    if len(seeds) < 2:
        return "One seed of the noise."
    if seeds_differ(chosen):
        return f"Mean ± standard deviation over the number of seeds in the row. {unfinished(chosen)}"
    return f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))} of the noise."


def means_text(chosen: Sequence[Setting]) -> str:
    """The number of seeds that the values of a table are means over, as a footnote; where it differs, the table has a
    column of it."""
    counts = sorted({len(s.seeds) for s in chosen if s.generated})
    if not counts:
        return "no noise"
    if seeds_differ(chosen):
        return "means over seeds of the noise, whose number is in the column Seeds"
    return f"means over {counts[0]} seed{'s' * (counts[0] != 1)} of the noise"


def unfinished(chosen: Sequence[Setting]) -> str:
    """A sentence naming the settings that lack seeds of the others; empty where all have the same seeds."""
    seeds = seeds_of(chosen)
    steps_of: dict[str, list[int]] = {}
    for s in chosen:
        steps_of.setdefault(s.model_title, []).append(s.steps)
    groups: dict[tuple[int, ...], dict[str, list[int]]] = {}
    for s in chosen:
        missing = tuple(seed for seed in seeds if seed not in s.seeds)
        if s.generated and missing:
            groups.setdefault(missing, {}).setdefault(s.model_title, []).append(s.steps)
    parts = []
    for missing, models in groups.items():
        names = "; ".join(
            name if steps == steps_of[name] else f"{name} ({listed(steps)} step{'s' * (steps != [1])})"
            for name, steps in models.items()
        )
        several = len(missing) > 1
        parts.append(f"seed{'s' * several} {listed(missing)} {'are' if several else 'is'} missing for {names}")
    return f"Unfinished: {'. Also, '.join(parts)}." if parts else ""


def seeds_of(chosen: Sequence[Setting]) -> list[int]:
    """All seeds that any generated setting has."""
    return sorted({seed for s in chosen if s.generated for seed in s.seeds})


def listed(values: Iterable[object]) -> str:
    """a, b and c."""
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last


def seeds_differ(chosen: Sequence[Setting]) -> bool:
    """Whether generated settings are means over different seeds; a column then states how many."""
    return len({s.seeds for s in chosen if s.generated}) > 1


def methods_text(chosen: Sequence[Setting], names: Mapping[str, str]) -> str:
    """How intervals and bias were found of those scores that have them: names by method, a sentence a method."""
    groups: dict[str, list[str]] = {}
    for found in interval_tables(chosen):
        if found.metric.key in names:
            groups.setdefault(found.method, []).append(names[found.metric.key])
    return " ".join(f"{', '.join(own)}: {method}" for method, own in groups.items())


def few_clips(chosen: Sequence[Setting]) -> str:
    """Distances of fewer clips than twice their dimension or than 50, each with its bias; empty where there are none.

    The bias is that of the setting with the lowest generated value, which it weighs on most.
    """
    cautions = list(_cautions(chosen))
    if not cautions:
        return ""
    return (
        f"A Fréchet distance needs {FEWEST_CLIPS} clips and twice as many as its features have dimensions. "
        f"{' '.join(cautions)} Compare only rows with equal numbers of clips, and read KAD, which has no such bias."
    )


def _cautions(chosen: Sequence[Setting]) -> Iterator[str]:
    for metric in METRICS:
        having = [s for s in chosen if metric.dimensions is not None and metric.key in s.mean]
        made = [s for s in having if s.generated] or having
        if not made:
            continue
        clips = min(s.num_clips for s in made)
        if clips >= max(2 * (metric.dimensions or 0), FEWEST_CLIPS):
            continue
        lowest = min(made, key=partial(_value, key=metric.key))
        found, value = lowest.span(metric.key), signed(lowest.mean[metric.key], metric.digits)
        bias = "its bias was not recorded"
        if found is not None:
            bias = (
                f"its bias, itself rough at so few clips, is as large as {signed(found.bias, metric.digits)}, which is "
                f"part of the lowest value, {value} of {lowest.title}"
            )
        yield f"{metric.label}: few clips, {clips} in {metric.dimensions} dimensions; {bias}."


def _value(setting: Setting, *, key: str) -> float:
    return setting.mean[key]


def significant(value: float) -> str:
    """Three significant digits, with an exponent only far from 1."""
    if value == 0.0:
        return "0"
    return f"{value:#.3g}".rstrip(".") if 1e-4 <= abs(value) < 1e3 else f"{value:.2e}"


def signed(value: float, digits: int, *, plus: bool = False) -> str:
    """A number with so many digits after the point and a true minus; with `plus` a sign in any case."""
    text = f"{value:{'+' * plus}.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def shown_metrics(chosen: Sequence[Setting]) -> tuple[Metric, ...]:
    """All scores that occur in any of some settings, the main ones first."""
    return metrics_of(key for s in chosen for key in s.mean)


def _best(chosen: Sequence[Setting], metric: Metric) -> float | None:
    values = [s.mean[metric.key] for s in chosen if s.generated and metric.key in s.mean]
    if not values or metric.better is None or len(set(values)) == 1:
        return None
    return min(values) if metric.better == "lower" else max(values)


def _rtf_cell(setting: Setting, name: str, lowest: dict[str, float]) -> Cell:
    if name not in setting.rtf:
        return Cell(text=NONE)
    return Cell(text=significant(setting.rtf[name]), best=setting.rtf[name] == lowest.get(name))


def _metric_cell(setting: Setting, metric: Metric, *, best: bool) -> Cell:
    if metric.key not in setting.mean:
        return Cell(text=NONE)
    spread = setting.std[metric.key]
    return Cell(
        text=signed(setting.mean[metric.key], metric.digits),
        spread="" if spread is None or metric.better is None else f" ± {spread:.{metric.digits}f}",
        best=best,
    )


def _interval_row(s: Setting, found: Span, digits: int) -> TableRow:
    texts = (
        str(s.steps) if s.generated else NONE,
        signed(found.value, digits),
        interval_text(found.low, found.high, digits),
        signed(found.bias, digits),
        signed(found.value - found.bias, digits),
        str(found.count),
    )
    return TableRow(
        model=s.model_title, kind=s.kind, muted=not s.generated, cells=tuple(Cell(text=text) for text in texts)
    )


def _method(spans: Mapping[int, Span]) -> str:
    intervals = " or ".join(dict.fromkeys(s.method for s in spans.values()))
    bias = " or ".join(dict.fromkeys(s.bias_method for s in spans.values()))
    return f"interval by {intervals}; bias: {bias}."
