"""cross-check.json, which `mf-verify --cross-check` writes: metrics computed a second time by another package.

{"package": "torch-fidelity 0.4.0", "rows": [{"task", "model", "steps", "guidance", "seed", "metric",
                                              "ours", "theirs"}, ...]}
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.compare.rows import Task
from eval.metrics import metric, metrics_of
from eval.report.blocks import Cell, Table, TableRow
from eval.report.settings import Setting, SettingKey
from eval.report.tables import NONE, significant


@dataclass(frozen=True, kw_only=True)
class CheckedValue:
    """One metric of one row, computed twice."""

    task: Task
    model: str
    steps: int
    guidance: float
    seed: int
    metric: str
    """Its key in the row."""
    ours: float
    theirs: float

    @property
    def key(self) -> SettingKey:
        """Of its setting."""
        return self.task, self.model, self.steps, self.guidance

    @property
    def difference(self) -> float:
        """|ours - theirs|."""
        return abs(self.ours - self.theirs)


@dataclass(frozen=True, kw_only=True)
class CrossChecked:
    """The metrics that another package computed a second time."""

    package: str
    """Name and version."""
    rows: tuple[CheckedValue, ...]

    def table(self, chosen: Sequence[Setting]) -> Table | None:
        """A table with one line per metric of the settings of one task: how many values were computed twice, and the
        pair that differs most. Values that the rows no longer have are left out; None where nothing remains."""
        settings = {s.key: s for s in chosen}
        own = [r for r in self.rows if r.key in settings and _is_current(r, settings[r.key])]
        lines = []
        for found in metrics_of(r.metric for r in own):
            values = [r for r in own if r.metric == found.key]
            worst = max(values, key=lambda r: r.difference)
            place = f"{settings[worst.key].title}, seed {worst.seed}"
            if not settings[worst.key].generated:
                place = settings[worst.key].name
            texts = (
                str(len(values)),
                f"{worst.ours:.6g}",
                f"{worst.theirs:.6g}",
                significant(worst.difference) if worst.difference else "0",
                place if worst.difference else NONE,
            )
            lines.append(TableRow(model=metric(found.key).label, cells=tuple(Cell(text=text) for text in texts)))
        if not lines:
            return None
        columns = ("Score", "Values", "Ours", self.package, "Largest difference", "In")
        return Table(columns=columns, rows=tuple(lines))


def read_cross_check(path: Path) -> CrossChecked | None:
    """The file's content; None where there is no such file.

    Raises:
        ValueError: not such a file, by its name.
    """
    if not path.exists():
        return None
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(CheckedValue(**{**row, "ours": float(row["ours"]), "theirs": float(row["theirs"])})
                     for row in plain["rows"])  # fmt: skip
        return CrossChecked(package=str(plain["package"]), rows=rows)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is not a cross-check: {error!r}") from error


def _is_current(value: CheckedValue, setting: Setting) -> bool:
    """Whether our value is that of the row today; a comparison that was run again may have replaced it."""
    row = setting.rows.get(value.seed)
    return row is not None and row.metrics.get(value.metric) == value.ours
