"""rows.jsonl to a page one can open from disk, and to a Markdown table with the same numbers."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import get_args

from eval.example_file import Example, read_examples
from eval.hygiene import TestFacts, facts_of
from eval.metric_text import EMBEDDED_NOTE
from eval.report_parts import cards, charts, example_html, facts, reading, table_html, test_set_html
from eval.report_style import SCRIPT, STYLE
from eval.rows import Row, Summary, Task, read_rows, summarise
from eval.tables import MODEL_TITLES, TASK_TITLES, latency_table, markdown, quality_table, shown_metrics

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
VTA_HINT = " Ticks at its top are the events of the picture, where they are known."


def write_report(rows_path: Path, *, title: str = TITLE, lead: str = LEAD) -> Path:
    """Write report.html and results.md beside `rows_path`, with the players of examples.json if that is there.

    The page refers to media by relative paths and to nothing on a network. Returns the path of the page.

    Raises:
        ValueError: no rows, rows that do not fit together, or examples whose files are missing.
    """
    rows = read_rows(rows_path)
    if not rows:
        raise ValueError(f"{rows_path} holds no rows of results; run the comparison first")
    summaries = summarise(rows)
    examples = read_examples(rows_path.with_name("examples.json"))
    tasks = [task for task in get_args(Task) if any(s.task == task for s in summaries)]
    tested = facts_of(rows, rows_path)
    sections = "".join(
        _section(summaries, [e for e in examples if e.task == task], task, tested.get(task)) for task in tasks
    )
    links = "".join(f'<a href="#{task}">{TASK_TITLES[task]}</a>' for task in tasks)
    keys = [m.key for m in shown_metrics(summaries)]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><div><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        f'<nav>{links}<a href="#reading">How to read it</a><a href="#origin">How it was made</a></nav></div></header>'
        f'<main><p class="note"><strong>Embedded metrics.</strong> {escape(EMBEDDED_NOTE)}</p>{sections}'
        f'<h2 id="reading">How to read it</h2><div class="card">{reading(keys)}</div>'
        f'<h2 id="origin">How it was made</h2>{_origin(rows)}'
        f"<footer>Numbers: {escape(rows_path.name)}, per clip: clips.jsonl, as a table: results.md.</footer>"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )
    path = rows_path.with_name("report.html")
    path.write_text(page, encoding="utf-8")
    rows_path.with_name("results.md").write_text(results_markdown(summaries, title, tested), encoding="utf-8")
    return path


def results_markdown(
    summaries: Sequence[Summary], title: str = TITLE, tested: Mapping[Task, TestFacts] | None = None
) -> str:
    """The tables of the page in Markdown."""
    parts = [f"# {title}", EMBEDDED_NOTE, "Mean ± standard deviation over seeds; best generated value in bold."]
    for task in get_args(Task):
        if not any(s.task == task for s in summaries):
            continue
        parts += [f"## {TASK_TITLES[task]}", markdown(quality_table(summaries, task))]
        if tested and task in tested:
            parts.append(f"Test set: {' '.join(tested[task].sentences())}")
        latency = latency_table(summaries, task)
        if latency is not None:
            parts += [f"### Real-time factor, {TASK_TITLES[task].lower()}", RTF_NOTE, markdown(latency)]
    return "\n\n".join(parts) + "\n"


def _section(summaries: Sequence[Summary], examples: Sequence[Example], task: Task, tested: TestFacts | None) -> str:
    seeds = sorted({seed for s in summaries if s.task == task and s.steps for seed in s.seeds})
    several = f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else "One seed"
    parts = [
        f'<h2 id="{task}">{TASK_TITLES[task]}</h2>',
        cards(summaries, task),
        f'<h3>Quality by steps</h3><p class="soft">{several}; the same noise per clip for every model and step count. '
        "Best generated value of each column marked; real sound and the codec round trip are what can be reached.</p>",
        table_html(quality_table(summaries, task)),
        f"<h3>Quality against steps and network evaluations</h3>{charts(summaries, task)}",
    ]
    latency = latency_table(summaries, task)
    if latency is not None:
        parts.append(f'<h3>Speed by stage (real-time factor)</h3><p class="soft">{RTF_NOTE}</p>{table_html(latency)}')
    parts.append(f"<h3>Test set</h3>{test_set_html(tested)}")
    if examples:
        hint = "Click into a spectrogram to play from there." + VTA_HINT * (task == "vta")
        parts.append(f'<h3>Listen</h3><p class="soft">{hint}</p>{"".join(example_html(e) for e in examples)}')
    return "".join(parts)


def _origin(rows: Sequence[Row]) -> str:
    """Machine, runs, digests and commands."""
    items: dict[str, str] = {}
    for row in rows:
        items |= {name.replace("_", " "): value for name, value in row.machine.items()}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.model), []).append(row)
    mixed = []
    for (task, model), group in groups.items():
        digests = list(dict.fromkeys(f"run {r.run_id}, configuration {r.config_digest[:12]}" for r in group))
        label = f"{MODEL_TITLES[model]}, {task.upper()}"
        guidance = ", ".join(f"{g:g}" for g in sorted({r.guidance for r in group if r.steps}))
        items[label] = "; ".join(digests) + (f"; guidance {guidance}" if guidance else "")
        if len({r.config_digest for r in group}) > 1:
            mixed.append(label)
    warning = ""
    if mixed:
        text = f"Rows of several configurations are mixed for {', '.join(mixed)}; compare again in a fresh folder."
        warning = f'<p class="note"><strong>Attention.</strong> {escape(text)}</p>'
    commands = "".join(f"<pre>{escape(c)}</pre>" for c in dict.fromkeys(r.command for r in rows))
    return f'{warning}<div class="card">{facts(items)}<h3>Commands</h3>{commands}</div>'
