"""The rows a report is of, and over which seeds of the noise its means are.

Tables of results as plain cells, shared by the page and the Markdown file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.compare.rows import Kind, Row, Task, read_rows
from eval.metrics import Metric, metrics_of
from eval.report.summary import Summary
from eval.speed.budget import STAGES

SEEDS_NOTE = "Where two settings have different seeds, a difference is over those that both have."


def rows_of(rows_path: Path) -> list[Row]:
    """The rows of a comparison.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no rows, or a line that is none.
    """
    if not rows_path.exists():
        raise FileNotFoundError(f"{rows_path} does not exist; name the rows.jsonl that a comparison wrote")
    rows = read_rows(rows_path)
    if not rows:
        raise ValueError(f"{rows_path} holds no rows of results; run the comparison first")
    return rows


def spread_told(summaries: Sequence[Summary]) -> str:
    """What the values and deviations of a table are over; names what is missing where settings differ."""
    seeds = seeds_of(summaries)
    if len(seeds) < 2:
        return "One seed of the noise."
    if seeds_differ(summaries):
        return f"Mean ± standard deviation over as many seeds of the noise as the row says. {unfinished(summaries)}"
    return f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))} of the noise."


def means_told(summaries: Sequence[Summary]) -> str:
    """The same in the words of a footnote: the number of seeds, which a column has where it differs."""
    counts = sorted({len(s.seeds) for s in summaries if s.kind in GENERATORS})
    if not counts:
        return "no noise"
    if seeds_differ(summaries):
        return "means over seeds of the noise, as many as the column Seeds says"
    return f"means over {counts[0]} seed{'s' * (counts[0] != 1)} of the noise"


def unfinished(summaries: Sequence[Summary]) -> str:
    """Which seeds that other settings have are missing for which; empty where all have the same."""
    seeds = seeds_of(summaries)
    steps_of: dict[str, list[int]] = {}
    for s in summaries:
        steps_of.setdefault(model_title(s), []).append(s.steps)
    groups: dict[tuple[int, ...], dict[str, list[int]]] = {}
    for s in summaries:
        missing = tuple(seed for seed in seeds if seed not in s.seeds)
        if s.kind in GENERATORS and missing:
            groups.setdefault(missing, {}).setdefault(model_title(s), []).append(s.steps)
    parts = []
    for missing, models in groups.items():
        names = "; ".join(
            name if steps == steps_of[name] else f"{name} ({listed(steps)} step{'s' * (steps != [1])})"
            for name, steps in models.items()
        )
        several = len(missing) > 1
        parts.append(f"seed{'s' * several} {listed(missing)} {'are' if several else 'is'} missing for {names}")
    return f"Unfinished: {'. Also, '.join(parts)}." if parts else ""


def seeds_of(summaries: Sequence[Summary]) -> list[int]:
    """All seeds that any generated setting has."""
    return sorted({seed for s in summaries if s.kind in GENERATORS for seed in s.seeds})


TASK_TITLES: dict[Task, str] = {"vta": "Video to audio", "tta": "Text to audio"}
TASK_TOTALS: dict[Task, str] = {"vta": "video-to-audio", "tta": "text-to-audio"}
"""The sum of stages that a user of the task waits for."""
MODEL_TITLES: dict[str, str] = {
    "teacher": "Teacher",
    "student": "Student",
    "codec": "Codec round trip",
    "reference": "Real sound",
}
GENERATORS = ("teacher", "student")
NONE = "–"
"""In a cell without a value."""
FEWEST_CALLS = 10
"""Below this number of timed calls no time is marked as the lowest."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value: text, the spread shown after it, and whether it is the best of its column."""

    text: str
    spread: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of a table; `muted` marks floors and ceilings."""

    model: str
    cells: tuple[Cell, ...]
    muted: bool = False
    kind: Kind | None = None
    """Gives the row its colour."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column titles and rows; the first column is the model."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def model_title(summary: Summary) -> str:
    """Name of a model in tables, with its guidance scale where it was run with several."""
    name = MODEL_TITLES.get(summary.model, summary.model)
    return f"{name}, guidance {summary.guidance:g}" if summary.several_scales else name


def steps_title(summary: Summary) -> str:
    """Model and number of steps."""
    return f"{model_title(summary)}, {summary.steps} step{'s' * (summary.steps != 1)}"


def listed(values: Iterable[object]) -> str:
    """a, b and c."""
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last


def seeds_differ(summaries: Sequence[Summary]) -> bool:
    """Whether generated settings are means over different seeds, which a column then has to tell."""
    return len({s.seeds for s in summaries if s.kind in GENERATORS}) > 1


def shown_metrics(summaries: Sequence[Summary]) -> tuple[Metric, ...]:
    """All scores that occur in any of the summaries, the main ones first."""
    return metrics_of(key for s in summaries for key in s.mean)


def quality_table(summaries: Sequence[Summary], task: Task) -> Table:
    """Steps, network evaluations and main scores of one task; the best generated value of each column marked."""
    chosen = [s for s in summaries if s.task == task]
    return _scores_table(chosen, [m for m in shown_metrics(chosen) if m.main])


def more_table(summaries: Sequence[Summary], task: Task) -> Table | None:
    """The scores of one task that are not in the main table; None where there are none."""
    chosen = [s for s in summaries if s.task == task]
    metrics = [m for m in shown_metrics(chosen) if not m.main]
    return _scores_table(chosen, metrics) if metrics else None


def _scores_table(chosen: Sequence[Summary], metrics: Sequence[Metric]) -> Table:
    best = {m.key: _best(chosen, m) for m in metrics}
    unequal = seeds_differ(chosen)
    rows = []
    for s in chosen:
        generated = s.kind in GENERATORS
        cells = [Cell(text=str(s.steps) if generated else NONE), Cell(text=str(s.nfe) if generated else NONE)]
        cells += [_metric_cell(s, m, best=generated and s.mean.get(m.key) == best[m.key]) for m in metrics]
        cells += [Cell(text=str(len(s.seeds)) if generated else NONE)] * unequal
        cells.append(Cell(text=str(s.num_clips)))
        rows.append(TableRow(model=model_title(s), kind=s.kind, cells=tuple(cells), muted=not generated))
    last = ("Seeds",) * unequal + ("Clips",)
    return Table(columns=("Model", "Steps", "NFE", *(m.title for m in metrics), *last), rows=tuple(rows))


def latency_table(
    summaries: Sequence[Summary], task: Task, calls: Mapping[tuple[Task, str, int, float], int] | None = None
) -> Table | None:
    """Real-time factor by stage and total; None where nothing was timed.

    calls: behind each median, by the key of the summary. The lowest totals are marked only where every setting is known
    to have at least `FEWEST_CALLS`.
    """
    timed = [s for s in summaries if s.task == task and s.kind in GENERATORS and s.rtf]
    if not timed:
        return None
    totals = ("generator only", TASK_TOTALS[task])
    stages = [name for name in (*STAGES, *totals) if any(name in s.rtf for s in timed)]
    lowest = {}
    if all((calls or {}).get(s.key, 0) >= FEWEST_CALLS for s in timed):
        lowest = {name: min(s.rtf[name] for s in timed if name in s.rtf) for name in totals if name in stages}
    rows = tuple(
        TableRow(
            model=model_title(s),
            kind=s.kind,
            cells=(Cell(text=str(s.steps)), Cell(text=str(s.nfe)), *(_rtf_cell(s, name, lowest) for name in stages)),
        )
        for s in timed
    )
    titles = tuple(f"Σ {name}" if name in totals else name for name in stages)
    return Table(columns=("Model", "Steps", "NFE", *titles), rows=rows)


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


def inert(text: str) -> str:
    """A text in one line that Markdown shows without HTML, pictures, links or code, whatever names are in it. Emphasis
    stays: it is ours."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("`", "\\`")
    return line.replace("![", "!\\[").replace("](", "]\\(").replace("][", "]\\[")


def markdown(table: Table) -> str:
    """The table in Markdown, best values in bold."""

    def shown(text: str) -> str:
        return inert(text).replace("|", "\\|").replace("*", "\\*")

    lines = ["| " + " | ".join(map(shown, table.columns)) + " |", "|---" * len(table.columns) + "|"]
    for row in table.rows:
        cells = [
            f"**{shown(c.text)}** {shown(c.spread)}".strip() if c.best else shown(c.text + c.spread) for c in row.cells
        ]
        lines.append("| " + " | ".join((shown(row.model), *cells)) + " |")
    return "\n".join(lines)


def paragraphs(parts: Iterable[str | Table]) -> str:
    """Headings, sentences and tables in Markdown, each by itself."""
    return "\n\n".join(markdown(part) if isinstance(part, Table) else inert(part) for part in parts)


def _best(summaries: Sequence[Summary], metric: Metric) -> float | None:
    values = [s.mean[metric.key] for s in summaries if s.kind in GENERATORS and metric.key in s.mean]
    if not values or metric.better is None or len(set(values)) == 1:
        return None
    return min(values) if metric.better == "lower" else max(values)


def _rtf_cell(summary: Summary, name: str, lowest: dict[str, float]) -> Cell:
    if name not in summary.rtf:
        return Cell(text=NONE)
    return Cell(text=significant(summary.rtf[name]), best=summary.rtf[name] == lowest.get(name))


def _metric_cell(summary: Summary, metric: Metric, *, best: bool) -> Cell:
    if metric.key not in summary.mean:
        return Cell(text=NONE)
    spread = summary.std[metric.key]
    return Cell(
        text=signed(summary.mean[metric.key], metric.digits),
        spread="" if spread is None or metric.better is None else f" ± {spread:.{metric.digits}f}",
        best=best,
    )
