"""The last pass of an extraction: windows are encoded into shards, captions into text files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teacher.audio.codec import AudioCodec
from teacher.encoders.registry import Encoders
from teacher.features import store
from teacher.features.config import ExtractConfig
from teacher.features.store import Record, Shard, shard_path, text_path
from teacher.features.windows import Progress, Skip, Window, WindowContent, window_events
from teacher.features.workers import AHEAD_LARGE, AHEAD_PER_WORKER, DIED, WorkerPool
from teacher.files.errors import FeatureError
from teacher.files.processes import Processes
from teacher.lists.manifest import SPLITS
from teacher.network.sequence import ConditionWidths, image_frames, sync_frames

TEXTS_AT_ONCE = 64
"""Captions encoded in one call; fixed, so that results do not depend on the number of processes."""
CODEC_DIGITS = 16
"""Digits of the codec's digest that a shard records."""
WrittenFiles = dict[Path, tuple[int, str]]
"""Length and SHA-256 of the files that this process wrote."""


@dataclass(frozen=True, kw_only=True)
class ShardWindows:
    """The windows of one shard file, in the order of its rows."""

    path: Path
    split: str
    windows: list[Window]

    @property
    def jobs(self) -> list[Window]:
        """The distinct windows: rows that differ only in their caption are read and encoded once."""
        return list({_piece(window): window for window in reversed(self.windows)}.values())[::-1]


@dataclass(frozen=True, kw_only=True)
class EncodedWindow:
    """A window's sound (samples,) and its bfloat16 features, clip (Tc, width) and sync (Ts, width), None without a
    picture."""

    wave: np.ndarray
    clip: Tensor | None
    sync: Tensor | None
    padded: bool


def shard_windows(out: Path, windows: Sequence[Window], size: int) -> list[ShardWindows]:
    """The windows of every shard of a folder: split by split, `size` windows a file, in their order."""
    found = []
    for split in SPLITS:
        chosen = [window for window in windows if window.item.split == split]
        for k, begin in enumerate(range(0, len(chosen), size)):
            part = chosen[begin : begin + size]
            found.append(ShardWindows(path=shard_path(out, split, k), split=split, windows=part))
    return found


def write_texts(
    out: Path, captions: Sequence[str], encoders: Encoders, size: int, processes: Processes, written: WrittenFiles
) -> list[Path]:
    """Write this process's missing text files and add them to `written`; returns the paths of all text files."""
    paths = []
    for k, begin in enumerate(range(0, len(captions), size)):
        path = text_path(out, k)
        paths.append(path)
        if processes.mine(k) and not path.is_file():
            own = captions[begin : begin + size]
            encoded = [encoders.text(own[i : i + TEXTS_AT_ONCE]).cpu() for i in range(0, len(own), TEXTS_AT_ONCE)]
            shared = encoders.text.shared_positions
            written[path] = store.write_texts(path, own, torch.cat(encoded), shared_positions=shared)
    return paths


def write_shards(
    all_shards: Sequence[ShardWindows],
    captions: Sequence[str],
    codec: AudioCodec,
    encoders: Encoders,
    config: ExtractConfig,
    pool: WorkerPool,
    processes: Processes,
    progress: Progress,
    written: WrittenFiles,
) -> None:
    """Write this process's missing shards and add them to `written`; those missing at the start are written."""
    text_index = {caption: i for i, caption in enumerate(captions)}
    mine = [part for k, part in enumerate(all_shards) if processes.mine(k)]
    jobs = {part.path: part.jobs for part in mine if not part.path.is_file()}
    reader = config.reader(frames_only=not encoders.in_worker)
    results = pool.ordered(
        reader.read,
        [window for wanted in jobs.values() for window in wanted],
        died=lambda window: Skip(id=window.id, reason=DIED),
        ahead=AHEAD_LARGE if reader.frames_only else AHEAD_PER_WORKER,
    )
    done, total = 0, sum(len(part.windows) for part in mine)
    for part in mine:
        if part.path in jobs:
            encoded: dict[tuple[Path, float], EncodedWindow | Skip] = {}
            for window, result in _with_features(jobs[part.path], results, encoders):
                encoded[_piece(window)] = result
                progress("extract", done + len(encoded), total)
            shard = _make_shard(part.windows, encoded, text_index, codec, encoders.widths, config)
            written[part.path] = store.write_shard(part.path, shard)
        done += len(part.windows)
        progress("extract", done, total)


def _piece(window: Window) -> tuple[Path, float]:
    return window.item.path, window.start_s


def _with_features(
    jobs: Sequence[Window], results: Iterator[tuple[Window, WindowContent | Skip]], encoders: Encoders
) -> Iterator[tuple[Window, EncodedWindow | Skip]]:
    """Windows with their features; frames of workers that only read are encoded here, one window at a time."""
    for window in jobs:
        answered, loaded = next(results)
        if _piece(answered) != _piece(window):
            raise RuntimeError(f"asked for {window.id}, got the features of {answered.id}")
        if isinstance(loaded, Skip):
            yield window, loaded
            continue
        clip = sync = None
        if loaded.image is not None and loaded.sync is not None:
            if encoders.in_worker:
                clip, sync = torch.from_numpy(loaded.image), torch.from_numpy(loaded.sync)
            else:
                clip, sync = encoders.image(loaded.image), encoders.sync(loaded.sync)
            clip, sync = clip.bfloat16().cpu(), sync.bfloat16().cpu()
        yield window, EncodedWindow(wave=loaded.wave, clip=clip, sync=sync, padded=loaded.padded)


def _make_shard(
    windows: Sequence[Window],
    encoded: dict[tuple[Path, float], EncodedWindow | Skip],
    text_index: dict[str, int],
    codec: AudioCodec,
    widths: ConditionWidths,
    config: ExtractConfig,
) -> Shard:
    """Encode the sounds of a shard and describe its rows; if no window is usable, it has no rows."""
    usable = {piece: result for piece, result in encoded.items() if isinstance(result, EncodedWindow)}
    sounds = {piece: i for i, piece in enumerate(usable)}
    pictures = {
        piece: i for i, piece in enumerate(piece for piece, result in usable.items() if result.clip is not None)
    }
    rows = [window for window in windows if _piece(window) in usable]
    mean, std = _latents([result.wave for result in usable.values()], codec, config)
    clip = [result.clip for result in usable.values() if result.clip is not None]
    sync = [result.sync for result in usable.values() if result.sync is not None]
    duration_s, failed = config.duration_s, [(window.id, encoded[_piece(window)]) for window in windows]
    return Shard(
        records=[_record(window, duration_s) for window in rows],
        sound_index=[sounds[_piece(window)] for window in rows],
        video_index=[pictures.get(_piece(window), -1) for window in rows],
        text_index=[text_index[window.item.caption] for window in rows],
        mean=mean,
        std=std,
        clip=torch.stack(clip) if clip else torch.zeros(0, image_frames(duration_s), widths.image),
        sync=torch.stack(sync) if sync else torch.zeros(0, sync_frames(duration_s), widths.sync),
        skipped=[(id_, result.reason) for id_, result in failed if isinstance(result, Skip)],
        padded=sum(usable[_piece(window)].padded for window in rows),
        codec=codec.digest[:CODEC_DIGITS] if config.fitted else "",
    )


def _latents(waves: Sequence[np.ndarray], codec: AudioCodec, config: ExtractConfig) -> tuple[Tensor, Tensor | None]:
    """Posterior mean and std (sounds, N, C) in the codec's units; for a fitted codec normalised latents and None."""
    if not waves:
        blank = torch.zeros(0, codec.sequence.latent_frames(config.duration_s), codec.latent_channels)
        return blank, None if config.fitted else blank.clone()
    wave = torch.from_numpy(np.stack(waves))
    if config.fitted:
        return codec.encode(wave), None
    mean, std = codec.posterior(wave)
    if std is None:
        raise FeatureError(f"codec {config.codec!r} gave a posterior without a standard deviation")
    return mean.float().cpu(), std.float().cpu()


def _record(window: Window, duration_s: float) -> Record:
    try:
        file_bytes = window.item.path.stat().st_size
    except OSError:  # removed since it was read
        file_bytes = None
    return Record(
        id=window.id,
        item_id=window.item.id,
        path=str(window.item.path.absolute()),
        start_s=window.start_s,
        duration_s=duration_s,
        caption=window.item.caption,
        label=window.item.label,
        events_s=window_events(window, duration_s),
        has_video=window.has_video,
        has_audio=True,
        group_id=window.item.group_id,
        file_bytes=file_bytes,
    )
