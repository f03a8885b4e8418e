"""The input of a report: rows, scores of clips, facts of the test set, budgets, examples, cross-check, read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, get_args

from eval.compare.hygiene import TestFacts, facts_of
from eval.compare.rows import Row, Task, read_clip_scores, read_rows
from eval.report.budgets import ModelBudget, read_budgets
from eval.report.cross_check import CrossChecked, read_cross_check
from eval.report.players import Example, read_examples
from eval.report.settings import Setting, settings


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskResults:
    """The settings, facts and files of one task."""

    task: Task
    settings: tuple[Setting, ...]
    facts: TestFacts | None = None
    """None where the ids of the clips scored are not known."""
    budgets: tuple[ModelBudget, ...] = ()
    examples: tuple[Example, ...] = ()
    cross_check: CrossChecked | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """The rows of a comparison and the contents of the files beside them."""

    path: Path
    """Of rows.jsonl."""
    rows: tuple[Row, ...]
    tasks: tuple[TaskResults, ...]
    """Tasks that have rows."""

    @classmethod
    def read(cls, rows_path: Path) -> Self:
        """Read rows.jsonl, and beside it clips.jsonl, testset.json, budget-<model>-<task>.json, examples.json and
        cross-check.json as far as they are there.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no rows, rows that do not average or were not scored on the same clips, examples whose files are
                missing, or a broken budget.
        """
        if not rows_path.exists():
            raise FileNotFoundError(f"{rows_path} does not exist; name the rows.jsonl that a comparison wrote")
        rows = read_rows(rows_path)
        if not rows:
            raise ValueError(f"{rows_path} holds no rows of results; run the comparison first")
        clips = read_clip_scores(rows_path.with_name("clips.jsonl"))
        chosen = settings(rows, clips)
        budgets = read_budgets(rows_path.parent, list(dict.fromkeys(s.model for s in chosen)))
        examples = read_examples(rows_path.with_name("examples.json"))
        check = read_cross_check(rows_path.with_name("cross-check.json"))
        facts = facts_of(rows, clips, rows_path)
        tasks = [
            TaskResults(
                task=task,
                settings=tuple(s for s in chosen if s.task == task),
                facts=facts.get(task),
                budgets=tuple(b for b in budgets if b.task == task),
                examples=tuple(e for e in examples if e.task == task),
                cross_check=check,
            )
            for task in get_args(Task)
            if any(s.task == task for s in chosen)
        ]
        return cls(path=rows_path, rows=tuple(rows), tasks=tuple(tasks))

    @property
    def metric_keys(self) -> Sequence[str]:
        """Keys of all scores that any row has."""
        return list(dict.fromkeys(key for row in self.rows for key in row.metrics))
