"""The columns of a paper's tables: which metric, printed how, under which name.

What is said around a paper's table: a caption, a footnote as short as a reader needs, and what explains the rest.

The tables of a paper, in LaTeX and Markdown: the columns of MMAudio's tables 1 and 3 (arXiv 2412.15322), then ours.

A column nobody computed is left out and named below the table; other scores of published networks follow where there
are any. Embedded metrics come after the published ones under names of their own. Below the LaTeX table stands what a
reader needs; the rest follows as comments, in Markdown as text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eval.compare.hygiene import TestFacts, facts_of
from eval.compare.rows import ClipScores, Row, ScoresKey, Task, read_clip_scores
from eval.report.budgets import Calls, KeptBudget, Key, calls_of, read_budgets, timed, timing_told
from eval.report.intervals import methods_told
from eval.report.paired import Difference, Setting, difference, settings
from eval.report.tables import (
    GENERATORS,
    NONE,
    TASK_TITLES,
    TASK_TOTALS,
    Cell,
    Table,
    TableRow,
    listed,
    means_told,
    model_title,
    paragraphs,
    rows_of,
    seeds_differ,
    signed,
    significant,
    unfinished,
)

Better = Literal["lower", "higher"]
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
"""What stands in LaTeX for a letter."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric: its key in a row, and how a paper prints it."""

    key: str
    name: str
    better: Better
    digits: int = 2
    sub: str = ""
    """Index after the name: the network the metric uses."""
    scale: float = 1.0

    @property
    def title(self) -> str:
        return f"{self.name}{'_' * bool(self.sub)}{self.sub} {'↓' if self.better == 'lower' else '↑'}"

    @property
    def latex(self) -> str:
        index = rf"\textsubscript{{{escaped(self.sub)}}}" if self.sub else ""
        return f"{escaped(self.name)}{index}{escaped('↓' if self.better == 'lower' else '↑')}"


FD_PASST = Column(key="fd_passt", name="FD", sub="PaSST", better="lower")
FD_PANNS = Column(key="fd_panns", name="FD", sub="PANNs", better="lower")
FD_VGG = Column(key="fd_vggish", name="FD", sub="VGG", better="lower")
IS_PANNS = Column(key="is_panns", name="IS", better="higher")
PUBLISHED: dict[Task, tuple[Column, ...]] = {
    "vta": (
        FD_PASST,
        FD_PANNS,
        FD_VGG,
        Column(key="kl_panns", name="KL", sub="PANNs", better="lower"),
        Column(key="kl_passt", name="KL", sub="PaSST", better="lower"),
        IS_PANNS,
        Column(key="ib_score", name="IB", better="higher", scale=100.0),
        Column(key="desync", name="DeSync", better="lower", digits=3),
    ),
    "tta": (
        FD_PANNS,
        FD_VGG,
        IS_PANNS,
        Column(key="clap_laion", name="CLAP", sub="LAION", better="higher", digits=3),
        Column(key="clap_ms", name="CLAP", sub="MS", better="higher", digits=3),
    ),
}
"""Columns of table 1 (VGGSound) and table 3 (AudioCaps), in their order, by the key of the metric in a row."""
EXTRA = (
    FD_PASST,
    Column(key="kl_panns", name="KL", sub="PANNs", better="lower"),
    Column(key="kl_passt", name="KL", sub="PaSST", better="lower"),
    Column(key="is_passt", name="IS", sub="PaSST", better="higher"),
    Column(key="kad_passt", name="KAD", sub="PaSST", better="lower"),
    Column(key="kad_panns", name="KAD", sub="PANNs", better="lower"),
    Column(key="clap_laion", name="CLAP", sub="LAION", better="higher", digits=3),
    Column(key="clap_ms", name="CLAP", sub="MS", better="higher", digits=3),
    Column(key="pam", name="PAM", better="higher", digits=3),
    Column(key="aes_pq", name="AES", sub="PQ", better="higher"),
    Column(key="aes_ce", name="AES", sub="CE", better="higher"),
    Column(key="aes_cu", name="AES", sub="CU", better="higher"),
)
"""Scores of published networks that those tables do not have; their columns follow where they were computed."""
OWN = (
    Column(key="frechet", name="Embedded-FD", better="lower"),
    Column(key="kad", name="Embedded-KAD", better="lower"),
    Column(key="kl", name="Embedded-KL", better="lower", digits=3),
    Column(key="inception_score", name="Embedded-IS", better="higher"),
    Column(key="onset_f1", name="Onset-F1", better="higher", digits=3),
)
"""Metrics that need no weights. No name of a published metric stands alone among them."""
EMBEDDED = (
    "Embedded scores use this project's own features and classes, fitted to this data; they are other quantities than "
    "the FD, KL and IS of publications and must not be compared with them."
)


def columns_of(task: Task) -> tuple[Column, ...]:
    """Those of the paper, other scores of published networks, then ours."""
    published = {c.key: c for c in (*PUBLISHED[task], *EXTRA)}
    return (*published.values(), *OWN)


def is_embedded(column: Column) -> bool:
    """Whether it is of this project's own features or classes."""
    return column in OWN and column.name.startswith("Embedded")


def kinds_told(columns: Sequence[Column]) -> str:
    """What kinds of scores some columns are."""
    found = ["scores of published networks"] * any(c not in OWN for c in columns)
    found += ["scores on this project's own (embedded) features"] * any(map(is_embedded, columns))
    found += ["onsets against known events"] * any(c in OWN and not is_embedded(c) for c in columns)
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def escaped(text: str) -> str:
    """Text for LaTeX; arrows and signs become mathematics."""
    return "".join(LATEX.get(letter, letter) for letter in text)


BOLD = (
    "Bold: the best generated score, if the 95 % interval of its difference from every other, paired, leaves out zero."
)
PAIRED = "paired over clips", "paired over groups of clips"
"""Ways to find that interval which need no word of warning."""


def caption(chosen: Sequence[Setting], metrics: Sequence[Column]) -> str:
    """Task, size of the test set and kinds of scores."""
    kinds = kinds_told(metrics)
    title = f"{TASK_TITLES[chosen[0].summary.task]} on {_clips(chosen)} test clips"
    return f"{title}: {kinds}." if kinds else f"{title}."


def notes(
    chosen: Sequence[Setting], metrics: Sequence[Column], how: Mapping[str, str], calls: Mapping[Key, Calls]
) -> list[str]:
    """The footnote: clips and seeds, warning of embedded scores, rule of the bold, scope of the times.

    how: the interval behind the bold of each metric; calls: those behind the times of each setting.
    """
    summaries = [s.summary for s in chosen]
    found = [f"{_clips(chosen)} clips, {means_told(summaries)}."]
    missing = unfinished(summaries)
    if missing:
        found.append(missing)
    if any(map(is_embedded, metrics)):
        found.append(EMBEDDED)
    weak = [c for c in metrics if how[c.key] not in PAIRED and len(_having(chosen, c)) > 1]
    found.append(f"{BOLD}{''.join(f' {told}.' for told in _grouped(weak, how))}")
    if timed(chosen):
        devices = dict.fromkeys(
            row.machine.get("device", "a device not recorded") for s in timed(chosen) for row in s.rows.values()
        )
        total = TASK_TOTALS[chosen[0].summary.task]
        found.append(
            f"RTF and time: {total}, every stage included, one clip at a time, {timing_told(chosen, calls)}, "
            f"on {listed(devices)}."
        )
    return found


def details(
    chosen: Sequence[Setting], metrics: Sequence[Column], missing: Sequence[str], how: Mapping[str, str]
) -> list[str]:
    """Columns without values, by which pairs the bold was decided, how intervals and bias were found."""
    found = []
    if missing:
        found.append(f"Not computed, therefore without a column: {', '.join(missing)}.")
    found += [f"Intervals behind the bold. {'. '.join(_grouped(metrics, how))}."] if metrics else []
    methods = methods_told(chosen, {c.key: c.title[:-2] for c in metrics})
    if methods:
        found.append(f"Intervals and bias of the values. {methods}")
    return found


def _clips(chosen: Sequence[Setting]) -> str:
    return " or ".join(map(str, sorted({s.summary.num_clips for s in chosen})))


def _having(chosen: Sequence[Setting], column: Column) -> list[Setting]:
    return [s for s in chosen if column.key in s.summary.mean]


def _grouped(metrics: Sequence[Column], how: Mapping[str, str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for column in metrics:
        groups.setdefault(how[column.key], []).append(column.title[:-2])
    return [f"{', '.join(names)}: {which}" for which, names in groups.items()]


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
    texts = paper_texts(rows, clips, facts_of(rows, clips, rows_path), budgets)
    paths = rows_path.with_name("paper.tex"), rows_path.with_name("paper.md")
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths
