"""The report: blocks for every task, written as a page one can open from disk and as Markdown with the same numbers."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from eval.compare.hygiene import TestFacts
from eval.compare.rows import Row
from eval.metrics import EMBEDDED_NOTE, EVENTS, PUBLISHED_NOTE, leading, metric, metrics_of
from eval.report.blocks import (
    Block,
    Bullets,
    Card,
    Cards,
    Charts,
    Definitions,
    Facts,
    Fold,
    Heading,
    Legend,
    Note,
    OnPage,
    Paragraph,
    Players,
    Preformatted,
    markdown,
)
from eval.report.budgets import READING, calls_of, timing_sentence
from eval.report.charts import BARS, charts, lines
from eval.report.differences import PAIRED_NOTE, pair_table, pairing_rule, pairs, strongest
from eval.report.results import Results, TaskResults
from eval.report.settings import MODEL_TITLES, TASK_TITLES, TASK_TOTALS, Setting
from eval.report.tables import (
    INTERVALS_NOTE,
    NO_ESTIMATES,
    few_clips,
    interval_tables,
    latency_table,
    more_table,
    quality_table,
    signed,
    significant,
    spread_text,
)

TITLE = "One-step sound generation: teacher and student compared"
LEAD = (
    "A flow-matching teacher that makes sound from video and from text, and the MeanFlow student distilled from it, on "
    "the same clips from the same noise. The student is meant to reach in one step what the teacher needs many for."
)
RTF_NOTE = (
    "Real-time factor: wall-clock time divided by the duration of the sound made; below 1 is faster than real time. "
    "Measured with one clip at a time. Σ generator only is the flow network; Σ text-to-audio adds the text encoder and "
    "the codec; Σ video-to-audio is everything from the video file to the waveform."
)
BEST_NOTE = (
    "The same noise per clip for every model and step count. The best generated value of each column is marked, "
    "whether or not it is clearly better, which the differences below show; real sound and the codec round trip are "
    "what can be reached."
)
REAL_SOUND = (
    "Distances of real sound are between the test clips and other real clips, those of the codec round trip between "
    "the test clips and themselves; so real sound may stand above the codec, by what other clips differ in."
)
NFE = "Network evaluations per clip: steps, doubled by classifier-free guidance."
CHECK_NOTE = (
    "The same features of the same clips, the distances and scores computed a second time by {package}, which other "
    "projects use; each line shows the pair that differs most."
)
PLAYERS_HINT = "Click into a spectrogram to play from there."
VTA_HINT = " Ticks at its top are the events of the picture, where they are known."


def write_report(results: Results, *, title: str = TITLE, lead: str = LEAD) -> Path:
    """Write report.html and results.md beside the rows, and return the path of the page.

    The page refers to media by relative paths and to nothing on a network.
    """
    notes = list(cautions(results.metric_keys))
    sections = [block for own in results.tasks for block in task_blocks(own)]
    reading: list[Block] = [
        Heading(text="How to read it", level=2, anchor="reading"),
        reading_block(results.metric_keys),
    ]
    origin: list[Block] = [Heading(text="How it was made", level=2, anchor="origin"), *origin_blocks(results.rows)]
    page = results.path.with_name("report.html")
    text = _template().render(
        title=title,
        lead=lead,
        links=[(own.task, TASK_TITLES[own.task]) for own in results.tasks],
        blocks=[*notes, *sections, *reading, *origin],
        rows_name=results.path.name,
    )
    page.write_text(text + "\n", encoding="utf-8")
    opening = Heading(text=title, level=1)
    text = markdown([opening, *notes, *sections, *reading])
    results.path.with_name("results.md").write_text(text + "\n", encoding="utf-8")
    return page


def cautions(keys: Iterable[str]) -> Iterator[Note]:
    """Cautions that a reader needs before reading any score."""
    main = [m for m in metrics_of(keys) if m.main and m.source != EVENTS]
    if any(m.embedded for m in main):
        yield Note(head="Embedded scores.", text=EMBEDDED_NOTE)
    if any(not m.embedded for m in main):
        yield Note(head="Published scores.", text=PUBLISHED_NOTE)


def task_blocks(results: TaskResults) -> list[Block]:
    """The blocks of one task: cards, tables, charts, differences, speed, test set, players."""
    title = TASK_TITLES[results.task]
    return [
        Heading(text=title, level=2, anchor=results.task),
        Cards(cards=tuple(map(_card, headline(results.settings)))),
        *_quality(results, within=title.lower()),
        *_differences(results.settings, within=title.lower()),
        *_speed(results, within=title.lower()),
        *_test_set(results, within=title.lower()),
        *_examples(results),
    ]


def _quality(results: TaskResults, *, within: str) -> Iterator[Block]:
    chosen = results.settings
    yield Heading(text="Quality by steps", within=within)
    yield Paragraph(f"{spread_text(chosen)} {BEST_NOTE}")
    yield quality_table(chosen)
    caution = few_clips(chosen)
    if caution:
        yield Note(head="Few clips.", text=caution)
    more = more_table(chosen)
    if more is not None:
        yield Fold(title="More scores", heading=Heading(text="More scores", within=within), blocks=(more,))
    lacking = not_in_every_seed(chosen)
    if lacking:
        yield Paragraph(lacking)
    yield _intervals(chosen, within=within)
    yield from _cross_check(results, within=within)
    yield OnPage(tuple(_charts(chosen)))


def _intervals(chosen: Sequence[Setting], *, within: str) -> Block:
    found = list(interval_tables(chosen))
    if not found:
        return Paragraph(NO_ESTIMATES)
    inside: list[Block] = [Paragraph(INTERVALS_NOTE)]
    for own in found:
        method = own.method[0].upper() + own.method[1:]
        inside += [Heading(text=own.metric.title, level=4), Paragraph(method), own.table]
    heading = Heading(text="Intervals and bias", within=within)
    return Fold(title="Intervals and bias of every score", heading=heading, blocks=tuple(inside))


def _cross_check(results: TaskResults, *, within: str) -> Iterator[Block]:
    check = results.cross_check
    table = check.table(results.settings) if check is not None else None
    if check is not None and table is not None:
        note = Paragraph(CHECK_NOTE.format(package=check.package))
        title = f"Cross-check by {check.package}"
        yield Fold(title=title, heading=Heading(text=title, within=within), blocks=(note, table))


def _charts(chosen: Sequence[Setting]) -> Iterator[Block]:
    yield Heading(text="Quality against steps, evaluations and time")
    first, others = charts(chosen)
    if not first:
        yield Paragraph("There is nothing to draw.")
        return
    yield Legend(lines=lines(chosen), bars=BARS)
    for key in dict.fromkeys(chart.metric.key for chart in first):
        yield Charts(charts=tuple(chart for chart in first if chart.metric.key == key))
    if others:
        labels = list(dict.fromkeys(chart.metric.label for chart in others))
        inside = tuple(Charts(charts=tuple(c for c in others if c.metric.label == label)) for label in labels)
        yield Fold(title=f"Charts of {', '.join(labels)}", blocks=inside)


def _differences(chosen: Sequence[Setting], *, within: str) -> Iterator[Block]:
    found = pairs(chosen)
    if not found:
        return
    yield Heading(text="Students against the teacher", within=within)
    yield Paragraph(f"{PAIRED_NOTE} {pairing_rule(chosen)}")
    for k, pair in enumerate(found):
        yield Fold(title=f"{pair.title}: {pair.counts}", blocks=(pair_table(pair),), opened=k < 2)


def _speed(results: TaskResults, *, within: str) -> Iterator[Block]:
    calls = calls_of(results.settings, results.budgets)
    table = latency_table(results.settings, {key: found.count for key, found in calls.items()})
    if table is not None:
        yield Heading(text="Speed by stage (real-time factor)", within=within)
        yield Paragraph(f"{RTF_NOTE} {timing_sentence(results.settings, calls)}".strip())
        yield table
    if results.budgets:
        yield Heading(text="Staged budget", within=within)
        yield Paragraph(READING)
        yield from (own.block for own in results.budgets)


def _test_set(results: TaskResults, *, within: str) -> Iterator[Block]:
    yield Heading(text="Test set", within=within)
    if results.facts is None:
        yield Paragraph("Which clips were scored was not recorded.")
    else:
        yield from facts_blocks(results.facts)


def facts_blocks(facts: TestFacts) -> Iterator[Block]:
    """Blocks about the test set: scored clips with digest and list, excluded clips, overlap with training data."""
    yield Bullets(facts.sentences())
    ids = Preformatted(text=" ".join(sorted(facts.ids)))
    yield OnPage((Fold(title=f"Ids of the {len(facts.ids)} clips", blocks=(ids,)),))
    if facts.excluded:
        reasons = Preformatted(text="\n".join(f"{clip_id}: {reason}" for clip_id, reason in facts.excluded))
        yield OnPage((Fold(title=f"Excluded for every model: {len(facts.excluded)}", blocks=(reasons,)),))


def _examples(results: TaskResults) -> Iterator[Block]:
    if results.examples:
        hint = Paragraph(PLAYERS_HINT + VTA_HINT * (results.task == "vta"))
        yield OnPage((Heading(text="Listen"), hint, *(Players(example=example) for example in results.examples)))


def headline(chosen: Sequence[Setting]) -> list[Setting]:
    """The settings of the cards at the top: the baseline at its most steps and at its fewest, other teachers at their
    most steps, every student at its fewest."""
    found = []
    best = strongest(chosen)
    if best is not None:
        alike = [s for s in chosen if (s.model, s.guidance) == (best.model, best.guidance)]
        found = [best] + [s for s in alike[:1] if s is not best]
        others = [s for s in chosen if s.kind == "teacher" and s.model != best.model]
        for model in dict.fromkeys(s.model for s in others):
            other = strongest([s for s in others if s.model == model])
            found += [other] if other is not None else []
    students: dict[tuple[str, float], Setting] = {}
    for s in chosen:
        if s.kind == "student":
            students.setdefault((s.model, s.guidance), s)
    return [*found, *students.values()]


def _card(setting: Setting) -> Card:
    values = {m.title: signed(setting.mean[m.key], m.digits) for m in map(metric, leading(setting.mean))}
    values["Network evaluations"] = str(setting.nfe)
    total = TASK_TOTALS[setting.task]
    for name, label in ((total, f"RTF, {total}"), ("generator only", "RTF, generator only")):
        if name in setting.rtf:
            values[label] = significant(setting.rtf[name])
    return Card(title=setting.title, kind=setting.kind, values=values)


def not_in_every_seed(chosen: Sequence[Setting]) -> str:
    """A sentence naming the scores without a mean over seeds, since a seed lacks them; empty where there are none."""
    found: dict[str, list[str]] = {}
    for s in chosen:
        for key in dict.fromkeys(key for row in s.rows.values() for key in row.metrics):
            if key not in s.mean:
                found.setdefault(s.title, []).append(metric(key).label)
    names = "; ".join(f"{title}: {', '.join(labels)}" for title, labels in found.items())
    return f"Not in the rows of every seed and therefore without a mean: {names}." if names else ""


def reading_block(keys: Iterable[str]) -> Definitions:
    """A block that explains each metric, the rows of real sound and the evaluations."""
    items = {
        m.title: f"{f'{m.better.capitalize()} is better. ' if m.better else ''}{m.explanation}"
        for m in metrics_of(keys)
    }
    return Definitions(items=items | {"Real sound": REAL_SOUND, "NFE": NFE})


def origin_blocks(rows: Sequence[Row]) -> Iterator[Block]:
    """Blocks on machine, runs, digests and commands, with a caution where rows of several configurations are mixed."""
    items: dict[str, str] = {}
    for row in rows:
        items |= {name.replace("_", " "): value for name, value in row.machine.items()}
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.model, row.guidance), []).append(row)
    mixed = []
    for (task, model, guidance), group in groups.items():
        digests = list(dict.fromkeys(f"run {r.run_id}, configuration {r.config_digest[:12]}" for r in group))
        scales = {scale for t, name, scale in groups if (t, name) == (task, model)}
        scale = f", guidance {guidance:g}" if any(r.steps for r in group) else ""
        label = f"{MODEL_TITLES.get(model, model)}, {task.upper()}"
        items[f"{label}{scale}"] = "; ".join(digests)
        if len({r.config_digest for r in group}) > 1:
            mixed.append(label + scale * (len(scales) > 1))
    if mixed:
        text = f"Rows of several configurations are mixed for {', '.join(mixed)}; compare again in a fresh folder."
        yield Note(head="Attention.", text=text)
    yield Facts(items=items, commands=tuple(dict.fromkeys(r.command for r in rows)))


@cache
def _template() -> Template:
    """page.html.j2, which escapes every text that goes into it."""
    environment = Environment(
        loader=PackageLoader("eval.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["url"] = quote
    environment.filters["unbroken"] = _unbroken
    return environment.get_template("page.html.j2")


def _unbroken(title: str) -> str:
    """A title whose arrow does not begin a line."""
    return title.replace(" ↓", "\N{NO-BREAK SPACE}↓").replace(" ↑", "\N{NO-BREAK SPACE}↑")
