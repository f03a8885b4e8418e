"""The tables of a paper, in LaTeX and Markdown: the columns of MMAudio's tables 1 and 3 (arXiv 2412.15322), then ours.

A column without values is left out and named below the table; other scores of published networks follow where there
are any. Embedded metrics come after the published ones under names of their own. The LaTeX table has a caption and a
short footnote; all further notes follow as comments, in Markdown as text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.compare.rows import Task
from eval.metrics import EVENTS, METRICS, Metric, PaperColumn
from eval.report.blocks import Block, Cell, Heading, Paragraph, Table, TableRow, markdown
from eval.report.budgets import Calls, calls_of, timed, timing_text
from eval.report.differences import Difference, difference
from eval.report.results import Results, TaskResults
from eval.report.settings import TASK_TITLES, TASK_TOTALS, Setting, SettingKey
from eval.report.tables import (
    NONE,
    listed,
    means_text,
    methods_text,
    seeds_differ,
    signed,
    significant,
    unfinished,
)

LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "−": r"$-$",
    "∞": r"$\infty$",
    "±": r"$\pm$",
}
"""LaTeX for characters that need it."""
EMBEDDED_WARNING = (
    "Embedded scores use this project's own features and classes, fitted to this data; they are other quantities than "
    "the FD, KL and IS of publications and must not be compared with them."
)
BOLD = (
    "Bold: the best generated score, if the 95 % interval of its difference from every other, paired, leaves out zero."
)
PAIRED = "paired over clips", "paired over groups of clips"
"""Methods for that interval which need no warning."""
IN_RESULTS = "95 % intervals and bias of every value are in results.md."


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric as a column of a paper's table."""

    metric: Metric
    paper: PaperColumn

    @property
    def key(self) -> str:
        return self.metric.key

    @property
    def name(self) -> str:
        """Name and index, without the arrow."""
        return f"{self.paper.name}{'_' * bool(self.paper.sub)}{self.paper.sub}"

    @property
    def title(self) -> str:
        return f"{self.name} {self.metric.arrow}"

    @property
    def latex(self) -> str:
        index = rf"\textsubscript{{{escaped(self.paper.sub)}}}" if self.paper.sub else ""
        return f"{escaped(self.paper.name)}{index}{escaped(self.metric.arrow)}"


def columns_of(task: Task) -> tuple[Column, ...]:
    """The columns of the paper's table, other scores of published networks, then ours; each in the order of METRICS."""
    found = [Column(metric=m, paper=m.paper) for m in METRICS if m.paper is not None]
    return tuple(sorted(found, key=lambda c: (task not in c.paper.tables, not c.metric.published)))


def kinds_text(columns: Sequence[Column]) -> str:
    """The kinds of scores that some columns hold, as text."""
    found = ["scores of published networks"] * any(c.metric.published for c in columns)
    found += ["scores on this project's own (embedded) features"] * any(c.metric.embedded for c in columns)
    found += ["onsets against known events"] * any(c.metric.source == EVENTS for c in columns)
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def escaped(text: str) -> str:
    """Text for LaTeX; arrows and signs become mathematics."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def caption(chosen: Sequence[Setting], metrics: Sequence[Column]) -> str:
    """The caption of a table: task, size of the test set and kinds of scores."""
    kinds = kinds_text(metrics)
    title = f"{TASK_TITLES[chosen[0].task]} on {_clips(chosen)} test clips"
    return f"{title}: {kinds}." if kinds else f"{title}."


def notes(
    chosen: Sequence[Setting], metrics: Sequence[Column], how: Mapping[str, str], calls: Mapping[SettingKey, Calls]
) -> list[str]:
    """The footnote: clips and seeds, warning of embedded scores, rule of the bold, scope of the times.

    how: the interval behind the bold of each metric; calls: those behind the times of each setting.
    """
    found = [f"{_clips(chosen)} clips, {means_text(chosen)}."]
    missing = unfinished(chosen)
    if missing:
        found.append(missing)
    if any(c.metric.embedded for c in metrics):
        found.append(EMBEDDED_WARNING)
    weak = [c for c in metrics if how[c.key] not in PAIRED and len(_having(chosen, c)) > 1]
    found.append(f"{BOLD}{''.join(f' {text}.' for text in _grouped(weak, how))}")
    if timed(chosen):
        devices = dict.fromkeys(
            row.machine.get("device", "a device not recorded") for s in timed(chosen) for row in s.rows.values()
        )
        total = TASK_TOTALS[chosen[0].task]
        found.append(
            f"RTF and time: {total}, every stage included, one clip at a time, {timing_text(chosen, calls)}, "
            f"on {listed(devices)}."
        )
    return found


def details(
    chosen: Sequence[Setting], metrics: Sequence[Column], missing: Sequence[str], how: Mapping[str, str]
) -> list[str]:
    """Notes on columns without values, on the pairs behind the bold, and on the methods of intervals and bias."""
    found = []
    if missing:
        found.append(f"Not computed, therefore without a column: {', '.join(missing)}.")
    found += [f"Intervals behind the bold. {'. '.join(_grouped(metrics, how))}."] if metrics else []
    methods = methods_text(chosen, {c.key: c.name for c in metrics})
    if methods:
        found.append(f"Intervals and bias of the values. {methods}")
    return found


def _clips(chosen: Sequence[Setting]) -> str:
    return " or ".join(map(str, sorted({s.num_clips for s in chosen})))


def _having(chosen: Sequence[Setting], column: Column) -> list[Setting]:
    return [s for s in chosen if column.key in s.mean]


def _grouped(metrics: Sequence[Column], how: Mapping[str, str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for column in metrics:
        groups.setdefault(how[column.key], []).append(column.name)
    return [f"{', '.join(names)}: {which}" for which, names in groups.items()]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A column that is no metric: its title and the text of a setting, NONE where it is not known."""

    title: str
    of: Callable[[Setting], str]

    @property
    def latex(self) -> str:
        return escaped(self.title.replace(" ↓", "↓"))


def _params(setting: Setting) -> str:
    count = setting.params
    return NONE if count is None else f"{count / 1e6:.3g}M"


def _rtf(setting: Setting) -> str:
    rtf = setting.rtf.get(TASK_TOTALS[setting.task])
    return NONE if rtf is None else significant(rtf)


def _time(setting: Setting) -> str:
    rtf, duration_s = setting.rtf.get(TASK_TOTALS[setting.task]), setting.duration_s
    return NONE if rtf is None or duration_s is None else significant(rtf * duration_s)


FACTS = (
    Fact(title="Params", of=_params),
    Fact(title="Steps", of=lambda s: str(s.steps)),
    Fact(title="NFE", of=lambda s: str(s.nfe)),
)
SEEDS = Fact(title="Seeds", of=lambda s: str(len(s.seeds)))
SPEED = (Fact(title="RTF ↓", of=_rtf), Fact(title="Time (s) ↓", of=_time))


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """The table of one task: titles, rows with the best values in bold, and the text around them."""

    title: str
    label: str
    """The label of the table in LaTeX."""
    caption: str
    table: Table
    latex_columns: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    details: tuple[str, ...] = field(default=())
    """Notes that are not needed to read the table: comments in LaTeX."""
    in_results: str = ""
    """A pointer to results.md, in Markdown alone."""


def paper_table(results: TaskResults) -> PaperTable:
    """The table of one task. The facts of the test set go into its details; the budgets give the number of calls
    that its times are medians of."""
    task, chosen = results.task, results.settings
    metrics = [c for c in columns_of(task) if any(c.key in s.mean for s in chosen)]
    generated = [s for s in chosen if s.generated]
    before = [f for f in FACTS if any(f.of(s) != NONE for s in generated)]
    before += [SEEDS] * seeds_differ(chosen)
    after = [f for f in SPEED if any(f.of(s) != NONE for s in generated)]
    missing = [c.name for c in columns_of(task) if task in c.paper.tables and c not in metrics]
    missing += [f.title.removesuffix(" ↓") for f in (*FACTS, *SPEED) if f not in (*before, *after)]
    bold = {c.key: _bold(generated, c) for c in metrics}
    lines = []
    for s in chosen:
        made = s in generated
        cells = [Cell(text=f.of(s) if made else NONE) for f in before]
        cells += [Cell(text=_value(s, c), best=bold[c.key][0] is s) for c in metrics]
        cells += [Cell(text=f.of(s) if made else NONE) for f in after]
        lines.append(TableRow(model=s.model_title, kind=s.kind, cells=tuple(cells), muted=not made))
    how = {key: method for key, (_, method) in bold.items()}
    more = details(chosen, metrics, missing, how)
    if results.facts is not None:
        more.append(f"Test set: {' '.join(results.facts.sentences())}")
    titles = ["Model", *(f.title for f in before), *(c.title for c in metrics), *(f.title for f in after)]
    latex = ["Model", *(f.latex for f in before), *(c.latex for c in metrics), *(f.latex for f in after)]
    return PaperTable(
        title=TASK_TITLES[task],
        label=f"tab:{task}",
        caption=caption(chosen, metrics),
        table=Table(columns=tuple(titles), rows=tuple(lines)),
        latex_columns=tuple(latex),
        notes=tuple(notes(chosen, metrics, how, calls_of(chosen, results.budgets))),
        details=tuple(more),
        in_results=IN_RESULTS * any(c.key in row.estimates for s in chosen for row in s.rows.values() for c in metrics),
    )


def paper_markdown(table: PaperTable) -> str:
    """Title, table and notes in Markdown."""
    around = [*table.notes, *filter(None, [table.in_results]), *table.details]
    blocks: list[Block] = [Heading(text=table.title, level=2), Paragraph(table.caption), table.table]
    return markdown([*blocks, *map(Paragraph, around)]) + "\n"


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
    value = setting.mean.get(column.key)
    return NONE if value is None else signed(column.paper.scale * value, column.paper.digits)


def _bold(generated: Sequence[Setting], column: Column) -> tuple[Setting | None, str]:
    """The best setting if it differs from every other by more than the interval of the difference; and which interval.

    Where there is no interval, by more than nothing.
    """
    having = [s for s in generated if column.key in s.mean]
    if len(having) < 2:
        return None, "no bold with a single value"
    sign = 1.0 if column.metric.better == "lower" else -1.0
    best = min(having, key=lambda s: sign * s.mean[column.key])
    found: list[Difference] = [difference(best, other, column.key) for other in having if other is not best]
    clear = all(d.clear and sign * d.value < 0.0 for d in found)  # the other way round where seeds differ
    return best if clear else None, ", ".join(dict.fromkeys(d.how for d in found))


def write_paper(results: Results) -> tuple[Path, Path]:
    """Write paper.tex and paper.md, the tables of all tasks, beside the rows."""
    tables = [paper_table(own) for own in results.tasks]
    texts = (
        "% Needs \\usepackage{booktabs}.\n\n" + "\n".join(map(paper_latex, tables)),
        "\n".join(map(paper_markdown, tables)),
    )
    paths = results.path.with_name("paper.tex"), results.path.with_name("paper.md")
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths
