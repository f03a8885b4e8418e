"""The pieces of the report as HTML; every text from outside is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import quote

from eval.example_file import Entry, Example
from eval.hygiene import TestFacts
from eval.metric_text import METRICS, MetricText, metric
from eval.rows import Model, Summary, Task
from eval.svg_chart import Level, Series, line_chart
from eval.tables import GENERATORS, MODEL_TITLES, TASK_TOTALS, Table, significant

CHART_KEYS = ("frechet", "kl", "inception_score", "onset_f1")
LEGEND = (
    '<p class="legend"><span><i class="dot teacher"></i>Teacher</span><span><i class="dot student"></i>Student</span>'
    '<span><i class="dot"></i>Real sound</span><span>Bars: one standard deviation over seeds</span></p>'
)


def table_html(table: Table) -> str:
    """A table; rows of one model are set apart from the next, the best values marked."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    styles = {title: name for name, title in MODEL_TITLES.items()}
    body, last = [], ""
    for row in table.rows:
        names = ["muted"] * row.muted + ["first"] * bool(last and row.model != last)
        opening = f'<tr class="{" ".join(names)}">' if names else "<tr>"
        cells = "".join(
            f"<td{' class=best' if c.best else ''}>{escape(c.text)}"
            + (f'<span class="spread">{escape(c.spread)}</span>' if c.spread else "")
            + "</td>"
            for c in row.cells
        )
        body.append(f'{opening}<td><i class="dot {styles[row.model]}"></i>{escape(row.model)}</td>{cells}</tr>')
        last = row.model
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def cards(summaries: Sequence[Summary], task: Task) -> str:
    """The three settings the project is about: teacher at its most and fewest steps, student at its fewest."""
    chosen = [s for s in summaries if s.task == task]
    return '<div class="cards">' + "".join(_card(s, task) for s in headline(chosen)) + "</div>"


def headline(chosen: Sequence[Summary]) -> list[Summary]:
    """Teacher with most steps, teacher with fewest, student with fewest, as far as there are any."""
    teacher = [s for s in chosen if s.model == "teacher"]
    student = [s for s in chosen if s.model == "student"]
    found = teacher[-1:] + (teacher[:1] if len(teacher) > 1 else [])
    return found + student[:1]


def charts(summaries: Sequence[Summary], task: Task) -> str:
    """Quality against steps and against network evaluations, one pair of charts per metric."""
    chosen = [s for s in summaries if s.task == task]
    figures = []
    for key in CHART_KEYS:
        if not any(key in s.mean for s in chosen if s.model in GENERATORS):
            continue
        text = metric(key)
        for axis, label in (("steps", "sampling steps"), ("nfe", "network evaluations")):
            figures.append(_figure(chosen, text, axis == "nfe", label))
    return f'{LEGEND}<div class="charts">{"".join(figures)}</div>'


def reading(keys: Iterable[str]) -> str:
    """One line per metric on how to read it."""
    wanted = set(keys)
    items = "".join(
        f"<dt>{escape(m.label)} {m.arrow}</dt><dd>{m.better.capitalize()} is better. {escape(m.explanation)}</dd>"
        for m in METRICS
        if m.key in wanted
    )
    nfe = "<dt>NFE</dt><dd>Network evaluations per clip: steps, doubled by classifier-free guidance.</dd>"
    return f'<dl class="reading">{items}{nfe}</dl>'


def example_html(example: Example) -> str:
    """One example: its caption and its versions side by side."""
    players = "".join(_player(entry) for entry in example.entries)
    title = f"“{escape(example.caption)}” <span>{escape(example.id)}</span>"
    return f'<div class="example"><h4>{title}</h4><div class="players">{players}</div></div>'


def facts(items: Mapping[str, str]) -> str:
    """A list of name and value."""
    return (
        '<dl class="facts">' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items()) + "</dl>"
    )


def test_set_html(facts: TestFacts | None) -> str:
    """The clips scored, with their digest and list, what was left out, and the overlap with training data."""
    if facts is None:
        return '<p class="soft">Test set: its ids were not kept.</p>'
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in facts.sentences())
    ids = " ".join(map(escape, sorted(facts.ids)))
    listed = f"<summary>Ids of the {len(facts.ids)} clips</summary><pre>{ids}</pre>"
    return f'<ul class="soft" style="overflow-wrap:anywhere">{told}</ul><details class="soft">{listed}</details>'


def _card(summary: Summary, task: Task) -> str:
    values = {f"{m.label} {m.arrow}": f"{summary.mean[m.key]:.{m.digits}f}" for m in METRICS if m.key in summary.mean}
    values["Network evaluations"] = str(summary.nfe)
    total = TASK_TOTALS[task]
    for name, label in ((total, f"RTF, {total}"), ("generator only", "RTF, generator only")):
        if name in summary.rtf:
            values[label] = significant(summary.rtf[name])
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items())
    steps = f"{summary.steps} step" + "s" * (summary.steps != 1)
    return f'<div class="card {summary.model}"><h4>{MODEL_TITLES[summary.model]}, {steps}</h4><dl>{items}</dl></div>'


def _figure(chosen: Sequence[Summary], text: MetricText, by_nfe: bool, x_label: str) -> str:
    series = [_series(chosen, model, text.key, by_nfe) for model in ("teacher", "student")]
    levels = [
        Level(label="real sound", value=s.mean[text.key], below=text.better == "lower")
        for s in chosen
        if s.model == "reference" and text.key in s.mean
    ]
    picture = line_chart([s for s in series if s.points], levels, x_label=x_label, y_label=f"{text.label}, {x_label}")
    return f"<figure><figcaption>{escape(text.label)} {text.arrow} by {escape(x_label)}</figcaption>{picture}</figure>"


def _series(chosen: Sequence[Summary], model: Model, key: str, by_nfe: bool) -> Series:
    points = [
        (float(s.nfe if by_nfe else s.steps), s.mean[key], s.std[key] or 0.0)
        for s in chosen
        if s.model == model and key in s.mean
    ]
    return Series(label=MODEL_TITLES[model], style=model, points=tuple(sorted(points)))


def _player(entry: Entry) -> str:
    tag = entry.kind
    extra = " playsinline" if tag == "video" else ""
    picture = ""
    if entry.spectrogram:
        picture = (
            f'<div class="spec"><img src="{quote(entry.spectrogram)}" alt="Spectrogram, {escape(entry.name)}">'
            "<i></i></div>"
        )
    media = f'<{tag} controls preload="metadata"{extra} src="{quote(entry.media)}"></{tag}>'
    return f'<div class="player"><b>{escape(entry.name)}</b>{media}{picture}</div>'
