"""Starting and resuming an extraction: the plan that a rerun must match, and preparing its folder."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from teacher.audio.codec import read_codec_file
from teacher.features import store
from teacher.features.config import ExtractConfig
from teacher.features.store import ShardFile, ShardLayout, read_captions, shard_path
from teacher.features.windows import Progress, blocks_of, read_block
from teacher.files import DIGESTS, LOCK, check_digests, json_digest, read_digests, remove_temporaries, write_json
from teacher.files.errors import FeatureError, WeightsError
from teacher.files.tensor_file import BY_ROW, TensorFile
from teacher.lists.manifest import SPLITS, Item, SkippedItem

BEATS = ".processes"
"""Folder through which the processes of one extraction find each other; removed at the end."""
FORMER_TEMPORARY = re.compile(r"\..+\.\d+(\.[a-z]+)?")
"""Names that earlier versions gave to unfinished files."""
FILES = (
    "features.json",
    DIGESTS,
    "codec.safetensors",
    "plan/*.json",
    "texts.safetensors",
    "texts/*.safetensors",
    "shards/*.jsonl",
    "shards/*.safetensors",
)
"""Patterns of the files that an extraction of this or the previous version writes."""


def make_plan(
    items: Sequence[Item],
    config: ExtractConfig,
    *,
    encoders: dict[str, str],
    codec: str | None,
    stamps: bool,
    left_out: Sequence[SkippedItem] = (),
) -> dict[str, Any]:
    """The content of plan.json, which a rerun must match: configuration, encoders, codec, digests of items and files.

    codec: digest of a given codec, None for one that is fitted. Without `stamps`, sizes and times of the files are not
    read and "files" is left out.
    """
    listing, files = hashlib.sha256(), hashlib.sha256()
    for item in items:
        row = (item.id, str(item.path), item.caption, item.label, item.split, item.events_s)
        # Items without a group have the digest they had before there were groups.
        listing.update(json.dumps((*row, item.group_id) if item.group_id else row).encode())
        if stamps:
            try:
                status = item.path.stat()
                files.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                files.update(b"missing\n")  # named as a skip later
    if left_out:
        listing.update(json.dumps(["left out", *left_out]).encode())
    plan = {
        "format": store.FORMAT,
        "version": store.FORMAT_VERSION,
        "config": config.settings(),
        "encoders": encoders,
        "given_codec": codec,
        "items": listing.hexdigest(),
    }
    return plan | ({"files": files.hexdigest()} if stamps else {})


def plan_digest(plan: dict[str, Any]) -> str:
    """SHA-256 of the content of plan.json, which every block of an extraction records."""
    return json_digest(plan)


def check_folder(out: Path) -> None:
    """Raise FeatureError when `out` is a file, or a folder with other files and no features."""
    if out.exists() and not out.is_dir():
        raise FeatureError(f"{out} is a file; choose another --out")
    if not out.is_dir() or (out / "plan.json").is_file() or _info(out):
        return
    # A run that was killed before it wrote its plan leaves no more than an empty folder, its lock or a temporary file.
    if any(
        path.name not in (BEATS, LOCK, "shards") and not path.name.startswith(".plan.json.") for path in out.iterdir()
    ):
        raise FeatureError(f"{out} holds other files and no features; choose another --out")


def prepare_folder(
    out: Path, plan: dict[str, Any], items: Sequence[Item], *, overwrite: bool, progress: Progress
) -> list[str]:
    """Make the folder, or check that it belongs to `plan` and remove its damaged files.

    If a finished folder lacks a file, its features.json is removed too, so that it counts as unfinished and the file is
    made again. Returns a line for each of these files. Call it only while holding the folder's lock.
    """
    check_folder(out)
    begun = (out / "plan.json").is_file() or _info(out) is not None
    if begun and overwrite:
        _clear(out)
    elif begun:
        remove_leftovers(out)
        if _mend_plan(out, plan, items):
            write_json(out / "plan.json", plan)
        check_plan(out, plan)
        return _remove_damaged(out, items, progress)
    write_json(out / "plan.json", plan)
    return []


def check_plan(out: Path, plan: dict[str, Any]) -> None:
    """Raise FeatureError naming the settings in which the folder's plan differs from this one."""
    before = store.read_json(out / "plan.json")
    if before.get("version") != plan["version"]:
        raise FeatureError(
            f"{out} holds features of version {before.get('version')!r}, {plan['version']} are made now; extract again "
            "with --overwrite"
        )
    changed = [name for name in plan if before.get(name) != plan[name]]
    if changed:
        raise FeatureError(
            f"{out} was made from a different {' and '.join(changed)}; choose another --out, or start afresh "
            "with --overwrite"
        )


def remove_leftovers(out: Path) -> None:
    """Remove temporary files of processes that were killed. Only while holding the folder's lock."""
    for folder in (out, out / "plan", out / "texts", out / "shards"):
        if folder.is_dir():
            remove_temporaries(folder)
            for path in folder.glob(".*"):
                if FORMER_TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)


def _info(out: Path) -> dict[str, Any] | None:
    """features.json, None where there is none or it is damaged."""
    try:
        info = store.read_json(out / "features.json")
        return info if info.get("format") == store.FORMAT else None
    except FeatureError:
        return None


def _mend_plan(out: Path, plan: dict[str, Any], items: Sequence[Item]) -> bool:
    """Whether plan.json is damaged although features.json or a block shows that the folder belongs to this plan.

    Raises FeatureError if it is damaged and neither of them records the plan.
    """
    try:
        store.read_json(out / "plan.json")
        return False
    except FeatureError as error:
        info = _info(out)
        if info is not None:
            known = {name: info[name] for name in plan if name in info}
        else:
            known = plan if _noted_in_a_block(out, plan, items) else {}
        if known == plan or not any(any(out.glob(pattern)) for pattern in FILES):
            return True
        raise FeatureError(
            f"{out / 'plan.json'} is damaged, and the other files do not prove that they come from this --data with "
            "these settings; restore it from a copy, choose another --out, or start afresh with --overwrite"
        ) from error


def _noted_in_a_block(out: Path, plan: dict[str, Any], items: Sequence[Item]) -> bool:
    for path, block in blocks_of(out, items):
        try:
            if store.read_json(path).get("plan") == plan_digest(plan):
                read_block(path, len(block), plan_digest(plan))
                return True
        except FeatureError:
            continue
    return False


def _remove_damaged(out: Path, items: Sequence[Item], progress: Progress) -> list[str]:
    """Remove damaged files; returns a line for each file that is to be made again."""
    info, found, recorded = _info(out), [], {}
    try:
        recorded = read_digests(out)
    except ValueError:
        (out / DIGESTS).unlink()
        found.append(f"{DIGESTS}: damaged")
    layout = None if info is None else ShardLayout.of(info)
    blocks = {path: len(block) for path, block in blocks_of(out, items)}
    codec, finished = out / "codec.safetensors", out / "features.json"
    tensors = [*sorted(out.glob("texts/*.safetensors")), *sorted(out.glob("shards/*.safetensors"))]
    paths = [path for path in (*blocks, codec, *tensors, finished) if path.is_file()]
    for k, path in enumerate(paths, 1):
        name = path.relative_to(out).as_posix()
        fault = next(iter(check_digests(out, [name])), None) if name in recorded else None
        if fault is None:
            try:
                if path in blocks:
                    read_block(path, blocks[path])
                elif path == finished:
                    store.read_json(path)
                elif path == codec:
                    read_codec_file(path)
                elif name not in recorded:
                    _verify(path, layout)
            except (FeatureError, WeightsError) as error:
                fault = str(error)
        if fault is not None:
            path.unlink()
            found.append(f"{name}: damaged")
        progress("check", k, len(paths))
    if info is not None:
        needed = [shard_path(out, split, k) for split in SPLITS for k in range(info["shards"][split])]
        needed += [store.text_path(out, k) for k in range(-(-info["texts"]["count"] // info["texts"]["per_file"]))]
        named = {line.partition(":")[0] for line in found}
        if not recorded and not found and any(_has_checks(path) for path in tensors):  # older versions wrote neither
            found.append(f"{DIGESTS}: missing")
        for path in (*needed, codec, *(path for path in blocks if recorded)):
            name = path.relative_to(out).as_posix()
            if not path.is_file() and name not in named:
                found.append(f"{name}: missing")
    if found:  # its digests are right again once the folder is complete
        (out / DIGESTS).unlink(missing_ok=True)
    if found and info is not None:
        finished.unlink(missing_ok=True)
    return found


def _verify(path: Path, layout: ShardLayout | None) -> None:
    """Raise FeatureError for a damaged shard or text file. In files of older versions, which have no checks, only
    invalid content is noticed."""
    file = TensorFile.open(path)
    if file.has_checks:
        file.verify()
        return
    if path.parent.name == "texts":
        read_captions(file)
    elif layout is not None:
        ShardFile.open(path, layout).lines()
    for name in (name for name in BY_ROW if name in file.entries):
        if not bool(torch.isfinite(file.tensor(name)).all()):
            raise FeatureError(f"{path}: {name} holds NaN or infinity")


def _has_checks(path: Path) -> bool:
    return path.is_file() and TensorFile.open(path).has_checks


def _clear(out: Path) -> None:
    """Remove the files of a feature folder, and no others; the plan last, because it identifies the folder."""
    for pattern in FILES:
        for path in out.glob(pattern):
            path.unlink()
    remove_leftovers(out)
    (out / "plan.json").unlink(missing_ok=True)
    for folder in ("plan", "texts"):
        if (out / folder).is_dir() and not any((out / folder).iterdir()):
            shutil.rmtree(out / folder)
