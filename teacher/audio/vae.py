"""MMAudio's latent codec: a magnitude-preserving convolutional VAE between log-mels and latents of half the frame rate.

    encode  x = (mel - data_mean) / data_std;  encoder(x) = [mean, logvar], logvar in [-30, 20], std = exp(logvar / 2)
    decode  mel = decoder(z) data_std + data_mean

Layout is channels-first: mel (B, bins, frames), latent (B, channels, frames // 2); the flow network uses the transpose.
Names and shapes of the state dict are those of the published files, which hold raw weights. They are normalised once,
in float32, after loading (`VAE.from_raw`, `load_vae`); a VAE with raw weights refuses to run, and one whose weights are
normalised already refuses to normalise them again. After that it may be cast to bfloat16.

Its layers preserve magnitudes (Karras et al., EDM2, arXiv 2312.02696, equations 47, 66, 81 and 88), here along one
dimension, so that inputs of unit variance give outputs of unit variance:

    pixel_norm(x) = x / (1e-4 + rms over channels)          mp_silu(x) = silu(x) / 0.596
    mp_sum(a, b)  = (0.7 a + 0.3 b) / sqrt(0.7^2 + 0.3^2)   weights: rows of norm one, no bias
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from teacher.files.components import check_fit, compare_weights, load_strictly, read_shapes
from teacher.files.errors import WeightsError
from teacher.files.safetensors import read_content

EPS = 1e-4
MIX = 0.3
"""Weight of the residual branch in `mp_sum`."""
LIMIT = 256.0
"""Activations are clamped to [-LIMIT, LIMIT] after every block, as in MMAudio; normalised weights never reach it."""
_MIXED = math.hypot(1 - MIX, MIX)


def normalised_weight(weight: Float[Tensor, " out in kernel"]) -> Float[Tensor, " out in kernel"]:
    """w / (EPS + ||w|| / sqrt(n)) / sqrt(n) per output channel, with n = in * kernel; computed in float32 or wider."""
    root = math.sqrt(weight[0].numel())
    w = weight.to(torch.promote_types(weight.dtype, torch.float32))
    norm = torch.linalg.vector_norm(w, dim=(1, 2), keepdim=True)
    return w / (EPS + norm / root) / root


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """x / (EPS + root mean square along `dim`); the norm is computed in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=wide)
    return x / (EPS + norm / math.sqrt(x.shape[dim])).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596: 0.596 is the root mean square of SiLU for a standard normal input."""
    return functional.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor) -> Tensor:
    """(0.7 a + 0.3 b) / sqrt(0.7^2 + 0.3^2): has unit variance for independent `a` (skip) and `b` of unit variance."""
    return torch.lerp(a, b, MIX) / _MIXED


class MPConv1d(nn.Module):
    """Convolution without bias, with "same" padding. Its weights are raw until `normalise_`; it does not run before."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel))
        self.normalised = False

    def _load_from_state_dict(self, *args: Any) -> None:
        """Files hold raw weights, so whatever is loaded has to be normalised."""
        self.normalised = False
        super()._load_from_state_dict(*args)

    @torch.no_grad()
    def normalise_(self) -> None:
        """Replace the raw weight by the normalised one; nothing happens the second time."""
        if self.normalised:
            return
        if self.weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"weights must be normalised in float32 before they are cast, got {self.weight.dtype}")
        self.weight.copy_(normalised_weight(self.weight))
        self.normalised = True

    def forward(self, x: Float[Tensor, " batch in frames"]) -> Float[Tensor, "batch out frames"]:
        if not self.normalised:
            raise RuntimeError("this VAE holds raw weights: call its normalise_() once after loading")
        return functional.conv1d(x, self.weight, padding=self.weight.shape[2] // 2)


class MPResBlock(nn.Module):
    """mp_sum(shortcut(n), conv2(s(conv1(s(n))))) with n = pixel_norm(x), s = mp_silu; the shortcut takes n, not x."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = MPConv1d(in_channels, out_channels, 3)
        self.conv2 = MPConv1d(out_channels, out_channels, 3)
        if in_channels != out_channels:
            self.nin_shortcut = MPConv1d(in_channels, out_channels, 1)
        self.changes_width = in_channels != out_channels

    def forward(self, x: Float[Tensor, " batch in frames"]) -> Float[Tensor, "batch out frames"]:
        x = pixel_norm(x)
        y = self.conv2(mp_silu(self.conv1(mp_silu(x))))
        return mp_sum(self.nin_shortcut(x) if self.changes_width else x, y)


class MPAttention(nn.Module):
    """Single-head self-attention over frames: q, k and v are pixel-normalised, the skip path is not."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = MPConv1d(channels, 3 * channels, 1)
        self.proj_out = MPConv1d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels frames"]:
        batch, channels, frames = x.shape
        qkv = self.qkv(x).view(batch, channels, 3, frames)  # output channel = 3 c + (0 q, 1 k, 2 v)
        q, k, v = pixel_norm(qkv).permute(2, 0, 3, 1)[:, :, None]
        attended = functional.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return mp_sum(x, self.proj_out(attended))


class Middle(nn.Module):
    """Residual block, attention and residual block at the coarsest time resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = MPResBlock(channels, channels)
        self.attn_1 = MPAttention(channels)
        self.block_2 = MPResBlock(channels, channels)

    def forward(self, x: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels frames"]:
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x)))).clamp(-LIMIT, LIMIT)


class Downsample(nn.Module):
    """Halves the frames: 1x1 convolution, mean of pairs (an odd last frame is dropped), 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = MPConv1d(channels, channels, 1)
        self.conv2 = MPConv1d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels halved"]:
        return cast(Tensor, self.conv2(functional.avg_pool1d(self.conv1(x), 2)))


class Upsample(nn.Module):
    """Doubles the frames: every frame is repeated, then a convolution of kernel 3 follows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = MPConv1d(channels, channels, 3)

    def forward(self, x: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels doubled"]:
        return cast(Tensor, self.conv(x.repeat_interleave(2, dim=2)))


class Level(nn.Module):
    """Residual blocks of the given widths, then an optional change of the time resolution under its published name."""

    def __init__(self, widths: tuple[int, ...], resample: Downsample | Upsample | None = None) -> None:
        super().__init__()
        self.block = nn.ModuleList(MPResBlock(a, b) for a, b in pairwise(widths))
        self.downsample = resample if isinstance(resample, Downsample) else None
        self.upsample = resample if isinstance(resample, Upsample) else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x).clamp(-LIMIT, LIMIT)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


Part: TypeAlias = Literal["both", "encoder", "decoder"]
LOGVAR_RANGE = (-30.0, 20.0)
STATISTICS = ("data_mean", "data_std")


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes of one VAE of log-mel spectrograms; its three levels have width, 2 width and 4 width channels."""

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
        """The sizes, from the shapes of the first and last convolution of encoder or decoder.

        Raises WeightsError when neither half has both.
        """
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
        """Standard deviation exp(logvar / 2)."""
        return torch.exp(0.5 * self.logvar)

    def at(self, e: Float[Tensor, "batch channels frames"]) -> Tensor:
        """The latent at noise e: mean + std e."""
        return self.mean + self.std * e

    def sample(self, generator: torch.Generator) -> Tensor:
        """One random latent mean + std e; the noise e is drawn on the generator's device, in float32."""
        e = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.at(e.to(self.mean))


class Encoder(nn.Module):
    """Encodes a normalised mel (B, bins, frames) to (mean, logvar) concatenated on channels, frames // 2 long."""

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
    """Decodes a latent to a normalised mel of twice as many frames.

    `up` is indexed by resolution as in published files: level 0 is the finest and runs last.
    """

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
    """Encoder and decoder of log-mel spectrograms, or the half that `part` names. A new VAE has random raw weights."""

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
        """A frozen, normalised VAE from exactly the raw tensors of `part`; raises WeightsError naming what differs."""
        with torch.device("meta"):
            vae = cls(config or VAEConfig.from_tensors(tensors), part).to(dtype)
        load_strictly(vae, tensors)
        return vae.normalise_().eval().requires_grad_(False)

    @property
    def normalised(self) -> bool:
        """Whether the weights are ready for use."""
        return all(conv.normalised for conv in self._convolutions())

    def normalise_(self) -> "VAE":
        """Normalise the raw weights in place; nothing happens the second time.

        Raises ValueError for weights loaded from a file in which they are normalised already. Their rows all have norms
        just below 1, 1 / (1 + 1e-4 sqrt(n) / raw norm), while raw rows have norms of the order of sqrt(n).
        """
        raw = [conv for conv in self._convolutions() if not conv.normalised]
        norms = [conv.weight.flatten(1).norm(dim=1) for conv in raw]
        if norms and all(bool(((n > 0.98) & (n < 1.001)).all()) for n in norms):
            raise ValueError("the weights of this VAE are normalised already; load the raw ones")
        for conv in raw:
            conv.normalise_()
        return self

    def encode(self, mel: Float[Tensor, "batch bins frames"]) -> LatentGaussian:
        """Posterior over latents of a log-mel (B, bins, frames): (B, channels, frames // 2)."""
        if self.encoder is None:
            raise ValueError("this VAE was made without its encoder (part='decoder')")
        if mel.ndim != 3 or mel.shape[1] != self.config.data_dim or mel.shape[2] < 2:
            raise ValueError(f"mel must have shape (batch, {self.config.data_dim}, frames > 1), got {tuple(mel.shape)}")
        mean, logvar = self.encoder((mel - self.data_mean) / self.data_std).chunk(2, dim=1)
        return LatentGaussian(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode_raw(self, z: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch bins doubled"]:
        """Output of the decoder (B, bins, 2 frames) before multiplying by data_std and adding data_mean."""
        if self.decoder is None:
            raise ValueError("this VAE was made without its decoder (part='encoder')")
        if z.ndim != 3 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"z must have shape (batch, {self.config.latent_channels}, frames), got {tuple(z.shape)}")
        return cast(Tensor, self.decoder(z))

    def decode(self, z: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch bins doubled"]:
        """Log-mel spectrogram (B, bins, 2 frames) of a latent (B, channels, frames)."""
        return self.decode_raw(z) * self.data_std + self.data_mean

    def _convolutions(self) -> list[MPConv1d]:
        return [module for module in self.modules() if isinstance(module, MPConv1d)]


def load_vae(path: Path, config: VAEConfig | None = None, *, part: Part = "both") -> VAE:
    """Load a VAE from a component file of raw weights: frozen, normalised, float32, on the CPU; only `part` is read.

    The file must hold all tensors of `part` in the shapes of `config`, and besides them nothing but the other half.
    Raises WeightsError naming the file and what does not fit.
    """
    compare_weights(path)
    try:
        heads = {name: torch.empty(shape, device="meta") for name, shape in read_shapes(path).items()}
        config = config or VAEConfig.from_tensors(heads)
        wanted, known = _shapes(config, part), _shapes(config, "both")
        found = {n: tuple(head.shape) for n, head in heads.items() if n in wanted or n not in known}
        check_fit(wanted, found, str(path))
        tensors = read_content(path, wanted).tensors
    except WeightsError:
        raise
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error
    try:
        return VAE.from_raw(tensors, config, part=part)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def _shapes(config: VAEConfig, part: Part) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in VAE(config, part).state_dict().items()}
