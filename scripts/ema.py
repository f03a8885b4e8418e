"""Make an average of any width from the snapshots that a training has saved (post-hoc averaging, arXiv 2312.02696)."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import tyro

from distill.checkpoints.ema import average_name
from distill.checkpoints.posthoc import reconstruct, write_average
from scripts.errors import one_line_errors
from teacher.files import FolderLock


@dataclass(frozen=True, kw_only=True)
class Ema:
    """Average the weights of a finished or running training with a width that it did not average with."""

    run: Path
    """Run folder of a training with --loop.ema-snapshot-every above 0."""
    std: float
    """Relative width of the average; 0.1 is about the last tenth of the training."""
    step: int | None = None
    """Step at which the average ends; by default that of the last snapshot."""
    out: Path | None = None
    """File to write; by default ema-<std>.safetensors or at-<step>-ema-<std>.safetensors in the run folder. While the
    run is in training, give a path outside of it."""


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Ema, description=__doc__)
    name = average_name(args.std) if args.step is None else f"at-{args.step:07d}-{average_name(args.std)}"
    out = args.out or args.run / f"{name}.safetensors"
    # A training that writes into the folder owns its files and digests; elsewhere an average can be made beside it.
    inside = out.resolve().parent == args.run.resolve()
    with FolderLock(args.run, what="the run") if inside and args.run.is_dir() else nullcontext():
        if out.exists():
            raise FileExistsError(f"{out} exists already; give another --out, or remove it first")
        tensors, combination = reconstruct(args.run, args.std, step=args.step)
        write_average(out, args.run, args.std, tensors, step=args.step)
    print(f"{len(combination.weights)} snapshots give the profile with an error of {100 * combination.error:.2f} %")
    print(f"{out}" + (f", for --weights {name}" if args.out is None else ""))


if __name__ == "__main__":
    cli()
