"""Render the procedural audio-visual world: MP4 clips with exact event times, captions and splits."""

import dataclasses
import time
from collections import Counter
from pathlib import Path

import tyro
from tqdm import tqdm

from scripts.errors import one_line_errors
from teacher.files import FolderLock
from teacher.lists.manifest import read_manifest
from teacher.world.render import WorldConfig, render_world


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeWorld:
    """Render the procedural audio-visual world: MP4 clips with exact event times, captions and splits.

    Existing clips are reused, so the same command continues an interrupted run or enlarges a smaller one.
    """

    out: Path
    """Folder to write: clips/, manifest.jsonl and world.json."""
    world: tyro.conf.OmitArgPrefixes[WorldConfig] = dataclasses.field(default_factory=WorldConfig)
    workers: int = 2
    """Number of processes that render; below 2, the main process does."""


def main(options: MakeWorld) -> Path:
    """Render and print what was written; returns the manifest."""
    began = time.perf_counter()
    bars = tqdm(total=options.world.num_clips, unit="clip", desc="render")
    with FolderLock(options.out, what="the folder of clips"), bars as bar:
        manifest = render_world(options.out, options.world, workers=options.workers, progress=bar.update)
    items = read_manifest(manifest)
    splits = Counter(item.split for item in items)
    events = sum(len(item.events_s or ()) for item in items)
    counts = ", ".join(f"{splits[name]} {name}" for name in ("train", "val", "test"))
    print(f"{manifest}: {len(items)} clips of {options.world.duration_s:g} s ({counts})")
    print(
        f"{len({item.label for item in items})} labels, {events} events, {time.perf_counter() - began:.1f} s, "
        f"next: python -m scripts.extract --help"
    )
    return manifest


@one_line_errors
def cli() -> None:
    """Entry point of `mf-world`."""
    main(tyro.cli(MakeWorld))


if __name__ == "__main__":
    cli()
