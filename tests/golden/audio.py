"""Recordings of the audio autoencoder and of the vocoders, reproduced from their sizes, weights and inputs alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from teacher.audio.vae import VAE
from teacher.audio.vocoder import BigVGAN, fold_weight_norm
from tests.golden.deviation import Deviation, relative
from tests.golden.recipe import Recording, vocoder_config

FLOAT32 = 1e-5
"""Ten times what two implementations of the same sums differ by."""
POSTERIOR_STD = 5e-5
"""An exponential on top."""
FLOAT64 = 1e-12


@torch.no_grad()
def vae(recording: Recording) -> Iterator[Deviation]:
    """Posterior, both decodings, reconstruction and normalised weights; float32."""
    model = VAE.from_raw(recording.parameters())  # the sizes are those of the tensors
    t = recording.tensors
    made: dict[str, Tensor] = {}
    if "in.mel" in t:
        posterior = model.encode(t["in.mel"])
        made |= {"encode.mean": posterior.mean, "encode.logvar": posterior.logvar, "encode.std": posterior.std}
        made["reconstruction"] = model.decode(posterior.mean)
        if "in.eps" in t:
            made["encode.sample"] = posterior.at(t["in.eps"])
    if "in.z" in t:
        made |= {"decode": model.decode(t["in.z"]), "decode_raw": model.decode_raw(t["in.z"])}
    made |= {f"normalized_weight.{name}": weight for name, weight in model.named_parameters()}
    tolerances = {"encode.std": POSTERIOR_STD, "encode.sample": POSTERIOR_STD}
    yield from _compare(recording, made, tolerances)


@torch.no_grad()
def vocoder(recording: Recording) -> Iterator[Deviation]:
    """Waveform in float32 and float64, traced layers and folded weights."""
    config = vocoder_config(recording.document["config"]["hparams"])
    stored = _generator(recording)
    folded = fold_weight_norm(stored)
    model = BigVGAN.from_folded(folded, config)
    outputs, mel = recording.document["outputs"], recording.tensors["in.mel"]
    made: dict[str, Tensor] = {}
    names = [name.removeprefix("trace.") for name in outputs if name.startswith("trace.")]
    hooks = [model.get_submodule(name).register_forward_hook(_keep(made, f"trace.{name}")) for name in names]
    made["waveform"] = model(mel)
    for hook in hooks:
        hook.remove()
    made |= {f"fused_weight.{name}": weight for name, weight in folded.items()}
    if "waveform_f64" in outputs:
        wide = fold_weight_norm({name: tensor.double() for name, tensor in stored.items()})
        made["waveform_f64"] = BigVGAN.from_folded(wide, config, dtype=torch.float64)(mel.double())
    yield from _compare(recording, made, {"waveform_f64": FLOAT64})


def _generator(recording: Recording) -> dict[str, Tensor]:
    """Parameters with the filters that a checkpoint stores beside every activation."""
    parameters = recording.parameters()
    activations = [name.removesuffix(".act.alpha") for name in parameters if name.endswith(".act.alpha")]
    for name in activations:
        for suffix in ("upsample.filter", "downsample.lowpass.filter"):
            parameters[f"{name}.{suffix}"] = recording.tensors["const.filter"]
    return parameters


def _keep(made: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made.setdefault(name, output)  # the first call, should a layer run more than once

    return hook


def _compare(recording: Recording, made: dict[str, Tensor], tolerances: dict[str, float]) -> Iterator[Deviation]:
    """Every recorded output; one that nothing here makes deviates infinitely."""
    for name in recording.document["outputs"]:
        tolerance = tolerances.get(name, FLOAT32)
        if name in made:
            yield relative(name, made[name], recording.tensors[f"out.{name}"], tolerance)
        else:
            yield Deviation.missing(name)
