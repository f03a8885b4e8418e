"""Synchformer's visual encoder: eight features per segment of 16 frames, what MMAudio takes its timing from.

MotionFormer with divided space-time attention, ViT-B size (arXiv 2401.16423, section 3; arXiv 2106.05392). Modules are
named as in the published state dict, so that weights load without a table of names. The file of weights holds the
complete synchronisation model: `synchformer_audio.py` has its audio encoder, which shares the attention and the pooling
of this file, and `synchformer_sync.py` joins the two and classifies the offset between picture and sound.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from teacher.encoders.base import Frames, checked_frames, require_files
from teacher.files import tensors_digest
from teacher.files.components import count_blocks, load_strictly, read_tensors, shape_of
from teacher.files.errors import WeightsError
from teacher.media import FrameRequest
from teacher.network.sequence import MMAUDIO_WIDTHS, SEGMENT_FRAMES, SEGMENT_STRIDE, SYNC_FPS


def attend(
    q: Float[Tensor, "*batch queries width"],
    k: Float[Tensor, "*batch keys width"],
    v: Float[Tensor, "*batch keys width"],
    heads: int,
) -> Float[Tensor, "*batch queries width"]:
    """softmax(q k^T / sqrt(width / heads)) v in each head; a head is a contiguous run of channels."""
    batch = q.shape[:-2]
    # The fused kernels want exactly one leading dimension besides the heads.
    q, k, v = (rearrange(x.flatten(0, -3), "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return rearrange(mixed, "b h n d -> b n (h d)").unflatten(0, batch)


class GroupedAttention(nn.Module):
    """Half of divided space-time attention (TimeSformer, arXiv 2102.05095; MotionFormer, arXiv 2106.05392).

    Tokens are [class, (slot 0, patch 0), (slot 0, patch 1), ...]. The class token attends to all tokens. Every other
    token attends to the class token and to its group: over "time" the same patch in all slots, over "space" all
    patches of its slot.
    """

    def __init__(self, width: int, heads: int, slots: int, over: Literal["time", "space"]) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads
        self.slots = slots
        self.grouped = "b p t d" if over == "time" else "b t p d"

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        whole = attend(q[:, :1], k, v, self.heads)
        groups = attend(self._groups(q), self._with_class(k), self._with_class(v), self.heads)
        rest = rearrange(groups, f"{self.grouped} -> b (t p) d")
        return self.proj(torch.cat((whole, rest), dim=1))

    def _groups(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch groups members width"]:
        return rearrange(x[:, 1:], f"b (t p) d -> {self.grouped}", t=self.slots)

    def _with_class(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch groups members+1 width"]:
        groups = self._groups(x)
        return torch.cat((x[:, None, :1].expand(-1, groups.shape[1], -1, -1), groups), dim=2)


class Mlp(nn.Module):
    """fc2(GELU(fc1 x)) with the exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.fc2(functional.gelu(self.fc1(x)))


class DividedBlock(nn.Module):
    """x += time attention(norm3 x); x += space attention(norm1 x); x += mlp(norm2 x)."""

    def __init__(self, width: int, heads: int, hidden: int, slots: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = GroupedAttention(width, heads, slots, over="space")
        self.timeattn = GroupedAttention(width, heads, slots, over="time")
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)
        self.norm3 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.timeattn(self.norm3(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PackedAttention(nn.Module):
    """Self-attention whose three input projections are one matrix, under the names of torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.heads = heads
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self, query: Float[Tensor, "batch queries width"], tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch queries width"]:
        width = query.shape[-1]
        weights, biases = self.in_proj_weight.split([width, 2 * width]), self.in_proj_bias.split([width, 2 * width])
        q = functional.linear(query, weights[0], biases[0])
        k, v = functional.linear(tokens, weights[1], biases[1]).chunk(2, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads))


class TokenPool(nn.Module):
    """One pre-norm transformer layer over [class, tokens] that pools the tokens into its class token.

    With x = [class, tokens] and y = x + attention(norm1 x), the result is the first row of y + mlp(norm2 y). Nothing
    else of the layer's output is used, so only that row is computed.
    """

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.self_attn = PackedAttention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        first = self.cls_token.expand(len(tokens), -1, -1)
        normed = self.norm1(torch.cat((first, tokens), dim=1))
        y = first + self.self_attn(normed[:, :1], normed)
        return (y + self.linear2(functional.gelu(self.linear1(self.norm2(y)))))[:, 0]


FILE = "synchformer.safetensors"
"""Name of the converted file in a folder of weights."""
SYNC_REQUEST = FrameRequest(fps=SYNC_FPS, height=224, width=224, fit="crop")
VISUAL = "vfeat_extractor."
PARTS = ("vfeat_extractor", "afeat_extractor", "vproj", "aproj", "transformer")
"""Modules of the complete model."""
HEAD_WIDTH = 64
"""Channels per head in the published weights; the tensors do not determine the number of heads."""
SEGMENTS_AT_ONCE = 4
"""Segments per forward pass; one needs about 150 MB of activations in float32."""


@dataclass(frozen=True, kw_only=True)
class VisualConfig:
    """Sizes of the visual encoder; the defaults are the published ones."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    """Width of the hidden layer of each MLP."""
    patch: int = 16
    """Edge of a patch in pixels."""
    tubelet: int = 2
    """Frames that one token spans."""
    slots: int = 8
    """Time slots in a segment."""
    patches: int = 196
    """Patches in a frame."""
    eps: float = 1e-6
    """Epsilon of every LayerNorm."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width}, got {self.heads}")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, heads: int | None = None) -> Self:
        """Sizes of the model that `vfeat_extractor.*` belongs to; heads of 64 channels unless given.

        Raises WeightsError naming a tensor that is not there.
        """
        width, _, tubelet, patch, _ = shape_of(tensors, f"{VISUAL}patch_embed_3d.proj.weight", 5)
        return cls(
            width=width,
            depth=count_blocks(tensors, f"{VISUAL}blocks."),
            heads=heads or max(1, width // HEAD_WIDTH),
            hidden=shape_of(tensors, f"{VISUAL}blocks.0.mlp.fc1.weight", 2)[0],
            patch=patch,
            tubelet=tubelet,
            slots=shape_of(tensors, f"{VISUAL}temp_embed", 3)[1],
            patches=shape_of(tensors, f"{VISUAL}pos_embed", 3)[1] - 1,
        )


class PatchEmbedding(nn.Module):
    """A convolution from patches to tokens, under its name `proj` in the published state dict."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj


class VisualEncoder(nn.Module):
    """Segments of frames in [-1, 1] -> one feature per pair of frames."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        c = config
        self.config = config
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, c.width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + c.patches, c.width))
        self.temp_embed = nn.Parameter(0.02 * torch.randn(1, c.slots, c.width))
        # A leftover of the image model that this one was started from: in the file, but nothing reads it.
        self.patch_embed = PatchEmbedding(nn.Conv2d(3, c.width, c.patch, c.patch)).requires_grad_(False)
        kernel = (c.tubelet, c.patch, c.patch)
        self.patch_embed_3d = PatchEmbedding(nn.Conv3d(3, c.width, kernel, kernel))
        self.blocks = nn.ModuleList(DividedBlock(c.width, c.heads, c.hidden, c.slots, c.eps) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width, eps=c.eps)
        self.spatial_attn_agg = TokenPool(c.width, c.heads, c.hidden, c.eps)

    def forward(
        self, segments: Float[Tensor, "segments frames 3 height width"]
    ) -> Float[Tensor, "segments slots channels"]:
        """Tokens in the order time, row, column behind a class token; after the blocks each slot is pooled by itself.

        The position of a patch token is pos_embed[1 + place] + temp_embed[slot], that of the class token pos_embed[0].
        """
        patches = rearrange(self.patch_embed_3d.proj(segments.transpose(1, 2)), "s d t h w -> s t (h w) d")
        patches = patches + self.pos_embed[:, None, 1:] + self.temp_embed[:, :, None]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(segments), -1, -1)
        x = torch.cat((first, patches.flatten(1, 2)), dim=1)
        for block in self.blocks:
            x = block(x)
        slots = rearrange(self.norm(x[:, 1:]), "s (t p) d -> (s t) p d", t=self.config.slots)
        return self.spatial_attn_agg(slots).unflatten(0, (len(segments), self.config.slots))


class SynchformerVisual(nn.Module):
    """The visual encoder alone, under the name `vfeat_extractor` that it has in the complete model."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.vfeat_extractor = VisualEncoder(config)

    def forward(
        self, segments: Float[Tensor, "batch segments frames 3 height width"], *, chunk: int = SEGMENTS_AT_ONCE
    ) -> Float[Tensor, "batch segments slots channels"]:
        """Features of segments in [-1, 1] or uint8; see `encode_segments`."""
        return encode_segments(self.vfeat_extractor, segments, chunk=chunk)


def encode_segments(
    encoder: VisualEncoder,
    segments: Shaped[Tensor, "batch segments frames 3 height width"],
    *,
    chunk: int = SEGMENTS_AT_ONCE,
) -> Float[Tensor, "batch segments slots channels"]:
    """Features of segments, computed `chunk` segments at a time; uint8 pixels are scaled to [-1, 1]."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    parts = []
    for clip in segments:
        for some in clip.split(chunk):
            parts.append(encoder(normalised(some, encoder.cls_token.dtype)))
    return torch.cat(parts).unflatten(0, segments.shape[:2])


def encode_video(
    encoder: VisualEncoder, video: Shaped[Tensor, "batch frames 3 height width"], *, chunk: int = SEGMENTS_AT_ONCE
) -> Float[Tensor, "batch slots channels"]:
    """(B, T, 3, 224, 224) -> (B, 8 S, D): the features of all segments, one segment after the other."""
    return encode_segments(encoder, cut_segments(video), chunk=chunk).flatten(1, 2)


def cut_segments(
    video: Shaped[Tensor, "batch frames 3 height width"],
) -> Shaped[Tensor, "batch segments 16 3 height width"]:
    """Frames [8 i, 8 i + 16) for i < S = (T - 16) // 8 + 1, as a view. Raises ValueError when T < 16."""
    if video.shape[1] < SEGMENT_FRAMES:
        raise ValueError(f"frames must be at least {SEGMENT_FRAMES} (one segment), got {video.shape[1]}")
    return video.unfold(1, SEGMENT_FRAMES, SEGMENT_STRIDE).movedim(-1, 2)


def normalised(pixels: Shaped[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Pixels in [-1, 1]: uint8 becomes (x / 255 - 1/2) / (1/2), floating-point pixels are only cast to `dtype`."""
    return pixels if pixels.is_floating_point() else (pixels.to(dtype) / 255.0 - 0.5) / 0.5


@dataclass(frozen=True, kw_only=True)
class SynchformerEncoder:
    """Frames of a clip -> (8 S, 768): the published synchronisation features. Neighbouring segments overlap by half."""

    name: str
    network: SynchformerVisual
    request: FrameRequest = SYNC_REQUEST
    chunk: int = SEGMENTS_AT_ONCE

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return self.network.vfeat_extractor.config.width

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Float[Tensor, "slots 768"]:
        """(T, 3, 224, 224) uint8 -> (8 S, 768) float32 on the CPU. Raises ValueError when T < 16."""
        encoder = self.network.vfeat_extractor
        pixels = checked_frames(frames, self.request).to(encoder.cls_token.device)
        return encode_video(encoder, pixels[None], chunk=self.chunk)[0].float().cpu()


@dataclass(frozen=True, kw_only=True)
class SynchformerOnUse:
    """`SynchformerEncoder`, loaded when a video is first encoded, because sound from text alone does not need it.

    Raises WeightsError then if the file is missing or gives features of another width than the published 768.
    """

    path: Path
    device: str
    request: FrameRequest = SYNC_REQUEST
    width: int = MMAUDIO_WIDTHS.sync

    @functools.cached_property
    def _encoder(self) -> SynchformerEncoder:
        require_files(self.path.parent, self.path.name)
        encoder = load_sync_encoder(self.path, self.device)
        if encoder.width != self.width:
            raise WeightsError(
                f"{self.path} gives synchronisation features of width {encoder.width}, the networks take {self.width}"
            )
        return encoder

    @property
    def name(self) -> str:
        """Name with version, from the weights."""
        return self._encoder.name

    def __call__(self, frames: Frames) -> Float[Tensor, "slots channels"]:
        """(T, 3, 224, 224) uint8 -> (8 S, 768) float32 on the CPU."""
        return self._encoder(frames)


def load_sync_encoder(path: Path, device: str = "cpu") -> SynchformerEncoder:
    """Load the visual encoder from a safetensors file of the complete model or of its `vfeat_extractor.*` only.

    It is named after the digest of its weights. Raises WeightsError naming the file and tensors that are missing,
    unexpected or of another shape.
    """
    tensors = read_tensors(path)
    parts = {name.split(".")[0] for name in tensors}
    if parts not in ({VISUAL.rstrip(".")}, set(PARTS)):
        raise WeightsError(
            f"{path} must hold {VISUAL}* alone or the complete model ({', '.join(PARTS)}), it holds "
            f"{', '.join(sorted(parts)[:8])}"
        )
    visual = {name: tensor for name, tensor in tensors.items() if name.startswith(VISUAL)}
    try:
        with torch.device("meta"):
            network = SynchformerVisual(VisualConfig.from_tensors(visual))
        load_strictly(network, visual)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    network = network.to(device).eval().requires_grad_(False)
    return SynchformerEncoder(name=f"synchformer-visual-1-{tensors_digest(visual)}", network=network)
