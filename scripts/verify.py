"""Compute cells of a comparison again from what it kept, and say where they differ.

mf-verify --rows runs/demo/rows.jsonl --cell vta student 1 0 onset_f1
mf-verify --rows runs/demo/rows.jsonl --all --data runs/demo/features

Exit status: 0 all that was computed agrees, 1 something differs, 2 wrong input or a cell nothing was kept for.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tyro

from eval.hygiene import facts_of
from eval.rows import Task
from eval.verify import Check, Kept
from eval.verify_sound import Sounds
from scripts.errors import one_line_errors

DIFFERENT = 1


@dataclass(frozen=True, kw_only=True)
class Verify:
    """One cell, or all of them."""

    rows: Path = Path("runs/demo/rows.jsonl")
    """rows.jsonl of a comparison, with clips.jsonl, embeddings/ and media/ beside it as far as they were kept."""
    cell: tuple[Task, str, int, int, str] | None = None
    """Task, model, steps, seed and metric of one cell; for a total of times "rtf video-to-audio" and the like."""
    all: bool = False
    """Every cell of every row, and that all models of a task were scored on the same clips."""
    data: Path | None = None
    """Feature folder of the comparison: checks real sound, codec round trip and the kept files from the sounds too."""
    verbose: bool = False
    """Print cells that agree as well."""


@one_line_errors
def cli() -> None:
    """Entry point of `mf-verify`."""
    args = tyro.cli(Verify, description=__doc__)
    if args.all == (args.cell is not None):
        raise ValueError("give either --cell TASK MODEL STEPS SEED METRIC or --all")
    kept = Kept.read(args.rows)
    checks = _cell(args, kept, args.cell) if args.cell is not None else _all(args, kept)
    if _told(checks, verbose=args.verbose or args.cell is not None):
        sys.exit(DIFFERENT)


def _cell(args: Verify, kept: Kept, cell: tuple[Task, str, int, int, str]) -> list[Check]:
    row = kept.row(*cell[:4])
    found = list(kept.check(row))
    if args.data is not None and row.steps == 0:
        found += [c for c in Sounds.build(kept, args.data, row.task).check_floors(row.task) if c.row is row]
    done = [c for c in found if c.name == cell[4] and c.found is not None]
    return done or kept.cell(row, cell[4])


def _all(args: Verify, kept: Kept) -> list[Check]:
    tasks = facts_of(kept.rows, args.rows)
    checks = [check for row in kept.rows for check in kept.check(row)]
    if args.data is not None:
        for task in tasks:
            sounds = Sounds.build(kept, args.data, task)
            checks += [*sounds.check_floors(task), *sounds.check_media(task)]
    computed = {(c.row.key, c.name) for c in checks if c.found is not None}
    return [c for c in checks if c.found is not None or (c.row.key, c.name) not in computed]


def _told(checks: Iterable[Check], *, verbose: bool) -> bool:
    """Print what differs, what could not be computed and the counts; whether anything differs."""
    checks = list(checks)
    computed = [c for c in checks if c.found is not None]
    differing = [c for c in computed if not c.agrees]
    for check in checks if verbose else differing:
        print(check)
    left = [c for c in checks if c.found is None]
    if left:
        names = ", ".join(sorted({c.name for c in left}))
        print(f"{len(left)} cells were not computed, as nothing was kept to compute them from: {names}")
    print(f"{len(computed)} computed again: {len(computed) - len(differing)} agree, {len(differing)} differ")
    return bool(differing)


if __name__ == "__main__":
    cli()
