"""The rows a report is of, and over which seeds of the noise its means are."""

from collections.abc import Sequence
from pathlib import Path

from eval.rows import Row, read_rows
from eval.summary import Summary
from eval.tables import GENERATORS, listed, model_title, seeds_differ

SEEDS_NOTE = "Where two settings have different seeds, a difference is over those that both have."


def rows_of(rows_path: Path) -> list[Row]:
    """The rows of a comparison.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no rows, or a line that is none.
    """
    if not rows_path.exists():
        raise FileNotFoundError(f"{rows_path} does not exist; name the rows.jsonl that a comparison wrote")
    rows = read_rows(rows_path)
    if not rows:
        raise ValueError(f"{rows_path} holds no rows of results; run the comparison first")
    return rows


def spread_told(summaries: Sequence[Summary]) -> str:
    """What the values and deviations of a table are over; names what is missing where settings differ."""
    seeds = seeds_of(summaries)
    if len(seeds) < 2:
        return "One seed of the noise."
    if seeds_differ(summaries):
        return f"Mean ± standard deviation over as many seeds of the noise as the row says. {unfinished(summaries)}"
    return f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))} of the noise."


def means_told(summaries: Sequence[Summary]) -> str:
    """The same in the words of a footnote: the number of seeds, which a column has where it differs."""
    counts = sorted({len(s.seeds) for s in summaries if s.kind in GENERATORS})
    if not counts:
        return "no noise"
    if seeds_differ(summaries):
        return "means over seeds of the noise, as many as the column Seeds says"
    return f"means over {counts[0]} seed{'s' * (counts[0] != 1)} of the noise"


def unfinished(summaries: Sequence[Summary]) -> str:
    """Which seeds that other settings have are missing for which; empty where all have the same."""
    seeds = seeds_of(summaries)
    steps_of: dict[str, list[int]] = {}
    for s in summaries:
        steps_of.setdefault(model_title(s), []).append(s.steps)
    groups: dict[tuple[int, ...], dict[str, list[int]]] = {}
    for s in summaries:
        missing = tuple(seed for seed in seeds if seed not in s.seeds)
        if s.kind in GENERATORS and missing:
            groups.setdefault(missing, {}).setdefault(model_title(s), []).append(s.steps)
    parts = []
    for missing, models in groups.items():
        names = "; ".join(
            name if steps == steps_of[name] else f"{name} ({listed(steps)} step{'s' * (steps != [1])})"
            for name, steps in models.items()
        )
        several = len(missing) > 1
        parts.append(f"seed{'s' * several} {listed(missing)} {'are' if several else 'is'} missing for {names}")
    return f"Unfinished: {'. Also, '.join(parts)}." if parts else ""


def seeds_of(summaries: Sequence[Summary]) -> list[int]:
    """All seeds that any generated setting has."""
    return sorted({seed for s in summaries if s.kind in GENERATORS for seed in s.seeds})
