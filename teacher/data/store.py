"""The files of a feature folder: shards of tensors with their records, text features, and the description.

features.json                     what was extracted from what; written last, so its presence means "complete"
plan.json                         configuration and digest of the items, written first: what a rerun must match
codec.safetensors                 the codec that made the latents
texts.safetensors                 text features (captions, 77, 1024), the captions in its metadata
shards/{split}-{k:05d}.safetensors, .jsonl     latents float32, clip and sync bfloat16, text_index, has_video
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from teacher.data.media import replacing

FORMAT = "features"
FORMAT_VERSION = 1
SHARD_TENSORS = ("latents", "clip", "sync", "text_index", "has_video")


class FeatureError(ValueError):
    """A feature folder cannot be used or made. The message is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a feature set. `events_s` are seconds from the start of the window, None where unknown."""

    id: str
    item_id: str
    path: str
    start_s: float
    duration_s: float
    caption: str
    label: str
    events_s: tuple[float, ...] | None
    has_video: bool
    has_audio: bool


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Rows that are written and read together, and what was left out while making them."""

    tensors: dict[str, Tensor]
    records: list[Record]
    skipped: list[tuple[str, str]]
    padded: int


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Tensor file of a shard; its records lie beside it with the suffix .jsonl."""
    return folder / "shards" / f"{split}-{number:05d}.safetensors"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON through a temporary file and a rename."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; FeatureError when it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FeatureError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise FeatureError(f"{path}: is not a JSON object")
    return content


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write safetensors with one JSON string as metadata, through a temporary file and a rename."""
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"json": json.dumps(metadata, ensure_ascii=False)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of `write_tensors`; FeatureError when the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise FeatureError(f"{path}: cannot be read ({error}); extract again with --overwrite") from error


def write_shard(path: Path, shard: Shard) -> None:
    """Write records, then tensors: a shard is finished once its tensor file exists."""
    lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in shard.records]
    with replacing(path.with_suffix(".jsonl")) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in shard.tensors.items()}
    write_tensors(path, tensors, {"skipped": shard.skipped, "padded": shard.padded})


def read_shard(path: Path) -> Shard:
    """Read what `write_shard` wrote; FeatureError when parts are missing or do not fit together."""
    tensors, metadata = read_tensors(path)
    if set(tensors) != set(SHARD_TENSORS):
        raise FeatureError(f"{path}: expected tensors {sorted(SHARD_TENSORS)}, found {sorted(tensors)}")
    listing = path.with_suffix(".jsonl")
    try:
        records = [_record(json.loads(line)) for line in listing.read_text(encoding="utf-8").splitlines()]
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise FeatureError(f"{listing}: cannot be read ({error}); extract again with --overwrite") from error
    sizes = {name: len(tensor) for name, tensor in tensors.items()}
    if set(sizes.values()) != {len(records)}:
        raise FeatureError(f"{path}: {len(records)} records but tensors of lengths {sizes}; extract again")
    skipped = [(str(id_), str(reason)) for id_, reason in metadata.get("skipped", [])]
    return Shard(tensors=tensors, records=records, skipped=skipped, padded=int(metadata.get("padded", 0)))


def write_texts(path: Path, captions: list[str], features: Tensor) -> None:
    """Write text features (captions, 77, 1024) as bfloat16."""
    write_tensors(path, {"text": features.to(torch.bfloat16).contiguous()}, {"captions": captions})


def read_texts(path: Path) -> tuple[list[str], Tensor]:
    """Captions and their features (captions, 77, 1024), bfloat16."""
    tensors, metadata = read_tensors(path)
    captions = metadata.get("captions", [])
    if set(tensors) != {"text"} or len(tensors["text"]) != len(captions):
        raise FeatureError(f"{path}: does not hold one text feature per caption; extract again with --overwrite")
    return captions, tensors["text"]


def _record(content: dict[str, Any]) -> Record:
    events = content.pop("events_s")
    return Record(events_s=None if events is None else tuple(float(event) for event in events), **content)
