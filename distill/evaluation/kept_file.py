"""The latents a teacher made of the held-out clips, kept in the run folder, so that a resumed run need not again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.saving.writing import write_tensors
from meanflow import Guidance
from meanflow.config import to_plain

NAME = "latents"


def key_of(
    *,
    teacher: str,
    features: str,
    clips: Sequence[str],
    seed: int,
    steps: int,
    guidance: Guidance,
    precision: str,
) -> str:
    """SHA-256 of all that the latents depend on: digests of teacher and features, clip ids, how they are sampled."""
    described = [teacher, features, list(clips), seed, steps, to_plain(guidance), precision]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def read_held_out(path: Path, key: str) -> Tensor | None:
    """The latents of a file; None where it is absent, damaged in any byte, or was made with another key."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            latents: Tensor = file.get_tensor(NAME)
    except (OSError, SafetensorError):
        return None
    return latents if metadata == _metadata(key, latents) else None


def write_held_out(path: Path, key: str, latents: Tensor) -> None:
    """Write latents (clips, 2, N, C) under a temporary name, then rename into place."""
    write_tensors(path, {NAME: latents}, _metadata(key, latents))


def _metadata(key: str, latents: Tensor) -> dict[str, str]:
    """The key, and what tells a flipped bit: safetensors has no sum of its own. One entry, since several are written in
    any order."""
    described = f"{latents.dtype}{tuple(latents.shape)}".encode()
    sha256 = hashlib.sha256(described + latents.numpy().tobytes()).hexdigest()
    return {"json": json.dumps({"key": key, "sha256": sha256})}
