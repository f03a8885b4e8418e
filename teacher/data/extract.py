"""Media files -> a folder of latents and condition features (see teacher/data/store.py for its files).

Pass 0 looks at every file and cuts it into windows; pass 1 fits the codec on training sounds; pass 2 writes shards.
Nothing is left out silently: every skipped file or window is named with its reason in the report and features.json.
A rerun with the same configuration and files goes on after the last finished shard.
"""

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacher.audio.codec import AudioCodec
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.data import store
from teacher.data.extract_config import CODECS, SPLITS, ExtractConfig, ExtractReport, count_reasons
from teacher.data.extract_plan import make_plan, prepare_folder
from teacher.data.manifest import Item
from teacher.data.pool import WorkerPool
from teacher.data.store import FeatureError, Record, Shard, shard_path
from teacher.data.windows import Loaded, Skip, Window, window_events
from teacher.encoders.registry import Encoders, encode_clip, load_encoders
from teacher.sequence import IMAGE_DIM, SYNC_DIM, image_frames, sync_frames

__all__ = ["Encoders", "ExtractConfig", "ExtractReport", "FeatureError", "encode_clip", "extract", "load_encoders"]

Progress = Callable[[str, int, int], None]
"""Called with the name of the pass, the jobs done and their number."""


def extract(
    items: Sequence[Item],
    out: Path,
    config: ExtractConfig,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExtractReport:
    """Extract `items` into the folder `out`. Finished shards of the same run are kept; `overwrite` starts afresh.

    Raises FeatureError in one line when ids repeat, when `out` holds something else, or when nothing is usable.
    """
    repeated = [id_ for id_, count in Counter(item.id for item in items).items() if count > 1]
    if repeated or not items:
        raise FeatureError(f"ids of items must differ, repeated: {', '.join(repeated[:5])}" if repeated else "no items")
    out = Path(out)
    plan = make_plan(items, config)
    finished = prepare_folder(out, plan, overwrite=overwrite)
    if finished is not None:
        return finished
    tell: Progress = progress or (lambda _stage, _done, _total: None)
    reader = config.reader()
    with WorkerPool(config.workers) as pool:
        windows: list[Window] = []
        skipped: list[tuple[str, str]] = []
        for done, result in enumerate(pool.ordered(reader.plan, items), 1):
            if isinstance(result, Skip):
                skipped.append((result.id, result.reason))
            else:
                windows.extend(result)
            tell("look", done, len(items))
        captions = list(dict.fromkeys(window.item.caption for window in windows))
        codec = _fit_codec(out, [w for w in windows if w.item.split == "train"], skipped, config, pool, tell)
        if not (out / "texts.safetensors").is_file():
            store.write_texts(out / "texts.safetensors", captions, load_encoders(config.encoders).text(captions))
        counts, padded = _write_shards(out, windows, captions, skipped, codec, config, pool, tell)
    if sum(counts.values()) == 0:
        raise FeatureError(f"no item is usable: {count_reasons(skipped)}")
    store.write_json(out / "features.json", _describe(plan, config, codec, counts, skipped, padded, windows))
    return ExtractReport(counts=counts, skipped=skipped, padded=padded)


def _fit_codec(
    out: Path,
    training: list[Window],
    skipped: list[tuple[str, str]],
    config: ExtractConfig,
    pool: WorkerPool,
    tell: Progress,
) -> EmbeddedCodec:
    """The codec of an interrupted run, or one fitted on evenly chosen training windows."""
    path = out / "codec.safetensors"
    if path.is_file():
        return EmbeddedCodec.load(path)
    if not training:
        raise FeatureError(f"no item of the train split is usable: {count_reasons(skipped) or 'the split is empty'}")
    count = min(config.codec_fit_clips, len(training))
    chosen = [training[i * len(training) // count] for i in range(count)]
    reader, failed = config.reader(), []

    def heard() -> Iterator[np.ndarray]:
        for done, result in enumerate(pool.ordered(reader.hear, chosen), 1):
            tell("fit codec", done, count)
            if isinstance(result, Skip):
                failed.append((result.id, result.reason))
            else:
                yield result[0]

    mel, channels = CODECS[config.codec]
    try:
        codec = EmbeddedCodec.fit(heard(), mel=mel, latent_channels=channels)
    except ValueError as error:
        raise FeatureError(f"{error}{'; left out: ' + count_reasons(failed) if failed else ''}") from error
    codec.save(path)
    return codec


def _write_shards(
    out: Path,
    windows: list[Window],
    captions: list[str],
    skipped: list[tuple[str, str]],
    codec: AudioCodec,
    config: ExtractConfig,
    pool: WorkerPool,
    tell: Progress,
) -> tuple[dict[str, int], int]:
    """Write the missing shards; windows per split and padded windows of all. Extends `skipped`."""
    text_index = {caption: i for i, caption in enumerate(captions)}
    parts = _parts(out, windows, config.shard_size)
    missing = [window for path, part in parts if not path.is_file() for window in part]
    results = pool.ordered(config.reader().load, missing)
    counts, padded, done = dict.fromkeys(SPLITS, 0), 0, 0
    for path, part in parts:
        if path.is_file():
            shard = store.read_shard(path)
        else:
            loaded = []
            for window in part:
                loaded.append((window, next(results)))
                tell("extract", done + len(loaded), len(windows))
            shard = _make_shard(loaded, text_index, codec, config)
            store.write_shard(path, shard)
        done += len(part)
        tell("extract", done, len(windows))
        counts[part[0].item.split] += len(shard.records)
        padded += shard.padded
        skipped.extend(shard.skipped)
    return counts, padded


def _parts(out: Path, windows: list[Window], size: int) -> list[tuple[Path, list[Window]]]:
    """Path and windows of every shard, in order."""
    parts = []
    for split in SPLITS:
        chosen = [window for window in windows if window.item.split == split]
        for k, begin in enumerate(range(0, len(chosen), size)):
            parts.append((shard_path(out, split, k), chosen[begin : begin + size]))
    return parts


def _make_shard(
    results: list[tuple[Window, Loaded | Skip]], text_index: dict[str, int], codec: AudioCodec, config: ExtractConfig
) -> Shard:
    """Encode the sounds of a shard and describe its rows; a shard in which nothing remains has no rows."""
    kept = [(window, result) for window, result in results if isinstance(result, Loaded)]
    skipped = [(result.id, result.reason) for _, result in results if isinstance(result, Skip)]
    frames = codec.sequence.latent_frames(config.duration_s)
    latents = torch.zeros(0, frames, codec.latent_channels)
    clip = torch.zeros(0, image_frames(config.duration_s), IMAGE_DIM)
    sync = torch.zeros(0, sync_frames(config.duration_s), SYNC_DIM)
    if kept:
        latents = codec.encode(torch.from_numpy(np.stack([loaded.wave for _, loaded in kept])))
        clip = torch.from_numpy(np.stack([loaded.clip for _, loaded in kept]))
        sync = torch.from_numpy(np.stack([loaded.sync for _, loaded in kept]))
    tensors = {
        "latents": latents,
        "clip": clip.bfloat16(),
        "sync": sync.bfloat16(),
        "text_index": torch.tensor([text_index[window.item.caption] for window, _ in kept], dtype=torch.int64),
        "has_video": torch.tensor([window.has_video for window, _ in kept], dtype=torch.bool),
    }
    records = [_record(window, config.duration_s) for window, _ in kept]
    return Shard(tensors=tensors, records=records, skipped=skipped, padded=sum(loaded.padded for _, loaded in kept))


def _record(window: Window, duration_s: float) -> Record:
    return Record(
        id=window.id,
        item_id=window.item.id,
        path=str(window.item.path),
        start_s=window.start_s,
        duration_s=duration_s,
        caption=window.item.caption,
        label=window.item.label,
        events_s=window_events(window, duration_s),
        has_video=window.has_video,
        has_audio=True,
    )


def _describe(
    plan: dict[str, Any],
    config: ExtractConfig,
    codec: EmbeddedCodec,
    counts: dict[str, int],
    skipped: list[tuple[str, str]],
    padded: int,
    windows: list[Window],
) -> dict[str, Any]:
    """Content of features.json."""
    per_split: Counter[str] = Counter(window.item.split for window in windows)
    digest = hashlib.sha256(json.dumps([plan, codec.digest], sort_keys=True).encode()).hexdigest()
    return {
        **plan,
        "digest": digest,
        "tool_version": _tool_version(),
        "duration_s": config.duration_s,
        "sequence": asdict(codec.sequence),
        "latent_channels": codec.latent_channels,
        "codec": {"digest": codec.digest, "explained_variance": codec.explained_variance},
        "counts": counts,
        "shards": {split: -(-per_split[split] // config.shard_size) for split in SPLITS},
        "padded": padded,
        "skipped": [{"id": id_, "reason": reason} for id_, reason in skipped],
    }


def _tool_version() -> str:
    try:
        return importlib.metadata.version("mf-mjt")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
