"""Component files of the official encoders with random weights: published input and feature sizes, few parameters."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from teacher.encoders.clip import FILE as CLIP_FILE
from teacher.encoders.clip import ClipConfig, build_clip
from teacher.encoders.registry import Encoders, read_window_frames
from teacher.encoders.synchformer import FILE as SYNCHFORMER_FILE
from teacher.encoders.synchformer import SynchformerVisual, VisualConfig
from teacher.media import probe

TINY_CLIP = ClipConfig(image_width=80, image_layers=1, image_heads=1, image_hidden=64, text_layers=1, text_hidden=64)
TINY_VISUAL = VisualConfig(depth=1, hidden=64)


def write_tiny_encoders(folder: Path, seed: int = 0) -> Path:
    """Write both component files (60 MB in half precision) into `folder`, which it returns."""
    torch.manual_seed(seed)
    clip = build_clip(TINY_CLIP)
    with torch.no_grad():
        for p in clip.parameters():
            p.add_(0.05 * torch.randn(p.shape[-1:]))
    save_file({n: t.half().contiguous() for n, t in clip.state_dict().items()}, folder / CLIP_FILE)
    visual = SynchformerVisual(TINY_VISUAL).state_dict()
    save_file({n: t.half() for n, t in visual.items()}, folder / SYNCHFORMER_FILE)
    return folder


def encode_clip(encoders: Encoders, path: Path, *, start_s: float, duration_s: float) -> tuple[Tensor, Tensor]:
    """Image and synchronisation features of [start_s, start_s + duration_s) of a film."""
    image, sync = read_window_frames(encoders.requests, probe(path), start_s, duration_s)
    return encoders.image(image), encoders.sync(sync)
