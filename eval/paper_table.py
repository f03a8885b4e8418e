"""The tables of a paper, in LaTeX and Markdown: the columns of MMAudio's tables 1 and 3 (arXiv 2412.15322), then ours.

A column nobody computed is left out and named below the table; other scores of published networks follow where there
are any. Embedded metrics come after the published ones under names of their own. Below the LaTeX table stands what a
reader needs; the rest follows as comments, in Markdown as text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.hygiene import TestFacts, facts_of
from eval.paired import Difference, Setting, difference, settings
from eval.paper_columns import PUBLISHED, Column, columns_of, escaped
from eval.report_budget import KeptBudget, read_budgets
from eval.report_paper import caption, details, notes
from eval.report_rows import rows_of
from eval.report_timing import calls_of
from eval.rows import ClipScores, Row, ScoresKey, Task, read_clip_scores
from eval.tables import (
    GENERATORS,
    NONE,
    TASK_TITLES,
    TASK_TOTALS,
    Cell,
    Table,
    TableRow,
    model_title,
    paragraphs,
    seeds_differ,
    signed,
    significant,
)

IN_RESULTS = "95 % intervals and bias of every value are in results.md."


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
SEEDS = Fact(title="Seeds", of=lambda s: str(len(s.summary.seeds)))
SPEED = (Fact(title="RTF ↓", of=_rtf), Fact(title="Time (s) ↓", of=_time))


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One task: titles, rows with the bold decided, and what has to be said around them."""

    title: str
    label: str
    """To refer to it by in LaTeX."""
    caption: str
    table: Table
    latex_columns: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    details: tuple[str, ...] = field(default=())
    """What a reader need not know to read it: comments in LaTeX."""
    in_results: str = ""
    """What stands in results.md beside it; in Markdown alone."""


def paper_table(
    rows: Sequence[Row],
    clips: Mapping[ScoresKey, ClipScores],
    task: Task,
    *,
    facts: TestFacts | None = None,
    budgets: Sequence[KeptBudget] = (),
) -> PaperTable:
    """The table of one task from rows and their per-clip scores.

    `facts` of the test set go into the details; from `budgets` comes how many calls the times are of.

    Raises:
        ValueError: rows of one setting that do not average (see `summarise`), or no rows of the task.
    """
    chosen = [s for s in settings(rows, clips) if s.summary.task == task]
    if not chosen:
        raise ValueError(f"there are no rows of {task}; run the comparison for it first")
    metrics = [c for c in columns_of(task) if any(c.key in s.summary.mean for s in chosen)]
    generated = [s for s in chosen if s.summary.kind in GENERATORS]
    before = [f for f in FACTS if any(f.of(s) != NONE for s in generated)]
    before += [SEEDS] * seeds_differ([s.summary for s in chosen])
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
    how = {key: told for key, (_, told) in bold.items()}
    more = details(chosen, metrics, missing, how)
    if facts is not None:
        more.append(f"Test set: {' '.join(facts.sentences())}")
    titles = ["Model", *(f.title for f in before), *(c.title for c in metrics), *(f.title for f in after)]
    latex = ["Model", *(f.latex for f in before), *(c.latex for c in metrics), *(f.latex for f in after)]
    return PaperTable(
        title=TASK_TITLES[task],
        label=f"tab:{task}",
        caption=caption(chosen, metrics),
        table=Table(columns=tuple(titles), rows=tuple(lines)),
        latex_columns=tuple(latex),
        notes=tuple(notes(chosen, metrics, how, calls_of(chosen, budgets))),
        details=tuple(more),
        in_results=IN_RESULTS * any(c.key in row.estimates for s in chosen for row in s.rows.values() for c in metrics),
    )


def paper_markdown(table: PaperTable) -> str:
    """Title, table and notes in Markdown."""
    around = [*table.notes, *filter(None, [table.in_results]), *table.details]
    return paragraphs([f"## {table.title}", table.caption, table.table, *around]) + "\n"


def paper_latex(table: PaperTable) -> str:
    """A table environment for booktabs; rows of one model stand together, floors and ceilings last; details follow as
    comments."""
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escaped(table.caption)}}}",
        rf"\label{{{table.label}}}",
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
    lines += ["}", r"\end{table}", *(f"% {' '.join(text.split())}" for text in table.details)]
    return "\n".join(lines) + "\n"


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


def paper_texts(
    rows: Sequence[Row],
    clips: Mapping[ScoresKey, ClipScores],
    facts: Mapping[Task, TestFacts],
    budgets: Sequence[KeptBudget] = (),
) -> tuple[str, str]:
    """The tables of all tasks there are rows of, as LaTeX and as Markdown."""
    tasks = [task for task in TASK_TITLES if any(row.task == task for row in rows)]
    tables = [paper_table(rows, clips, task, facts=facts.get(task), budgets=budgets) for task in tasks]
    head = "% Needs \\usepackage{booktabs}.\n\n"
    return head + "\n".join(map(paper_latex, tables)), "\n".join(map(paper_markdown, tables))


def write_paper(rows_path: Path) -> tuple[Path, Path]:
    """Write paper.tex and paper.md beside the rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no rows, rows that do not average, a broken budget, or models not scored on the same clips.
    """
    rows = rows_of(rows_path)
    clips = read_clip_scores(rows_path.with_name("clips.jsonl"))
    budgets = read_budgets(rows_path.parent, list(dict.fromkeys(row.model for row in rows)))
    texts = paper_texts(rows, clips, facts_of(rows, rows_path), budgets)
    paths = rows_path.with_name("paper.tex"), rows_path.with_name("paper.md")
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths
