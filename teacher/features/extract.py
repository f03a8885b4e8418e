"""Media files -> a folder of latents and condition features (see teacher/features/store.py for its files).

Pass 0 probes every file and cuts it into windows; pass 1 fits the codec on training sounds, unless one is given;
pass 2 writes texts and shards. The report and features.json name every skipped file or window with its reason. A rerun
with the same configuration and files continues after the last finished shard. Several processes, on one machine or with
a common folder, divide blocks, text files and shards by their numbers; the bytes of every file depend neither on the
number of processes nor on interruptions.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from teacher.audio.codec import AudioCodec
from teacher.encoders.registry import Encoders, load_encoders
from teacher.features import store
from teacher.features.codec import fitted_codec, given_codec, latent_statistics
from teacher.features.config import ExtractConfig, ExtractReport, count_reasons
from teacher.features.resume import (
    BEATS,
    check_folder,
    check_plan,
    make_plan,
    plan_digest,
    prepare_folder,
    remove_leftovers,
)
from teacher.features.shards import CODEC_DIGITS, ShardWindows, WrittenFiles, shard_windows, write_shards, write_texts
from teacher.features.store import ShardFile, ShardLayout
from teacher.features.windows import Progress, blocks_of, probe_files
from teacher.features.workers import WorkerPool
from teacher.files import (
    DIGESTS,
    FolderLock,
    as_json,
    file_sha256,
    json_digest,
    read_digests,
    write_digests,
    write_json,
)
from teacher.files.errors import FeatureError
from teacher.files.processes import PATIENCE_S, Processes
from teacher.files.version import package_version
from teacher.lists.manifest import SPLITS, Item, SkippedItem


def extract(
    items: Sequence[Item],
    out: Path,
    config: ExtractConfig,
    *,
    overwrite: bool = False,
    left_out: Sequence[SkippedItem] = (),
    progress: Progress | None = None,
    part: tuple[int, int] = (0, 1),
    run: str = "",
    patience_s: float = PATIENCE_S,
) -> ExtractReport:
    """Extract `items` into the folder `out`. Finished shards of an earlier run are reused; `overwrite` removes them.

    left_out: rows of the manifest that are not among `items`, for the report. part: (rank, world) of this process; all
    processes pass the same arguments and return the same report. run: identifies this start, to tell its processes
    from those of another. A process without a sign of life for `patience_s` seconds counts as dead. Raises FeatureError
    in one line when ids repeat, `out` holds something else, nothing is usable, or another process failed, and
    LockedError when another extraction writes to `out`.
    """
    repeated = [id_ for id_, count in Counter(item.id for item in items).items() if count > 1]
    if repeated or not items:
        raise FeatureError(f"ids of items must differ, repeated: {', '.join(repeated[:5])}" if repeated else "no items")
    out, progress = Path(out), progress or (lambda _stage, _done, _total: None)
    check_folder(out)
    lock, made_again = FolderLock(out, what="the feature folder"), []
    try:
        with Processes(out / BEATS, *part, patience_s=patience_s, run=run) as processes:
            if processes.lead:
                lock.take()
            processes.meet()
            device = _device(config.device)
            encoders = load_encoders(config.encoders, weights_dir=config.weights_dir, device=device)
            codec = given_codec(config, device)
            plan = make_plan(
                items,
                config,
                encoders=encoders.names,
                codec=codec.digest if codec else None,
                stamps=processes.lead,
                left_out=left_out,
            )
            if processes.lead:
                made_again = prepare_folder(out, plan, items, overwrite=overwrite, progress=progress)
                processes.announce("ready")
            else:
                processes.wait_for_stage("ready", what="the check of the folder")
                check_plan(out, plan)
            if not (out / "features.json").is_file():
                plan = store.read_json(out / "plan.json")
                _extract(items, left_out, out, config, plan, encoders, codec, processes, progress)
            return replace(ExtractReport.of(store.read_json(out / "features.json")), made_again=made_again)
    finally:
        lock.release()


def _extract(
    items: Sequence[Item],
    left_out: Sequence[SkippedItem],
    out: Path,
    config: ExtractConfig,
    plan: dict[str, Any],
    encoders: Encoders,
    codec: AudioCodec | None,
    processes: Processes,
    progress: Progress,
) -> None:
    """Run this process's part of all passes; the lead process waits for the others and finishes the folder."""
    with WorkerPool(config.workers) as pool:
        windows, skipped = probe_files(out, items, plan_digest(plan), config.reader(), pool, processes, progress)
        skipped = [*left_out, *skipped]
        captions = list(dict.fromkeys(window.item.caption for window in windows))
        if codec is None:
            training = [window for window in windows if window.item.split == "train"]
            codec = fitted_codec(out, training, skipped, config, pool, processes, progress)
        written: WrittenFiles = {}
        texts = write_texts(out, captions, encoders, config.shard_size, processes, written)
        shards = shard_windows(out, windows, config.shard_size)
        write_shards(shards, captions, codec, encoders, config, pool, processes, progress, written)
    if processes.lead:
        needed = [*texts, *(shard.path for shard in shards)]
        processes.wait(lambda: all(p.is_file() for p in needed), what="all shards and texts", on=processes.others)
        info = _finish(out, config, plan, codec, shards, skipped, len(captions))
        _publish(out, info, [*(path for path, _ in blocks_of(out, items)), *needed], written)
    else:
        processes.wait((out / "features.json").is_file, what="features.json", on=[0])


def _finish(
    out: Path,
    config: ExtractConfig,
    plan: dict[str, Any],
    codec: AudioCodec,
    shards: Sequence[ShardWindows],
    skipped: Sequence[SkippedItem],
    captions: int,
) -> dict[str, Any]:
    """Check every shard, compute the statistics of the latents and save the codec; returns features.json's content."""
    has_std = not config.fitted
    per_split: Counter[str] = Counter(shard.split for shard in shards)
    info: dict[str, Any] = {
        **plan,
        "tool_version": package_version(),
        "duration_s": config.duration_s,
        "sequence": asdict(codec.sequence),
        "latent_channels": codec.latent_channels,
        "codec": {"name": config.codec, "has_std": has_std},
        "texts": {"count": captions, "per_file": config.shard_size},
        "shards": {split: per_split[split] for split in SPLITS},
    }
    layout = ShardLayout.of(info)
    opened = [ShardFile.open(shard.path, layout) for shard in shards]
    for made in opened:
        if made.file.metadata.get("codec", codec.digest[:CODEC_DIGITS]) != codec.digest[:CODEC_DIGITS]:
            raise FeatureError(
                f"{made.file.path}: was made with another codec than {out / 'codec.safetensors'}; restore that file "
                "from a copy, or start afresh with --overwrite"
            )
    counts = dict.fromkeys(SPLITS, 0)
    for shard, made in zip(shards, opened, strict=True):
        counts[shard.split] += len(made)
    left_out = [*skipped, *(entry for made in opened for entry in made.skipped)]
    if sum(counts.values()) == 0:
        raise FeatureError(f"no item is usable: {count_reasons(left_out)}")
    # What a codec fitted here calls a latent has mean 0 and std 1 already.
    mean, std = torch.zeros(codec.latent_channels), torch.ones(codec.latent_channels)
    space = codec.with_statistics(mean, std).digest if has_std else codec.digest
    if has_std and config.codec_from is None:
        codec = codec.with_statistics(*latent_statistics(opened, [shard.split for shard in shards]))
    if has_std:
        mean, std = codec.latent_mean, codec.latent_std
    if has_std or not (out / "codec.safetensors").is_file():
        codec.save(out / "codec.safetensors")
    info["codec"] |= {"digest": codec.digest, "latent_space": space, **codec.facts}
    info["digest"] = json_digest([plan, codec.digest])
    if config.weights_dir is not None:  # where sampling and training find the same files; not part of the digest
        info["weights_dir"] = str(config.weights_dir.resolve())
    info |= {
        "latent_mean": mean.flatten().tolist(),
        "latent_std": std.flatten().tolist(),
        "counts": counts,
        "padded": sum(made.padded for made in opened),
        "skipped": [{"id": id_, "reason": reason} for id_, reason in left_out],
    }
    return info


def _publish(out: Path, info: dict[str, Any], paths: Sequence[Path], written: WrittenFiles) -> None:
    """Record the digests of all files, then write features.json, whose presence means that the folder is complete."""
    remove_leftovers(out)
    text = as_json(info, indent=1) + "\n"
    names = ["plan.json", "codec.safetensors", *(path.relative_to(out).as_posix() for path in paths)]
    known = {path.relative_to(out).as_posix(): digest for path, digest in written.items()}
    for name in names:
        if name not in known:
            known[name] = ((out / name).stat().st_size, file_sha256(out / name))
    known["features.json"] = (len(text.encode()), hashlib.sha256(text.encode()).hexdigest())
    try:
        recorded = read_digests(out)
    except ValueError:  # damaged
        recorded = {}
    if recorded != known:
        (out / DIGESTS).unlink(missing_ok=True)
        write_digests(out, known, known=known)
    write_json(out / "features.json", info)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
