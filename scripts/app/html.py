"""Pieces of the web page as HTML. Everything from outside is escaped; nothing is fetched from another host."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path

from eval.report.blocks import Table
from eval.report.budgets import READING, budget_table, circumstances, totals_table
from eval.speed.budget import Budget
from scripts.app.studio import ClickResult, Limits, Take
from teacher.media import MediaInfo
from teacher.sampling.stages import ENCODING, STAGES

Address = Callable[[Path], str]
"""Maps a file to the address under which the server delivers it."""
COLOURS = ("#8a94a6", "#5d8a66", "#0b8a8f", "#a27c0d", "#d9603b", "#6a4fc4")
STYLE = """
.mf-cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr))}
.mf-cards.mf-grid{grid-template-columns:repeat(auto-fit,minmax(min(260px,100%),1fr))}
.mf-card{border:1px solid var(--border-color-primary);border-radius:12px;padding:12px 14px;min-width:0;
background:var(--block-background-fill);color:var(--body-text-color);margin:0}
.mf-card h4{margin:0 0 2px;font-size:1rem;font-weight:600;color:inherit}
.mf-card.student{border-top:3px solid #d9603b}.mf-card.teacher{border-top:3px solid #2f6fde}
.mf-soft,.prose .mf-soft{color:var(--body-text-color);opacity:.72;font-size:.85rem;line-height:1.4;margin:0 0 8px;
overflow-wrap:anywhere}
.mf-cards+.mf-soft{margin-top:10px}.mf-scroll+.mf-soft{margin-top:8px}
.mf-card video,.mf-preview video{width:100%;max-height:300px;border-radius:8px;background:#000;display:block;
margin:0 0 8px}
.mf-card img{width:100%;height:120px;display:block;border-radius:8px;margin:0 0 8px;object-fit:fill;background:#000}
.mf-grid .mf-card img{height:84px}
.mf-card audio{width:100%;height:38px;display:block;margin:0 0 6px}
.mf-card a,.prose .mf-card a{display:inline-block;margin:0 14px 4px 0;padding:0;font-size:.88rem;
text-decoration:underline;color:var(--link-text-color)}
.mf-alert,.prose .mf-alert{border:1px solid var(--border-color-primary);border-left:4px solid #d9603b;border-radius:6px;
padding:10px 14px;background:var(--block-background-fill);color:var(--body-text-color);overflow-wrap:anywhere;
font-weight:600;margin:0}
.mf-scroll{overflow-x:auto;max-width:100%;margin-bottom:10px}
.mf-table,.prose .mf-table{border-collapse:collapse;font-size:.8rem;font-variant-numeric:tabular-nums;width:100%;
margin:0;border:0;color:var(--body-text-color)}
.mf-table th,.mf-table td,.prose .mf-table th,.prose .mf-table td{padding:5px 6px;text-align:right;border:0;
border-bottom:1px solid var(--border-color-primary)}
.mf-table th:first-child,.mf-table td:first-child,.prose .mf-table th:first-child,
.prose .mf-table td:first-child{text-align:left;padding-left:0}
.mf-table thead,.mf-table tbody,.mf-table tr,.prose .mf-table thead,.prose .mf-table tbody,.prose .mf-table tr{border:0}
.mf-table tr.sum td{font-weight:700}.mf-table td+td{white-space:nowrap}
.mf-bar{display:flex;height:12px;border-radius:6px;overflow:hidden;margin:3px 0 10px;
background:var(--border-color-primary)}
.mf-dot{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:7px}
.mf-head h1{font-size:1.5rem;margin:0 0 4px;color:var(--body-text-color)}
.mf-part{font-size:1.05rem;font-weight:600;margin:16px 0 8px;color:var(--body-text-color)}
"""


def alert(text: str) -> str:
    """One line that describes an error."""
    return f'<p class="mf-alert" role="alert">{escape(text)}</p>'


def heading(licences: Mapping[str, str], limits: Limits) -> str:
    """Title, the licence of every model, and the limits of one click."""
    each = "; ".join(f"{escape(name)}: {escape(text)}" for name, text in licences.items())
    return (
        '<header class="mf-head"><h1>Sound from video and from words, in one step</h1>'
        '<p class="mf-soft">Every sound and film made here carries model, seed, steps, guidance and licence in its '
        f"metadata (<code>mf-inspect FILE</code> shows them). Licence of the weights: {each}.</p>"
        f'<p class="mf-soft">One click may ask for {limits.seconds:g} s of sound, for a video of '
        f"{limits.pixels / 1e9:g} billion pixels in all its frames, and for {limits.evaluated_s:g} seconds of sound "
        "times evaluations (seeds x steps, twice that under guidance). One click is served at a time; Stop, or leaving "
        "the page, ends yours.</p></header>"
    )


def preview(video: Path, info: MediaInfo, address: Address) -> str:
    """The uploaded video with its name, duration, size and frame rate."""
    facts = f"{escape(video.name)}: {info.duration_s:.2f} s, {info.width} x {info.height}, {info.fps:.4g} frames/s"
    return (
        f'<div class="mf-preview"><video src="{escape(address(video))}" controls muted playsinline></video>'
        f'<p class="mf-soft">{facts}</p></div>'
    )


def comparison(made: ClickResult, address: Address) -> str:
    """One card per model, followed by the time of every stage."""
    cards = "".join(_card(take, take.model.capitalize(), address) for take in made.takes)
    return f'<div class="mf-cards">{cards}</div>{latency(made)}'


def grid(made: ClickResult, address: Address) -> str:
    """One small card per seed, followed by the time of every stage."""
    cards = "".join(_card(take, f"Seed {take.sound.seed}", address, seed=False) for take in made.takes)
    note = "All in one call of the pipeline. The film with one of them: set its seed above and make sound."
    return f'<div class="mf-cards mf-grid">{cards}</div><p class="mf-soft">{note}</p>{latency(made)}'


def latency(made: ClickResult) -> str:
    """Milliseconds of this click by stage and model, and its real-time factor; writing files is not included."""
    names = list(made.seconds)
    wholes = {name: sum(made.seconds[name].values()) for name in names}
    bars = "".join(_bar(name, made.seconds[name], wholes[name]) for name in names)
    rows = [
        (_dot(k) + escape(stage), [_ms(made.seconds[name].get(stage)) for name in names])
        for k, stage in enumerate(STAGES)
        if any(stage in made.seconds[name] for name in names)
    ]
    rows.append(("in all", [_ms(wholes[name]) for name in names]))
    rows.append(("real-time factor", [f"{wholes[name] / made.audio_s:.3g}" for name in names]))
    body = "".join(
        f"<tr{_sum(title)}><td>{title}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for title, cells in rows
    )
    head = "".join(f"<th>{escape(name.capitalize())}, ms</th>" for name in names)
    encoded = "" if any(stage in made.seconds[names[0]] for stage in ENCODING) else "Encoded by an earlier click. "
    encoded = "Encoded once for both. " if len(names) > 1 and made.shared else encoded
    return (
        f'<h3 class="mf-part">Where the time of this click went</h3>{bars}'
        f'<div class="mf-scroll"><table class="mf-table">'
        f"<thead><tr><th>stage</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="mf-soft">{made.audio_s:.2f} s of sound. {encoded}Not in the time: '
        "writing files and pictures.</p>"
    )


def budget(found: Budget) -> str:
    """The time budget by stage as tables, followed by what the totals include."""
    parts = [f'<p class="mf-soft">{escape(circumstances(found))}</p>']
    for batch in found.batches:
        totals = totals_table(found, batch)
        rows = tuple(replace(row, cells=row.cells[:-1]) for row in totals.rows)
        parts += [_table(budget_table(found, batch)), _table(replace(totals, columns=totals.columns[:-1], rows=rows))]
        included = "; ".join(f"{row.model}: {row.cells[-1].text}" for row in totals.rows)
        parts.append(f'<p class="mf-soft">{escape(included)}.</p>')
    return "".join([*parts, f'<p class="mf-soft">{escape(READING)}</p>'])


def _card(take: Take, title: str, address: Address, *, seed: bool = True) -> str:
    sound, audio = take.sound, escape(address(take.audio))
    facts = (
        f"{sound.sampling}{f', seed {sound.seed}' if seed else ''}, {sound.duration_s:.2f} s at {sound.sample_rate} Hz"
    )
    film = "" if take.film is None else escape(address(take.film))
    shown = f'<video src="{film}" controls playsinline preload="metadata"></video>' if film else ""
    links = f'<a href="{audio}" download="{escape(take.audio.name)}">sound (FLAC)</a>'
    links += f'<a href="{film}" download="{escape(take.film.name)}">film (MP4)</a>' if film and take.film else ""
    made_by = ""
    if seed:
        digest = f", SHA-256 {sound.identity.digest[:12]}" if sound.identity else ""
        weights = f"{sound.identity.name}, {sound.identity.weights}" if sound.identity else take.model
        made_by = f'<p class="mf-soft">{escape(weights)}{digest}. Licence: {escape(sound.licence)}</p>'
    return (
        f'<figure class="mf-card {escape(take.model)}"><h4>{escape(title)}</h4><p class="mf-soft">{escape(facts)}</p>'
        f"{shown}"
        f'<img src="{escape(address(take.picture))}" alt="Spectrogram of {escape(title)}" '
        f'title="60 Hz to {sound.sample_rate // 2000} kHz, logarithmic; 75 dB down from the loudest point">'
        f'<audio src="{audio}" controls preload="metadata"></audio>{links}{made_by}</figure>'
    )


def _bar(name: str, seconds: Mapping[str, float], whole: float) -> str:
    pieces = "".join(
        f'<span style="width:{100 * seconds[stage] / whole:.2f}%;background:{COLOURS[k]}" title="{stage}"></span>'
        for k, stage in enumerate(STAGES)
        if stage in seconds and whole > 0
    )
    return f'<div class="mf-soft" style="margin:0">{escape(name.capitalize())}</div><div class="mf-bar">{pieces}</div>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = ([row.model, *(cell.text for cell in row.cells)] for row in table.rows)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return (
        f'<div class="mf-scroll"><table class="mf-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _dot(k: int) -> str:
    return f'<span class="mf-dot" style="background:{COLOURS[k]}"></span>'


def _sum(title: str) -> str:
    return ' class="sum"' if title == "in all" else ""


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f}"
