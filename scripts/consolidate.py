"""Export the weights of a run to one folder for mf-sample and mf-compare, without the states that resuming needs."""

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
    """Take the checkpoint of this step."""
    best: bool = False
    """Take the checkpoint with the best evaluation."""
    weights: str = "auto"
    """Which weights of the checkpoint: model, ema-0.05, ...; auto takes the narrowest average, else model."""


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
