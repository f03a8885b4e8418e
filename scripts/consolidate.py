"""Take weights out of a run: one folder that mf-sample and mf-compare accept, without what only resuming needs."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from distill.checkpoints.consolidate import Which, consolidate
from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class Consolidate:
    """Verify a checkpoint of a run, the newest by default, and write its weights for use into a new folder."""

    run: tyro.conf.Positional[Path]
    """Run folder of a teacher or a student."""
    out: Path
    """Folder to write; must not exist."""
    step: int | None = None
    """The checkpoint of this step."""
    best: bool = False
    """The checkpoint whose evaluation was best."""
    weights: str = "auto"
    """Which of its weights: model, ema-0.05 and so on; auto is the narrowest average, else the step's own."""


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Consolidate, description=__doc__)
    if args.best and args.step is not None:
        raise ValueError("--step and --best exclude each other")
    which: Which = "best" if args.best else "newest" if args.step is None else args.step
    made = consolidate(args.run, args.out, which=which, weights=args.weights)
    print(f"{made.weights} of step {made.step} of {args.run}, verified: {made.out}")


if __name__ == "__main__":
    cli()
