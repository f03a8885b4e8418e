"""Manifests of the full-size models: names, shapes, types and numbers of parameters of the published files."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from teacher.audio.vae import VAE, VAEConfig
from teacher.audio.vocoder import BigVGAN
from teacher.encoders.synchformer import SynchformerVisual, VisualConfig
from teacher.encoders.synchformer_sync import Synchformer, SynchformerConfig
from teacher.network.mmaudio import MMAudio
from tests.golden.deviation import Deviation
from tests.golden.recipe import Recording, recorded_config, vocoder_config

GAIN, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
Shapes = dict[str, list[int]]


def manifest(recording: Recording) -> Iterator[Deviation]:
    """What differs between the listed tensors and those of the model that the configuration, or their sizes, name."""
    document = recording.document
    listed = {name: list(shape) for name, shape, _ in document["entries"]}
    yield Deviation("tensors too many or too few", abs(len(listed) - document["num_tensors"]), 0.0)
    expected, count = listed, "num_parameters"
    if any(name.endswith(GAIN) for name in listed):  # a vocoder: ours has folded weights and computes its filters
        expected = {n.replace(DIRECTION, ".weight"): s for n, s in listed.items() if not n.endswith((GAIN, ".filter"))}
        count = "num_parameters_after_fusing"
    with torch.device("meta"):
        model = _builder(document.get("config", {}), listed)()
    made = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    differing = {name for name in expected.keys() | made.keys() if expected.get(name) != made.get(name)}
    yield Deviation(f"names or shapes that differ{f' ({min(differing)})' if differing else ''}", len(differing), 0.0)
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in model.state_dict().values()}
    yield Deviation("types that differ", len(types ^ {dtype for _, _, dtype in document["entries"]}), 0.0)
    total = sum(p.numel() for p in model.parameters())
    yield Deviation("parameters too many or too few", abs(total - document[count]), 0.0)


def _builder(config: Mapping[str, Any], listed: Shapes) -> Callable[[], nn.Module]:
    """The model by what its configuration holds; the synchronisation models have none but their tensors."""
    if "upsample_rates" in config:
        vocoder = vocoder_config(config)
        return lambda: BigVGAN(vocoder)
    if "embed_dim" in config:
        vae = VAEConfig(data_dim=config["data_dim"], latent_channels=config["embed_dim"], width=config["hidden_dim"])
        return lambda: VAE(vae)
    if "fused_depth" in config:
        network = recorded_config(dict(config))
        return lambda: MMAudio(network)
    tensors: dict[str, Tensor] = {name: torch.empty(shape, device="meta") for name, shape in listed.items()}
    if any(name.startswith("afeat_extractor.") for name in listed):
        whole = SynchformerConfig.from_tensors(tensors)
        return lambda: Synchformer(whole)
    visual = VisualConfig.from_tensors(tensors)
    return lambda: SynchformerVisual(visual)
