"""Recordings of the synchronisation model: `sync_visual` (visual encoder) and `sync_full` (all of it)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from teacher.encoders.synchformer import SynchformerVisual, VisualConfig, encode_video
from teacher.encoders.synchformer_sync import Synchformer, SynchformerConfig, cut_wave, htk_filterbank, sync_spectrogram
from tests.golden.deviation import Deviation, relative
from tests.golden.recipe import Recording, digest, recipe_tensor

FLOAT32 = 8e-6
FLOAT64 = 1e-12
SPECTROGRAM = 6e-5
FILTERS = 6e-5
"""The recorded filters were computed in float32. An edge 700 (10^(mel / 2595) - 1) is then off by ten roundings of
f + 700: three of mel / 2595 <= 1.1, each of which the power makes 2.3 * 1.1 times as large, and three of the rest.
Two edges are off, and the gap between neighbours, 22 mel, is 0.0195 (f + 700): 20 * 2^-24 / 0.0195."""


def recorded_input(recording: Recording, name: str) -> Tensor:
    """An input that is stored, or built from the recipe under the name `in.<name>` and checked by its own digest."""
    described = recording.document["inputs"][name]
    if described.get("source") != "recipe":
        return recording.tensors[f"in.{name}"]
    key, shape = recording.document["parameters"]["key"], described["shape"]
    made = recipe_tensor(key, f"in.{name}", shape, described["half_range"], described["offset"])
    if digest([made]) != described["sha256"]:
        raise ValueError(f"in.{name} as the recipe makes it has another digest than the recorded one")
    return made


def visual_heads(recording: Recording) -> int | None:
    """Heads of the visual encoder where the recording changes them."""
    return recording.document["config"].get("vit_overrides", {}).get("VIT.NUM_HEADS")


def compared(recording: Recording, made: dict[str, Tensor], tolerances: dict[str, float]) -> Iterator[Deviation]:
    """One deviation for every recorded output; infinite for one that nothing here makes."""
    for key, recorded in recording.tensors.items():
        if not key.startswith("out."):
            continue
        name = key.removeprefix("out.")
        tolerance = FLOAT64 if name.endswith("_f64") else tolerances.get(name, FLOAT32)
        if name not in made:
            yield Deviation.missing(name)
            continue
        # A trace holds the first tokens only.
        value = made[name][:, : recorded.shape[1]] if name.startswith("trace.") else made[name]
        yield relative(name, value, recorded, tolerance)


@torch.no_grad()
def sync_visual(recording: Recording) -> Iterator[Deviation]:
    """Features of segments and of a video, the first tokens inside the network, and features in float64."""
    parameters = recording.parameters()
    with torch.device("meta"):
        network = SynchformerVisual(VisualConfig.from_tensors(parameters, heads=visual_heads(recording)))
    network.load_state_dict(parameters, strict=True, assign=True)
    encoder, made = network.vfeat_extractor, {}
    segments = recorded_input(recording, "segments")
    names = [key.removeprefix("out.trace.") for key in recording.tensors if key.startswith("out.trace.")]
    with traced(encoder, names) as seen:
        made["features"] = network(segments)
    made |= {f"trace.{name}": torch.cat(parts) for name, parts in seen.items()}
    if "out.video_features" in recording.tensors:
        made["video_features"] = encode_video(encoder, recorded_input(recording, "video"))
    if "out.features_f64" in recording.tensors:
        made["features_f64"] = network.double()(segments.double())
    yield from compared(recording, made, {})


@contextmanager
def traced(module: nn.Module, names: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Outputs of the submodules of these names, one tensor for each call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        module.get_submodule(name).register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
        for name, kept in seen.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def sync_full(recording: Recording) -> Iterator[Deviation]:
    """Spectrogram and its filters, audio features, logits, and visual features where they are recorded."""
    parameters, inputs = recording.parameters(), recording.document["inputs"]
    config = SynchformerConfig.from_tensors(parameters, visual_heads=visual_heads(recording))
    with torch.device("meta"):
        network = Synchformer(config)
    network.load_state_dict(parameters, strict=True, assign=True)
    made = {"mel_filterbank": htk_filterbank()}
    if "waveform" in inputs:
        wave = recorded_input(recording, "waveform")
        made["audio.input_spectrogram"], made["audio.features"] = (
            sync_spectrogram(cut_wave(wave)),
            network.audio_features(wave),
        )
    if "visual_features" in inputs:
        visual, audio = (recorded_input(recording, f"{sense}_features") for sense in ("visual", "audio"))
        made["logits"] = network.logits(visual, audio)
    if "segments" in inputs:
        made["visual.features"] = network.visual_features(recorded_input(recording, "segments"))
    yield from compared(recording, made, {"audio.input_spectrogram": SPECTROGRAM, "mel_filterbank": FILTERS})
