"""The held-out clips of an evaluation: generation from the same noise every time, the teacher's latents, which are
stored in the run folder, and measures of how close two sets of latents are."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from distill.engines.base import Engine
from meanflow import Guidance, interpolate, velocity
from meanflow.config import to_plain
from teacher.audio.codec import AudioCodec
from teacher.audio.mmaudio_codec import MMAudioCodec
from teacher.features import store
from teacher.features.dataset import FeatureSet
from teacher.features.store import Record
from teacher.files import json_digest
from teacher.files.safetensors import read_content, write_tensors
from teacher.network.mmaudio import MMAudio
from teacher.network.velocity import teacher_velocity
from teacher.sampling.generator import Generator, SamplingConfig, clip_seed, noise

SPLITS = ("val", "test")
"""The splits that clips are taken from: first validation, since the best checkpoint is chosen by them, then test."""
SEED = 0
"""Seed of the noise, together with the id of each clip."""
LOSS_TIMES = 8
"""The held-out loss is measured at the times (i + 1/2) / 8."""
TEACHERS_LATENTS = "held_out.safetensors"
"""The file of a run folder that holds the teacher's latents of the held-out clips, for use when the run is resumed."""
NAME = "latents"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A frozen teacher on the engine's device, guided as the student's targets were."""

    net: MMAudio
    digest: str
    """Digest of the teacher's weights; stored latents are used only where it is the same."""
    guidance: Guidance


def agreement(made: Tensor, reference: Tensor) -> dict[str, float]:
    """How close latents m (B, N, C) are to reference latents x, in float64, as means over clips.

    latent_error = ||m - x||^2 / ||x||^2, latent_cosine = <m, x> / (||m|| ||x||), energy_ratio = ||m||^2 / ||x||^2,
    with norms over frames and channels.
    """
    m, x = made.double().flatten(1), reference.double().flatten(1)
    tiny = torch.finfo(torch.float64).tiny
    energy = x.square().sum(1).clamp_min(tiny)
    norms = (m.norm(dim=1) * x.norm(dim=1)).clamp_min(tiny)
    return {
        "latent_error": float(((m - x).square().sum(1) / energy).mean()),
        "latent_cosine": float(((m * x).sum(1) / norms).mean()),
        "energy_ratio": float((m.square().sum(1) / energy).mean()),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedClips:
    """The first held-out clips of a feature folder. Each is generated alone, so that no number depends on a batch."""

    split: str
    features: FeatureSet
    records: tuple[Record, ...]
    codec: AudioCodec
    engine: Engine
    """The engine whose device and precision the networks use; the codec has its own precision."""

    @classmethod
    def open(cls, folder: Path, codec: AudioCodec, engine: Engine, num_clips: int) -> "FixedClips | None":
        """At most `num_clips` clips, latents normalised by the codec's statistics; None without held-out clips."""
        split = held_out_split(folder, num_clips)
        if split is None:
            return None
        features = FeatureSet.open(folder, split, statistics=(codec.latent_mean, codec.latent_std))
        records = tuple(features.records[k] for k in range(min(num_clips, len(features))))
        return cls(
            split=split, features=features, records=records, codec=decoding_on(codec, engine.device), engine=engine
        )

    def __len__(self) -> int:
        return len(self.records)

    def generate(self, net: MMAudio, k: int, *, num_steps: int, guidance: Guidance) -> Tensor:
        """Latents (N, C) of clip k, float32 on the CPU: jumps of a student, Euler steps of a teacher."""
        batch = self.features.batch([k])
        e = noise([clip_seed(SEED, self.records[k].id)], *batch.latents.shape[1:])
        generator = Generator(
            net=net, decoder=self.codec.decode_stages(), device=self.engine.device, arithmetic=self.engine.autocast
        )
        return generator.latents(batch.conditions, e, SamplingConfig(steps=num_steps, guidance=guidance))[0]

    def latents(self, k: int) -> Tensor:
        """The true latents (N, C) of clip k: posterior means, normalised."""
        return self.features.batch([k]).latents[0]

    def loss(self, net: MMAudio, k: int) -> float:
        """Mean of (v(x_t, t) - (e - x))^2 over frames, channels and eight times of clip k, with an e for each time."""
        device, name = self.engine.device, self.records[k].id
        batch = self.features.batch([k] * LOSS_TIMES).to(device)
        x = batch.latents
        e = noise([clip_seed(SEED, f"{name}/loss/{i}") for i in range(LOSS_TIMES)], *x.shape[1:]).to(device)
        t = (torch.arange(LOSS_TIMES, device=device) + 0.5) / LOSS_TIMES
        with self.engine.autocast():
            encoded = net.encode_conditions(batch.conditions, x.shape[1])
            v = teacher_velocity(net, interpolate(x, e, t), t, encoded)
        return float((v.float() - velocity(x, e)).square().mean())

    def sound(self, latents: Tensor) -> Tensor:
        """Sound (samples,) of latents (N, C), on the CPU."""
        return self.codec.decode(latents[None])[0]


def held_out_split(folder: Path, num_clips: int) -> str | None:
    """The validation split if it holds enough clips or there is no test split, else the test split if there is one."""
    counts = store.read_json(folder / "features.json").get("counts", {})
    val, test = (int(counts.get(split, 0)) for split in SPLITS)
    if val and (val >= num_clips or not test):
        return "val"
    return "test" if test else None


def decoding_on(codec: AudioCodec, device: torch.device) -> AudioCodec:
    """Context with the codec's networks, if it has any, on a device; on a CPU they are slower than real time."""
    if isinstance(codec, MMAudioCodec) and codec.models.device != str(device):
        return replace(codec, models=replace(codec.models, device=str(device)))
    return codec


def key_of_latents(
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
    return json_digest(described, sort_keys=False)


def read_latents(path: Path, key: str) -> Tensor | None:
    """The latents of a file; None where it is absent, damaged in any byte, or was made with another key."""
    try:
        tensors, metadata = read_content(path, [NAME])
    except (OSError, ValueError):
        return None
    latents = tensors[NAME]
    return latents if metadata == _metadata(key, latents) else None


def write_latents(path: Path, key: str, latents: Tensor) -> None:
    """Write latents (clips, 2, N, C) under a temporary name, then rename into place."""
    write_tensors(path, {NAME: latents}, _metadata(key, latents))


def _metadata(key: str, latents: Tensor) -> dict[str, str]:
    """The key, and a digest by which a flipped bit is found, since safetensors has none. One entry, since several would
    be written in any order."""
    described = f"{latents.dtype}{tuple(latents.shape)}".encode()
    sha256 = hashlib.sha256(described + latents.numpy().tobytes()).hexdigest()
    return {"json": json.dumps({"key": key, "sha256": sha256})}
