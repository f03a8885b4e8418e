"""Intervals and bias of the scores on the page: one number per setting from the estimates in its rows."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.metrics import Metric, metrics_of
from eval.report.paired import Setting
from eval.report.tables import GENERATORS, NONE, Cell, Table, TableRow, model_title, signed

EXPLAINED = (
    "Interval: how far the score would move with other clips from the same source, the noise kept. Value, interval "
    "and bias are means over the seeds, so the interval is as wide as that of one seed. Bias: what the method and this "
    "number of clips make by themselves; value − bias is the estimate for infinitely many clips. It is not taken off "
    "anywhere else."
)
NO_ESTIMATES = "These rows were made before intervals and bias were kept with them."


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


@dataclass(frozen=True, kw_only=True)
class IntervalTable:
    """All settings of one task with an interval of one score."""

    metric: Metric
    table: Table
    method: str
    """How intervals and bias were found, in words."""


def span(setting: Setting, key: str) -> Span | None:
    """Means over the seeds of low, high and bias; None where a row has no estimate of the score."""
    rows = list(setting.rows.values())
    if not rows or any(key not in row.estimates for row in rows):
        return None
    found = [row.estimates[key] for row in rows]
    return Span(
        value=setting.summary.mean[key],
        low=statistics.fmean(e.low for e in found),
        high=statistics.fmean(e.high for e in found),
        level=found[0].level,
        bias=statistics.fmean(e.bias for e in found),
        count=min(e.count for e in found),
        method=found[0].method,
        bias_method=found[0].bias_method,
    )


def interval_tables(chosen: Sequence[Setting]) -> Iterator[IntervalTable]:
    """One table for each score of some settings that has intervals."""
    for metric in metrics_of(key for s in chosen for key in s.summary.mean):
        spans = {k: found for k, s in enumerate(chosen) if (found := span(s, metric.key)) is not None}
        if spans:
            rows = tuple(_row(chosen[k], found, metric.digits) for k, found in spans.items())
            level = f"{100 * next(iter(spans.values())).level:g} % interval"
            columns = ("Model", "Steps", metric.title, level, "Bias", "Value − bias", "Clips")
            yield IntervalTable(metric=metric, table=Table(columns=columns, rows=rows), method=_method(spans))


def interval_text(low: float, high: float, digits: int, *, plus: bool = False) -> str:
    """[low, high]."""
    return f"[{signed(low, digits, plus=plus)}, {signed(high, digits, plus=plus)}]"


def methods_told(chosen: Sequence[Setting], names: Mapping[str, str]) -> str:
    """How intervals and bias were found of those scores that have them: names by method, a sentence a method."""
    groups: dict[str, list[str]] = {}
    for found in interval_tables(chosen):
        if found.metric.key in names:
            groups.setdefault(found.method, []).append(names[found.metric.key])
    return " ".join(f"{', '.join(own)}: {method}" for method, own in groups.items())


def _row(setting: Setting, found: Span, digits: int) -> TableRow:
    s = setting.summary
    generated = s.kind in GENERATORS
    texts = (
        str(s.steps) if generated else NONE,
        signed(found.value, digits),
        interval_text(found.low, found.high, digits),
        signed(found.bias, digits),
        signed(found.value - found.bias, digits),
        str(found.count),
    )
    return TableRow(
        model=model_title(s), kind=s.kind, muted=not generated, cells=tuple(Cell(text=text) for text in texts)
    )


def _method(spans: Mapping[int, Span]) -> str:
    intervals = " or ".join(dict.fromkeys(s.method for s in spans.values()))
    bias = " or ".join(dict.fromkeys(s.bias_method for s in spans.values()))
    return f"interval by {intervals}; bias: {bias}."
