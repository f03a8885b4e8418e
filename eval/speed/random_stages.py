"""The published sizes with random weights, so that a time can be taken without any files: values do not change it."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from eval.speed.stages import StagedGenerator
from teacher.audio.codec import Stage
from teacher.audio.mmaudio_codec import MMAUDIO_16K, MMAUDIO_44K, AudioStack
from teacher.audio.vae import VAE
from teacher.audio.vocoder import BigVGAN
from teacher.encoders.clip import ClipConfig, ClipImage, ClipText, build_clip, clip_tokenizer
from teacher.encoders.synchformer import SynchformerEncoder, SynchformerVisual, VisualConfig
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import MMAudioConfig
from teacher.sampling.generator import Generator
from teacher.sampling.pipeline import Precision, as_in_the_demo

EncoderSet: TypeAlias = Literal["none", "text", "all"]
NAME = "random weights"


def published_stack(config: MMAudioConfig) -> AudioStack:
    """VAE and vocoder of the network's sample rate."""
    return MMAUDIO_16K if config.sequence == MMAUDIO_16K.sequence else MMAUDIO_44K


@torch.no_grad()
def random_stages(
    config: MMAudioConfig,
    *,
    name: str,
    stack: AudioStack | None = None,
    encoders: EncoderSet = "text",
    clip: ClipConfig | None = None,
    visual: VisualConfig | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
) -> StagedGenerator:
    """Network, VAE decoder and vocoder with random weights, and CLIP's text tower or all encoders on request.

    `stack`, `clip` and `visual` replace the published sizes. The whole of CLIP takes 4 GB, its text tower 1.4 GB. The
    network has the published initialisation but for its zero layers, which are random too.
    """
    stack, torch_device = stack or published_stack(config), torch.device(device)
    with torch_device:
        net = MMAudio(config).eval().requires_grad_(False)
        vae = VAE(stack.vae, part="decoder").normalise_().eval().requires_grad_(False)
        vocoder = BigVGAN(stack.vocoder).eval().requires_grad_(False)
    for parameter in net.parameters():
        if not bool(parameter.any()):  # a closed branch of zeros
            nn.init.normal_(parameter, std=0.02)

    def mel(latent: Tensor) -> Tensor:
        return vae.decode(latent.to(torch_device).transpose(1, 2))

    image, text = None, None
    if encoders != "none":
        image, text = _clip(clip or ClipConfig(), torch_device, with_image=encoders == "all")
    return StagedGenerator(
        name=f"{name}, random weights",
        generator=Generator.of(
            as_in_the_demo(net).to(device) if precision == "demo" else net,
            (Stage("latent decode", mel), Stage("vocoder", lambda spectrogram: vocoder(spectrogram)[:, 0].cpu())),
            device=device,
            precision=precision,
        ),
        sequence=config.sequence,
        text=text,
        image=image,
        sync=_synchformer(visual or VisualConfig(), torch_device) if encoders == "all" else None,
        precision=precision,
    )


def _clip(config: ClipConfig, device: torch.device, *, with_image: bool) -> tuple[ClipImage | None, ClipText]:
    """Made on the meta device; only the towers that are wanted get memory."""
    with torch.device("meta"):
        net = build_clip(config)
    for name, parameter in list(net.named_parameters()):
        if with_image or not name.startswith("visual."):
            owner, _, leaf = name.rpartition(".")
            values = 0.02 * torch.randn(parameter.shape, device=device)
            net.get_submodule(owner).register_parameter(leaf, nn.Parameter(values, requires_grad=False))
    net.eval()
    text = ClipText(name=NAME, net=net, tokenizer=clip_tokenizer(config.positions))
    return (ClipImage(name=NAME, net=net) if with_image else None), text


def _synchformer(config: VisualConfig, device: torch.device) -> SynchformerEncoder:
    with device:
        network = SynchformerVisual(config).eval().requires_grad_(False)
    return SynchformerEncoder(name=NAME, network=network)
