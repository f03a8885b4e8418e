"""A tiny student with random weights, saved as a folder that `Pipeline.from_pretrained` reads."""

from dataclasses import replace
from pathlib import Path

import torch

from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.encoders.registry import load_encoders
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import variant
from teacher.sampling.model_card import ModelCard
from teacher.sampling.pipeline import Pipeline


def tiny_pipeline(licence: str = "MIT") -> Pipeline:
    """Windows of 1 s; jumps."""
    torch.manual_seed(0)
    net = MMAudio(replace(variant("debug_16k"), head_dim=16, interval_embedding=True)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    codec = EmbeddedCodec.fit([0.1 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))])
    return Pipeline(net=net, codec=codec, encoders=load_encoders("embedded"), window_s=1.0, licence=licence)


def save_student(folder: Path) -> Path:
    """Write one."""
    return tiny_pipeline().save_pretrained(folder, ModelCard(name="me/student"))
