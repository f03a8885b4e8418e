"""MMAudio's latent codec: a magnitude-preserving convolutional VAE between log-mels and latents of half the frame rate.

    encode  x = (mel - data_mean) / data_std;  encoder(x) = [mean, logvar], logvar in [-30, 20], std = exp(logvar / 2)
    decode  mel = decoder(z) data_std + data_mean

Layout is channels-first: mel (B, bins, frames), latent (B, channels, frames // 2); the flow network uses the transpose.
Names and shapes of the state dict are those of the published files, which hold raw weights. They are normalised once,
in float32, after loading (`VAE.from_raw`, `load_vae`); a VAE with raw weights refuses to run, and one whose weights are
normalised already refuses to normalise them again. After that it may be cast to bfloat16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from teacher.audio.vae_blocks import Downsample, Level, Middle, MPConv1d, Upsample, mp_silu
from teacher.weights.errors import WeightsError
from teacher.weights.files import check_fit, compare_weights, load_strictly

Part: TypeAlias = Literal["both", "encoder", "decoder"]
LOGVAR_RANGE = (-30.0, 20.0)
STATISTICS = ("data_mean", "data_std")


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes of one VAE; its three levels have width, 2 width and 4 width channels."""

    data_dim: int
    """Mel bins."""
    latent_channels: int
    width: int
    """Channels at full time resolution."""

    def __post_init__(self) -> None:
        for name in ("data_dim", "latent_channels", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "VAEConfig":
        """Read off the first and last convolution of either half; WeightsError when neither is complete."""
        if {"decoder.conv_in.weight", "decoder.conv_out.weight"} <= set(tensors):
            bins, width, _ = tensors["decoder.conv_out.weight"].shape
            channels = tensors["decoder.conv_in.weight"].shape[1]
        elif {"encoder.conv_in.weight", "encoder.conv_out.weight"} <= set(tensors):
            width, bins, _ = tensors["encoder.conv_in.weight"].shape
            channels = tensors["encoder.conv_out.weight"].shape[0] // 2
        else:
            raise WeightsError("not the tensors of a VAE: neither half has its conv_in.weight and conv_out.weight")
        return cls(data_dim=bins, latent_channels=channels, width=width)


VAE_16K = VAEConfig(data_dim=80, latent_channels=20, width=384)
VAE_44K = VAEConfig(data_dim=128, latent_channels=40, width=512)


class LatentGaussian(NamedTuple):
    """Diagonal normal distribution over latents, (B, channels, frames)."""

    mean: Tensor
    """Also the mode."""
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def at(self, e: Float[Tensor, "batch channels frames"]) -> Tensor:
        """mean + std e."""
        return self.mean + self.std * e

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw; the noise is made on the generator's device, in float32."""
        e = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.at(e.to(self.mean))


class Encoder(nn.Module):
    """Normalised mel -> (mean, logvar) stacked on channels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        d = config.width
        self.learnable_gain = nn.Parameter(torch.zeros(()))
        self.conv_in = MPConv1d(config.data_dim, d, 3)
        self.down = nn.ModuleList(
            [Level((d, d, d), Downsample(d)), Level((d, 2 * d, 2 * d)), Level((2 * d, 4 * d, 4 * d))]
        )
        self.mid = Middle(4 * d)
        self.conv_out = MPConv1d(4 * d, 2 * config.latent_channels, 3)

    def forward(self, x: Float[Tensor, "batch bins frames"]) -> Float[Tensor, "batch doubled halved"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return cast(Tensor, self.conv_out(mp_silu(self.mid(x)))) * (1 + self.learnable_gain)


class Decoder(nn.Module):
    """Latent -> normalised mel of twice as many frames. Levels are indexed by resolution, 0 the finest, run last."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        d = config.width
        self.learnable_gain = nn.Parameter(torch.zeros(()))
        self.conv_in = MPConv1d(config.latent_channels, 4 * d, 3)
        self.mid = Middle(4 * d)
        self.up = nn.ModuleList(
            [
                Level((2 * d, d, d, d)),
                Level((4 * d, 2 * d, 2 * d, 2 * d), Upsample(2 * d)),
                Level((4 * d, 4 * d, 4 * d, 4 * d)),
            ]
        )
        self.conv_out = MPConv1d(d, config.data_dim, 3)

    def forward(self, z: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch bins doubled"]:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return cast(Tensor, self.conv_out(mp_silu(x))) * (1 + self.learnable_gain)


class VAE(nn.Module):
    """Both halves, or the one that `part` names. A new VAE holds random raw weights."""

    data_mean: Tensor
    data_std: Tensor

    def __init__(self, config: VAEConfig, part: Part = "both") -> None:
        super().__init__()
        if part not in get_args(Part):
            raise ValueError(f"part must be one of {', '.join(get_args(Part))}, got {part!r}")
        self.config = config
        self.register_buffer("data_mean", torch.zeros(1, config.data_dim, 1))
        self.register_buffer("data_std", torch.ones(1, config.data_dim, 1))
        self.encoder = Encoder(config) if part != "decoder" else None
        self.decoder = Decoder(config) if part != "encoder" else None

    @classmethod
    def from_raw(
        cls,
        tensors: Mapping[str, Tensor],
        config: VAEConfig | None = None,
        *,
        part: Part = "both",
        dtype: torch.dtype = torch.float32,
    ) -> "VAE":
        """A frozen, normalised VAE from the raw tensors of `part` (exactly those); WeightsError names what differs."""
        with torch.device("meta"):
            vae = cls(config or VAEConfig.from_tensors(tensors), part).to(dtype)
        load_strictly(vae, tensors)
        return vae.normalise_().eval().requires_grad_(False)

    @property
    def normalised(self) -> bool:
        """Whether the weights are ready for use."""
        return all(conv.normalised for conv in self._convolutions())

    def normalise_(self) -> "VAE":
        """Normalise the raw weights, in place; nothing happens the second time.

        Raises ValueError when they come from a file of weights that are normalised already: every row of every one of
        them has norm 1 / (1 + 1e-4 sqrt(n) / norm) then, while raw rows have norms of the order of sqrt(n).
        """
        raw = [conv for conv in self._convolutions() if not conv.normalised]
        norms = [conv.weight.flatten(1).norm(dim=1) for conv in raw]
        if norms and all(bool(((n > 0.98) & (n < 1.001)).all()) for n in norms):
            raise ValueError("the weights of this VAE are normalised already; load the raw ones")
        for conv in raw:
            conv.normalise_()
        return self

    def encode(self, mel: Float[Tensor, "batch bins frames"]) -> LatentGaussian:
        """Posterior over latents of frames // 2 frames."""
        if self.encoder is None:
            raise ValueError("this VAE was made without its encoder (part='decoder')")
        if mel.ndim != 3 or mel.shape[1] != self.config.data_dim or mel.shape[2] < 2:
            raise ValueError(f"mel must have shape (batch, {self.config.data_dim}, frames > 1), got {tuple(mel.shape)}")
        mean, logvar = self.encoder((mel - self.data_mean) / self.data_std).chunk(2, dim=1)
        return LatentGaussian(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode_raw(self, z: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch bins doubled"]:
        """Decoder output before the bins get their mean and standard deviation back."""
        if self.decoder is None:
            raise ValueError("this VAE was made without its decoder (part='encoder')")
        if z.ndim != 3 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"z must have shape (batch, {self.config.latent_channels}, frames), got {tuple(z.shape)}")
        return cast(Tensor, self.decoder(z))

    def decode(self, z: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch bins doubled"]:
        """Log-mel spectrogram of twice as many frames."""
        return self.decode_raw(z) * self.data_std + self.data_mean

    def _convolutions(self) -> list[MPConv1d]:
        return [module for module in self.modules() if isinstance(module, MPConv1d)]


def load_vae(path: Path, config: VAEConfig | None = None, *, part: Part = "both") -> VAE:
    """VAE of a component file of raw weights: frozen, normalised, float32, on the CPU; only `part` is read.

    The tensors of `part` must be there with exactly these shapes; of the others only those of the other half may be.
    Raises WeightsError naming the file and what does not fit.
    """
    compare_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            heads = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
            config = config or VAEConfig.from_tensors(heads)
            wanted, known = _shapes(config, part), _shapes(config, "both")
            found = {n: tuple(head.shape) for n, head in heads.items() if n in wanted or n not in known}
            check_fit(wanted, found, str(path))
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error
    try:
        return VAE.from_raw(tensors, config, part=part)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def _shapes(config: VAEConfig, part: Part) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in VAE(config, part).state_dict().items()}
