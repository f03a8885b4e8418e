"""All examinations in a row, and what follows from them."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from meanflow.config import to_plain
from meanflow.doctor.accuracy import Accuracy, examine_accuracy
from meanflow.doctor.cost import Cost, examine_cost
from meanflow.doctor.frequency import Frequency, examine_frequency
from meanflow.doctor.operators import Operators, examine_operators
from meanflow.doctor.patient import Patient, random_state_kept
from meanflow.doctor.precision import Precision, examine_precision
from meanflow.doctor.processes import Processes, examine_processes
from meanflow.doctor.verdict import Failed, failed

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

    limit_s: time after which one examination stops where it stands. processes: False leaves out the spawned ones.
    """
    start = time.monotonic()
    with random_state_kept():
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
