"""The report as text of at most 120 columns."""

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from meanflow.doctor.accuracy import Accuracy
from meanflow.doctor.cost import Cost
from meanflow.doctor.frequency import Frequency
from meanflow.doctor.operators import Finding, Operators
from meanflow.doctor.precision import Precision
from meanflow.doctor.processes import Processes
from meanflow.doctor.report import Report
from meanflow.doctor.verdict import figure

TITLES = {
    "operators": "operators without forward mode",
    "accuracy": "derivative against differences",
    "precision": "bfloat16, layer by layer",
    "frequency": "frequency along t",
    "processes": "one and two processes",
    "cost": "time and memory of each derivative",
}
WIDTH = 120
LAYERS = 8
"""Rows of the precision table; all of them are in the JSON."""


def to_text(report: Report, recommendations: tuple[str, ...]) -> str:
    """One block per examination, its verdict first, then what is recommended."""
    mode = "training" if report.training else "evaluation"
    size = f"{report.parameters:,} parameters, x_t {report.shape}, {report.device}, {mode} mode"
    lines = [f"{report.module}: {size}", ""]
    for number, (name, found) in enumerate(report.findings.items(), start=1):
        lines.append(f"{number}. {TITLES[name]}: {found.verdict.level.upper()}")
        lines += _wrapped(found.verdict.line, "   ")
        for line in _details(found):
            lines += _wrapped(line, "     ")
    lines += ["", "what to do"]
    for sentence in recommendations:
        lines += _wrapped(sentence, " - ", "   ")
    return "\n".join([*lines, "", f"{report.seconds:.1f} s"])


def _wrapped(line: str, first: str, then: str | None = None) -> list[str]:
    """Long lines broken at spaces; short ones, tables among them, as they are."""
    if len(first + line) <= WIDTH:
        return [first + line]
    return textwrap.wrap(line, WIDTH, initial_indent=first, subsequent_indent=then or f"{first}  ")


def _details(found: Any) -> list[str]:
    for kind, tell in DETAILS.items():
        if isinstance(found, kind):
            return list(tell(found))
    return []


def _operators(found: Operators) -> Iterator[str]:
    mended = {f.operator for f in found.missing} - {f.operator for f in found.missing_with_math}
    for finding in found.missing:
        note = "MATH attention mends it" if finding.operator in mended else "stays with MATH attention"
        yield f"missing  {finding.operator}  in {_places(finding)}: {note}"
    for finding in found.dropped:
        yield f"dropped  {finding.operator}  in {_places(finding)}"


def _places(finding: Finding) -> str:
    more = len(finding.where) - 3
    return ", ".join(finding.where[:3]) + (f" and {more} more" if more > 0 else "")


def _accuracy(found: Accuracy) -> Iterator[str]:
    yield f"reference {found.reference}, itself good to {figure(found.reference_error)}"
    yield f"{'along':<6} {'forward mode':>13} {'differences':>12} {'error':>8}"
    for p in found.partials:
        yield f"{p.of:<6} {figure(p.forward):>13} {figure(p.difference):>12} {figure(p.error):>8}"


def _precision(found: Precision) -> Iterator[str]:
    yield f"{'layer, alone and so far (value / tangent)':<58} {'mode':<8} {'alone':>17} {'so far':>17}"
    for a in found.layers[:LAYERS]:
        name = f"{a.name} ({a.kind})"
        name = name if len(name) <= 58 else f"...{name[-55:]}"
        alone = f"{figure(a.own_value)} / {figure(a.own_tangent)}"
        yield f"{name:<58} {a.mode:<8} {alone:>17} {figure(a.sofar_value) + ' / ' + figure(a.sofar_tangent):>17}"
    if not found.complete:
        yield "the time was up before every layer had been run alone"


def _frequency(found: Frequency) -> Iterator[str]:
    spectral = figure(found.spectral)
    yield f"local {figure(found.local)} rad, spectral {spectral} rad (resolution {figure(found.resolution)})"
    yield (
        f"rms: u {figure(found.u)}, v {figure(found.v)}, partial of u by t {figure(found.d_t)}, "
        f"(t - r) du/dt {figure(found.correction)}"
    )


def _processes(found: Processes) -> Iterator[str]:
    yield (
        f"{found.dtype}: two against one {figure(found.gradient)}, between the two {figure(found.ranks)}; "
        f"u under another seed {figure(found.random)}, on half a batch {figure(found.rows)}"
    )


def _cost(found: Cost) -> Iterator[str]:
    yield f"{'way':<22} {'ms':>9} {'times':>7} {'MiB':>9} {'memory':>7}"
    for p in found.prices:
        if p.error:
            yield f"{p.way:<22} {p.error}"
        elif p.seconds is not None and p.peak_bytes is not None:
            size = p.peak_bytes / 2**20
            yield f"{p.way:<22} {1e3 * p.seconds:>9.2f} {figure(p.times):>7} {size:>9.2f} {figure(p.memory):>7}"


DETAILS: dict[type, Callable[[Any], Iterator[str]]] = {
    Operators: _operators,
    Accuracy: _accuracy,
    Precision: _precision,
    Frequency: _frequency,
    Processes: _processes,
    Cost: _cost,
}
