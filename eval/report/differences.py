"""Paired differences between settings on the same clips from the same noise, and of every student from the teacher.

The baseline is the first teacher named. A student's setting is compared with it at the same guidance scale, at the
baseline's most steps and at the student's own number of steps. Where the baseline was not run at that scale, its scale
with the best first score is used, so that a bad scale for the teacher favours no student.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from eval.compare.rows import ClipScores
from eval.metrics import ClipMetric, Metric, metric, metrics_of
from eval.metrics.uncertainty import Jackknife, paired_difference
from eval.report.blocks import Cell, Table, TableRow
from eval.report.settings import Setting
from eval.report.tables import NONE, SEEDS_NOTE, interval_text, listed, seeds_differ, signed

LEVEL = 0.95
BETTER, WORSE, OPEN, UNKNOWN = "better", "worse", "not clearly different", "no interval over clips"
SIGNS = {BETTER: "▲", WORSE: "▼", OPEN: "·", UNKNOWN: "?"}
PAIRED_NOTE = (
    "Student minus teacher, on the same clips from the same noise, so that what is common to both cancels. A "
    "difference is clear (▲ better, ▼ worse for the student) where its 95 % interval leaves out zero. p-values are "
    "of single comparisons, not corrected for how many there are: Wilcoxon’s signed-rank test where pairs are clips, "
    "Student’s t where they are groups of clips, of which one is left out at a time. Paired over seeds alone, a "
    "difference does not hold for other clips and is never called clear."
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Score of the first setting minus that of the second, its 95 % interval and two-sided p-value, as far as they can
    be computed; `how` names the method."""

    value: float
    low: float | None
    high: float | None
    p_value: float | None
    how: str

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero; without one, whether there is a difference at all."""
        if self.low is None or self.high is None:
            return self.value != 0.0
        return self.low > 0.0 or self.high < 0.0


def difference(a: Setting, b: Setting, key: str) -> Difference:
    """Difference of a score by the first of these methods for which both settings have the data.

    1. Scores of the clips on both sides: each clip's difference, averaged over the seeds both have; bootstrap of the
       mean and Wilcoxon's signed-rank test. Ratios of sums: of jackknife pseudo-values (`clip_values`), without a test.
    2. Delete-a-group values on both sides with the same groups: their differences, averaged over common seeds; Student
       t with groups - 1 degrees of freedom.
    3. Two or more common seeds: over seeds, which does not hold for other clips.
    4. Otherwise the difference alone, without an interval.
    """
    seeds = sorted(a.rows.keys() & b.rows.keys())
    value = a.mean[key] - b.mean[key]
    if seeds:  # other seeds than the common ones have no partner: no difference of theirs is paired
        value = float(np.mean([a.rows[seed].metrics[key] - b.rows[seed].metrics[key] for seed in seeds]))
    pairs = _over_clips(a, b, key)
    if pairs is not None:
        found = paired_difference(pairs, np.zeros_like(pairs), level=LEVEL)
        p_value = None if _ratio_of_sums(key) else found.p_value
        # The mean of pseudo-values is a jackknife estimate; the interval goes around the difference that is printed.
        shift = value - found.interval.value
        low, high = found.interval.low + shift, found.interval.high + shift
        return Difference(value=value, low=low, high=high, p_value=p_value, how="paired over clips")
    groups = _over_groups(a, b, key)
    if groups is not None:
        interval, error = groups.interval(level=LEVEL), groups.standard_error
        freedom = len(groups.replicates) - 1
        p_value = 2.0 * float(stdtr(freedom, -abs(groups.value) / error)) if error > 0.0 else None
        how = "paired over groups of clips"
        return Difference(value=value, low=interval.low, high=interval.high, p_value=p_value, how=how)
    if len(seeds) > 1:
        over_seeds = np.array([a.rows[seed].metrics[key] - b.rows[seed].metrics[key] for seed in seeds])
        low, high = mean_interval(over_seeds)
        return Difference(value=value, low=low, high=high, p_value=None, how="paired over seeds of the noise only")
    return Difference(value=value, low=None, high=None, p_value=None, how="no interval, the best value is bold")


def mean_interval(values: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float]:
    """mean -+ t_{n-1} s / sqrt(n), the interval of the mean of n independent values (n,), at least two."""
    n = len(values)
    if n < 2:
        raise ValueError(f"values must be at least 2, got {n}")
    half = float(stdtrit(n - 1, 0.5 + level / 2) * values.std(ddof=1) / np.sqrt(n))
    return float(values.mean()) - half, float(values.mean()) + half


def clip_values(scores: ClipScores, key: str) -> dict[str, float] | None:
    """The contribution of each clip to a score, such that their mean is the score: its own value or, for a ratio of
    sums over n clips, the jackknife pseudo-value n f - (n - 1) f_{-i}. None where fewer than two clips have it."""
    found = _ratio_of_sums(key)
    if found is None or found.ratio is None:
        own = {i: s[key] for i, s in scores.items() if key in s}
        return own if len(own) > 1 else None
    ids = [i for i, s in scores.items() if found.columns[0] in s]
    n = len(ids)
    if n < 2:
        return None
    counts = found.rows(list(scores.values()))
    total = counts.sum(axis=0, keepdims=True)
    values = n * found.ratio(total) - (n - 1) * found.ratio(total - counts)
    return dict(zip(ids, values.tolist(), strict=True))


def _ratio_of_sums(key: str) -> ClipMetric | None:
    """The metric of a key if it is a ratio of sums over clips, as the onset scores are; None for all others."""
    found = metric(key)
    return found if isinstance(found, ClipMetric) and found.ratio is not None else None


@dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """The difference of one score between the two settings of a pair."""

    metric: Metric
    found: Difference

    @property
    def verdict(self) -> str:
        """Whether the student, the first of the pair, is better or worse by this score, or neither."""
        if "clips" not in self.found.how:
            return UNKNOWN
        if not self.found.clear:
            return OPEN
        return BETTER if (self.found.value < 0.0) == (self.metric.better == "lower") else WORSE


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A student's setting and a setting of the teacher with which it is compared."""

    student: Setting
    teacher: Setting
    lines: tuple[ScoreDifference, ...]

    @property
    def title(self) -> str:
        return f"{self.student.title}, against {self.teacher.title}"

    @property
    def counts(self) -> str:
        """The number of scores of each verdict, as text."""
        verdicts = [line.verdict for line in self.lines]
        found = {verdict: verdicts.count(verdict) for verdict in (BETTER, WORSE, OPEN, UNKNOWN)}
        texts = {BETTER: "clearly better", WORSE: "clearly worse", UNKNOWN: f"with {UNKNOWN}"}
        return ", ".join(f"{count} {texts.get(v, v)}" for v, count in found.items() if count)


def pairs(chosen: Sequence[Setting]) -> list[Pair]:
    """Every student (model and guidance scale) at every number of steps, fewest first, against the baseline at its most
    steps and at the same number of steps, at the student's guidance scale where there is one."""
    students = [s for s in chosen if s.kind == "student"]
    fewest: dict[tuple[str, float], int] = {}
    for s in students:
        name = s.model, s.guidance
        fewest[name] = min(s.steps, fewest.get(name, s.steps))

    def is_first(s: Setting) -> bool:
        return s.steps == fewest[s.model, s.guidance]

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
    own = [s for s in teachers if s.guidance == student.guidance]
    own = own or [s for s in teachers if s.guidance == best.guidance]
    most = max(own, key=lambda s: s.steps)
    return [most, *(s for s in own if s.steps == student.steps and s is not most)]


def pairing_rule(chosen: Sequence[Setting]) -> str:
    """The rule by which settings were paired, as text: the baseline's name, the guidance scales, the seeds."""
    best = strongest(chosen)
    if best is None:
        return ""
    teachers = _baseline(chosen)
    name = best.name
    others = dict.fromkeys(s.name for s in chosen if s.kind == "teacher" and s not in teachers)
    sentences = []
    if others:
        stand = "stands" if len(others) == 1 else "stand"
        sentences.append(
            f"The baseline is {name}, the first teacher named; {listed(others)} {stand} in the tables and charts "
            "without differences."
        )
    scales = {s.guidance for s in teachers}
    apart: dict[str, list[float]] = {}
    for s in chosen:
        if s.kind == "student" and s.guidance not in scales:
            apart.setdefault(s.name, []).append(s.guidance)
    apart = {student: sorted(set(values)) for student, values in apart.items()}
    sentences.append(
        f"Every student is compared with {name} at the student's own guidance scale, at {name}’s most steps and at the "
        "student's number of steps."
    )
    if apart:
        which = listed(f"{student} at {listed(f'{v:g}' for v in values)}" for student, values in apart.items())
        sentences.append(
            f"{name} was not run at the guidance scale of {which}; it is taken at {best.guidance:g}, "
            f"{_why(teachers, best)}."
        )
    if seeds_differ(chosen):
        sentences.append(SEEDS_NOTE)
    return " ".join(sentences)


def strongest(chosen: Sequence[Setting]) -> Setting | None:
    """The baseline at its most steps and the guidance scale of its best first score; None without a baseline."""
    own = _baseline(chosen)
    if not own:
        return None
    many = _at_most_steps(own)
    metric = _first_score(many)
    if metric is None:
        return many[0]
    sign = 1.0 if metric.better == "lower" else -1.0
    return min(many, key=lambda s: sign * s.mean[metric.key])


def _baseline(chosen: Sequence[Setting]) -> list[Setting]:
    """All settings of the first teacher."""
    teachers = [s for s in chosen if s.kind == "teacher"]
    return [s for s in teachers if s.model == teachers[0].model]


def _at_most_steps(own: Sequence[Setting]) -> list[Setting]:
    return [s for s in own if s.steps == max(o.steps for o in own)]


def _first_score(many: Sequence[Setting]) -> Metric | None:
    """The first score with a direction that all have."""
    shared = [m for m in metrics_of(many[0].mean) if all(m.key in s.mean for s in many)]
    return next((m for m in shared if m.better is not None), None)


def _why(teachers: Sequence[Setting], best: Setting) -> str:
    many = _at_most_steps(teachers)
    metric = _first_score(many)
    if len({s.guidance for s in teachers}) == 1:
        return "the only scale there is"
    if len(many) == 1 or metric is None:
        return "the scale of its most steps"
    return f"the best by {metric.label} at {best.steps} step{'s' * (best.steps != 1)}"


def pair_table(pair: Pair) -> Table:
    """A table with one line per score: difference, interval, p-value, kind of pairs, and verdict."""
    return Table(
        columns=("Score", "Difference", "95 % interval", "p", "Paired over", "The student is"),
        rows=tuple(_row(line) for line in pair.lines),
    )


def _pair(student: Setting, teacher: Setting) -> Pair:
    both = [key for key in student.mean if key in teacher.mean]
    lines = tuple(
        ScoreDifference(metric=m, found=difference(student, teacher, m.key))
        for m in metrics_of(both)
        if m.better is not None
    )
    return Pair(student=student, teacher=teacher, lines=lines)


def _row(line: ScoreDifference) -> TableRow:
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
    """A p-value with three digits, or "< 0.001"."""
    if p_value is None:
        return NONE
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _over_clips(a: Setting, b: Setting, key: str) -> NDArray[np.float64] | None:
    """Differences per clip (clips,), averaged over the common seeds; None without per-clip values of the same clips."""
    found = []
    for seed in sorted(a.clips.keys() & b.clips.keys()):
        first, second = clip_values(a.clips[seed], key), clip_values(b.clips[seed], key)
        if first is None or second is None or first.keys() != second.keys():
            return None
        found.append([first[i] - second[i] for i in sorted(first)])
    return np.mean(found, axis=0) if found else None


def _over_groups(a: Setting, b: Setting, key: str) -> Jackknife | None:
    """The difference with its replicates, averaged over the common seeds; None where groups or clips differ."""
    found = []
    for seed in sorted(a.rows.keys() & b.rows.keys()):
        rows = a.rows[seed], b.rows[seed]
        sides = [(row, row.estimates[key]) for row in rows if key in row.estimates]
        if len(sides) < 2 or rows[0].clips_digest is None or rows[0].clips_digest != rows[1].clips_digest:
            return None
        (_, first), (_, second) = sides
        same = (first.count, first.seed, len(first.replicates)) == (second.count, second.seed, len(second.replicates))
        if not same or len(first.replicates) < 2:
            return None
        values = [
            Jackknife(value=row.metrics[key], replicates=own.replicates, counts=(own.count,), seed=own.seed)
            for row, own in sides
        ]
        found.append(values[0].minus(values[1]))
    if not found:
        return None
    return Jackknife(
        value=float(np.mean([one.value for one in found])),
        replicates=tuple(np.mean([one.replicates for one in found], axis=0).tolist()),
        counts=found[0].counts,
        seed=found[0].seed,
    )
