"""What is said around a paper's table: a caption, a footnote as short as a reader needs, and what explains the rest."""

from collections.abc import Mapping, Sequence

from eval.paired import Setting
from eval.paper_columns import EMBEDDED, Column, is_embedded, kinds_told
from eval.report_intervals import methods_told
from eval.report_rows import means_told, unfinished
from eval.report_timing import Calls, Key, timed, timing_told
from eval.tables import TASK_TITLES, TASK_TOTALS, listed

BOLD = (
    "Bold: the best generated score, if the 95 % interval of its difference from every other, paired, leaves out zero."
)
PAIRED = "paired over clips", "paired over groups of clips"
"""Ways to find that interval which need no word of warning."""


def caption(chosen: Sequence[Setting], metrics: Sequence[Column]) -> str:
    """Task, size of the test set and kinds of scores."""
    kinds = kinds_told(metrics)
    title = f"{TASK_TITLES[chosen[0].summary.task]} on {_clips(chosen)} test clips"
    return f"{title}: {kinds}." if kinds else f"{title}."


def notes(
    chosen: Sequence[Setting], metrics: Sequence[Column], how: Mapping[str, str], calls: Mapping[Key, Calls]
) -> list[str]:
    """The footnote: clips and seeds, warning of embedded scores, rule of the bold, scope of the times.

    how: the interval behind the bold of each metric; calls: those behind the times of each setting.
    """
    summaries = [s.summary for s in chosen]
    found = [f"{_clips(chosen)} clips, {means_told(summaries)}."]
    missing = unfinished(summaries)
    if missing:
        found.append(missing)
    if any(map(is_embedded, metrics)):
        found.append(EMBEDDED)
    weak = [c for c in metrics if how[c.key] not in PAIRED and len(_having(chosen, c)) > 1]
    found.append(f"{BOLD}{''.join(f' {told}.' for told in _grouped(weak, how))}")
    if timed(chosen):
        devices = dict.fromkeys(
            row.machine.get("device", "a device not recorded") for s in timed(chosen) for row in s.rows.values()
        )
        total = TASK_TOTALS[chosen[0].summary.task]
        found.append(
            f"RTF and time: {total}, every stage included, one clip at a time, {timing_told(chosen, calls)}, "
            f"on {listed(devices)}."
        )
    return found


def details(
    chosen: Sequence[Setting], metrics: Sequence[Column], missing: Sequence[str], how: Mapping[str, str]
) -> list[str]:
    """Columns without values, by which pairs the bold was decided, how intervals and bias were found."""
    found = []
    if missing:
        found.append(f"Not computed, therefore without a column: {', '.join(missing)}.")
    found += [f"Intervals behind the bold. {'. '.join(_grouped(metrics, how))}."] if metrics else []
    methods = methods_told(chosen, {c.key: c.title[:-2] for c in metrics})
    if methods:
        found.append(f"Intervals and bias of the values. {methods}")
    return found


def _clips(chosen: Sequence[Setting]) -> str:
    return " or ".join(map(str, sorted({s.summary.num_clips for s in chosen})))


def _having(chosen: Sequence[Setting], column: Column) -> list[Setting]:
    return [s for s in chosen if column.key in s.summary.mean]


def _grouped(metrics: Sequence[Column], how: Mapping[str, str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for column in metrics:
        groups.setdefault(how[column.key], []).append(column.title[:-2])
    return [f"{', '.join(names)}: {which}" for which, names in groups.items()]
