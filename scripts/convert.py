"""Official checkpoints into a run folder: `mf-convert small_16k --weights-dir weights`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from scripts.errors import one_line_errors
from teacher.weights.convert import convert_file, make_run


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn official files (.pth, .pt, .bin or safetensors) into components, and a published variant into a run folder.

    Checkpoints are read as tensors only: a file that asks for code is refused, and nothing is run.
    """

    variant: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[VARIANT]")] = None
    """Published variant whose files lie in the weights folder; makes its run folder."""
    weights_dir: Path = Path("weights")
    """Folder of the official files and of the components made from them."""
    out: Path | None = None
    """Run folder; runs/mmaudio-VARIANT unless given."""
    file: Path | None = None
    """One official file, wherever it lies, to become a component in the weights folder."""
    component: str | None = None
    """Component that --file holds; by default it is recognised by the names and shapes of its tensors."""
    strict_digest: bool = False
    """Refuse files whose md5 is not the published one, instead of warning."""


class _Bars:
    """A progress bar for each component."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def of(self, component: str) -> Callable[[int, int], None]:
        def update(done: int, total: int) -> None:
            if self._bar is None or self._bar.desc != component:
                self.close()
                self._bar = tqdm(total=total, desc=component, unit="B", unit_scale=True, unit_divisor=1024)
            self._bar.update(done - self._bar.n)

        return update

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def run(arguments: Convert) -> None:
    """Convert and print what was made."""
    if (arguments.variant is None) == (arguments.file is None):
        raise ValueError("give a published variant (such as small_16k) or --file, one of the two")
    if arguments.variant is not None and arguments.component is not None:
        raise ValueError("--component needs --file; the components of a variant are fixed")
    if arguments.file is not None and arguments.out is not None:
        raise ValueError("--out needs a variant; --file writes into --weights-dir")
    bars = _Bars()
    try:
        if arguments.file is not None:
            made = convert_file(
                arguments.file,
                arguments.weights_dir,
                component=arguments.component,
                strict_digest=arguments.strict_digest,
                report=_report,
                progress=bars.of(arguments.component or arguments.file.name),
            )
            print(made)
        elif arguments.variant is not None:
            out = arguments.out or Path("runs") / f"mmaudio-{arguments.variant.replace('_', '-')}"
            made_run = make_run(
                arguments.variant,
                arguments.weights_dir,
                out,
                strict_digest=arguments.strict_digest,
                report=_report,
                progress=bars.of,
            )
            print(made_run)
    finally:
        bars.close()


def _report(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


@one_line_errors
def cli() -> None:
    """Entry point of `mf-convert`."""
    run(tyro.cli(Convert))


if __name__ == "__main__":
    cli()
