"""The pieces of the report as HTML; every text from outside is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import quote

from eval.compare.hygiene import TestFacts
from eval.compare.rows import Task
from eval.metrics import leading, metric, metrics_of
from eval.report.differences import strongest
from eval.report.example_file import Entry, Example
from eval.report.paired import Setting
from eval.report.summary import Summary
from eval.report.tables import TASK_TOTALS, Table, signed, significant, steps_title

REAL_SOUND = (
    "Distances of real sound are between the test clips and other real clips, those of the codec round trip between "
    "the test clips and themselves; so real sound may stand above the codec, by what other clips differ in."
)
NFE = "Network evaluations per clip: steps, doubled by classifier-free guidance."
LONG = 48
"""Letters from which on a cell is text, which may be broken into lines."""


def table_html(table: Table) -> str:
    """A table; rows of one model are set apart from the next, the best values marked."""
    head = "".join(f"<th>{_kept_together(column)}</th>" for column in table.columns)
    several = any(a.model == b.model for a, b in zip(table.rows, table.rows[1:], strict=False))
    body, last = [], ""
    for row in table.rows:
        names = ["muted"] * row.muted + ["first"] * bool(several and last and row.model != last)
        opening = f'<tr class="{" ".join(names)}">' if names else "<tr>"
        cells = "".join(
            f"<td{' class=best' if c.best else ' class=long' if len(c.text) >= LONG else ''}>{escape(c.text)}"
            + (f'<span class="spread">{escape(c.spread)}</span>' if c.spread else "")
            + "</td>"
            for c in row.cells
        )
        dot = f'<i class="dot {row.kind}"></i>' if row.kind else ""
        body.append(f"{opening}<td>{dot}{escape(row.model)}</td>{cells}</tr>")
        last = row.model
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _kept_together(title: str) -> str:
    """A title whose arrow does not begin a line."""
    return escape(title).replace(" ↓", "&nbsp;↓").replace(" ↑", "&nbsp;↑")


def fold(summary: str, content: str, *, shown: bool = False) -> str:
    """Content that opens with a click; `content` is HTML, `summary` text."""
    return f"<details{' open' * shown}><summary>{escape(summary)}</summary>{content}</details>"


def paragraph(text: str) -> str:
    """A paragraph that explains."""
    return f'<p class="soft">{escape(text)}</p>'


def note(head: str, text: str) -> str:
    """A caution."""
    return f'<p class="note"><strong>{escape(head)}</strong> {escape(text)}</p>'


def cards(chosen: Sequence[Setting], task: Task) -> str:
    """The settings the project is about, with their leading scores and speed."""
    return '<div class="cards">' + "".join(_card(s.summary, task) for s in headline(chosen)) + "</div>"


def headline(chosen: Sequence[Setting]) -> list[Setting]:
    """The baseline at its most steps and at its fewest, other teachers at their most, every student at its fewest."""
    found = []
    best = strongest(chosen)
    if best is not None:
        own = [s for s in chosen if s.summary.model == best.summary.model]
        alike = [s for s in own if s.summary.guidance == best.summary.guidance]
        found = [best] + [s for s in alike[:1] if s is not best]
        others = [s for s in chosen if s.summary.kind == "teacher" and s.summary.model != best.summary.model]
        for model in dict.fromkeys(s.summary.model for s in others):
            other = strongest([s for s in others if s.summary.model == model])
            found += [other] if other is not None else []
    seen: set[tuple[str, float]] = set()
    for s in chosen:
        name = s.summary.model, s.summary.guidance
        if s.summary.kind == "student" and name not in seen:
            seen.add(name)
            found.append(s)
    return found


def reading_items(keys: Iterable[str]) -> dict[str, str]:
    """How to read each metric, the rows of real sound and the evaluations."""
    items = {
        m.title: f"{f'{m.better.capitalize()} is better. ' if m.better else ''}{m.explanation}"
        for m in metrics_of(keys)
    }
    return items | {"Real sound": REAL_SOUND, "NFE": NFE}


def reading(keys: Iterable[str]) -> str:
    """One line per metric on how to read it."""
    items = "".join(f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in reading_items(keys).items())
    return f'<dl class="reading">{items}</dl>'


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
    listed = fold(f"Ids of the {len(facts.ids)} clips", f"<pre>{ids}</pre>")
    if facts.excluded:
        lines = "".join(f"{escape(clip_id)}: {escape(reason)}\n" for clip_id, reason in facts.excluded)
        listed += fold(f"Excluded for every model: {len(facts.excluded)}", f"<pre>{lines}</pre>")
    return f'<ul class="soft">{told}</ul>{listed}'


def _card(summary: Summary, task: Task) -> str:
    texts = map(metric, leading(summary.mean))
    values = {m.title: signed(summary.mean[m.key], m.digits) for m in texts}
    values["Network evaluations"] = str(summary.nfe)
    total = TASK_TOTALS[task]
    for name, label in ((total, f"RTF, {total}"), ("generator only", "RTF, generator only")):
        if name in summary.rtf:
            values[label] = significant(summary.rtf[name])
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items())
    return f'<div class="card {summary.kind}"><h4>{escape(steps_title(summary))}</h4><dl>{items}</dl></div>'


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
