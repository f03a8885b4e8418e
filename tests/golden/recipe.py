"""Rebuilds the weights of a recording from its recipe: MT19937 seeded by the CRC-32 of "key/name", uniform values."""

import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from teacher.conditions import Conditions
from teacher.network import MMAudio
from teacher.variants import MMAudioConfig


def recipe_tensor(key: str, name: str, shape: list[int], half_range: float, offset: float) -> Tensor:
    """w = half_range (2 u - 1) + offset in float32, u the low 24 bits of one generator output per element / 2^24."""
    g = torch.Generator().manual_seed(zlib.crc32(f"{key}/{name}".encode()))
    u = torch.rand(math.prod(shape), generator=g, dtype=torch.float32) * 2 - 1
    return (u * torch.tensor(half_range) + torch.tensor(offset)).reshape(shape)


@dataclass(frozen=True)
class Recording:
    """One fixture: its JSON and its stored tensors."""

    document: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path, name: str) -> "Recording":
        path = folder / f"{name}.safetensors"
        return cls(json.loads((folder / f"{name}.json").read_text()), load_file(path) if path.exists() else {})

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter, from the recipe or stored; the recipe's digest is checked first."""
        described = self.document["parameters"]
        made = {e[0]: recipe_tensor(described["key"], *e) for e in described.get("recipe", [])}
        if made:
            sha = hashlib.sha256()
            for tensor in made.values():
                sha.update(tensor.numpy().astype("<f4").tobytes())
            assert sha.hexdigest() == described["recipe_sha256"]
        stored = {n.removeprefix("param."): t for n, t in self.tensors.items() if n.startswith("param.")}
        return made | stored


def recorded_network(recording: Recording) -> tuple[MMAudio, Conditions]:
    """The flow network of a recording with its weights, and the recorded conditions.

    A modality whose input is not stored was absent: its length is in the configuration, its mask false.
    """
    net = MMAudio(recorded_config(recording.document["config"]))
    net.load_state_dict(recording.parameters(), strict=True)
    return net, recorded_conditions(recording)


def recorded_config(c: dict[str, Any]) -> MMAudioConfig:
    """The network that a recording's configuration, or a manifest's, describes."""
    return MMAudioConfig(
        num_heads=c["num_heads"],
        head_dim=c["hidden_dim"] // c["num_heads"],
        joint_depth=c["depth"] - c["fused_depth"],
        fused_depth=c["fused_depth"],
        latent_channels=c["latent_dim"],
        clip_dim=c["clip_dim"],
        sync_dim=c["sync_dim"],
        text_dim=c["text_dim"],
        text_tokens=c["text_seq_len"],
        version="v2" if c["v2"] else "v1",
    )


def recorded_conditions(recording: Recording) -> Conditions:
    """Stored features, and zeros of the configured length marked absent where a modality is missing."""
    c, stored = recording.document["config"], recording.tensors
    batch = len(stored["in.latent"])
    features, present = {}, {}
    for name in ("clip", "sync", "text"):
        found = stored.get(f"in.{name}_f")
        features[name] = torch.zeros(batch, c[f"{name}_seq_len"], c[f"{name}_dim"]) if found is None else found
        present[f"has_{name}"] = torch.full((batch,), found is not None)
    return Conditions(**features, **present)
