"""Students against the teacher: paired differences of every score that has a direction.

The baseline is the first teacher that was named. A student's setting meets it at the same guidance scale, at its most
steps and at the student's own number of steps. Where the baseline was not run at that scale, it is taken at the scale
its first score is best at: it is not to be beaten by a bad choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.metrics import Metric, metrics_of
from eval.report.intervals import interval_text
from eval.report.paired import Difference, Setting, difference
from eval.report.tables import (
    MODEL_TITLES,
    NONE,
    SEEDS_NOTE,
    Cell,
    Table,
    TableRow,
    listed,
    seeds_differ,
    signed,
    steps_title,
)

BETTER, WORSE, OPEN, UNKNOWN = "better", "worse", "not told apart", "no interval over clips"
SIGNS = {BETTER: "▲", WORSE: "▼", OPEN: "·", UNKNOWN: "?"}
PAIRED_NOTE = (
    "Student minus teacher, on the same clips from the same noise, so that what is common to both cancels. A "
    "difference is clear (▲ better, ▼ worse for the student) where its 95 % interval leaves out zero. p-values are "
    "of single comparisons, not corrected for how many there are: Wilcoxon’s signed-rank test where pairs are clips, "
    "Student’s t where they are groups of clips, of which one is left out at a time. Paired over seeds alone, a "
    "difference says nothing about other clips and is never called clear."
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One score of a pair."""

    metric: Metric
    found: Difference

    @property
    def verdict(self) -> str:
        """For the first of the pair."""
        if "clips" not in self.found.how:
            return UNKNOWN
        if not self.found.clear:
            return OPEN
        return BETTER if (self.found.value < 0.0) == (self.metric.better == "lower") else WORSE


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A student's setting against one of the teacher."""

    student: Setting
    teacher: Setting
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        return f"{steps_title(self.student.summary)}, against {steps_title(self.teacher.summary)}"

    @property
    def told(self) -> str:
        """How many scores came out which way."""
        verdicts = [line.verdict for line in self.lines]
        counts = {verdict: verdicts.count(verdict) for verdict in (BETTER, WORSE, OPEN, UNKNOWN)}
        words = {BETTER: "clearly better", WORSE: "clearly worse", UNKNOWN: f"with {UNKNOWN}"}
        return ", ".join(f"{count} {words.get(v, v)}" for v, count in counts.items() if count)


def pairs(chosen: Sequence[Setting]) -> list[Pair]:
    """Every student (model and guidance scale) at every number of steps, fewest first, against the baseline at its most
    steps and at the same number of steps, at the student's guidance scale where there is one."""
    students = [s for s in chosen if s.summary.kind == "student"]
    fewest: dict[tuple[str, float], int] = {}
    for s in students:
        name = s.summary.model, s.summary.guidance
        fewest[name] = min(s.summary.steps, fewest.get(name, s.summary.steps))

    def is_first(s: Setting) -> bool:
        return s.summary.steps == fewest[s.summary.model, s.summary.guidance]

    found = [_pair(s, rival) for s in sorted(students, key=lambda s: not is_first(s)) for rival in rivals(chosen, s)]
    return [pair for pair in found if pair.lines]


def rivals(chosen: Sequence[Setting], student: Setting) -> list[Setting]:
    """What a student's setting is compared with: the baseline at most steps, and at the student's steps if it has them.

    Its guidance scale is the student's or, where it was not run at that, the scale of `strongest`.
    """
    best = strongest(chosen)
    if best is None:
        return []
    teachers = _baseline(chosen)
    own = [s for s in teachers if s.summary.guidance == student.summary.guidance]
    own = own or [s for s in teachers if s.summary.guidance == best.summary.guidance]
    most = max(own, key=lambda s: s.summary.steps)
    return [most, *(s for s in own if s.summary.steps == student.summary.steps and s is not most)]


def pairing_told(chosen: Sequence[Setting]) -> str:
    """By which rule settings were paired: the baseline's name, the guidance scales, the seeds."""
    best = strongest(chosen)
    if best is None:
        return ""
    teachers = _baseline(chosen)
    name = _title(best)
    others = dict.fromkeys(_title(s) for s in chosen if s.summary.kind == "teacher" and s not in teachers)
    told = []
    if others:
        stand = "stands" if len(others) == 1 else "stand"
        told.append(
            f"The baseline is {name}, the first teacher named; {listed(others)} {stand} in the tables and charts "
            "without differences."
        )
    scales = {s.summary.guidance for s in teachers}
    apart: dict[str, list[float]] = {}
    for s in chosen:
        if s.summary.kind == "student" and s.summary.guidance not in scales:
            apart.setdefault(_title(s), []).append(s.summary.guidance)
    apart = {student: sorted(set(values)) for student, values in apart.items()}
    told.append(
        f"Every student is compared with {name} at the student's own guidance scale, at {name}’s most steps and at the "
        "student's number of steps."
    )
    if apart:
        which = listed(f"{student} at {listed(f'{v:g}' for v in values)}" for student, values in apart.items())
        told.append(
            f"{name} was not run at the guidance scale of {which}; it is taken at {best.summary.guidance:g}, "
            f"{_why(teachers, best)}."
        )
    if seeds_differ([s.summary for s in chosen]):
        told.append(SEEDS_NOTE)
    return " ".join(told)


def strongest(chosen: Sequence[Setting]) -> Setting | None:
    """The baseline at its most steps, with the guidance scale that its first score is best at; None without."""
    own = _baseline(chosen)
    if not own:
        return None
    many = _at_most_steps(own)
    metric = _first_score(many)
    if metric is None:
        return many[0]
    sign = 1.0 if metric.better == "lower" else -1.0
    return min(many, key=lambda s: sign * s.summary.mean[metric.key])


def _baseline(chosen: Sequence[Setting]) -> list[Setting]:
    """All settings of the first teacher."""
    teachers = [s for s in chosen if s.summary.kind == "teacher"]
    return [s for s in teachers if s.summary.model == teachers[0].summary.model]


def _at_most_steps(own: Sequence[Setting]) -> list[Setting]:
    return [s for s in own if s.summary.steps == max(o.summary.steps for o in own)]


def _first_score(many: Sequence[Setting]) -> Metric | None:
    """The first score with a direction that all have."""
    shared = [m for m in metrics_of(many[0].summary.mean) if all(m.key in s.summary.mean for s in many)]
    return next((m for m in shared if m.better is not None), None)


def _why(teachers: Sequence[Setting], best: Setting) -> str:
    many = _at_most_steps(teachers)
    metric = _first_score(many)
    if len({s.summary.guidance for s in teachers}) == 1:
        return "the only scale there is"
    if len(many) == 1 or metric is None:
        return "the scale of its most steps"
    return f"the best by {metric.label} at {best.summary.steps} step{'s' * (best.summary.steps != 1)}"


def _title(setting: Setting) -> str:
    return MODEL_TITLES.get(setting.summary.model, setting.summary.model)


def pair_table(pair: Pair) -> Table:
    """One line per score: difference, interval, p-value, by which pairs, and the verdict."""
    return Table(
        columns=("Score", "Difference", "95 % interval", "p", "Paired over", "The student is"),
        rows=tuple(_row(line) for line in pair.lines),
    )


def _pair(student: Setting, teacher: Setting) -> Pair:
    both = [key for key in student.summary.mean if key in teacher.summary.mean]
    lines = tuple(
        Line(metric=m, found=difference(student, teacher, m.key)) for m in metrics_of(both) if m.better is not None
    )
    return Pair(student=student, teacher=teacher, lines=lines)


def _row(line: Line) -> TableRow:
    found, digits = line.found, line.metric.digits
    known = found.low is not None and found.high is not None
    texts = (
        signed(found.value, digits, plus=True),
        interval_text(found.low, found.high, digits, plus=True)
        if found.low is not None and found.high is not None
        else NONE,
        p_text(found.p_value),
        found.how.removeprefix("paired over ") if known else NONE,
    )
    verdict = Cell(text=f"{SIGNS[line.verdict]} {line.verdict}", best=line.verdict in (BETTER, WORSE))
    return TableRow(model=line.metric.title, cells=(*(Cell(text=text) for text in texts), verdict))


def p_text(p_value: float | None) -> str:
    """Three digits, or that it is below 0.001."""
    if p_value is None:
        return NONE
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
