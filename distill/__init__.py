"""Train a flow-matching teacher, distil it into a one-step student, and load the student.

    from distill import distil, load_student, presets, train_teacher

    teacher = train_teacher(presets.TEACHERS["debug"](), Path("runs/teacher"))
    student = distil(replace(presets.STUDENTS["debug"](), teacher=teacher), Path("runs/student"))
    net = load_student(student)

Each of these names is imported at its first use, so that a part such as `distill.processes` loads no networks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.config import (
        DistillRun,
        EvaluationConfig,
        Fresh,
        FromData,
        FromTeacher,
        FromWeights,
        GuidedInput,
        LoopConfig,
        Method,
        OptimConfig,
        TeacherRun,
    )
    from distill.initial_network import load_student
    from distill.tasks import distil, train_teacher

__all__ = [
    "DistillRun", "EvaluationConfig", "Fresh", "FromData", "FromTeacher", "FromWeights", "GuidedInput", "LoopConfig",
    "Method", "OptimConfig", "TeacherRun", "distil", "load_student", "train_teacher",
]  # fmt: skip

_MODULES = {"distil": "distill.tasks", "load_student": "distill.initial_network", "train_teacher": "distill.tasks"}
"""The modules of the functions; the configurations are in distill.config."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "distill.config")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
