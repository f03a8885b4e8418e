"""Bytes and read rate of the feature store against float32 memory maps: `python -m benchmarks.feature_store`.

The maps are laid out as MMAudio's training data: one file per field (mean, std, clip, sync, text), one float32 row per
clip. Both sides give the same float32 batches of shuffled rows: normalised posterior means, conditions, zeros for the
pictures of sounds. Cold: the pages of all files are dropped before every pass. Prints a Markdown table.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from eval.ledger import NumberTable, record
from teacher.features import store
from teacher.features.dataset import FeatureSet
from teacher.features.store import Record, Shard
from teacher.files import write_json
from teacher.network.sequence import MMAUDIO_WIDTHS, SEQUENCE_16K, image_frames, sync_frames

DURATION_S, CHANNELS = 8.0, 20
BATCH = 64
FRAMES = SEQUENCE_16K.latent_frames(DURATION_S)
WIDTHS = MMAUDIO_WIDTHS
VIDEO_SHAPES = {"clip": (image_frames(DURATION_S), WIDTHS.image), "sync": (sync_frames(DURATION_S), WIDTHS.sync)}
SHAPES = {"mean": (FRAMES, CHANNELS), "std": (FRAMES, CHANNELS), "text": (WIDTHS.text_tokens, WIDTHS.text)}
STATISTICS = (0.1, 0.9)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    clips: int = 512
    shard_size: int = 64
    passes: int = 5
    folder: Path | None = None
    """Folder in which the files are written and then removed; a temporary one by default."""
    record: Path | None = None
    """Also write the figures to this file of the ledger."""


def fields(video: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the fields of a clip."""
    return SHAPES | (VIDEO_SHAPES if video else {})


def blocks(options: Options, video: bool) -> Iterator[dict[str, Tensor]]:
    """Random features, a shard at a time; the first text position is the same for all, as CLIP's."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(WIDTHS.text, generator=generator)
    for begin in range(0, options.clips, options.shard_size):
        count = min(options.shard_size, options.clips - begin)
        drawn = {name: torch.randn(count, *shape, generator=generator) for name, shape in fields(video).items()}
        drawn["std"] = drawn["std"].abs()
        drawn["text"][:, 0] = first
        yield drawn


def write_maps(folder: Path, options: Options, video: bool) -> None:
    """Write the clips in MMAudio's layout: a float32 memory map per field."""
    folder.mkdir(parents=True)
    maps = {
        name: np.memmap(folder / f"{name}.memmap", np.float32, "w+", shape=(options.clips, *shape))
        for name, shape in fields(video).items()
    }
    begin = 0
    for drawn in blocks(options, video):
        for name, tensor in drawn.items():
            maps[name][begin : begin + len(tensor)] = tensor.numpy()
        begin += len(drawn["mean"])
    for written in maps.values():
        written.flush()


def write_store(folder: Path, options: Options, video: bool) -> None:
    """Write the clips as a feature folder of this project; every clip has its own caption, the largest case."""
    none = {name: torch.zeros(0, *shape) for name, shape in VIDEO_SHAPES.items()}
    for k, drawn in enumerate(blocks(options, video)):
        count = len(drawn["mean"])
        rows = range(k * options.shard_size, k * options.shard_size + count)
        captions = [f"a caption of ordinary length, that of clip number {row:06d}" for row in rows]
        shard = Shard(
            records=[_record(row, caption, video) for row, caption in zip(rows, captions, strict=True)],
            sound_index=range(count),
            video_index=range(count) if video else [-1] * count,
            text_index=rows,
            mean=drawn["mean"],
            std=drawn["std"],
            clip=drawn["clip"] if video else none["clip"],
            sync=drawn["sync"] if video else none["sync"],
            skipped=[],
            padded=0,
        )
        store.write_shard(store.shard_path(folder, "train", k), shard)
        store.write_texts(store.text_path(folder, k), captions, drawn["text"], shared_positions=1)
    info = {
        "format": store.FORMAT,
        "version": store.FORMAT_VERSION,
        "encoders": {},
        "duration_s": DURATION_S,
        "sequence": asdict(SEQUENCE_16K),
        "latent_channels": CHANNELS,
        "codec": {"name": "mmaudio_16k", "has_std": True, "digest": "", "latent_space": ""},
        "texts": {"count": options.clips, "per_file": options.shard_size},
        "shards": {"train": -(-options.clips // options.shard_size)},
        "counts": {"train": options.clips},
        "latent_mean": [STATISTICS[0]] * CHANNELS,
        "latent_std": [STATISTICS[1]] * CHANNELS,
    }
    write_json(folder / "features.json", info)


def _record(row: int, caption: str, video: bool) -> Record:
    return Record(
        id=f"0B4dYTMsgHA_{row:06d}",
        item_id=f"0B4dYTMsgHA_{row:06d}",
        path=f"/data/vggsound/video/0B4dYTMsgHA_{row:06d}.mp4",
        start_s=0.0,
        duration_s=DURATION_S,
        caption=caption,
        label="people whistling",
        events_s=None,
        has_video=video,
        has_audio=True,
    )


Read = Callable[[Tensor], object]


def open_maps(folder: Path, options: Options, video: bool) -> Read:
    """A function that reads a batch from the float32 maps."""
    maps = {
        name: np.memmap(folder / f"{name}.memmap", np.float32, "r", shape=(options.clips, *shape))
        for name, shape in fields(video).items()
    }
    blank = {} if video else VIDEO_SHAPES
    mean, std = (torch.full((CHANNELS,), value) for value in STATISTICS)

    def read(rows: Tensor) -> dict[str, Tensor]:
        index = rows.numpy()
        found = {name: torch.from_numpy(mapped[index]) for name, mapped in maps.items()}
        # NumPy's zeros, unlike torch's, cost nothing until they are read.
        found |= {name: torch.from_numpy(np.zeros((len(rows), *shape), np.float32)) for name, shape in blank.items()}
        return found | {"latents": (found["mean"] - mean) / std}

    return read


def open_store(folder: Path, _options: Options, _video: bool) -> Read:
    """A function that reads a batch from the feature folder."""
    return FeatureSet.open(folder, "train").batch


def drop_pages(folder: Path) -> None:
    """Ask the kernel to drop the cached pages of all files, which must not be mapped."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def seconds_per_pass(read: Read, options: Options, seed: int) -> float:
    """Wall time of one epoch of shuffled batches."""
    order = torch.randperm(options.clips, generator=torch.Generator().manual_seed(seed))
    began = time.perf_counter()
    for rows in order.split(BATCH):
        read(rows)
    return time.perf_counter() - began


def measure(options: Options, root: Path) -> list[tuple[str | float, ...]]:
    """Rows of the table. The layouts are measured in turn, so that other load on the machine affects both."""
    table: list[tuple[str | float, ...]] = []
    kinds = {
        "float32 maps": (write_maps, open_maps),
        "feature store": (write_store, open_store),
    }
    for video in (True, False):
        sizes: dict[str, float] = {}
        rates: dict[tuple[str, bool], list[float]] = {}
        for name, (write, _) in kinds.items():
            write(root / name, options, video)
            sizes[name] = (
                sum(path.stat().st_size for path in (root / name).rglob("*") if path.is_file()) / options.clips
            )
        for cold in (False, True):
            reads = {name: opener(root / name, options, video) for name, (_, opener) in kinds.items()}
            if not cold:
                for read in reads.values():
                    seconds_per_pass(read, options, seed=0)
            for number in range(options.passes):
                for name, (_, opener) in kinds.items():
                    if cold:
                        reads.pop(name, None)
                        drop_pages(root / name)
                        reads[name] = opener(root / name, options, video)
                    taken = seconds_per_pass(reads[name], options, seed=1 + number)
                    rates.setdefault((name, cold), []).append(options.clips / taken)
        for name in kinds:
            warm, cold_rate = (statistics.median(rates[name, cold]) for cold in (False, True))
            fraction = sizes[name] / sizes["float32 maps"]
            kind = "with picture" if video else "sound only"
            table.append((kind, name, sizes[name], fraction, warm, cold_rate))
            shutil.rmtree(root / name)
    return table


def main() -> None:
    """Write, measure, print, remove."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(options, Path(folder))
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{options.clips} clips of {DURATION_S:g} s at 16 kHz, batches of {BATCH}, {machine}")
    print(f"median of {options.passes} passes; cold: pages dropped before every pass\n")
    table = NumberTable(
        columns=("clips", "layout", "bytes a clip", "share", "clips/s warm", "clips/s cold"),
        formats=("", "", ",.0f", ".3f", ",.0f", ",.0f"),
        rows=tuple(rows),
    )
    print(table.markdown())
    if options.record:
        record(options.record, tables={"layouts": table})


if __name__ == "__main__":
    main()
