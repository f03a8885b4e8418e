"""Staged budgets: what every stage costs, as blocks of a report, and how the times of the rows were taken (calls and
threads), as far as the budgets they come from lie beside the rows."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from eval.compare.rows import Task, safe_name
from eval.report.blocks import Block, Cell, Fold, Heading, Paragraph, Table, TableRow, markdown
from eval.report.settings import MODEL_TITLES, TASK_TOTALS, Setting, SettingKey
from eval.report.tables import FEWEST_CALLS, NONE, significant
from eval.speed.budget import SCOPES, Budget, StageBudget, Total
from eval.speed.budget import Setting as BudgetSetting

FILE = re.compile(r"budget-(?P<model>.+)-(?P<task>vta|tta)\.json")
UNKNOWN = "the number of calls was not recorded"
RELATIVE = 1e-6
"""Largest relative difference between a real-time factor of a row and that of its budget, if both are of one
measurement."""
READING = (
    "RTF: wall time over the duration of the sound made; below 1 is faster than real time. Floor: the least time that "
    "the machine's own measured rates allow, max(FLOP / rate of a large product, bytes / rate of streaming), with "
    "weights and inputs read once for every operator that reads them, results written, and nothing in between leaving "
    "the chip. Efficiency: floor / median; above 100 % where a cache held what was taken to come from memory. "
    "MB eager: what moves when every operator reads and writes memory. FLOP: matrix products, convolutions and "
    "attention, 2 per multiply-add; nothing element-wise and no FFT, so the floor of Griffin-Lim is too low. "
    "Totals are sums of the stages' medians. Not included anywhere: loading weights, writing files, drawing noise."
)


@dataclass(frozen=True, kw_only=True)
class ModelBudget:
    """A budget with its task and its model."""

    task: Task
    model: str
    """Its name in the rows."""
    budget: Budget

    @property
    def block(self) -> Fold:
        """The whole budget, as a block that the page opens with a click."""
        inside = [Paragraph(circumstances(self.budget))]
        parts = (part for batch in self.budget.batches for part in _batch_blocks(self.budget, batch))
        return Fold(title=f"Staged budget of {MODEL_TITLES.get(self.model, self.model)}", blocks=(*inside, *parts))


@dataclass(frozen=True, kw_only=True)
class Calls:
    """How the times of one setting were measured: calls and threads."""

    count: int
    """Number of calls behind every median; the fewest of any stage."""
    threads: int
    """Of the processor."""


def read_budgets(folder: Path, models: Sequence[str]) -> list[ModelBudget]:
    """The files budget-<model>-<task>.json of a folder in the order of `models`; those of other models, which are no
    longer in the rows, are left out.

    Raises:
        ValueError: a file of that name that is no budget, by its name.
    """
    paths: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob("budget-*.json")):
        match = FILE.fullmatch(path.name)
        if match is not None:
            paths[match["model"], match["task"]] = path
    found = []
    for model in models:
        for task in ("vta", "tta"):
            own = paths.get((safe_name(model), task))
            if own is not None:
                found.append(ModelBudget(task=cast(Task, task), model=model, budget=Budget.read(own)))
    return found


def calls_of(chosen: Sequence[Setting], budgets: Sequence[ModelBudget]) -> dict[SettingKey, Calls]:
    """Calls and threads of the times of each setting, by its key. Settings are left out that have no budget, or one
    of another measurement than their rows."""
    found = {}
    for s in chosen:
        for own in budgets:
            calls = _calls(s, own.budget) if (own.task, own.model) == (s.task, s.model) else None
            if calls is not None:
                found[s.key] = calls
    return found


def timing_text(chosen: Sequence[Setting], calls: Mapping[SettingKey, Calls]) -> str:
    """Calls and threads as text, per model where they differ; empty where nothing was timed."""
    groups: dict[str, list[str]] = {}
    for s in timed(chosen):
        groups.setdefault(_timing(s, calls.get(s.key)), []).append(s.name)
    if len(groups) < 2:
        return "".join(groups)
    return "; ".join(f"{', '.join(dict.fromkeys(names))}: {timing}" for timing, names in groups.items())


def timing_sentence(chosen: Sequence[Setting], calls: Mapping[SettingKey, Calls]) -> str:
    """`timing_text` as a sentence, with the reason where nothing is marked because there are too few calls."""
    text = timing_text(chosen, calls)
    few = any((calls[s.key].count if s.key in calls else 0) < FEWEST_CALLS for s in timed(chosen))
    why = f" Nothing is marked as fastest: that takes {FEWEST_CALLS} calls of every setting."
    return f"Every stage: {text}.{why * few}" if text else ""


def timed(chosen: Sequence[Setting]) -> list[Setting]:
    """The settings that have a time for the total of their task."""
    return [s for s in chosen if s.generated and TASK_TOTALS[s.task] in s.rtf]


def budget_table(budget: Budget, batch: int) -> Table:
    """A table of stages, with a line of the flow network per setting. ValueError for a batch size not measured."""
    chosen = [s for s in budget.stages if s.batch == batch]
    if not chosen:
        raise ValueError(f"batch must be one of {', '.join(map(str, budget.batches))}, got {batch}")
    columns = (
        "Stage", "GFLOP", "MB at least", "MB eager", "Operators", "Floor ms", "Median ms", "p10–p90 ms", "Efficiency"
    )  # fmt: skip
    rows = tuple(TableRow(model=_named(s), cells=_stage_cells(budget, s)) for s in chosen)
    return Table(columns=(*columns, _rate_title(batch)), rows=rows)


def totals_table(budget: Budget, batch: int) -> Table:
    """A table with one line per total and setting, which states what the total includes."""
    rows = tuple(
        TableRow(model=total.name, cells=_total_cells(budget, total, batch, setting))
        for setting in budget.settings(batch)
        for total in budget.totals(batch, setting)
    )
    columns = ("Total", "Steps", "Guidance", "Floor ms", "Median ms", "Efficiency", _rate_title(batch), "Includes")
    return Table(columns=columns, rows=rows)


def budget_markdown(budget: Budget) -> str:
    """The whole budget in Markdown: machine and software, the tables of every batch size, how to read them."""
    blocks: list[Block] = [Heading(text=f"Staged budget: {budget.name}", level=1), Paragraph(circumstances(budget))]
    for batch in budget.batches:
        blocks += [Heading(text=_batch_title(budget, batch), level=2)]
        blocks += [budget_table(budget, batch), totals_table(budget, batch)]
    blocks.append(Paragraph(READING))
    command = f"\n\n`{' '.join(budget.command.replace('`', ' ').split())}`" if budget.command else ""
    return f"{markdown(blocks)}{command}\n"


def batch_markdown(budget: Budget, batch: int) -> str:
    """The tables of stages and totals of one batch size in Markdown."""
    return markdown([budget_table(budget, batch), totals_table(budget, batch)])


def circumstances(budget: Budget) -> str:
    """Sentences about machine, software, precision, rates and calls, on which the times depend."""
    m, first = budget.machine, budget.stages[0].timing
    rates = "; ".join(
        f"{r.dtype}: {r.flops_per_s / 1e9:.4g} GFLOP/s, {r.bytes_per_s / 1e9:.3g} GB/s" for r in budget.rooflines
    )
    longest = max(budget.stages, key=lambda s: s.timing.warmup_s)
    peaks = [s.peak_bytes for s in budget.stages if s.peak_bytes is not None]
    sentences = [
        f"{m.device}, {m.threads} thread{'s' if m.threads > 1 else ''}, torch {m.torch_version}"
        + (f", CUDA {budget.cuda}" if budget.cuda else ""),
        f"network in {m.dtype}, encoders and decoders in float32; TF32 {budget.tf32}; "
        f"{'compiled' if budget.compiled else 'eager, not compiled'}; "
        f"attention: {', '.join(budget.attention) or 'none counted'}",
        f"measured rates: {rates}",
        f"{first.repeats} timed calls a stage after {first.warmup} of warm-up and one that was counted; the longest "
        f"warm-up took {longest.timing.warmup_s:.3g} s ({longest.stage}, batch {longest.batch})",
        *([f"peak memory {max(peaks) / 2**30:.3g} GiB"] if peaks else []),
    ]
    return ". ".join(s[0].upper() + s[1:] for s in sentences) + "."


def _batch_title(budget: Budget, batch: int) -> str:
    clips = f"{batch} clip{'s' * (batch > 1)} of {budget.duration_s:g} s"
    return f"Batch {batch}: {'latency' if batch == 1 else 'throughput'}, {clips}"


def _batch_blocks(budget: Budget, batch: int) -> Iterator[Block]:
    """Stages and totals of one batch size, each with its heading."""
    yield Heading(text=_batch_title(budget, batch), level=4)
    yield budget_table(budget, batch)
    yield Heading(text=f"Batch {batch}: totals and what they include", level=4)
    yield totals_table(budget, batch)


def _calls(setting: Setting, budget: Budget) -> Calls | None:
    asked = BudgetSetting(steps=setting.steps, guidance=setting.guidance)
    if asked not in budget.settings(1):
        return None
    total = TASK_TOTALS[setting.task]
    factor = budget.rtf(1, asked).get(total, math.nan)
    if not all(math.isclose(row.rtf.get(total, math.nan), factor, rel_tol=RELATIVE) for row in setting.rows.values()):
        return None
    return Calls(count=min(s.timing.repeats for s in budget.at(1, asked).values()), threads=budget.machine.threads)


def _timing(setting: Setting, calls: Calls | None) -> str:
    threads = dict.fromkeys(row.machine.get("threads", "") for row in setting.rows.values())
    if calls is not None:
        threads = {str(calls.threads): None}
    text = " or ".join(f"{n} thread{'s' * (n != '1')}" for n in threads if n) or "threads not recorded"
    median = UNKNOWN if calls is None else f"median of {calls.count} call{'s' * (calls.count != 1)}"
    return f"{median}, {text}"


def _named(stage: StageBudget) -> str:
    if stage.setting is None:
        return stage.stage
    steps, evaluations = stage.setting.steps, stage.evaluations
    guided = "off" if stage.setting.guidance == 1.0 else f"{stage.setting.guidance:g}"
    return f"{stage.stage}: {steps} step{'s' if steps > 1 else ''}, guidance {guided}, NFE {evaluations}"


def _stage_cells(budget: Budget, stage: StageBudget) -> tuple[Cell, ...]:
    cost, time, floor_s, efficiency = stage.cost, stage.timing, budget.floor_s(stage), budget.efficiency(stage)
    counts = (NONE,) * 4
    if cost is not None:
        counts = (_plain(cost.flops / 1e9), _mega(cost.bytes), _mega(cost.traffic), str(cost.operators))
    texts = (
        *counts,
        NONE if floor_s is None else _ms(floor_s),
        _ms(time.median_s),
        f"{_ms(time.p10_s)}–{_ms(time.p90_s)}",
        NONE if efficiency is None else _percent(efficiency),
        _rate(budget, time.median_s, stage.batch),
    )
    return tuple(Cell(text=text) for text in texts)


def _total_cells(budget: Budget, total: Total, batch: int, setting: BudgetSetting) -> tuple[Cell, ...]:
    without = f" (without {', '.join(total.uncounted)})" if total.uncounted else ""
    texts = (
        str(setting.steps),
        "off" if setting.guidance == 1.0 else f"{setting.guidance:g}",
        _ms(total.floor_s) + without,
        _ms(total.median_s),
        NONE if total.uncounted else _percent(total.floor_s / total.median_s),
        _rate(budget, total.median_s, batch),
        SCOPES[total.name],
    )
    return tuple(Cell(text=text) for text in texts)


def _rate_title(batch: int) -> str:
    return "RTF" if batch == 1 else "s of audio per s"


def _rate(budget: Budget, median_s: float, batch: int) -> str:
    """RTF of one clip; throughput of several, which is no latency."""
    made_s = batch * budget.duration_s
    return significant(median_s / made_s if batch == 1 else made_s / median_s)


def _ms(seconds: float) -> str:
    return _plain(1e3 * seconds)


def _mega(count: int) -> str:
    return _plain(count / 1e6)


def _plain(value: float) -> str:
    """Three significant digits, whole numbers above 100."""
    return f"{value:.0f}" if value >= 100 else significant(value)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"
