"""Cards of the official files: address, size, digest and licence of each.

Sizes are rounded as published. A digest is None where none is published; then only the size is checked.
"""

import math
from dataclasses import dataclass
from typing import Literal

from teacher.files.errors import WeightsError

MIB = 2**20
CLOSE = 0.1
"""Largest relative difference between a file's size and the published, rounded one."""
UNSTATED = 8 * MIB
"""Most bytes of a file whose size is not published: a configuration of a kilobyte, and features of 0.3 MB."""
MMAUDIO = "https://huggingface.co/hkchengrex/MMAudio/resolve/main/weights"
RELEASE = "https://github.com/hkchengrex/MMAudio/releases/download/v0.1"
BIGVGAN_V2 = "https://huggingface.co/nvidia/bigvgan_v2_44khz_128band_512x/resolve/main"
DFN5B = "https://huggingface.co/apple/DFN5B-CLIP-ViT-H-14-378/resolve/main"
"""Address of the CLIP model. An id that ends in 384 redirects here; the model's resolution is 378."""

NETWORK_LICENCE = "MMAudio weights: CC BY-NC 4.0 (non-commercial)"
VAE_LICENCE = "MMAudio release asset without a statement of its own; treat as MMAudio's weights, CC BY-NC 4.0"
BIGVGAN_16K_LICENCE = "MMAudio release asset without a statement of its own; BigVGAN and Make-An-Audio-2 code: MIT"
BIGVGAN_V2_LICENCE = "BigVGAN-v2: MIT (NVIDIA)"
SYNCHFORMER_LICENCE = "MMAudio release asset without a statement of its own; Synchformer code: MIT"
CLIP_LICENCE = "DFN5B CLIP weights: Apple machine learning research licence (apple-amlr), research only"


@dataclass(frozen=True, kw_only=True)
class Card:
    """One official file: where it is published, its size, digests and licence."""

    component: str
    """Name of the component that it is converted to, `<component>.safetensors`."""
    kind: Literal["network", "vae", "vocoder", "sync", "clip", "extra"]
    """Kind of model; `extra` files are not converted, because nothing here needs them."""
    file: str
    """Name of the file in the weights folder."""
    aliases: tuple[str, ...] = ()
    """Other published files with the same tensors, which are used if `file` is absent."""
    url: str
    size: int | None
    """Size in bytes, rounded as published; None if none is published."""
    md5: str | None
    sha256: str | None = None
    licence: str
    project: str
    """Project that publishes it."""

    @property
    def size_text(self) -> str:
        """The size as published, rounded up: 655M or 2.4G."""
        if self.size is None:
            return f"size not stated, at most {UNSTATED // MIB}M"
        mebibytes = self.size / MIB
        return f"{math.ceil(mebibytes)}M" if mebibytes < 1000 else f"{math.ceil(10 * mebibytes / 1024) / 10:g}G"

    @property
    def check_text(self) -> str:
        """The digest by which the file is checked, as text."""
        if self.sha256 is not None:
            return f"sha256 {self.sha256}"
        return "no digest published" if self.md5 is None else f"md5 {self.md5}"

    def plausible(self, size: int) -> bool:
        """Whether a file of `size` bytes can be this one."""
        return size <= self.largest and (self.size is None or size >= (1 - CLOSE) * self.size)

    @property
    def largest(self) -> int:
        """Largest size in bytes that the file can have."""
        return UNSTATED if self.size is None else int((1 + CLOSE) * self.size)


def _network(name: str, size: int, md5: str) -> Card:
    return Card(
        component=f"mmaudio_{name}",
        kind="network",
        file=f"mmaudio_{name}.pth",
        url=f"{MMAUDIO}/mmaudio_{name}.pth",
        size=size,
        md5=md5,
        licence=NETWORK_LICENCE,
        project="hkchengrex/MMAudio",
    )


def _asset(
    component: str,
    kind: Literal["vae", "vocoder", "sync", "extra"],
    file: str,
    size: int | None,
    md5: str | None,
    licence: str,
    project: str = "hkchengrex/MMAudio",
) -> Card:
    url = f"{RELEASE}/{file}"
    return Card(
        component=component, kind=kind, file=file, url=url, size=size, md5=md5, licence=licence, project=project
    )


CARDS: tuple[Card, ...] = (
    _network("small_16k", 601 * MIB, "af93cde404179f58e3919ac085b8033b"),
    _network("small_44k", 601 * MIB, "babd74c884783d13701ea2820a5f5b6d"),
    _network("medium_44k", 2373 * MIB, "5a56b6665e45a1e65ada534defa903d0"),
    _network("large_44k", 3930 * MIB, "fed96c325a6785b85ce75ae1aafd2673"),
    _network("large_44k_v2", 3932 * MIB, "01ad4464f049b2d7efdaa4c1a59b8dfe"),
    _asset("vae_16k", "vae", "v1-16.pth", 655 * MIB, "69f56803f59a549a1a507c93859fd4d7", VAE_LICENCE),
    _asset("vae_44k", "vae", "v1-44.pth", 1166 * MIB, "fab020275fa44c6589820ce025191600", VAE_LICENCE),
    _asset(
        "bigvgan_16k",
        "vocoder",
        "best_netG.pt",
        429 * MIB,
        "eeaf372a38a9c31c362120aba2dde292",
        BIGVGAN_16K_LICENCE,
        "hkchengrex/MMAudio, from Make-An-Audio-2",
    ),
    Card(
        component="bigvgan_v2_44k",
        kind="vocoder",
        file="bigvgan_generator.pt",
        url=f"{BIGVGAN_V2}/bigvgan_generator.pt",
        size=467 * MIB,
        md5=None,
        licence=BIGVGAN_V2_LICENCE,
        project="nvidia/bigvgan_v2_44khz_128band_512x",
    ),
    _asset(
        "synchformer",
        "sync",
        "synchformer_state_dict.pth",
        907 * MIB,
        "5b2f5594b0730f70e41e549b7c94390c",
        SYNCHFORMER_LICENCE,
        "hkchengrex/MMAudio, from v-iashin/Synchformer",
    ),
    Card(
        component="clip_dfn5b_h14_378",
        kind="clip",
        file="open_clip_pytorch_model.bin",
        aliases=("open_clip_model.safetensors",),
        url=f"{DFN5B}/open_clip_pytorch_model.bin",
        size=3763 * MIB,
        md5=None,
        licence=CLIP_LICENCE,
        project="apple/DFN5B-CLIP-ViT-H-14-378",
    ),
    Card(
        component="bigvgan_v2_44k_config",
        kind="extra",
        file="bigvgan_v2_44khz_128band_512x.json",
        url=f"{BIGVGAN_V2}/config.json",
        size=None,
        md5=None,
        licence=BIGVGAN_V2_LICENCE,
        project="nvidia/bigvgan_v2_44khz_128band_512x",
    ),
    _asset("empty_string", "extra", "empty_string.pth", None, None, NETWORK_LICENCE),
)
"""Every official file. Sizes without a published figure follow from the number of float32 values. `extra` files are
listed for completeness: the vocoder's shape is known here, and each network carries its own empty-string features."""

NETWORKS = tuple(card.component.removeprefix("mmaudio_") for card in CARDS if card.kind == "network")
COMPONENTS = tuple(card.component for card in CARDS if card.kind != "extra")


def card(component: str) -> Card:
    """The card of a component; WeightsError lists the known ones."""
    for known in CARDS:
        if known.component == component:
            return known
    raise WeightsError(f"unknown component {component!r}; choose one of {', '.join(c.component for c in CARDS)}")


def bundle(variant: str) -> tuple[str, ...]:
    """Components of a published variant: network, VAE, vocoder, Synchformer and CLIP. WeightsError for another name."""
    if variant not in NETWORKS:
        raise WeightsError(f"unknown variant {variant!r}; the published ones are {', '.join(NETWORKS)}")
    audio = ("vae_16k", "bigvgan_16k") if variant.endswith("16k") else ("vae_44k", "bigvgan_v2_44k")
    return (f"mmaudio_{variant}", *audio, "synchformer", "clip_dfn5b_h14_378")


def bundle_licence(variant: str) -> str:
    """The licences of a variant's components in one line, the network's first."""
    return "; ".join(dict.fromkeys(card(component).licence for component in bundle(variant)))
