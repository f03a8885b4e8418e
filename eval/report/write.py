"""rows.jsonl to a page one can open from disk, and to a Markdown file with the same numbers."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import get_args

from eval.compare.hygiene import TestFacts, facts_of
from eval.compare.rows import Row, Task, read_clip_scores
from eval.metrics import EMBEDDED_NOTE, PUBLISHED_NOTE, metrics_of
from eval.report.budgets import of_task, read_budgets
from eval.report.example_file import read_examples
from eval.report.paired import settings
from eval.report.parts import facts, note, reading, reading_items
from eval.report.sections import TaskResults, section_html, section_markdown
from eval.report.style import SCRIPT, STYLE
from eval.report.tables import MODEL_TITLES, TASK_TITLES, inert, paragraphs, rows_of

TITLE = "One-step sound generation: teacher and student compared"
LEAD = (
    "A flow-matching teacher that makes sound from video and from text, and the MeanFlow student distilled from it, on "
    "the same clips from the same noise. The student is meant to reach in one step what the teacher needs many for."
)


def write_report(rows_path: Path, *, title: str = TITLE, lead: str = LEAD) -> Path:
    """Write report.html and results.md beside `rows_path`, with the players of examples.json and the staged budgets of
    budget-<model>-<task>.json if they are there.

    The page refers to media by relative paths and to nothing on a network. Returns the path of the page.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no rows, rows that do not fit together, examples whose files are missing, or a broken budget.
    """
    rows = rows_of(rows_path)
    results = read_results(rows, rows_path)
    links = "".join(f'<a href="#{r.task}">{TASK_TITLES[r.task]}</a>' for r in results)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><div><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        f'<nav>{links}<a href="#reading">How to read it</a><a href="#origin">How it was made</a></nav></div></header>'
        f"<main>{''.join(note(*said) for said in _notes(rows).items())}{''.join(map(section_html, results))}"
        f'<h2 id="reading">How to read it</h2><div class="card">{reading(_keys(rows))}</div>'
        f'<h2 id="origin">How it was made</h2>{_origin(rows)}'
        f"<footer>Numbers: {escape(rows_path.name)}, per clip: clips.jsonl, as tables: results.md.</footer>"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )
    path = rows_path.with_name("report.html")
    path.write_text(page, encoding="utf-8")
    items = "\n".join(inert(f"- **{name}**: {text}") for name, text in reading_items(_keys(rows)).items())
    opening = paragraphs([f"# {title}", *_notes(rows).values()])
    parts = [opening, *map(section_markdown, results), "## How to read it", items]
    rows_path.with_name("results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def read_results(rows: Sequence[Row], rows_path: Path) -> list[TaskResults]:
    """What there is to show of every task: the rows and what lies beside them."""
    clips = read_clip_scores(rows_path.with_name("clips.jsonl"))
    found = settings(rows, clips)
    examples = read_examples(rows_path.with_name("examples.json"))
    budgets = read_budgets(rows_path.parent, list(dict.fromkeys(s.summary.model for s in found)))
    tested: Mapping[Task, TestFacts] = facts_of(rows, clips, rows_path)
    return [
        TaskResults(
            task=task,
            settings=tuple(s for s in found if s.summary.task == task),
            examples=tuple(e for e in examples if e.task == task),
            budgets=tuple(of_task(budgets, task)),
            tested=tested.get(task),
        )
        for task in get_args(Task)
        if any(s.summary.task == task for s in found)
    ]


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.metrics))


def _notes(rows: Sequence[Row]) -> dict[str, str]:
    """What has to be said of the scores before any is read."""
    main = [m for m in metrics_of(_keys(rows)) if m.main and m.key != "onset_f1"]
    notes = {}
    if any(m.embedded for m in main):
        notes["Embedded scores."] = EMBEDDED_NOTE
    if any(not m.embedded for m in main):
        notes["Published scores."] = PUBLISHED_NOTE
    return notes


def _origin(rows: Sequence[Row]) -> str:
    """Machine, runs, digests and commands."""
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
    warning = ""
    if mixed:
        text = f"Rows of several configurations are mixed for {', '.join(mixed)}; compare again in a fresh folder."
        warning = note("Attention.", text)
    commands = "".join(f"<pre>{escape(c)}</pre>" for c in dict.fromkeys(r.command for r in rows))
    return f'{warning}<div class="card">{facts(items)}<h3>Commands</h3>{commands}</div>'
