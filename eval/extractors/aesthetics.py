"""Audiobox-Aesthetics (arXiv 2502.05139): production quality and complexity, content enjoyment and usefulness, 1 to 10.

A WavLM-base whose layers are averaged with learnt weights, once per score, and a small network on the mean over time.
The network is the published package's own: of `audiobox_aesthetics` 0.0.4 the module `model.aes`, which imports torch,
numpy and huggingface_hub alone. Nothing else of the package is used, nor need it work: its `infer` imports torchaudio,
which does not import beside torch 2.13, and without a path it downloads. So it is installed without what it asks for:

    pip install --no-deps audiobox_aesthetics==0.0.4

Done here as `infer` does: windows of 10 s at 16 kHz without overlap, the last one followed by zeros that are masked,
and the mean over windows weighted with the length of what is not padding. Float32 throughout: the package announces
bfloat16 but, by comparing the wrong things, always computes in float32 too.

Two files hold the weights: `checkpoint.pt`, with the network's settings and the scale of the scores in it, and
`model.safetensors`, with both in a `config.json` that must lie beside it. No published file has been read with this:
where `checkpoint.pt` should hold more than tensors and plain values, it is refused, and the other one serves.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeGuard

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.base import LoadedFile, OfficialFile, check_waves, exact_float32, read_official
from teacher.files import file_digest, json_digest, read_json
from teacher.files.components import load_strictly
from teacher.files.errors import WeightsError
from teacher.weights.untrusted import is_safetensors, load_untrusted

AUDIOBOX = OfficialFile(
    file="checkpoint.pt",
    url="https://dl.fbaipublicfiles.com/audiobox-aesthetics/checkpoint.pt",
    licence="CC BY 4.0 (WavLM parts of the code: MIT)",
)
AXES = ("PQ", "PC", "CE", "CU")
"""Order of the scores here. The file's own order does not matter: all of it goes by name."""
SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 160_000
"""10 s."""
WINDOWS_AT_ONCE = 4
"""Windows per forward pass; it bounds the memory, no result depends on it."""
PREFIX = "model."
"""Put before every name in `checkpoint.pt`."""
INSTALL = "pip install --no-deps audiobox_aesthetics==0.0.4"


@dataclass(frozen=True, kw_only=True)
class AestheticsSettings:
    """How the published network is built, and the scale of its scores; the names are those of the files."""

    proj_num_layer: int
    proj_ln: bool
    proj_act_fn: str
    proj_dropout: float
    nth_layer: int
    use_weighted_layer_sum: bool
    normalize_embed: bool
    output_dim: int
    target_transform: Mapping[str, Mapping[str, float]]
    """Mean and standard deviation of each score among the training set's ratings, as "mean" and "std"."""

    def __post_init__(self) -> None:
        rules = (
            ("proj_num_layer", self.proj_num_layer, "a whole number of at least 1", _is_count(self.proj_num_layer)),
            ("nth_layer", self.nth_layer, "a whole number of at least 1", _is_count(self.nth_layer)),
            ("proj_ln", self.proj_ln, "true or false", isinstance(self.proj_ln, bool)),
            ("normalize_embed", self.normalize_embed, "true or false", isinstance(self.normalize_embed, bool)),
            ("proj_dropout", self.proj_dropout, "a finite number", _is_number(self.proj_dropout)),
            # The package knows no other activation, number of outputs or way to join the layers that works.
            ("proj_act_fn", self.proj_act_fn, "'gelu'", self.proj_act_fn == "gelu"),
            ("output_dim", self.output_dim, "1", self.output_dim == 1),
            ("use_weighted_layer_sum", self.use_weighted_layer_sum, "true", self.use_weighted_layer_sum is True),
        )
        for name, value, rule, holds in rules:
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {value!r}")
        if not isinstance(self.target_transform, Mapping) or set(self.target_transform) != set(AXES):
            raise ValueError(f"target_transform must have exactly {', '.join(AXES)}, got {self.target_transform!r}")
        for axis, scale in self.target_transform.items():
            mean, std = (scale.get(key) for key in ("mean", "std")) if isinstance(scale, Mapping) else (None, None)
            if not (_is_number(mean) and _is_number(std) and std > 0):
                raise ValueError(f"target_transform must hold a mean and a positive std for {axis}, got {scale!r}")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the settings of a weights file: from the file itself, or from `config.json` beside a safetensors file.

        Raises WeightsError in one line naming the file and what is missing or wrong.
        """
        if path.is_file() and path.stat().st_size and is_safetensors(path):
            path = path.with_name("config.json")
            content: Any
            try:
                content = read_json(path)
            except (OSError, ValueError) as error:
                raise WeightsError(
                    f"{path}, which belongs to the weights beside it, cannot be read: {error}"
                ) from error
            parts: list[Any] = [content]
        else:
            content = load_untrusted(path)
            parts = [content.get("model_cfg"), content] if isinstance(content, Mapping) else [content]
        if not all(isinstance(part, Mapping) for part in parts):
            raise WeightsError(f"{path} holds no settings of the network; Audiobox-Aesthetics' file has them")
        known = {name: part[name] for part in parts for name in cls.__dataclass_fields__ if name in part}
        missing = [name for name in cls.__dataclass_fields__ if name not in known]
        if missing:
            raise WeightsError(f"{path} lacks settings of the network: {', '.join(missing)}")
        try:
            return cls(**known)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from error

    def digest(self) -> str:
        """First 12 digits of the SHA-256 of all values."""
        return json_digest(asdict(self))[:12]

    def build(self) -> nn.Module:
        """The package's network with random weights. Raises ValueError saying how to install the package."""
        try:
            from audiobox_aesthetics.model.aes import AesMultiOutput
        except ImportError as error:
            raise ValueError(
                f"Audiobox-Aesthetics needs the package audiobox_aesthetics ({error}): {INSTALL}; without --no-deps it "
                "asks for torchaudio, which is not needed here"
            ) from error
        values: dict[str, Any] = asdict(self) | {"precision": "32"}
        # The network draws random weights first, and torch's name for its weight norm is deprecated.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            return AesMultiOutput(**values)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def windows(
    waves: Float[Tensor, "clips samples"],
) -> tuple[Float[Tensor, "clips windows 160000"], Bool[Tensor, "clips windows 160000"]]:
    """10 s each without overlap, zeros following the last; and where there is sound."""
    count = -(-waves.shape[1] // WINDOW_SAMPLES)
    room = (0, count * WINDOW_SAMPLES - waves.shape[1])
    sound = functional.pad(torch.ones_like(waves, dtype=torch.bool), room)
    return functional.pad(waves, room).unflatten(1, (count, -1)), sound.unflatten(1, (count, -1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Aesthetics:
    """Waves at 16 kHz -> four scores per clip in the order of `AXES`."""

    network: nn.Module
    settings: AestheticsSettings
    loaded: LoadedFile
    digest: str
    """Digest of the weights file and, where they are in another one, of the settings."""

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu") -> Self:
        """`checkpoint.pt`, or `model.safetensors` beside its `config.json`, strictly.

        Raises:
            WeightsError: in one line, naming the file and what does not fit.
            ValueError: the package is not installed.
        """
        tensors = read_official(path)
        settings = AestheticsSettings.read(path)
        network = settings.build()
        try:
            load_strictly(network, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
        except WeightsError as error:
            raise WeightsError(f"{path} is not {AUDIOBOX.file} of Audiobox-Aesthetics: {error}") from error
        loaded = LoadedFile(path=path, digest=file_digest(path), published=None)
        apart = f"-{settings.digest()}" if is_safetensors(path) else ""
        network = network.to(device).eval().requires_grad_(False)
        return cls(network=network, settings=settings, loaded=loaded, digest=loaded.digest + apart)

    @property
    def name(self) -> str:
        return f"audiobox-aesthetics-v1@{SAMPLE_RATE}:{self.digest}"

    @property
    def sample_rate(self) -> int:
        """Of the waves, in Hz."""
        return SAMPLE_RATE

    @torch.no_grad()
    def __call__(self, waves: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips 4"]:
        """PQ, PC, CE and CU of each clip, float32 on the processor; nothing keeps them within 1 to 10.

        Raises:
            ValueError: not (clips, samples), empty, or not finite.
        """
        check_waves(waves, model="Audiobox-Aesthetics", sample_rate=SAMPLE_RATE, shortest=1)
        device = next(self.network.parameters()).device
        sound, mask = windows(waves.float())
        weights = mask.float().mean(dim=-1)
        with exact_float32():
            parts = [
                self._scores(some.to(device), there.to(device)).cpu()
                for some, there in zip(
                    sound.flatten(0, 1).split(WINDOWS_AT_ONCE), mask.flatten(0, 1).split(WINDOWS_AT_ONCE), strict=True
                )
            ]
        scores = torch.cat(parts).unflatten(0, weights.shape)
        return (scores * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)

    def _scores(self, sound: Float[Tensor, "batch 160000"], mask: Bool[Tensor, "batch 160000"]) -> Tensor:
        """Scores of windows (batch, 4), on the scale of the ratings."""
        made = self.network({"wav": sound[:, None], "mask": mask[:, None]})
        scales = self.settings.target_transform
        return torch.stack([made[axis].float() * scales[axis]["std"] + scales[axis]["mean"] for axis in AXES], dim=1)
