"""Made-up official files for the tests of conversion: right names and forms, small or empty contents."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from teacher.audio import vae, vocoder
from teacher.audio.vae import VAEConfig
from teacher.audio.vocoder import VocoderConfig
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import VARIANTS, MMAudioConfig
from teacher.weights import layouts

TINY = MMAudioConfig(
    num_heads=1, head_dim=64, joint_depth=1, fused_depth=1, latent_channels=20, mlp_multiple_of=64, clip_dim=16,
    text_dim=16, sync_dim=8, text_tokens=4,
)  # fmt: skip
"""As `small_16k` in names, but quick to write."""


def network_tensors(config: MMAudioConfig = TINY, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a network, latent statistics included."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in MMAudio(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {"latent_std": 1.0 + torch.rand(shapes["latent_std"], generator=generator)}


def tables(config: MMAudioConfig = TINY) -> dict[str, Tensor]:
    """What some network files hold besides their parameters."""
    half = config.head_dim // 2
    return {"t_embed.freqs": torch.ones(128), "latent_rot": torch.ones(250, half), "clip_rot": torch.ones(64, half)}


def full_size(component: str) -> dict[str, Tensor]:
    """Tensors of the true shapes that share one number: a checkpoint of them takes a few kilobytes."""
    return {name: torch.full((1,), 0.5).expand(shape) for name, shape in layouts.layouts(component)[0].items()}


def manifest(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Recorded names and shapes of an official file."""
    entries = json.loads((folder / f"{name}.json").read_text())["entries"]
    return {entry: tuple(shape) for entry, shape, _ in entries}


def use_tiny_network(monkeypatch, config: MMAudioConfig = TINY) -> None:
    """Until the test ends, `small_16k` is `config`."""
    monkeypatch.setitem(VARIANTS, "small_16k", config)
    layouts.layouts.cache_clear()


def use_narrow_codec(monkeypatch) -> tuple[VAEConfig, VocoderConfig]:
    """Until the test ends, the 16 kHz VAE and vocoder are a few channels wide; what they are."""
    narrow = replace(vae.VAE_16K, width=4), replace(vocoder.BIGVGAN_16K, initial_channels=64)
    monkeypatch.setattr(vae, "VAE_16K", narrow[0])
    monkeypatch.setattr(vocoder, "BIGVGAN_16K", narrow[1])
    layouts.layouts.cache_clear()
    return narrow


def put_codec(weights: Path, sizes: tuple[VAEConfig, VocoderConfig]) -> None:
    """Official files of a random VAE and vocoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        halves = vae.VAE(sizes[0]).state_dict()
        torch.save({name: torch.randn(tensor.shape) for name, tensor in halves.items()}, weights / "v1-16.pth")
        split = weight_norm(vocoder.BigVGAN(sizes[1]).state_dict(), (".weight_g", ".weight_v"))
        torch.save({"generator": split}, weights / "best_netG.pt")


def weight_norm(tensors: dict[str, Tensor], suffixes: tuple[str, str]) -> dict[str, Tensor]:
    """Convolutions as gain and direction, with w = gain * direction / |direction|, under the two suffixes given."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight"):
            norm = torch.linalg.vector_norm(tensor.flatten(1), dim=1).reshape(-1, *[1] * (tensor.ndim - 1))
            split[name.removesuffix(".weight") + suffixes[0]] = norm
            split[name.removesuffix(".weight") + suffixes[1]] = 3.0 * tensor
        else:
            split[name] = tensor
    return split
