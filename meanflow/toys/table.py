"""The scores of a bench as Markdown, with a verdict that is computed, not written."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from meanflow.toys.bench import EULER, Score


class Cell(NamedTuple):
    """Mean over seeds and their standard deviation (0 for one seed)."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Cell":
        """Sample statistics, n - 1 in the denominator."""
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
        return cls(mean, spread)

    def ties_with(self, best: "Cell") -> bool:
        """Whether the means differ by no more than the two spreads in sum."""
        return self.mean - best.mean <= self.spread + best.spread

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.spread:.3f}" if self.spread else "")


Cells = dict[str, dict[int, Cell]]
"""By objective, by number of steps."""


def markdown(scores: Sequence[Score]) -> str:
    """One table and one verdict per problem, in the order in which problems and objectives appear."""
    if not scores:
        raise ValueError("a table needs at least one score")
    return "\n\n".join(_problem(name, [s for s in scores if s.problem == name]) for name in _names(scores, "problem"))


def verdict(scores: Sequence[Score]) -> str:
    """Which objective wins where on one problem, and whether its one step keeps up with its four."""
    cells = cell_table([s for s in scores if s.objective != EULER])
    if not cells:
        return "Nothing finished, so nothing wins."
    sentences = []
    for names, steps in _runs_of_winners(cells):
        counted = ", ".join(map(str, steps)) + (" step" if steps == [1] else " steps")
        tie = f" (within the spread: {', '.join(names[1:])})" if len(names) > 1 else ""
        sentences.append(f"At {counted} {names[0]} has the smallest error{tie}.")
    if {1, 4} <= set(all_counts(cells)):
        first, ratio = one_to_four(cells)
        sentences.append(f"The best at one step that also takes four, {first}, errs {ratio:.2f} times as much in one.")
    if EULER in (exact := cell_table([s for s in scores if s.objective == EULER])):
        sentences.append(_against_euler(cells, exact[EULER]))
    return " ".join(sentences)


def cell_table(scores: Sequence[Score]) -> Cells:
    """Means and spreads over the seeds that ended; objectives none of whose seeds did are left out."""
    table: Cells = {}
    for name in _names(scores, "objective"):
        ended = [s for s in scores if s.objective == name and s.diverged_at is None]
        if ended:
            table[name] = {n: Cell.of([s.errors[n] for s in ended]) for n in ended[0].errors}
    return table


def all_counts(cells: Cells) -> list[int]:
    """Every number of steps that some objective was judged at."""
    return sorted({n for row in cells.values() for n in row})


def one_to_four(cells: Cells) -> tuple[str, float]:
    """The objective with the smallest one-step error among those with both, and that error over its four-step error."""
    both = {name: row for name, row in cells.items() if {1, 4} <= set(row)}
    best = min(both, key=lambda name: both[name][1].mean)
    return best, both[best][1].mean / both[best][4].mean


def _problem(name: str, scores: Sequence[Score]) -> str:
    counts = sorted({n for s in scores for n in s.errors})
    titles = ["objective", *(f"{n} step" + "s" * (n > 1) for n in counts), "velocity", "CPU ms a training step"]
    lines = [f"### {name}", "", _row(titles), "|---" * len(titles) + "|"]
    cells = cell_table(scores)
    best = {n: min((row[n].mean for o, row in cells.items() if o != EULER and n in row), default=0.0) for n in counts}
    for objective in _names(scores, "objective"):
        own = [s for s in scores if s.objective == objective]
        lost = [s for s in own if s.diverged_at is not None]
        row = cells.get(objective)
        shown = [(_bold(row[n], best[n]) if n in row else "–") if row else "diverged" for n in counts]
        ended = [s.velocity_error for s in own if s.velocity_error is not None]
        seconds = sum(s.seconds_per_step for s in own) / len(own)
        shown += [str(Cell.of(ended)) if ended else "–", f"{1000 * seconds:.1f}" if seconds else ""]
        note = f" ({len(lost)} of {len(own)} seeds diverged)" if lost else ""
        lines.append(_row([objective + note, *shown]))
    return "\n".join([*lines, "", verdict(scores)])


def _runs_of_winners(cells: Cells) -> list[tuple[list[str], list[int]]]:
    """Neighbouring step counts with the same winner and the same ties, together."""
    runs: list[tuple[list[str], list[int]]] = []
    for n in all_counts(cells):
        order = sorted((name for name in cells if n in cells[name]), key=lambda name: cells[name][n].mean)
        names = [name for name in order if name == order[0] or cells[name][n].ties_with(cells[order[0]][n])]
        if runs and runs[-1][0] == names:
            runs[-1][1].append(n)
        else:
            runs.append((names, [n]))
    return runs


def _against_euler(cells: Cells, exact: dict[int, Cell]) -> str:
    beaten = [n for n in exact if min(row[n].mean for row in cells.values() if n in row) < exact[n].mean]
    if not beaten:
        return "No objective beats Euler steps of the exact velocity."
    return f"The best objective beats Euler steps of the exact velocity at {', '.join(map(str, beaten))}."


def _names(scores: Sequence[Score], kind: str) -> list[str]:
    return list(dict.fromkeys(s.objective if kind == "objective" else s.problem for s in scores))


def _bold(cell: Cell, best: float) -> str:
    return f"**{cell}**" if cell.mean == best else str(cell)


def _row(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"
