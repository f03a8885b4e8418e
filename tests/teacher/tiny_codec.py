"""Component files of MMAudio's audio stacks with random weights: published bins, latents and rates, few channels."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from teacher.audio.mmaudio_codec import STACKS
from teacher.audio.vae import VAE, VAEConfig
from teacher.audio.vocoder import BigVGAN
from teacher.files.components import ComponentInfo

VAE_WIDTH = 8
VOCODER_CHANNELS = 64
"""Halved six times."""


def write_tiny_codec(folder: Path, name: str = "mmaudio_16k", seed: int = 0) -> Path:
    """Write VAE and vocoder components of a stack (under 2 MB) into `folder`, which it returns."""
    stack = STACKS[name]
    torch.manual_seed(seed)
    vae = VAE(VAEConfig(data_dim=stack.vae.data_dim, latent_channels=stack.vae.latent_channels, width=VAE_WIDTH))
    vae.data_mean.normal_(-2.0, 0.3)
    vae.data_std.uniform_(0.8, 1.2)
    vocoder = BigVGAN(replace(stack.vocoder, initial_channels=VOCODER_CHANNELS))
    for component, module in ((stack.vae_component, vae), (stack.vocoder_component, vocoder)):
        info = ComponentInfo(
            component=component, licence="none", source=f"{component}-{seed}.pth", sha256=f"{seed:064x}", md5="0" * 32
        )
        tensors = {n: t.detach().contiguous() for n, t in module.state_dict().items()}
        save_file(tensors, folder / f"{component}.safetensors", metadata=info.metadata())
    return folder
