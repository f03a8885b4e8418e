"""Names and shapes of the tensors of every component, and recognising a component by them.

Those of networks, autoencoders and vocoders come from the modules themselves, built on the meta device. Those of the
image/text and synchronisation models are written out here.
"""

import functools
from collections.abc import Mapping

import torch
from torch import nn

from teacher.weights.cards import COMPONENTS

Layout = dict[str, tuple[int, ...]]
TABLES = ("t_embed.freqs", "latent_rot", "clip_rot")
"""Tables in some network files besides the parameters; they follow from the configuration and are dropped."""
VISUAL = "vfeat_extractor."
"""Prefix of the synchronisation model's visual half; a file with only this half is accepted too."""
WEIGHT_NORM = {
    ".weight_v": ".weight",
    ".parametrizations.weight.original1": ".weight",
    ".weight_g": None,
    ".parametrizations.weight.original0": None,
    ".filter": None,
}
"""Suffixes of tensors in vocoder files, and the suffix after folding: the direction v has the weight's shape; gains
(folded into it) and the fixed resampling filters have none."""


@functools.cache
def layouts(component: str) -> tuple[Layout, ...]:
    """The accepted layouts (names and shapes) of a component, the complete one first."""
    if component.startswith("mmaudio_"):
        return (_network(component.removeprefix("mmaudio_")),)
    if component.startswith("vae_"):
        return (_vae(component),)
    if component.startswith("bigvgan_"):
        return (_vocoder(component),)
    if component == "synchformer":
        full = _synchformer()
        return full, {name: shape for name, shape in full.items() if name.startswith(VISUAL)}
    return (_clip(),)


def canonical(component: str, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Names and shapes that the component file will have, after dropping tables and folding weight normalisation."""
    if component.startswith("mmaudio_"):
        return {name: shape for name, shape in shapes.items() if name not in TABLES}
    if component.startswith("bigvgan_"):
        return _folded(shapes)
    if component == "clip_dfn5b_h14_378" and shapes.get("logit_scale") == (1,):
        return dict(shapes) | {"logit_scale": ()}
    return dict(shapes)


def identify(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The component with these names and shapes; None if there is none."""
    for component in COMPONENTS:
        if canonical(component, shapes) in layouts(component):
            return component
    return None


def _folded(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    folded: Layout = {}
    for name, shape in shapes.items():
        suffix = next((s for s in WEIGHT_NORM if name.endswith(s)), None)
        if suffix is None:
            folded[name] = shape
        elif (new := WEIGHT_NORM[suffix]) is not None:
            folded[name.removesuffix(suffix) + new] = shape
    return folded


def _of(module: nn.Module) -> Layout:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _network(variant: str) -> Layout:
    from teacher.network.mmaudio import MMAudio
    from teacher.network.variants import VARIANTS

    with torch.device("meta"):
        return _of(MMAudio(VARIANTS[variant]))


def _vae(component: str) -> Layout:
    from teacher.audio.vae import VAE, VAE_16K, VAE_44K

    with torch.device("meta"):
        return _of(VAE(VAE_16K if component == "vae_16k" else VAE_44K))


def _vocoder(component: str) -> Layout:
    from teacher.audio.vocoder import BIGVGAN_16K, BIGVGAN_V2_44K, BigVGAN

    with torch.device("meta"):
        return _of(BigVGAN(BIGVGAN_16K if component == "bigvgan_16k" else BIGVGAN_V2_44K))


def _affine(name: str, *weight: int) -> Layout:
    """Weight and bias of a linear map or convolution, or of a norm when `weight` is one number."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _mlp_pair(first: str, second: str, width: int) -> Layout:
    return _affine(first, 4 * width, width) | _affine(second, width, 4 * width)


def _torch_attention(name: str, width: int) -> Layout:
    fused = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
    return fused | _affine(f"{name}.out_proj", width, width)


def _merged(parts: list[Layout]) -> Layout:
    return {name: shape for part in parts for name, shape in part.items()}


def _clip() -> Layout:
    """ViT-H/14 at 378 pixels (27 x 27 patches and a class token), text tower of 24 layers; both of ratio 4."""

    def tower(prefix: str, width: int, depth: int) -> Layout:
        blocks = [f"{prefix}transformer.resblocks.{i}" for i in range(depth)]
        return _merged(
            [
                _affine(f"{block}.ln_1", width)
                | _torch_attention(f"{block}.attn", width)
                | _affine(f"{block}.ln_2", width)
                | _mlp_pair(f"{block}.mlp.c_fc", f"{block}.mlp.c_proj", width)
                for block in blocks
            ]
        )

    image, text, joint = 1280, 1024, 1024
    visual: Layout = {
        "visual.class_embedding": (image,),
        "visual.positional_embedding": (27 * 27 + 1, image),
        "visual.proj": (image, joint),
        "visual.conv1.weight": (image, 3, 14, 14),
    }
    words: Layout = {
        "positional_embedding": (77, text),
        "text_projection": (text, joint),
        "logit_scale": (),
        "token_embedding.weight": (49408, text),
    }
    norms = _affine("visual.ln_pre", image) | _affine("visual.ln_post", image) | _affine("ln_final", text)
    return words | visual | norms | tower("visual.", image, 32) | tower("", text, 24)


def _synchformer() -> Layout:
    """Picture half, sound half (an audio spectrogram transformer) and the head over 21 offsets; all 768 wide."""
    w = 768

    def aggregation(name: str) -> Layout:
        inner = _torch_attention(f"{name}.self_attn", w) | _mlp_pair(f"{name}.linear1", f"{name}.linear2", w)
        return {f"{name}.cls_token": (1, 1, w)} | inner | _affine(f"{name}.norm1", w) | _affine(f"{name}.norm2", w)

    def picture_block(name: str) -> Layout:
        norms = _merged([_affine(f"{name}.norm{i}", w) for i in (1, 2, 3)])
        attention = _merged(
            [
                _affine(f"{name}.{kind}.qkv", 3 * w, w) | _affine(f"{name}.{kind}.proj", w, w)
                for kind in ("attn", "timeattn")
            ]
        )
        return norms | attention | _mlp_pair(f"{name}.mlp.fc1", f"{name}.mlp.fc2", w)

    def sound_block(name: str) -> Layout:
        attention = [_affine(f"{name}.attention.attention.{kind}", w, w) for kind in ("query", "key", "value")]
        attention.append(_affine(f"{name}.attention.output.dense", w, w))
        norms = _affine(f"{name}.layernorm_before", w) | _affine(f"{name}.layernorm_after", w)
        return _merged(attention) | norms | _mlp_pair(f"{name}.intermediate.dense", f"{name}.output.dense", w)

    def head_block(name: str) -> Layout:
        attention = _merged([_affine(f"{name}.attn.{kind}", w, w) for kind in ("key", "query", "value", "proj")])
        norms = _affine(f"{name}.ln1", w) | _affine(f"{name}.ln2", w)
        return attention | norms | _mlp_pair(f"{name}.mlp.0", f"{name}.mlp.2", w)

    v, ast, head = VISUAL, "afeat_extractor.ast.", "transformer."
    picture: Layout = {f"{v}cls_token": (1, 1, w), f"{v}pos_embed": (1, 197, w), f"{v}temp_embed": (1, 8, w)}
    picture |= _affine(f"{v}patch_embed.proj", w, 3, 16, 16) | _affine(f"{v}patch_embed_3d.proj", w, 3, 2, 16, 16)
    picture |= _affine(f"{v}norm", w) | aggregation(f"{v}spatial_attn_agg")
    picture |= _merged([picture_block(f"{v}blocks.{i}") for i in range(12)])
    sound: Layout = {f"{ast}embeddings.{name}_token": (1, 1, w) for name in ("cls", "distillation")}
    sound |= {f"{ast}embeddings.position_embeddings": (1, 74, w)}
    sound |= _affine(f"{ast}embeddings.patch_embeddings.projection", w, 1, 16, 16) | _affine(f"{ast}layernorm", w)
    sound |= _merged([sound_block(f"{ast}encoder.layer.{i}") for i in range(12)])
    sound |= aggregation("afeat_extractor.freq_attn_agg")
    offset: Layout = {f"{head}{name}_tok": (1, 1, w) for name in ("OFF", "MOD")}
    offset[f"{head}pos_emb_cfg.pos_emb"] = (1, 198, w)
    offset |= _merged([_affine(f"{head}{name}", w) for name in ("vis_in_lnorm", "aud_in_lnorm", "ln_f")])
    offset |= _merged([head_block(f"{head}blocks.{i}") for i in range(3)]) | _affine(f"{head}off_head", 21, w)
    return picture | sound | offset | _affine("vproj", w, w) | _affine("aproj", w, w)
