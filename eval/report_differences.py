"""Students against the teacher: paired differences of every score that has a direction."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.metric_text import MetricText, metrics_of
from eval.paired import Difference, Setting, difference
from eval.report_intervals import interval_text
from eval.tables import NONE, Cell, Table, TableRow, signed, steps_title

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

    metric: MetricText
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
    """Every student (model and guidance scale) at every number of steps, fewest first, against the first teacher at
    its most steps; at its fewest steps also against that teacher at the same number.

    Of several guidance scales the teacher's best by its first score is taken: it is not to be beaten by a bad choice.
    """
    students = [s for s in chosen if s.summary.kind == "student"]
    best = strongest(chosen)
    if best is None:
        return []
    same = {
        s.summary.steps: s
        for s in chosen
        if (s.summary.kind, s.summary.model, s.summary.guidance)
        == ("teacher", best.summary.model, best.summary.guidance)
    }
    fewest: dict[tuple[str, float], int] = {}
    for s in students:
        name = s.summary.model, s.summary.guidance
        fewest[name] = min(s.summary.steps, fewest.get(name, s.summary.steps))

    def is_first(s: Setting) -> bool:
        return s.summary.steps == fewest[s.summary.model, s.summary.guidance]

    found = []
    for s in sorted(students, key=lambda s: not is_first(s)):
        rivals = [best]
        equal = same.get(s.summary.steps)
        if is_first(s) and equal is not None and equal is not best:
            rivals.append(equal)
        found += [_pair(s, rival) for rival in rivals]
    return [pair for pair in found if pair.lines]


def strongest(chosen: Sequence[Setting]) -> Setting | None:
    """The first teacher at its most steps, with the guidance scale that its first score is best at; None without."""
    teachers = [s for s in chosen if s.summary.kind == "teacher"]
    if not teachers:
        return None
    own = [s for s in teachers if s.summary.model == teachers[0].summary.model]
    many = [s for s in own if s.summary.steps == max(o.summary.steps for o in own)]
    for metric in metrics_of(many[0].summary.mean):
        if metric.better is not None and all(metric.key in s.summary.mean for s in many):
            sign = 1.0 if metric.better == "lower" else -1.0
            return min(many, key=lambda s: sign * s.summary.mean[metric.key])
    return many[0]


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
