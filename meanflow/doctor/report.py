"""All examinations in a row: the report, its text of at most 120 columns, its JSON, and what it recommends."""

import dataclasses
import json
import math
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from meanflow.config import to_plain
from meanflow.doctor.accuracy import Accuracy, examine_accuracy
from meanflow.doctor.cost import Cost, examine_cost
from meanflow.doctor.frequency import LIMIT_RAD, Frequency, examine_frequency
from meanflow.doctor.operators import Finding, Operators, examine_operators
from meanflow.doctor.patient import Patient, preserved_random_state
from meanflow.doctor.precision import Precision, examine_precision
from meanflow.doctor.processes import Processes, examine_processes
from meanflow.doctor.verdict import Failed, failed, figure

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Report:
    """One field per examination, in the order in which they are made."""

    module: str
    parameters: int
    shape: tuple[int, ...]
    device: str
    training: bool
    """The mode in which the factory left the module; it is examined in that mode."""
    operators: Operators | Failed
    accuracy: Accuracy | Failed
    precision: Precision | Failed
    frequency: Frequency | Failed
    processes: Processes | Failed
    cost: Cost | Failed
    seconds: float

    @property
    def findings(self) -> dict[str, Any]:
        """The examinations by name."""
        return {name: vars(self)[name] for name in EXAMINATIONS}

    @property
    def healthy(self) -> bool:
        """Whether no examination found something that would make training go wrong."""
        return all(found.verdict.level != "bad" for found in self.findings.values())


EXAMINATIONS = ("operators", "accuracy", "precision", "frequency", "processes", "cost")


def examine(patient: Patient, *, limit_s: float = 60.0, processes: bool = True) -> Report:
    """Every examination on copies of the module; its weights, its mode and the global random state stay as they are.

    limit_s: seconds after which an examination ends with what it has found. processes: False leaves out the comparison
    of processes, which starts two.
    """
    start = time.monotonic()
    with preserved_random_state():
        operators = _survived(lambda: examine_operators(patient))
        works = isinstance(operators, Operators) and operators.works
        return Report(
            module=type(patient.module).__name__,
            parameters=sum(a.numel() for a in patient.module.parameters()),
            shape=tuple(patient.x_t.shape),
            device=str(patient.x_t.device),
            training=patient.module.training,
            operators=operators,
            accuracy=_survived(lambda: examine_accuracy(patient)),
            precision=_survived(lambda: examine_precision(patient, tangents=works, limit_s=limit_s)),
            frequency=_survived(lambda: examine_frequency(patient, forward_mode=works, limit_s=limit_s)),
            processes=_survived(
                lambda: examine_processes(
                    patient if processes else dataclasses.replace(patient, source=None),
                    forward_mode=works,
                    limit_s=2 * limit_s,
                )
            ),
            cost=_survived(lambda: examine_cost(patient, limit_s=limit_s)),
            seconds=time.monotonic() - start,
        )


def to_json(report: Report, recommendations: tuple[str, ...]) -> str:
    """Every figure as JSON; infinite and undefined ones become null, which JSON knows."""
    plain = to_plain(report) | {"healthy": report.healthy, "recommendations": list(recommendations)}
    return json.dumps(_finite(plain), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(a) for key, a in value.items()}
    if isinstance(value, list):
        return [_finite(a) for a in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _survived(examination: Callable[[], Found]) -> Found | Failed:
    # One examination that a module does not survive must not cost the user the others, whatever it raises.
    try:
        return examination()
    except Exception as error:
        return failed(error)


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
"""Most rows of the precision table in the text; the JSON has every layer."""


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
    for kind, lines in DETAILS.items():
        if isinstance(found, kind):
            return list(lines(found))
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


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`sentence` is given where `applies`; a finding that is missing applies to nothing."""

    applies: Callable[[Report], bool]
    sentence: str


def recommend(report: Report) -> tuple[str, ...]:
    """The sentences of every rule that applies, in the order of the table."""
    found = tuple(rule.sentence for rule in RULES if rule.applies(report))
    return found or ("Nothing to mend: use ForwardAD, without a graph, on the rows with r < t.",)


def _if_operators(test: Callable[[Operators], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.operators, Operators) and test(report.operators)


def _if_accuracy(test: Callable[[Accuracy], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.accuracy, Accuracy) and test(report.accuracy)


def _if_precision(test: Callable[[Precision], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.precision, Precision) and test(report.precision)


def _if_frequency(test: Callable[[Frequency], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.frequency, Frequency) and test(report.frequency)


def _if_processes(test: Callable[[Processes], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.processes, Processes) and test(report.processes)


def _if_cost(test: Callable[[Cost], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.cost, Cost) and test(report.cost)


def _sick(found: Precision) -> bool:
    return any(layer.mode == "autocast" and layer.worst > 0.05 for layer in found.layers)


RULES: tuple[Rule, ...] = (
    Rule(
        applies=_if_operators(lambda a: a.works and any("attention" in f.operator for f in a.missing)),
        sentence="Fused attention has no forward mode: take du/dt through ForwardAD, which runs attention in its MATH "
        "form, and leave the forward with a graph on the fused kernel.",
    ),
    Rule(
        applies=_if_operators(lambda a: not a.works and "autograd.Function" in a.forward_ad),
        sentence="Give the custom autograd.Function a setup_context and a jvp static method, or write it in operators.",
    ),
    Rule(
        applies=_if_operators(lambda a: not a.works and "in-place" in a.forward_ad),
        sentence="A buffer is changed in place during the forward (running statistics, a counter): keep such layers in "
        "evaluation mode, or replace batch normalisation by layer or group normalisation.",
    ),
    Rule(
        applies=_if_operators(lambda a: not a.works and "random" in a.forward_ad),
        sentence="Put dropout in evaluation mode, or draw outside u: the forward that is trained would draw other "
        "numbers than the derivative.",
    ),
    Rule(
        applies=_if_operators(lambda a: not a.works and "random" not in a.forward_ad),
        sentence="Until forward mode works, use CentralDifference in float32, or an objective without a derivative.",
    ),
    Rule(
        applies=_if_accuracy(lambda a: bool(a.forgotten)),
        sentence="An input of u is cut off from its derivative: look for detach, no_grad or a custom function on the "
        "way from r and t, and remember the third tangent of a network fed with (t, t - r).",
    ),
    Rule(
        applies=_if_accuracy(lambda a: not a.forgotten and a.verdict.level == "bad"),
        sentence="A forward-mode formula is wrong: compare the jvp of each custom autograd.Function with differences.",
    ),
    Rule(
        applies=_if_accuracy(lambda a: "r" in a.ignored),
        sentence="u does not depend on r: right for a zero-initialised interval embedding, wrong later in training, "
        "and an instantaneous velocity otherwise.",
    ),
    Rule(
        applies=_if_frequency(lambda a: a.highest > LIMIT_RAD),
        sentence="Lower the frequencies of the time embedding to 100 rad per unit t or less (feed t in [0, 1] "
        "unscaled, no factor 1000) or replace the embedder before training; du/dt swamps v otherwise.",
    ),
    Rule(
        applies=_if_frequency(lambda a: a.highest > LIMIT_RAD),
        sentence="Compute the time embedding in float32 under every precision, and do not use CentralDifference.",
    ),
    Rule(
        applies=_if_frequency(lambda a: a.correction > 3.0 * a.v),
        sentence="(t - r) du/dt is several times v: use Correction(clip=..., normalise=..., warmup=...).",
    ),
    Rule(
        applies=_if_precision(_sick),
        sentence="Run the layers listed first under bfloat16 in float32 (torch.autocast(..., enabled=False) inside "
        "them).",
    ),
    Rule(
        applies=_if_precision(lambda a: (a.autocast_dudt or 0.0) <= 0.05 < (a.weights_dudt or 0.0)),
        sentence="Keep float32 weights and use autocast: with bfloat16 weights and times du/dt loses its digits.",
    ),
    Rule(
        applies=_if_processes(lambda a: a.verdict.level == "bad" and a.random > 1e-6),
        sentence="The module draws random numbers: make them a function of the row (a generator per sample) or switch "
        "dropout off; derivative and forward need the same ones.",
    ),
    Rule(
        applies=_if_processes(lambda a: a.verdict.level == "bad" and a.random <= 1e-6 < a.rows),
        sentence="Rows of a batch see each other: use layer or group normalisation, or SyncBatchNorm, if several "
        "processes are to train as one.",
    ),
    Rule(
        applies=_if_processes(lambda a: bool(a.unused)),
        sentence="Some parameters get no gradient: remove them or pass find_unused_parameters=True, because a "
        "data-parallel wrapper otherwise leaves whole buckets of gradients unreduced.",
    ),
    Rule(
        applies=_if_cost(lambda a: a.of("ForwardAD").times is None and a.of("CentralDifference").times is not None),
        sentence="CentralDifference costs two forwards and no memory for backward.",
    ),
    Rule(
        applies=_if_cost(lambda a: (a.of("ForwardAD").memory or 0.0) > 2.0),
        sentence="ForwardAD needs more memory than the step itself, mostly for attention's full matrices: take du/dt "
        "on the rows with r < t alone, and in parts of the batch.",
    ),
)  # fmt: skip
"""The rules of `recommend`. Thresholds are those of the verdicts; docs/doctor.md gives reasons and figures."""
