"""Extract latents and condition features: `python -m scripts.extract --data PATH --out runs/demo/features`."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from scripts.errors import one_line_errors
from teacher.data.dataset import load_codec
from teacher.data.extract import ExtractConfig, extract
from teacher.data.manifest import read_manifest


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Turn media files into latents and condition features for training."""

    data: Path
    """A manifest (.jsonl, .csv, .tsv), a folder with manifests, or a folder of media files."""
    out: Path
    """Folder for the features."""
    overwrite: bool = False
    """Remove features that are already there; without it, a rerun goes on where the last one stopped."""
    config: Annotated[ExtractConfig, tyro.conf.arg(name="")] = field(default_factory=ExtractConfig)


class _Bars:
    """One progress bar for each pass."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.desc != stage:
            self.close()
            self._bar = tqdm(total=total, desc=stage, unit="clip")
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def run(arguments: Arguments) -> None:
    """Extract and print the report."""
    begin, bars = time.perf_counter(), _Bars()
    try:
        items = read_manifest(arguments.data)
        report = extract(items, arguments.out, arguments.config, overwrite=arguments.overwrite, progress=bars)
    finally:
        bars.close()
    codec = load_codec(arguments.out)
    print(report)
    print(f"codec: {codec.latent_channels} channels at {codec.sequence.latent_rate:g} Hz, digest {codec.digest[:12]}")
    print(f"features in {arguments.out}, {time.perf_counter() - begin:.1f} s")


@one_line_errors
def cli() -> None:
    """Entry point of `mf-extract`."""
    run(tyro.cli(Arguments))


if __name__ == "__main__":
    cli()
