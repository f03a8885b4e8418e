"""The staged budgets beside the rows: what every stage costs, per model and task.

How the times of the rows were taken: calls and threads, from the staged budgets they are of."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from eval.compare.rows import Task
from eval.compare.sweep import safe_name
from eval.report.paired import Setting
from eval.report.summary import Summary
from eval.report.tables import FEWEST_CALLS, GENERATORS, MODEL_TITLES, TASK_TOTALS, Table
from eval.speed.budget import Budget
from eval.speed.budget import Setting as Timed
from eval.speed.budget_text import budget_table, circumstances, totals_table

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


UNKNOWN = "the number of calls was not kept"
RELATIVE = 1e-6
"""By which a factor of a row may differ from that of its budget; from a later measurement it differs by more."""
Key = tuple[Task, str, int, float]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Of one setting: calls behind every median, the fewest of any stage, and threads of the processor."""

    count: int
    threads: int


def calls_of(chosen: Sequence[Setting], budgets: Sequence[KeptBudget]) -> dict[Key, Calls]:
    """By the key of a summary; a setting is left out whose budget is not there, or is of another measurement than its
    rows."""
    found = {}
    for s in chosen:
        for kept in of_task(budgets, s.summary.task):
            calls = _calls(s, kept) if kept.model == _name(s.summary) else None
            if calls is not None:
                found[s.summary.key] = calls
    return found


def timing_told(chosen: Sequence[Setting], calls: Mapping[Key, Calls]) -> str:
    """Calls and threads in words, per model where they differ; empty where nothing was timed."""
    groups: dict[str, list[str]] = {}
    for s in timed(chosen):
        told = _told(s, calls.get(s.summary.key))
        groups.setdefault(told, []).append(_name(s.summary))
    if len(groups) < 2:
        return "".join(groups)
    return "; ".join(f"{', '.join(dict.fromkeys(names))}: {told}" for told, names in groups.items())


def timing_sentence(chosen: Sequence[Setting], calls: Mapping[Key, Calls]) -> str:
    """The same as a sentence for the page, which says why nothing is marked where there are too few calls."""
    told = timing_told(chosen, calls)
    few = any((calls[s.summary.key].count if s.summary.key in calls else 0) < FEWEST_CALLS for s in timed(chosen))
    why = f" Nothing is marked as fastest: that takes {FEWEST_CALLS} calls of every setting."
    return f"Every stage: {told}.{why * few}" if told else ""


def timed(chosen: Sequence[Setting]) -> list[Setting]:
    """Settings with the total of their task."""
    return [s for s in chosen if s.summary.kind in GENERATORS and TASK_TOTALS[s.summary.task] in s.summary.rtf]


def _calls(setting: Setting, kept: KeptBudget) -> Calls | None:
    summary, budget = setting.summary, kept.budget
    asked = Timed(steps=summary.steps, guidance=summary.guidance)
    if asked not in budget.settings(1):
        return None
    total = TASK_TOTALS[summary.task]
    factor = budget.rtf(1, asked).get(total, math.nan)
    if not all(math.isclose(row.rtf.get(total, math.nan), factor, rel_tol=RELATIVE) for row in setting.rows.values()):
        return None
    return Calls(count=min(s.timing.repeats for s in budget.at(1, asked).values()), threads=budget.machine.threads)


def _told(setting: Setting, calls: Calls | None) -> str:
    threads = dict.fromkeys(row.machine.get("threads", "") for row in setting.rows.values())
    if calls is not None:
        threads = {str(calls.threads): None}
    words = " or ".join(f"{n} thread{'s' * (n != '1')}" for n in threads if n) or "threads not recorded"
    median = UNKNOWN if calls is None else f"median of {calls.count} call{'s' * (calls.count != 1)}"
    return f"{median}, {words}"


def _name(summary: Summary) -> str:
    return MODEL_TITLES.get(summary.model, summary.model)
