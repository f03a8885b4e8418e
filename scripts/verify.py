"""Recompute cells of a comparison from its stored features, and report where they differ.

mf-verify --rows runs/demo/rows.jsonl --cell vta student 1 0 onset_f1
mf-verify --rows runs/demo/rows.jsonl --all --data runs/demo/features
mf-verify --rows runs/demo/rows.jsonl --cross-check

Cells are metrics, their intervals and biases ("kl low", "kl high", "frechet bias") and totals of times
("rtf video-to-audio"). --cross-check has torch-fidelity compute FD, KAD and the inception score of every row from the
stored features, and writes cross-check.json beside the rows. Exit status: 0 all that was computed agrees, 1 something
differs, 2 wrong input or a cell for which no features are stored.
"""

import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from eval.compare.cross_check import PACKAGE, cross_checks, write_cross_checks
from eval.compare.hygiene import facts_of
from eval.compare.rows import Row, Task, changed_lines
from eval.compare.verify import Check, ComparisonFiles, RebuiltTestSet
from eval.features.published_models import PublishedModels
from scripts.errors import one_line_errors
from teacher.features.dataset import FeatureSet

DIFFERENT = 1


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Recompute one cell, or all cells, of a comparison."""

    rows: Path = Path("runs/demo/rows.jsonl")
    """rows.jsonl of a comparison; clips.jsonl, embeddings/ and media/ are read from the same folder, if stored."""
    cell: tuple[Task, str, int, int, str] | None = None
    """Task, model, steps, seed and metric of one cell. The metric may be the end of an interval ("kl low"), a bias
    ("frechet bias") or a total of times ("rtf video-to-audio")."""
    guidance: float | None = None
    """Guidance scale of the row of --cell, if the model was run with several."""
    all: bool = False
    """Check every cell of every row, and that all models of a task were scored on the same clips."""
    cross_check: bool = False
    """Also compute FD, KAD and inception score of every row with torch-fidelity; written to cross-check.json."""
    data: Path | None = None
    """Feature folder of the comparison: recompute real sound, codec round trip and stored features from the sounds."""
    judges: PublishedModels = field(default_factory=PublishedModels)
    """Weight files of the published models whose scores are recomputed from the sounds; needs --data."""
    device: str = "cpu"
    """Device of the published models."""
    verbose: bool = False
    """Print cells that agree as well."""


@one_line_errors
def cli() -> None:
    """Entry point of `mf-verify`."""
    args = tyro.cli(Verify, description=__doc__)
    if [args.all, args.cell is not None, args.cross_check].count(True) != 1:
        raise ValueError("give exactly one of --cell TASK MODEL STEPS SEED METRIC, --all and --cross-check")
    if args.guidance is not None and args.cell is None:
        raise ValueError("--guidance selects the row of a --cell; --all checks every row, so leave it out")
    if args.data is None and args.judges != PublishedModels():
        raise ValueError("--judges.* need --data: published models are computed from the sounds")
    files = ComparisonFiles.read(args.rows)
    if args.cross_check:
        sys.exit(DIFFERENT if _cross_checked(files) else 0)
    checks = _cell(args, files, args.cell) if args.cell is not None else _all(args, files)
    different = _print_checks(checks, verbose=args.verbose or args.cell is not None)
    for path in (args.rows, args.rows.with_name("clips.jsonl")) if args.all else ():
        for number in changed_lines(path):
            different = True
            print(f"{path}, line {number} is not as the comparison wrote it")
    if different:
        sys.exit(DIFFERENT)


def _cross_checked(files: ComparisonFiles) -> bool:
    """Print both values of every metric and write cross-check.json; returns whether any differ."""
    checks = []
    for check in cross_checks(files.rows_path, files.rows):
        print(check, flush=True)
        checks.append(check)
    if not checks:
        raise ValueError(f"{files.rows_path.parent / 'embeddings'} holds no features of these rows")
    path = write_cross_checks(files.rows_path, checks)
    differing = sum(not check.agrees for check in checks)
    print(f"{len(checks)} computed by {PACKAGE} too: {len(checks) - differing} agree, {differing} differ; {path}")
    return differing > 0


def _cell(args: Verify, files: ComparisonFiles, cell: tuple[Task, str, int, int, str]) -> list[Check]:
    task, model, steps, seed, name = cell
    row = files.row(task, model, steps, seed, args.guidance)
    floors = [check for check in _floors_of(args, files, row) if check.name == name]
    done = [check for check in (*files.check(row, only=name), *floors) if check.found is not None]
    return done or files.cell(row, name)


def _floors_of(args: Verify, files: ComparisonFiles, row: Row) -> list[Check]:
    if args.data is None or row.steps:
        return []
    with tempfile.TemporaryDirectory() as cache:
        return [c for c in _sounds(args, files, row.task, Path(cache)).check_floors(row.task) if c.row is row]


def _all(args: Verify, files: ComparisonFiles) -> list[Check]:
    tasks = facts_of(files.rows, files.clips, args.rows)
    checks = [check for row in files.rows for check in files.check(row)]
    if args.data is not None:
        for task in tasks:
            with tempfile.TemporaryDirectory() as cache:
                sounds = _sounds(args, files, task, Path(cache))
                checks += [*sounds.check_floors(task), *sounds.check_media(task)]
    computed = {(c.row.key, c.name) for c in checks if c.found is not None}
    return [c for c in checks if c.found is not None or (c.row.key, c.name) not in computed]


def _sounds(args: Verify, files: ComparisonFiles, task: Task, cache: Path) -> RebuiltTestSet:
    """The sounds of a task and the published models that were given; `cache` takes the features of pictures."""
    assert args.data is not None
    duration_s = FeatureSet.open(args.data, "test").duration_s
    sources, clip_scorers = args.judges.load(duration_s=duration_s, device=args.device, cache=cache)
    return RebuiltTestSet.build(files, args.data, task, sources=sources, clip_scorers=clip_scorers)


def _print_checks(checks: Iterable[Check], *, verbose: bool) -> bool:
    """Print the differing cells, those that could not be computed, and the counts; returns whether any differ."""
    checks = list(checks)
    computed = [c for c in checks if c.found is not None]
    differing = [c for c in computed if not c.agrees]
    for check in checks if verbose else differing:
        print(check)
    left = [c for c in checks if c.found is None]
    if left:
        names = ", ".join(sorted({c.name for c in left}))
        print(f"{len(left)} cells were not computed, because no features are stored for them: {names}")
    print(f"{len(computed)} computed again: {len(computed) - len(differing)} agree, {len(differing)} differ")
    return bool(differing)


if __name__ == "__main__":
    cli()
