"""The codec of a feature folder (read, configured or fitted), and the statistics of its latents."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teacher.audio.codec import AudioCodec
from teacher.audio.registry import CODECS, Fit, open_codec
from teacher.features import store
from teacher.features.config import ExtractConfig, count_reasons
from teacher.features.store import ShardFile
from teacher.features.windows import Progress, Window
from teacher.features.workers import DIED, WorkerPool
from teacher.files.errors import FeatureError
from teacher.files.processes import Processes
from teacher.lists.manifest import SkippedItem

CODEC_VERSIONS = (1, 2)
"""Versions of features.json whose codec can be read; old run folders contain older ones."""


def load_codec(folder: Path, *, weights_dir: Path | None = None, device: str = "cpu") -> AudioCodec:
    """Read the codec that encoded the latents of a feature folder, and compare it with the digest in features.json.

    weights_dir: folder of the files of a published codec, if they have been moved since extraction.
    """
    folder = Path(folder)
    info = store.read_info(folder, CODEC_VERSIONS)
    codec = open_codec(folder / "codec.safetensors", weights_dir=weights_dir, device=device)
    if codec.digest != info["codec"]["digest"]:
        raise FeatureError(f"{folder}: codec.safetensors is not the codec of these latents; extract again")
    return codec


def given_codec(config: ExtractConfig, device: str) -> AudioCodec | None:
    """The codec that the configuration names: that of another feature folder, or a published one with latent_mean 0 and
    latent_std 1; None if the extraction is to fit one. FeatureError for a codec of another kind than configured."""
    if config.codec_from is not None:
        made = store.read_json(config.codec_from / "features.json").get("config", {}).get("codec")
        if made != config.codec:
            raise FeatureError(f"{config.codec_from} was made with --codec {made}, not {config.codec}")
        return load_codec(config.codec_from, weights_dir=config.weights_dir, device=device)
    load = CODECS[config.codec].load
    if load is None:
        return None
    if config.weights_dir is None:
        raise FeatureError(f"codec {config.codec!r} needs a folder of weights; give one with --weights-dir")
    return load(config.weights_dir, device)


def fitted_codec(
    out: Path,
    training: Sequence[Window],
    skipped: Sequence[SkippedItem],
    config: ExtractConfig,
    pool: WorkerPool,
    processes: Processes,
    progress: Progress,
) -> AudioCodec:
    """The codec fitted by an interrupted run, else one that the lead process fits on evenly spaced training windows."""
    path = out / "codec.safetensors"
    if processes.lead and not path.is_file():
        if not training:
            raise FeatureError(
                f"no item of the train split is usable: {count_reasons(skipped) or 'the split is empty'}"
            )
        _fit(CODECS[config.codec].fit, training, config, pool, progress).save(path)
    processes.wait(path.is_file, what="the codec", on=[0])
    return open_codec(path)


def _fit(
    fit: Fit | None, training: Sequence[Window], config: ExtractConfig, pool: WorkerPool, progress: Progress
) -> AudioCodec:
    """Fit on evenly spaced windows; if that fails, the message counts the windows that could not be read."""
    assert fit is not None
    count = min(config.codec_fit_clips, len(training))
    chosen = [training[i * len(training) // count] for i in range(count)]
    reader, failed = config.reader(), []

    def sounds() -> Iterator[np.ndarray]:
        results = pool.ordered(reader.read_sound, chosen, died=lambda _: DIED)
        for done, (window, result) in enumerate(results, 1):
            progress("fit codec", done, count)
            if isinstance(result, str):
                failed.append((window.id, result))
            else:
                yield result[0]

    try:
        return fit(sounds())
    except ValueError as error:
        raise FeatureError(f"{error}{'; left out: ' + count_reasons(failed) if failed else ''}") from error


def latent_statistics(shards: Sequence[ShardFile], splits: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased std (C,) of the posterior means over rows and frames, merged in float64 in order of the shards.

    They are those of training rows with picture; if there are none, of all training rows; if there are none, of all
    rows with picture, or of all rows. (MMAudio uses its audio-visual training set.) Shards are merged pairwise:
    mean = m1 + d n2/n,  M = M1 + M2 + d^2 n1 n2/n  with  d = m2 - m1,  n = n1 + n2,  and std^2 = M / (n - 1).
    """
    train = [shard for shard, split in zip(shards, splits, strict=True) if split == "train"]
    for chosen, kinds in ((train, (0,)), (train, (0, 1)), (shards, (0,)), (shards, (0, 1))):
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for shard in chosen:
            frames, moments = shard.file.entries["mean"].shape[1], shard.file.tensor("moments")
            video = int((shard.indices["video_index"] >= 0).sum())
            for kind in kinds:
                more = frames * (video if kind == 0 else len(shard) - video)
                if more:
                    apart = moments[kind, 0] - mean
                    mean = mean + apart * (more / (count + more))
                    squares = squares + moments[kind, 1] + apart.square() * (count * more / (count + more))
                    count += more
        if count > 1:
            std = (squares / (count - 1)).sqrt()
            if not bool((std > 0).all()) or not bool(torch.isfinite(std).all()):
                raise FeatureError("the latents do not vary, or are not finite: are the sounds or the weights damaged?")
            return mean.float(), std.float()
    raise FeatureError("no usable row to take the statistics of the latents from")
