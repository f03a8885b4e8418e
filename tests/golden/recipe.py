"""Rebuilds the weights of a recording from its recipe: MT19937 seeded by the CRC-32 of "key/name", uniform values."""

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from teacher.audio.vocoder import VocoderConfig
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import MMAudioConfig
from tests.golden.deviation import Deviation


def recipe_tensor(key: str, name: str, shape: list[int], half_range: float, offset: float) -> Tensor:
    """w = half_range (2 u - 1) + offset in float32, u the low 24 bits of one generator output per element / 2^24."""
    g = torch.Generator().manual_seed(zlib.crc32(f"{key}/{name}".encode()))
    u = torch.rand(math.prod(shape), generator=g, dtype=torch.float32) * 2 - 1
    return (u * torch.tensor(half_range) + torch.tensor(offset)).reshape(shape)


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of all numbers as little-endian float32."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.numpy().astype("<f4").tobytes())
    return sha.hexdigest()


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
        if made and digest(made.values()) != described["recipe_sha256"]:
            raise ValueError("the weights made by the recipe have another digest than the recorded ones")
        stored = {n.removeprefix("param."): t for n, t in self.tensors.items() if n.startswith("param.")}
        return made | stored


def recipe(recording: Recording) -> Iterator[Deviation]:
    """Tensors of the recipe, exact: seed, first values, digest."""
    for test in recording.document["tests"]:
        key, name = test["key"], test["name"]
        made = recipe_tensor(key, name, test["shape"], test["half_range"], test["offset"])
        first = torch.tensor(test["first_values"], dtype=torch.float32)
        wrong = {
            "seed": zlib.crc32(f"{key}/{name}".encode()) != test["seed"],
            "first values": not torch.equal(made.flatten()[: len(first)], first),
            "digest": digest([made]) != test["sha256"],
        }
        yield from (Deviation(f"{key}/{name}: {what}", float(differs), 0.0) for what, differs in wrong.items())


def recorded_network(recording: Recording) -> tuple[MMAudio, Conditions]:
    """The flow network of a recording with its weights, and the recorded conditions.

    A modality whose input is not stored was absent: its length is in the configuration, its mask false. Lengths are no
    part of the network: one that was re-sized (`update_seq_lengths`) has the same weights.
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


def recorded_lengths(c: dict[str, Any]) -> dict[str, int]:
    """Lengths of the latent and of the conditions: those the network was built with, or was re-sized to since.

    `update_seq_lengths` holds the arguments of MMAudio's method of that name, latent, clip and sync, by position or by
    name; a list of several calls ends with the one that counts.
    """
    lengths = {name: c[f"{name}_seq_len"] for name in ("latent", "clip", "sync", "text")}
    resized = c.get("update_seq_lengths")
    if isinstance(resized, list) and resized and isinstance(resized[-1], list | dict):
        resized = resized[-1]
    if isinstance(resized, dict):
        return lengths | {name.removesuffix("_seq_len"): length for name, length in resized.items()}
    return (
        lengths | dict(zip(("latent", "clip", "sync"), resized, strict=True)) if isinstance(resized, list) else lengths
    )


def vocoder_config(hparams: Mapping[str, Any]) -> VocoderConfig:
    """The sizes in a published config.json; ValueError for a missing key or a kind of generator not made here."""
    for key, supported in (("resblock", "1"), ("activation", "snakebeta"), ("snake_logscale", True)):
        if hparams.get(key) != supported:
            raise ValueError(f"vocoder config: {key} must be {supported!r}, got {hparams.get(key)!r}")
    try:
        return VocoderConfig(
            num_mels=int(hparams["num_mels"]),
            upsample_rates=tuple(hparams["upsample_rates"]),
            upsample_kernel_sizes=tuple(hparams["upsample_kernel_sizes"]),
            initial_channels=int(hparams["upsample_initial_channel"]),
            resblock_kernel_sizes=tuple(hparams["resblock_kernel_sizes"]),
            resblock_dilations=tuple(tuple(dilations) for dilations in hparams["resblock_dilation_sizes"]),
            tanh_at_final=bool(hparams.get("use_tanh_at_final", True)),
            bias_at_final=bool(hparams.get("use_bias_at_final", True)),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"vocoder config: missing or misshapen entry ({error})") from error


def masked(conditions: Conditions, *, video: Tensor, text: Tensor) -> Conditions:
    """Conditions whose modalities are marked absent where the (B,) masks say so; image and sync go together."""
    return replace(
        conditions,
        has_clip=conditions.has_clip & ~video,
        has_sync=conditions.has_sync & ~video,
        has_text=conditions.has_text & ~text,
    )


def recorded_conditions(recording: Recording) -> Conditions:
    """Stored features, and zeros of the configured length marked absent where a modality is missing."""
    c, stored = recording.document["config"], recording.tensors
    lengths = recorded_lengths(c)
    batch = len(stored["in.latent"])
    features, present = {}, {}
    for name in ("clip", "sync", "text"):
        found = stored.get(f"in.{name}_f")
        features[name] = torch.zeros(batch, lengths[name], c[f"{name}_dim"]) if found is None else found
        present[f"has_{name}"] = torch.full((batch,), found is not None)
    return Conditions(**features, **present)
