"""What a report says about one task, as HTML and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from eval.compare.hygiene import TestFacts
from eval.compare.rows import Task
from eval.metrics import metric
from eval.report.budgets import READING, KeptBudget, calls_of, timing_sentence
from eval.report.caution import few_clips
from eval.report.charts import charts
from eval.report.differences import PAIRED_NOTE, pair_table, pairing_told, pairs
from eval.report.example_file import Example
from eval.report.intervals import EXPLAINED, NO_ESTIMATES, interval_tables
from eval.report.paired import Setting
from eval.report.parts import cards, example_html, fold, note, paragraph, table_html, test_set_html
from eval.report.summary import Summary
from eval.report.tables import (
    TASK_TITLES,
    Table,
    latency_table,
    more_table,
    paragraphs,
    quality_table,
    spread_told,
    steps_title,
)

RTF_NOTE = (
    "Real-time factor: wall-clock time divided by the duration of the sound made; below 1 is faster than real time. "
    "Measured with one clip at a time. Σ generator only is the flow network; Σ text-to-audio adds the text encoder and "
    "the codec; Σ video-to-audio is everything from the video file to the waveform."
)
BEST_NOTE = (
    "The same noise per clip for every model and step count. Best generated value of each column marked, whether or "
    "not it is clearly so, which the differences below say; real sound and the codec round trip are what can be "
    "reached."
)
FEW_CLIPS = "Few clips."
VTA_HINT = " Ticks at its top are the events of the picture, where they are known."


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskResults:
    """Everything there is to show of one task."""

    task: Task
    settings: tuple[Setting, ...]
    examples: tuple[Example, ...] = ()
    budgets: tuple[KeptBudget, ...] = ()
    tested: TestFacts | None = None

    @property
    def summaries(self) -> list[Summary]:
        return [s.summary for s in self.settings]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A titled table that is folded away on the page, with a word on it."""

    title: str
    table: Table
    told: str = ""
    shown: bool = False


def section_html(results: TaskResults) -> str:
    """The task on the page: cards, tables, charts, differences, speed, test set, players."""
    task, summaries = results.task, results.summaries
    parts = [
        f'<h2 id="{task}">{TASK_TITLES[task]}</h2>',
        cards(results.settings, task),
        f"<h3>Quality by steps</h3>{paragraph(f'{spread_told(summaries)} {BEST_NOTE}')}",
        table_html(quality_table(summaries, task)),
    ]
    caution = few_clips(results.settings)
    if caution:
        parts.append(note(FEW_CLIPS, caution))
    more = more_table(summaries, task)
    if more is not None:
        parts.append(fold("More scores", table_html(more)))
    lacking = not_in_every_seed(results.settings)
    if lacking:
        parts.append(paragraph(lacking))
    parts.append(_intervals_html(results.settings))
    parts.append(f"<h3>Quality against steps, evaluations and time</h3>{charts(results.settings, task)}")
    differing = list(_differences(results.settings))
    if differing:
        parts.append(f"<h3>Students against the teacher</h3>{paragraph(_paired_note(results))}{_folded(differing)}")
    latency, told = _latency(results)
    if latency is not None:
        parts.append(f"<h3>Speed by stage (real-time factor)</h3>{paragraph(told)}{table_html(latency)}")
    if results.budgets:
        parts.append(f"<h3>Staged budget</h3>{paragraph(READING)}")
        parts += [_budget_html(kept) for kept in results.budgets]
    parts.append(f"<h3>Test set</h3>{test_set_html(results.tested)}")
    if results.examples:
        hint = "Click into a spectrogram to play from there." + VTA_HINT * (task == "vta")
        parts.append(f"<h3>Listen</h3>{paragraph(hint)}{''.join(example_html(e) for e in results.examples)}")
    return "".join(parts)


def section_markdown(results: TaskResults) -> str:
    """The tables of the task."""
    task, summaries = results.task, results.summaries
    title = TASK_TITLES[task]
    parts: list[str | Table] = [f"## {title}", f"{spread_told(summaries)} {BEST_NOTE}", quality_table(summaries, task)]
    caution = few_clips(results.settings)
    if caution:
        parts.append(f"**{FEW_CLIPS}** {caution}")
    if results.tested is not None:
        parts.append(f"Test set: {' '.join(results.tested.sentences())}")
    more = more_table(summaries, task)
    if more is not None:
        parts += [f"### More scores, {title.lower()}", more]
    lacking = not_in_every_seed(results.settings)
    if lacking:
        parts.append(lacking)
    intervals = list(_intervals(results.settings))
    parts += [f"### Intervals and bias, {title.lower()}", EXPLAINED if intervals else NO_ESTIMATES]
    parts += _told(intervals)
    differing = list(_differences(results.settings))
    if differing:
        parts += [f"### Students against the teacher, {title.lower()}", _paired_note(results), *_told(differing)]
    latency, told = _latency(results)
    if latency is not None:
        parts += [f"### Real-time factor, {title.lower()}", told, latency]
    for kept in results.budgets:
        parts += [f"### Staged budget of {kept.model}, {title.lower()}", kept.told]
        parts += _told([Folded(title=head, table=table) for head, table in kept.tables()])
    if results.budgets:
        parts.append(READING)
    return paragraphs(parts)


def _paired_note(results: TaskResults) -> str:
    return f"{PAIRED_NOTE} {pairing_told(results.settings)}"


def _latency(results: TaskResults) -> tuple[Table | None, str]:
    """Speed by stage and what has to be said of it."""
    calls = calls_of(results.settings, results.budgets)
    table = latency_table(results.summaries, results.task, {key: found.count for key, found in calls.items()})
    return table, f"{RTF_NOTE} {timing_sentence(results.settings, calls)}".strip()


def not_in_every_seed(chosen: Sequence[Setting]) -> str:
    """Which scores have no mean over seeds because a seed lacks them; empty where there are none."""
    found: dict[str, list[str]] = {}
    for s in chosen:
        for key in dict.fromkeys(key for row in s.rows.values() for key in row.metrics):
            if key not in s.summary.mean:
                found.setdefault(steps_title(s.summary), []).append(metric(key).label)
    told = "; ".join(f"{title}: {', '.join(labels)}" for title, labels in found.items())
    return f"Not in the rows of every seed and therefore without a mean: {told}." if told else ""


def _intervals(chosen: Sequence[Setting]) -> Iterator[Folded]:
    for found in interval_tables(chosen):
        yield Folded(title=found.metric.title, table=found.table, told=found.method[0].upper() + found.method[1:])


def _intervals_html(chosen: Sequence[Setting]) -> str:
    found = list(_intervals(chosen))
    if not found:
        return paragraph(NO_ESTIMATES)
    inside = "".join(f"<h4>{escape(f.title)}</h4>{paragraph(f.told)}{table_html(f.table)}" for f in found)
    return fold("Intervals and bias of every score", paragraph(EXPLAINED) + inside)


def _differences(chosen: Sequence[Setting]) -> Iterator[Folded]:
    for k, pair in enumerate(pairs(chosen)):
        yield Folded(title=f"{pair.title}: {pair.told}", table=pair_table(pair), shown=k < 2)


def _folded(found: Sequence[Folded]) -> str:
    return "".join(fold(f.title, table_html(f.table), shown=f.shown) for f in found)


def _told(found: Sequence[Folded]) -> list[str | Table]:
    """In Markdown: title in bold, a word, the table."""
    return [part for f in found for part in (f"**{f.title}**{' ' * bool(f.told)}{f.told}", f.table)]


def _budget_html(kept: KeptBudget) -> str:
    inside = "".join(f"<h4>{escape(head)}</h4>{table_html(table)}" for head, table in kept.tables())
    return fold(f"Staged budget of {kept.model}", paragraph(kept.told) + inside)
