"""The verdict of an examination: one of four levels and one line of plain English."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warn", "bad", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """ok: nothing to do; warn: works, but at a price; bad: training would go wrong; unknown: could not be measured."""

    level: Level
    line: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Takes the place of the findings of an examination that ended in an error."""

    verdict: Verdict


def failed(error: BaseException) -> Failed:
    """An examination that ended in an error, as one line."""
    return Failed(verdict=Verdict(level="unknown", line=f"could not be examined: {one_line(error)}"))


def one_line(error: BaseException, limit: int = 200) -> str:
    """Class and message of an error, whatever its length, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}{'...' if len(text) > limit else ''}"


def figure(value: float | None) -> str:
    """A number for a table; a dash where it could not be measured."""
    return "-" if value is None or math.isnan(value) else f"{value:.2g}"
