"""Blocks of HTS-AT (arXiv 2202.00874), which are those of Swin (arXiv 2103.14030): attention in shifted windows.

Modules are named as in the published state dicts. Tokens are kept as maps (batch, rows, columns, width) here; the rows
are frequencies, the columns times. There is no dropout: the networks are used, not trained.


HTS-AT (arXiv 2202.00874), the audio tower of LAION-CLAP (arXiv 2211.06687) and of MS-CLAP 2023 (arXiv 2309.05767).

    power spectrogram -> log mel -> bn0 -> image -> four Swin stages -> norm -> mean over all tokens

The log mel is stretched to four times as many frames as the image has columns and cut into four quarters, which are
stacked along frequency: 1024 frames of 64 bands become an image of 256 x 256, the first quarter on top. State dicts are
those under `audio_branch.` (LAION-CLAP) and `audio_encoder.base.htsat.` (MS-CLAP). The files also hold AudioSet's
classifier, `tscam_conv` and `head`, which the embedding does not pass. The transform and the filters are the file's
own; `check_constants` says whether they are what the network was built for.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.htsat_front_end import LogMel, LogMelConfig, Spectrogram
from teacher.encoders.synchformer import Mlp
from teacher.files.errors import WeightsError

MASKED = -100.0
"""Added to the scores of pairs that are no neighbours; a finite number, as in the file."""


def relative_positions(window: int) -> Int[Tensor, "tokens tokens"]:
    """Row of the bias table for each pair of places in a window: (dr + w - 1) (2 w - 1) + (dc + w - 1).

    dr and dc are the differences of the rows and columns, the first place minus the second; places are row by row.
    """
    places = torch.arange(window * window)
    rows, columns = places // window, places % window
    return (rows[:, None] - rows + window - 1) * (2 * window - 1) + (columns[:, None] - columns + window - 1)


def shifted_mask(side: int, window: int, shift: int) -> Float[Tensor, "windows tokens tokens"]:
    """0 for pairs of a window that were neighbours before the map was rolled by `shift`, -100 for the others.

    Along either axis the rolled map is made of three runs: what no border crosses, the last window up to the seam, and
    the `shift` places behind the seam, which come from the other end.
    """
    place = torch.arange(side)
    run = (place >= side - window).long() + (place >= side - shift).long()
    regions = to_windows((3 * run[:, None] + run)[None, ..., None], window)[0, ..., 0]
    return (regions[:, None, :] != regions[:, :, None]).float() * MASKED


def to_windows(x: Tensor, window: int) -> Tensor:
    """Map (batch, rows, columns, width) -> (batch, windows, window^2, width), both row by row."""
    return rearrange(x, "b (i r) (j c) d -> b (i j) (r c) d", r=window, c=window)


def from_windows(x: Tensor, side: int, window: int) -> Tensor:
    """Inverse of to_windows for a square map."""
    return rearrange(x, "b (i j) (r c) d -> b (i r) (j c) d", i=side // window, r=window)


class WindowAttention(nn.Module):
    """softmax(q k^T / sqrt(width / heads) + bias + mask) v within each window, bias by relative position and head."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch windows tokens width"], mask: Float[Tensor, "windows tokens tokens"] | None
    ) -> Float[Tensor, "batch windows tokens width"]:
        q, k, v = rearrange(self.qkv(x), "b w n (three h d) -> three b w h n d", three=3, h=self.heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            scores = scores + mask[:, None]
        return self.proj(rearrange(scores.softmax(dim=-1) @ v, "b w h n d -> b w n (h d)"))


class Block(nn.Module):
    """x += attention in windows of norm1 x, the map rolled by `shift` meanwhile; x += mlp(norm2 x).

    A map that is no larger than the window is one window and is not rolled.
    """

    def __init__(self, width: int, heads: int, side: int, window: int, *, shifted: bool, mlp_ratio: int) -> None:
        super().__init__()
        self.side, self.window = side, min(side, window)
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, self.window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        # None keeps the name out of the state dict, where blocks that are not shifted have no mask.
        self.register_buffer("attn_mask", shifted_mask(side, window, self.shift) if self.shift else None)

    def forward(self, x: Float[Tensor, "batch side side width"]) -> Float[Tensor, "batch side side width"]:
        rolled = self.norm1(x).roll((-self.shift, -self.shift), dims=(1, 2))
        mixed = from_windows(self.attn(to_windows(rolled, self.window), self.attn_mask), self.side, self.window)
        x = x + mixed.roll((self.shift, self.shift), dims=(1, 2))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width: reduction(norm(theirs side by side))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Float[Tensor, "batch side side width"]) -> Float[Tensor, "batch half half 2*width"]:
        # The row changes first: (0, 0), (1, 0), (0, 1), (1, 1).
        return self.reduction(self.norm(rearrange(x, "b (i r) (j c) d -> b i j (c r d)", r=2, c=2)))


class Stage(nn.Module):
    """Blocks at one resolution, every second one shifted, and the merging that halves it (none after the last)."""

    def __init__(
        self, width: int, depth: int, heads: int, side: int, window: int, *, mlp_ratio: int, merge: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, side, window, shifted=bool(k % 2), mlp_ratio=mlp_ratio) for k in range(depth)
        )
        self.downsample = PatchMerging(width) if merge else None

    def forward(self, x: Float[Tensor, "batch side side width"]) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Square patches of an image to a map of tokens, normalised."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch, patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Float[Tensor, "batch 1 rows columns"]) -> Float[Tensor, "batch side side width"]:
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


CONSTANT_TOLERANCE = 1e-4
"""Greatest difference of the file's constants from ours, as a share of the greatest entry."""


@dataclass(frozen=True, kw_only=True)
class HtsatConfig:
    """Sizes of the network and its front end; the sizes that have a default are common to the published ones."""

    mel: LogMelConfig
    embed_dim: int
    """Width of the first stage; each further stage has twice that of the one before."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    image: int = 256
    """Rows and columns of the image that the log mel is folded into."""
    patch: int = 4
    window: int = 8
    """Rows and columns of an attention window, in tokens."""
    mlp_ratio: int = 4
    classes: int = 527
    """Classes of AudioSet, for the classifier that the files hold."""

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.heads) or min(self.depths) < 1:
            raise ValueError(f"depths must be positive, one for each of the heads {self.heads}, got {self.depths}")
        for name, value in (
            ("embed_dim", self.embed_dim),
            ("patch", self.patch),
            ("mlp_ratio", self.mlp_ratio),
            ("classes", self.classes),
        ):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.window < 2:
            raise ValueError(f"window must be at least 2, got {self.window}")
        for stage, heads in enumerate(self.heads):
            if heads < 1 or self.width(stage) % heads:
                raise ValueError(f"heads must divide the widths of their stages, got {heads} for {self.width(stage)}")
        rows = self.patch * 2 ** (len(self.depths) - 1) * self.fold
        if self.image < 1 or self.fold * self.mel.num_mels != self.image or self.image % rows:
            raise ValueError(
                f"image must be a multiple of num_mels {self.mel.num_mels} and of {rows}, got {self.image}"
            )
        for stage in range(len(self.depths)):
            if self.side(stage) > self.window and self.side(stage) % self.window:
                raise ValueError(f"window must divide the sides of the maps, got {self.window} for {self.side(stage)}")

    @property
    def fold(self) -> int:
        """Parts of the log mel that are stacked in the image: 4."""
        return max(self.image // self.mel.num_mels, 1)

    @property
    def frames(self) -> int:
        """Frames that the log mel is stretched to: 1024."""
        return self.image * self.fold

    @property
    def dimensions(self) -> int:
        """Length of the embedding: 8 embed_dim after four stages."""
        return self.width(len(self.depths) - 1)

    def width(self, stage: int) -> int:
        """Width of the tokens of a stage."""
        return self.embed_dim * 2**stage

    def side(self, stage: int) -> int:
        """Rows and columns of the map of a stage."""
        return self.image // self.patch // 2**stage


LAION = HtsatConfig(mel=LogMelConfig(sample_rate=48_000, hop_length=480), embed_dim=128, depths=(2, 2, 12, 2))
"""HTSAT-base of music_speech_audioset_epoch_15_esc_89.98.pt: 287 tensors under `audio_branch.`."""
MS_2023 = HtsatConfig(
    mel=LogMelConfig(sample_rate=44_100, hop_length=320, fmax_hz=(14_000.0, 8000.0)), embed_dim=96, depths=(2, 2, 6, 2)
)
"""Tower of CLAP_weights_2023.pth: 200 tensors under `audio_encoder.base.htsat.`.

The package's settings for this file say 8000 Hz, but its network does not read them and takes 14 000 Hz from another
file; what counts is the filters in the file of weights, and both are known here."""


class Htsat(nn.Module):
    """Waves to the embedding that CLAP's projection takes. Front end and filters are zeros until a state is loaded."""

    def __init__(self, config: HtsatConfig) -> None:
        super().__init__()
        c, last = config, len(config.depths) - 1
        self.config = config
        self.spectrogram_extractor = Spectrogram(c.mel)
        self.logmel_extractor = LogMel(c.mel)
        self.bn0 = nn.BatchNorm2d(c.mel.num_mels)
        self.patch_embed = PatchEmbed(c.embed_dim, c.patch)
        self.layers = nn.Sequential(
            *(
                Stage(c.width(k), depth, heads, c.side(k), c.window, mlp_ratio=c.mlp_ratio, merge=k < last)
                for k, (depth, heads) in enumerate(zip(c.depths, c.heads, strict=True))
            )
        )
        self.norm = nn.LayerNorm(c.dimensions)
        self.tscam_conv = nn.Conv2d(c.dimensions, c.classes, (c.side(last) // c.fold, 3))
        self.head = nn.Linear(c.classes, c.classes)

    def forward(self, waves: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dimensions"]:
        """Mono waves at the network's rate and of its length (`laion_length`, `ms_length`) -> embedding."""
        return self.embed_mel(self.log_mel(waves))

    def log_mel(self, waves: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames mels"]:
        """Decibels, -100 for silence; 1 + samples // hop_length frames."""
        return self.logmel_extractor(self.spectrogram_extractor(waves))

    def embed_mel(self, mel: Float[Tensor, "batch frames mels"]) -> Float[Tensor, "batch dimensions"]:
        """Log mel -> mean of the tokens after the last norm."""
        levelled = self.bn0(mel.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        tokens = self.layers(self.patch_embed(to_image(levelled, self.config)))
        return self.norm(tokens).mean(dim=(1, 2))


def to_image(mel: Float[Tensor, "batch frames mels"], config: HtsatConfig) -> Float[Tensor, "batch 1 image image"]:
    """Stretch to `config.frames` (bicubic, first and last frame kept) and stack the parts, the earliest on top.

    Raises ValueError where the log mel has more frames than that, or another number of bands.
    """
    if mel.shape[2] != config.mel.num_mels or mel.shape[1] > config.frames:
        raise ValueError(
            f"log mel must have at most {config.frames} frames of {config.mel.num_mels} bands, got "
            f"{mel.shape[1]} of {mel.shape[2]}"
        )
    if mel.shape[1] < config.frames:
        size = (config.frames, config.mel.num_mels)
        mel = functional.interpolate(mel[:, None], size, mode="bicubic", align_corners=True)[:, 0]
    parts = mel.unflatten(1, (config.fold, config.image))  # (batch, part, column, band)
    return parts.transpose(2, 3).flatten(1, 2)[:, None]


def front_end_tensors(config: HtsatConfig, *, fmax_hz: float | None = None) -> dict[str, Tensor]:
    """The front end as the files hold it, float32; `fmax_hz` None means the first that the configuration names."""
    real, imag = config.mel.transform()
    return {
        "spectrogram_extractor.stft.conv_real.weight": real,
        "spectrogram_extractor.stft.conv_imag.weight": imag,
        "logmel_extractor.melW": config.mel.filters(config.mel.fmax_hz[0] if fmax_hz is None else fmax_hz),
    }


def check_constants(network: Htsat, path: Path) -> float:
    """The upper edge in Hz of the mel filters that were loaded from `path`.

    Raises WeightsError unless the transform, the filters, the positions and the masks in the file are those that the
    network was built for. The sign of the sines does not matter.
    """
    ours = front_end_tensors(network.config)
    wanted: dict[str, tuple[Tensor, ...]] = {name: (tensor,) for name, tensor in ours.items()}
    imag, mel = "spectrogram_extractor.stft.conv_imag.weight", "logmel_extractor.melW"
    wanted[imag] = (ours[imag], -ours[imag])
    wanted[mel] = tuple(network.config.mel.filters(fmax) for fmax in network.config.mel.fmax_hz)
    for name, block in network.named_modules():
        if isinstance(block, Block):
            wanted[f"{name}.attn.relative_position_index"] = (relative_positions(block.window),)
            if block.shift:
                wanted[f"{name}.attn_mask"] = (shifted_mask(block.side, block.window, block.shift),)
    buffers, chosen = dict(network.named_buffers()), {}
    for name, candidates in wanted.items():
        theirs = buffers[name].cpu().double()
        shares = [float((theirs - c.double()).abs().max() / c.double().abs().max()) for c in candidates]
        if not min(shares) <= CONSTANT_TOLERANCE:
            raise WeightsError(
                f"{path} was made for another network: {name} differs from ours by {min(shares):.2g} of its greatest "
                "value"
            )
        chosen[name] = shares.index(min(shares))
    return network.config.mel.fmax_hz[chosen[mel]]
