"""Complete configurations by name, one table for each kind of run; both tables are read by the commands and by code."""

from collections.abc import Callable

from distill.presets.students import STUDENTS
from distill.presets.teachers import TEACHERS

__all__ = ["STUDENTS", "TEACHERS", "summary"]


def summary(preset: Callable[[], object]) -> str:
    """The line of help of a preset: the first one of its docstring."""
    return (preset.__doc__ or "").strip().splitlines()[0]
