"""Tables and sentences for documents about one comparison repeated after several trainings with other seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from eval.compare.rows import Row, Task, read_rows
from eval.ledger import NumberTable, record
from eval.report.settings import TASK_TITLES, TASK_TOTALS, Setting, settings

QUOTED_SCORES: Mapping[str, tuple[str, str]] = {
    "frechet": ("FD ↓", ".1f"), "kl": ("KL ↓", ".2f"), "inception_score": ("IS ↑", ".2f"),
    "onset_f1": ("onset F1 ↑", ".3f"),
}  # fmt: skip
"""Scores that documents quote, with their titles and formats."""
ROW_FIELDS = (
    "task", "model", "kind", "steps", "seed", "nfe", "guidance", "num_clips", "metrics", "rtf", "config_digest",
)  # fmt: skip
"""What the ledger holds of a row."""


def over_trainings(trainings: Sequence[Sequence[Row]], task: Task) -> NumberTable:
    """Results of the same comparison after trainings with other seeds: one line per model, steps and guidance.

    Means and sample standard deviations go over noise seeds and trainings together; the column behind FD has the mean
    over noise seeds of each training, in the order given. Real-time factors are medians over all rows.

    Raises:
        ValueError: trainings that were not compared at the same settings.
    """
    by_training = [{s.key: s for s in settings(rows) if s.task == task} for rows in trainings]
    if any(set(found) != set(by_training[0]) for found in by_training):
        raise ValueError("all trainings must have been compared at the same steps and guidance scales")
    pooled = {s.key: s for s in settings(_renumbered(trainings)) if s.task == task}
    shown = [name for name in QUOTED_SCORES if any(name in s.mean for s in pooled.values())]
    scope = TASK_TOTALS[task]
    lines = []
    for key in by_training[0]:
        whole, parts = pooled[key], [found[key] for found in by_training]
        scores: list[object] = []
        for name in shown:
            value, spread = whole.mean.get(name), whole.std.get(name)
            real = whole.kind in ("codec", "reference")  # neither trained nor drawn from noise
            scores.append(value if value is None or spread is None or real else [value, spread])
            if name == "frechet":
                scores.append("" if real else " / ".join(f"{part.mean[name]:.1f}" for part in parts))
        model = {"codec": "codec round trip", "reference": "other real clips"}.get(whole.kind, whole.model)
        scale = f"{whole.guidance:g}" if whole.steps else ""
        times = [whole.rtf.get("flow network"), whole.rtf.get(scope)]
        lines.append((model, whole.steps or None, scale, whole.nfe or None, *scores, *times))
    columns = [column for name in shown for column in _columns(name)]
    return NumberTable(
        columns=(
            *("model", "steps", "guidance", "evaluations"),
            *(title for title, _ in columns),
            *("RTF, flow network", f"RTF, {scope}"),
        ),
        formats=("", "d", "", "d", *(digits for _, digits in columns), ".4f", ".4f"),
        rows=tuple(lines),
    )


def _columns(name: str) -> list[tuple[str, str]]:
    """Title and format of the column of a score; behind FD that of every training by itself."""
    return [QUOTED_SCORES[name], *([("FD by training", "")] if name == "frechet" else [])]


def _renumbered(trainings: Sequence[Sequence[Row]]) -> list[Row]:
    """All rows, with noise seeds that differ between trainings."""
    return [replace(row, seed=1_000_000 * k + row.seed) for k, rows in enumerate(trainings) for row in rows]


def what_one_step_is_worth(trainings: Sequence[Sequence[Row]], task: Task) -> str:
    """Sentences about the student's one step beside the teacher's steps, computed: ratios of FD, training by training.

    The sentences state which is better in either case; empty where teacher or student is missing.
    """
    found: list[dict[tuple[str, int], Setting]] = []
    for rows in trainings:
        kinds = {(s.kind, s.steps): s for s in settings(rows) if s.task == task and "frechet" in s.mean}
        found.append({(kind, steps): s for (kind, steps), s in kinds.items() if kind in ("teacher", "student")})
    steps = sorted({n for one in found for kind, n in one if kind == "teacher"})
    if not steps or any(("student", 1) not in one for one in found):
        return ""

    def ratios(n: int) -> list[float]:
        return [one["student", 1].mean["frechet"] / one["teacher", n].mean["frechet"] for one in found]

    quoted = sorted({*steps[:2], steps[-1]})
    ratio_words = [f"{' and '.join(f'{r:.2f}' for r in ratios(n))} times that of the teacher's {n}" for n in quoted]
    student = found[0]["student", 1]
    better = [n for n in steps if all(r > 1 for r in ratios(n))]
    worse = [n for n in steps if all(r < 1 for r in ratios(n))]
    text = (
        f"{TASK_TITLES[task]}: the student's one step ({student.nfe} evaluation{'s' * (student.nfe > 1)}) has an FD "
        f"{', '.join(ratio_words)} steps, by training. "
    )
    if better:
        text += f"The teacher is better in every training at {', '.join(map(str, better))} steps"
        first = found[0]["teacher", better[0]]
        text += f" ({first.nfe} evaluations at {better[0]}). "
    if worse:
        text += f"The student is better in every training than the teacher at {', '.join(map(str, worse))} steps. "
    return text.replace("at 1 steps", "at 1 step").strip()


def record_trainings(
    path: Path, folders: Mapping[int, Path], *, noise_seeds: Sequence[int], seconds: Sequence[tuple[str, float]]
) -> None:
    """Write an entry of the ledger about trainings that were compared: tables, raw rows, and the time of every command.

    `folders` has by the seed of each training the folder with its rows.jsonl, `seconds` what each command took. There
    is one table for each task, with a text on what one step is worth.
    """
    trainings = [read_rows(folder / "rows.jsonl") for folder in folders.values()]
    tasks = dict.fromkeys(row.task for row in trainings[0])
    tables: dict[str, NumberTable] = {task: over_trainings(trainings, task) for task in tasks}
    total = ("in all", sum(taken for _, taken in seconds))
    tables["times"] = NumberTable(columns=("command", "seconds"), formats=("", ".0f"), rows=(*seconds, total))
    raw = [
        {"training": seed} | {name: value for name, value in asdict(row).items() if name in ROW_FIELDS}
        for seed, rows in zip(folders, trainings, strict=True)
        for row in rows
    ]
    text = {f"{task}-worth": what_one_step_is_worth(trainings, task) for task in tasks}
    record(path, tables=tables, text=text, rows=raw, seeds={"training": tuple(folders), "noise": tuple(noise_seeds)})
