"""Extract latents and condition features: `python -m scripts.extract --data PATH --out runs/demo/features`.

Under `torchrun --nproc_per_node N -m scripts.extract ...` or `accelerate launch -m scripts.extract ...` the processes
divide the clips; on several machines, --out must lie on a common disk.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from distill.processes import this_process
from scripts.errors import one_line_errors
from teacher.features import store
from teacher.features.config import ExtractConfig
from teacher.features.extract import extract
from teacher.lists.manifest import Item, SkippedItem, Split, read_manifest
from teacher.lists.published import ListKind, read_list


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Turn media files into latents and condition features for training."""

    data: Path
    """A manifest (.jsonl, .csv, .tsv), a folder with manifests or of media files, or a list file of --list-kind."""
    out: Path
    """Folder for the features."""
    list_kind: ListKind | None = None
    """Read --data as the list file of a known data set; its files are searched in --media."""
    media: Path | None = None
    """Folder of the media files of a list."""
    split: Split | None = None
    """With --list-kind: extract the rows of this split; for a list without splits, the split of all its rows."""
    overwrite: bool = False
    """Remove existing features first; without it, a rerun continues where the last one stopped."""
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
    process = this_process()
    config = arguments.config
    if config.device == "auto" and torch.cuda.is_available():
        config = replace(config, device=f"cuda:{process.local_rank}")
    begin, bars = time.perf_counter(), _Bars()
    try:
        left_out: list[SkippedItem] = []
        items = _items(arguments, left_out, talk=process.main)
        report = extract(
            items,
            arguments.out,
            config,
            overwrite=arguments.overwrite,
            left_out=left_out,
            progress=bars if process.main else None,
            part=(process.rank, process.world_size),
            run=process.meeting_point if process.several else "",
        )
    finally:
        bars.close()
    if not process.main:
        return
    info = store.read_json(arguments.out / "features.json")
    rate, channels = info["sequence"]["sample_rate"], info["latent_channels"]
    print(report)
    print(f"codec: {info['codec']['name']}, {channels} channels at {rate} Hz, digest {info['codec']['digest'][:12]}")
    print(f"features in {arguments.out}, {time.perf_counter() - begin:.1f} s")


def _items(arguments: Arguments, left_out: list[SkippedItem], *, talk: bool) -> list[Item]:
    if arguments.list_kind is None:
        if arguments.media is not None or arguments.split is not None:
            raise ValueError("--media and --split belong to a list of a known data set: give --list-kind too")
        return read_manifest(arguments.data, left_out)
    if arguments.media is None:
        raise ValueError(f"--list-kind {arguments.list_kind} needs --media, the folder of the listed files")
    listed = read_list(arguments.list_kind, arguments.data, arguments.media, arguments.split)
    if talk:
        print(listed)
    return listed.items


@one_line_errors
def cli() -> None:
    """Entry point of `mf-extract`."""
    run(tyro.cli(Arguments))


if __name__ == "__main__":
    cli()
