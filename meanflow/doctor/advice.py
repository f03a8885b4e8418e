"""What follows from the findings: one table of rules, each a condition and a sentence."""

from collections.abc import Callable
from dataclasses import dataclass

from meanflow.doctor.accuracy import Accuracy
from meanflow.doctor.cost import Cost
from meanflow.doctor.frequency import LIMIT_RAD, Frequency
from meanflow.doctor.operators import Operators
from meanflow.doctor.precision import Precision
from meanflow.doctor.processes import Processes
from meanflow.doctor.report import Report


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`sentence` is given where `applies`; a finding that is missing applies to nothing."""

    applies: Callable[[Report], bool]
    sentence: str


def recommend(report: Report) -> tuple[str, ...]:
    """The sentences of every rule that applies, in the order of the table."""
    found = tuple(rule.sentence for rule in RULES if rule.applies(report))
    return found or ("Nothing to mend: use ForwardAD, without a graph, on the rows with r < t.",)


def _operators(test: Callable[[Operators], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.operators, Operators) and test(report.operators)


def _accuracy(test: Callable[[Accuracy], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.accuracy, Accuracy) and test(report.accuracy)


def _precision(test: Callable[[Precision], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.precision, Precision) and test(report.precision)


def _frequency(test: Callable[[Frequency], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.frequency, Frequency) and test(report.frequency)


def _processes(test: Callable[[Processes], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.processes, Processes) and test(report.processes)


def _cost(test: Callable[[Cost], bool]) -> Callable[[Report], bool]:
    return lambda report: isinstance(report.cost, Cost) and test(report.cost)


def _sick(found: Precision) -> bool:
    return any(layer.mode == "autocast" and layer.worst > 0.05 for layer in found.layers)


RULES: tuple[Rule, ...] = (
    Rule(
        applies=_operators(lambda a: a.works and any("attention" in f.operator for f in a.missing)),
        sentence="Fused attention has no forward mode: take du/dt through ForwardAD, which runs attention in its MATH "
        "form, and leave the forward with a graph on the fused kernel.",
    ),
    Rule(
        applies=_operators(lambda a: not a.works and "autograd.Function" in a.forward_ad),
        sentence="Give the custom autograd.Function a setup_context and a jvp static method, or write it in operators.",
    ),
    Rule(
        applies=_operators(lambda a: not a.works and "in-place" in a.forward_ad),
        sentence="A buffer is changed in place during the forward (running statistics, a counter): keep such layers in "
        "evaluation mode, or replace batch normalisation by layer or group normalisation.",
    ),
    Rule(
        applies=_operators(lambda a: not a.works and "random" in a.forward_ad),
        sentence="Put dropout in evaluation mode, or draw outside u: the forward that is trained would draw other "
        "numbers than the derivative.",
    ),
    Rule(
        applies=_operators(lambda a: not a.works and "random" not in a.forward_ad),
        sentence="Until forward mode works, use CentralDifference in float32, or an objective without a derivative.",
    ),
    Rule(
        applies=_accuracy(lambda a: bool(a.forgotten)),
        sentence="An input of u is cut off from its derivative: look for detach, no_grad or a custom function on the "
        "way from r and t, and remember the third tangent of a network fed with (t, t - r).",
    ),
    Rule(
        applies=_accuracy(lambda a: not a.forgotten and a.verdict.level == "bad"),
        sentence="A forward-mode formula is wrong: compare the jvp of each custom autograd.Function with differences.",
    ),
    Rule(
        applies=_accuracy(lambda a: "r" in a.ignored),
        sentence="u does not depend on r: right for a zero-initialised interval embedding, wrong later in training, "
        "and an instantaneous velocity otherwise.",
    ),
    Rule(
        applies=_frequency(lambda a: a.highest > LIMIT_RAD),
        sentence="Lower the frequencies of the time embedding to 100 rad per unit t or less (feed t in [0, 1] "
        "unscaled, no factor 1000) or replace the embedder before training; du/dt swamps v otherwise.",
    ),
    Rule(
        applies=_frequency(lambda a: a.highest > LIMIT_RAD),
        sentence="Compute the time embedding in float32 under every precision, and do not use CentralDifference.",
    ),
    Rule(
        applies=_frequency(lambda a: a.correction > 3.0 * a.v),
        sentence="(t - r) du/dt is several times v: use Correction(clip=..., normalise=..., warmup=...).",
    ),
    Rule(
        applies=_precision(_sick),
        sentence="Run the layers listed first under bfloat16 in float32 (torch.autocast(..., enabled=False) inside "
        "them).",
    ),
    Rule(
        applies=_precision(lambda a: (a.autocast_dudt or 0.0) <= 0.05 < (a.weights_dudt or 0.0)),
        sentence="Keep float32 weights and use autocast: with bfloat16 weights and times du/dt loses its digits.",
    ),
    Rule(
        applies=_processes(lambda a: a.verdict.level == "bad" and a.random > 1e-6),
        sentence="The module draws random numbers: make them a function of the row (a generator per sample) or switch "
        "dropout off; derivative and forward need the same ones.",
    ),
    Rule(
        applies=_processes(lambda a: a.verdict.level == "bad" and a.random <= 1e-6 < a.rows),
        sentence="Rows of a batch see each other: use layer or group normalisation, or SyncBatchNorm, if several "
        "processes are to train as one.",
    ),
    Rule(
        applies=_processes(lambda a: bool(a.unused)),
        sentence="Some parameters get no gradient: remove them or pass find_unused_parameters=True, because a "
        "data-parallel wrapper otherwise leaves whole buckets of gradients unreduced.",
    ),
    Rule(
        applies=_cost(lambda a: a.of("ForwardAD").times is None and a.of("CentralDifference").times is not None),
        sentence="CentralDifference costs two forwards and no memory for backward.",
    ),
    Rule(
        applies=_cost(lambda a: (a.of("ForwardAD").memory or 0.0) > 2.0),
        sentence="ForwardAD needs more memory than the step itself, mostly for attention's full matrices: take du/dt "
        "on the rows with r < t alone, and in parts of the batch.",
    ),
)  # fmt: skip
"""Thresholds are those of the verdicts; reasons and figures stand in the documentation of the doctor."""
