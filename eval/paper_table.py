"""The tables of a paper, in LaTeX and Markdown: the columns of MMAudio's tables 1 and 3 (arXiv 2412.15322), then ours.

A column nobody computed is left out and named below the table; other scores of published networks follow where there
are any. Embedded metrics come after the published ones under names of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.hygiene import TestFacts, facts_of
from eval.paired import Difference, Setting, difference, settings
from eval.paper_columns import EMBEDDED, OWN, PUBLISHED, Column, columns_of, escaped
from eval.report_intervals import methods_told
from eval.rows import ClipScores, Row, ScoresKey, Task, read_clip_scores, read_rows
from eval.tables import (
    GENERATORS,
    NONE,
    TASK_TITLES,
    TASK_TOTALS,
    Cell,
    Table,
    TableRow,
    markdown,
    model_title,
    signed,
    significant,
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A column that is no metric: its title and the text of a setting, NONE where it is not known."""

    title: str
    of: Callable[[Setting], str]

    @property
    def latex(self) -> str:
        return escaped(self.title.replace(" ↓", "↓"))


def _params(setting: Setting) -> str:
    count = setting.summary.params
    return NONE if count is None else f"{count / 1e6:.3g}M"


def _rtf(setting: Setting) -> str:
    rtf = setting.summary.rtf.get(TASK_TOTALS[setting.summary.task])
    return NONE if rtf is None else significant(rtf)


def _time(setting: Setting) -> str:
    rtf, duration_s = setting.summary.rtf.get(TASK_TOTALS[setting.summary.task]), setting.summary.duration_s
    return NONE if rtf is None or duration_s is None else significant(rtf * duration_s)


FACTS = (
    Fact(title="Params", of=_params),
    Fact(title="Steps", of=lambda s: str(s.summary.steps)),
    Fact(title="NFE", of=lambda s: str(s.summary.nfe)),
)
SPEED = (Fact(title="RTF ↓", of=_rtf), Fact(title="Time (s) ↓", of=_time))


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One task: titles, rows with the bold decided, and what has to be said below."""

    title: str
    table: Table
    latex_columns: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def paper_table(
    rows: Sequence[Row],
    clips: Mapping[ScoresKey, ClipScores],
    task: Task,
    *,
    facts: TestFacts | None = None,
) -> PaperTable:
    """The table of one task from rows and their per-clip scores; `facts` of the test set go into the notes.

    Raises:
        ValueError: rows of one setting that do not average (see `summarise`), or no rows of the task.
    """
    chosen = [s for s in settings(rows, clips) if s.summary.task == task]
    if not chosen:
        raise ValueError(f"there are no rows of {task}; run the comparison for it first")
    metrics = [c for c in columns_of(task) if any(c.key in s.summary.mean for s in chosen)]
    generated = [s for s in chosen if s.summary.kind in GENERATORS]
    before = [f for f in FACTS if any(f.of(s) != NONE for s in generated)]
    after = [f for f in SPEED if any(f.of(s) != NONE for s in generated)]
    missing = [c.title[:-2] for c in PUBLISHED[task] if c not in metrics]
    missing += [f.title.removesuffix(" ↓") for f in (*FACTS, *SPEED) if f not in (*before, *after)]
    bold = {c.key: _bold(generated, c) for c in metrics}
    lines = []
    for s in chosen:
        made = s in generated
        cells = [Cell(text=f.of(s) if made else NONE) for f in before]
        cells += [Cell(text=_value(s, c), best=bold[c.key][0] is s) for c in metrics]
        cells += [Cell(text=f.of(s) if made else NONE) for f in after]
        lines.append(TableRow(model=model_title(s.summary), kind=s.summary.kind, cells=tuple(cells), muted=not made))
    notes = _notes(chosen, metrics, missing, {key: how for key, (_, how) in bold.items()})
    if facts is not None:
        notes.append(f"Test set: {' '.join(facts.sentences())}")
    titles = ["Model", *(f.title for f in before), *(c.title for c in metrics), *(f.title for f in after)]
    latex = ["Model", *(f.latex for f in before), *(c.latex for c in metrics), *(f.latex for f in after)]
    return PaperTable(
        title=TASK_TITLES[task],
        table=Table(columns=tuple(titles), rows=tuple(lines)),
        latex_columns=tuple(latex),
        notes=tuple(notes),
    )


def paper_markdown(table: PaperTable) -> str:
    """Title, table and notes in Markdown."""
    return "\n\n".join([f"## {table.title}", markdown(table.table), *table.notes]) + "\n"


def paper_latex(table: PaperTable) -> str:
    """A table environment for booktabs; rows of one model stand together, floors and ceilings last."""
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escaped(table.title)}.}}",
        r"\small",
        r"\setlength{\tabcolsep}{4pt}",
    ]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.latex_columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(table.latex_columns) + r" \\", r"\midrule"]
    last = ""
    for row in table.table.rows:
        if last and (row.model != last and not (row.muted and last in _muted(table))):
            lines.append(r"\midrule")
        cells = [rf"\textbf{{{escaped(c.text)}}}" if c.best else escaped(c.text) for c in row.cells]
        lines.append(" & ".join([escaped(row.model), *cells]) + r" \\")
        last = row.model
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\vspace{2pt}\parbox{\linewidth}{\footnotesize"]
    lines += [f"{escaped(note)}" for note in table.notes]
    return "\n".join([*lines, "}", r"\end{table}"]) + "\n"


def _muted(table: PaperTable) -> set[str]:
    return {row.model for row in table.table.rows if row.muted}


def _value(setting: Setting, column: Column) -> str:
    value = setting.summary.mean.get(column.key)
    return NONE if value is None else signed(column.scale * value, column.digits)


def _bold(generated: Sequence[Setting], column: Column) -> tuple[Setting | None, str]:
    """The best setting if it differs from every other by more than the interval of the difference; and which interval.

    Where there is no interval, by more than nothing.
    """
    having = [s for s in generated if column.key in s.summary.mean]
    if len(having) < 2:
        return None, "no bold with a single value"
    sign = 1.0 if column.better == "lower" else -1.0
    best = min(having, key=lambda s: sign * s.summary.mean[column.key])
    found: list[Difference] = [difference(best, other, column.key) for other in having if other is not best]
    clear = all(d.clear and sign * d.value < 0.0 for d in found)  # the other way round where seeds differ
    return best if clear else None, ", ".join(dict.fromkeys(d.how for d in found))


def _notes(
    chosen: Sequence[Setting], metrics: Sequence[Column], missing: Sequence[str], how: Mapping[str, str]
) -> list[str]:
    """What has to be said below the table; `how`: the interval behind the bold of each metric."""
    clips = " or ".join(map(str, sorted({s.summary.num_clips for s in chosen})))
    seeds = {seed for s in chosen if s.summary.kind in GENERATORS for seed in s.summary.seeds}
    notes = [f"{clips} clips, means over {len(seeds)} seed{'s' * (len(seeds) != 1)} of the noise."]
    if missing:
        notes.append(f"Not computed, therefore without a column: {', '.join(missing)}.")
    if any(c in OWN and c.name.startswith("Embedded") for c in metrics):
        notes.append(EMBEDDED)
    groups: dict[str, list[str]] = {}
    for column in metrics:
        groups.setdefault(how[column.key], []).append(column.title[:-2])
    told = "; ".join(f"{', '.join(names)}: {which}" for which, names in groups.items())
    notes.append(
        "Bold: the best generated value, if it differs from every other by more than the 95 % interval of the "
        f"difference. {told}."
    )
    methods = methods_told(chosen, {c.key: c.title[:-2] for c in metrics})
    if methods:
        notes.append(f"95 % intervals and bias of every value are in results.md. {methods}")
    total = TASK_TOTALS[chosen[0].summary.task]
    if any(total in s.summary.rtf for s in chosen):
        devices = dict.fromkeys(
            row.machine.get("device", "a device not recorded") for s in chosen for row in s.rows.values()
        )
        notes.append(f"RTF and time: {total}, every stage included, one clip at a time, on {' and '.join(devices)}.")
    return notes


def paper_texts(
    rows: Sequence[Row],
    clips: Mapping[ScoresKey, ClipScores],
    facts: Mapping[Task, TestFacts],
) -> tuple[str, str]:
    """The tables of all tasks there are rows of, as LaTeX and as Markdown."""
    tasks = [task for task in TASK_TITLES if any(row.task == task for row in rows)]
    tables = [paper_table(rows, clips, task, facts=facts.get(task)) for task in tasks]
    head = "% Needs \\usepackage{booktabs}.\n\n"
    return head + "\n".join(map(paper_latex, tables)), "\n".join(map(paper_markdown, tables))


def write_paper(rows_path: Path) -> tuple[Path, Path]:
    """Write paper.tex and paper.md beside the rows.

    Raises:
        ValueError: no rows, rows that do not average, or models that were not scored on the same clips.
    """
    rows = read_rows(rows_path)
    if not rows:
        raise ValueError(f"{rows_path} holds no rows of results; run the comparison first")
    clips = read_clip_scores(rows_path.with_name("clips.jsonl"))
    texts = paper_texts(rows, clips, facts_of(rows, rows_path))
    paths = rows_path.with_name("paper.tex"), rows_path.with_name("paper.md")
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths
