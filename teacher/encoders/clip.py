"""CLIP as MMAudio uses it: DFN5B ViT-H/14 (arXiv 2309.17425), built by open_clip, weights from a local file.

Two peculiarities of MMAudio are reproduced, because its networks were trained with them. Frames are resized to
384 x 384 although the model is for 378 x 378; its convolution of stride 14 ignores the last 6 rows and columns. And a
caption is represented by all 77 positions after the last LayerNorm, padding included, neither pooled nor projected,
each scaled to length 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from mf_mjt_torchvision import guard_torchvision
from teacher.encoders.base import Frames, checked_frames
from teacher.files import tensors_digest
from teacher.files.components import count_blocks, load_strictly, read_tensors, shape_of
from teacher.files.errors import WeightsError
from teacher.media import FrameRequest
from teacher.network.sequence import IMAGE_FPS

if TYPE_CHECKING:
    from open_clip import CLIP
    from open_clip.tokenizer import SimpleTokenizer

FILE = "clip_dfn5b_h14_378.safetensors"
"""Name of the converted file in a folder of weights."""
IMAGE_REQUEST = FrameRequest(fps=IMAGE_FPS, height=384, width=384, fit="stretch")
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
FRAMES_AT_ONCE = 8
"""Frames per forward pass; one needs about 90 MB of activations at full size."""
TEXTS_AT_ONCE = 32
"""Captions per forward pass."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Sizes of both towers; the defaults are DFN5B-CLIP-ViT-H-14-378 with QuickGELU."""

    embed_dim: int = 1024
    """Width of the projected image feature."""
    image_size: int = 378
    patch: int = 14
    image_width: int = 1280
    image_layers: int = 32
    image_heads: int = 16
    text_width: int = 1024
    """Width of the text features, which are not projected."""
    text_layers: int = 24
    text_heads: int = 16
    text_hidden: int = 4096
    image_hidden: int = 5120
    positions: int = 77
    vocabulary: int = 49_408

    def __post_init__(self) -> None:
        for width, heads in ((self.image_width, self.image_heads), (self.text_width, self.text_heads)):
            if heads < 1 or width % heads:
                raise ValueError(f"the number of heads must divide the width {width}, got {heads}")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, image_head: int = 80, text_head: int = 64) -> Self:
        """Sizes of the model that an open_clip state dict belongs to, given the channels of one head in either tower.

        Raises WeightsError naming a tensor that is not there.
        """
        image_width, _, patch, _ = shape_of(tensors, "visual.conv1.weight", 4)
        vocabulary, text_width = shape_of(tensors, "token_embedding.weight", 2)
        places = shape_of(tensors, "visual.positional_embedding", 2)[0] - 1
        return cls(
            embed_dim=shape_of(tensors, "visual.proj", 2)[1],
            image_size=round(places**0.5) * patch,
            patch=patch,
            image_width=image_width,
            image_layers=count_blocks(tensors, "visual.transformer.resblocks."),
            image_heads=max(1, image_width // image_head),
            image_hidden=shape_of(tensors, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            text_width=text_width,
            text_layers=count_blocks(tensors, "transformer.resblocks."),
            text_heads=max(1, text_width // text_head),
            text_hidden=shape_of(tensors, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            positions=shape_of(tensors, "positional_embedding", 2)[0],
            vocabulary=vocabulary,
        )

    def open_clip(self) -> dict[str, Any]:
        """The sizes as keyword arguments of `open_clip.CLIP`."""
        return {
            "embed_dim": self.embed_dim,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch,
                "width": self.image_width,
                "layers": self.image_layers,
                "head_width": self.image_width // self.image_heads,
                "mlp_ratio": self.image_hidden / self.image_width,
            },
            "text_cfg": {
                "context_length": self.positions,
                "vocab_size": self.vocabulary,
                "width": self.text_width,
                "layers": self.text_layers,
                "heads": self.text_heads,
                "mlp_ratio": self.text_hidden / self.text_width,
            },
        }


def build_clip(config: ClipConfig) -> "CLIP":
    """open_clip's CLIP of these sizes, made from the sizes alone: no model list, no hub, no pretrained tag."""
    guard_torchvision()
    import open_clip

    return open_clip.CLIP(**config.open_clip())


def clip_tokenizer(positions: int = 77) -> "SimpleTokenizer":
    """CLIP's byte-pair encoding, whose vocabulary comes with open_clip: lower case, zero-padded, cut to `positions`."""
    guard_torchvision()
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=positions)


def image_features(net: "CLIP", frames: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels"]:
    """CLIP's image feature of uint8 frames: the projected class token, scaled to length 1.

    Rows and columns after the last whole patch are ignored.
    """
    weight = net.visual.conv1.weight
    mean, std = (weight.new_tensor(x)[:, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    pixels = frames.to(weight.device, weight.dtype) / 255.0
    return functional.normalize(net.visual((pixels - mean) / std), dim=-1)


def text_features(net: "CLIP", tokens: Int[Tensor, "batch positions"]) -> Float[Tensor, "batch positions width"]:
    """Text features as MMAudio uses them: every position after the last LayerNorm, scaled to length 1.

    A position attends to itself and to those before it.
    """
    table = net.positional_embedding
    x = net.token_embedding(tokens.to(table.device)) + table
    return functional.normalize(net.ln_final(net.transformer(x, attn_mask=causal_mask(table))), dim=-1)


def causal_mask(table: Float[Tensor, "positions width"]) -> Float[Tensor, "positions positions"]:
    """Additive attention mask of a causal text tower: 0 on and below the diagonal, minus infinity above."""
    count = len(table)
    return torch.full((count, count), float("-inf"), dtype=table.dtype, device=table.device).triu(1)


@dataclass(frozen=True, kw_only=True)
class ClipImage:
    """CLIP's image encoder: frames -> (frames, 1024) unit vectors, float32 on the CPU."""

    name: str
    net: "CLIP"
    request: FrameRequest = IMAGE_REQUEST
    chunk: int = FRAMES_AT_ONCE

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return int(self.net.visual.proj.shape[1])

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Float[Tensor, "frames 1024"]:
        """(T, 3, 384, 384) uint8, `chunk` frames at a time."""
        pixels = checked_frames(frames, self.request)
        return torch.cat([image_features(self.net, some).float().cpu() for some in pixels.split(self.chunk)])


@dataclass(frozen=True, kw_only=True)
class ClipText:
    """CLIP's text encoder: captions -> (captions, 77, 1024), every position a unit vector, float32 on the CPU."""

    name: str
    net: "CLIP"
    tokenizer: "SimpleTokenizer"
    positions: int = 77
    shared_positions: int = 1
    """Attention is causal and every caption starts with the same token: position 0 is the same for all captions."""
    chunk: int = TEXTS_AT_ONCE

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return int(self.net.positional_embedding.shape[1])

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "batch 77 1024"]:
        if isinstance(texts, str):
            raise ValueError("texts must be a list of strings, got one string")
        tokens = self.tokenizer(list(texts))
        return torch.cat([text_features(self.net, some).float().cpu() for some in tokens.split(self.chunk)])


def load_clip(path: Path, device: str = "cpu") -> tuple[ClipImage, ClipText]:
    """Load image and text encoder from one safetensors file with open_clip's names; both are named after its digest.

    Raises WeightsError naming the file and tensors that are missing, unexpected or of another shape.
    """
    tensors = read_tensors(path)
    digest = tensors_digest(tensors)
    if tensors.get("logit_scale", torch.zeros(())).shape == (1,):
        # Some copies store this number, which no feature depends on, as a vector of one.
        tensors["logit_scale"] = tensors["logit_scale"][0]
    try:
        config = ClipConfig.from_tensors(tensors)
        with torch.device("meta"):
            net = build_clip(config)
        load_strictly(net, tensors)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    # Not in the file and left without values by the meta device; open_clip's own encode_text reads it.
    net.attn_mask = causal_mask(net.positional_embedding)
    net = net.to(device).eval().requires_grad_(False)
    tokenizer = clip_tokenizer(config.positions)
    return (
        ClipImage(name=f"clip-dfn5b-h14-378-image-1-{digest}", net=net),
        ClipText(name=f"clip-dfn5b-h14-378-text-1-{digest}", net=net, tokenizer=tokenizer, positions=config.positions),
    )
