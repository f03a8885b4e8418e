"""The staged budgets beside the rows: what every stage costs, per model and task."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from eval.budget import Budget
from eval.budget_text import budget_table, circumstances, totals_table
from eval.rows import Task
from eval.sweep import safe_name
from eval.tables import MODEL_TITLES, Table

FILE = re.compile(r"budget-(?P<model>.+)-(?P<task>vta|tta)\.json")


@dataclass(frozen=True, kw_only=True)
class KeptBudget:
    """A budget with the task and the model it is of."""

    task: Task
    model: str
    """As in tables."""
    budget: Budget

    @property
    def told(self) -> str:
        return circumstances(self.budget)

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Stages and totals of every batch size, each with its heading."""
        for batch in self.budget.batches:
            clips = f"{batch} clip{'s' * (batch > 1)} of {self.budget.duration_s:g} s"
            what = "latency" if batch == 1 else "throughput"
            yield f"Batch {batch}: {what}, {clips}", budget_table(self.budget, batch)
            yield f"Batch {batch}: totals and what they include", totals_table(self.budget, batch)


def read_budgets(folder: Path, models: Sequence[str]) -> list[KeptBudget]:
    """budget-<model>-<task>.json of a folder in the order of `models`, of others (no longer in the rows) none.

    Raises:
        ValueError: a file of that name that is no budget, by its name.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob("budget-*.json")):
        match = FILE.fullmatch(path.name)
        if match is not None:
            found[match["model"], match["task"]] = path
    kept = []
    for model in models:
        for task in ("vta", "tta"):
            own = found.get((safe_name(model), task))
            if own is not None:
                title = MODEL_TITLES.get(model, model)
                kept.append(KeptBudget(task=cast(Task, task), model=title, budget=Budget.read(own)))
    return kept


def of_task(budgets: Iterable[KeptBudget], task: Task) -> list[KeptBudget]:
    """Those of one task."""
    return [one for one in budgets if one.task == task]
