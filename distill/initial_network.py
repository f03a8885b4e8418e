"""What a training starts from: a fresh network or a trained one, fitted to the features it will learn."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from distill.config import Fresh, FromWeights
from distill.method.student import architecture_changes
from teacher.audio.codec import AudioCodec
from teacher.audio.mmaudio_codec import MMAudioCodec
from teacher.audio.registry import open_codec
from teacher.encoders.registry import load_encoders
from teacher.features.codec import load_codec
from teacher.features.store import folder_widths
from teacher.files import file_sha256
from teacher.network.mmaudio import FROZEN_PARAMETERS, MMAudio
from teacher.network.variants import MMAudioConfig
from teacher.weights.loading import load_network, weight_file
from teacher.weights.run_folder import UNSPECIFIED, read_features_info, read_licence


@dataclass(frozen=True, kw_only=True)
class InitialNetwork:
    """A network about to be trained, with the codec of its latents and what it inherits."""

    net: MMAudio
    codec: AudioCodec
    """Codec of the features, with the statistics that the network's latents are normalised by."""
    licence: str | None = None
    """Licence of the weights it starts from; None for a fresh network."""
    digests: dict[str, str]
    """Digests of the files it starts from."""


def fresh_or_loaded(
    start: Fresh | FromWeights, features: Path, *, seed: int, weights_dir: Path | None = None
) -> InitialNetwork:
    """The network that `start` describes, for the latents and conditions of a feature folder.

    A fresh network takes the latent statistics of the features' codec and the text features of the empty caption; a
    trained one keeps its own. `weights_dir` holds the published codecs and encoders, where the features come from
    those. Raises ValueError where the features do not fit the network.
    """
    if isinstance(start, FromWeights):
        return _trained(start, features, weights_dir)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MMAudio(start.network.with_widths(folder_widths(features)))
        if start.init == "unit":
            net.initialise_unit()
    codec = load_codec(features, weights_dir=weights_dir)
    _check_shapes(net, codec, features)
    with torch.no_grad():
        net.latent_mean.copy_(codec.latent_mean.view_as(net.latent_mean))
        net.latent_std.copy_(codec.latent_std.view_as(net.latent_std))
        empty = empty_text(read_features_info(features).encoders, weights_dir or _weights_dir(codec))
        if empty is not None:
            net.empty_string_feat.copy_(empty)
    return InitialNetwork(net=net, codec=codec, digests={})


def resumed_student(
    start: FromWeights,
    teacher: MMAudio,
    wanted: MMAudioConfig,
    features: Path,
    *,
    any_times: bool,
    weights_dir: Path | None = None,
) -> InitialNetwork:
    """The student of an earlier run, to go on from, with everything it learnt.

    `wanted` is the architecture that this run's student has; its time embedding may be another with `any_times`. Raises
    ValueError for a teacher, another architecture, other latent statistics than the teacher's, or another codec.
    """
    path = weight_file(start.run, start.weights)
    net = load_network(start.run, weights=start.weights)
    found = net.config
    if not found.interval_embedding:
        raise ValueError(f"{start.run} is a teacher; student.run goes on from a distilled student")
    if any_times:
        wanted = replace(wanted, time_frequencies=found.time_frequencies, time_precision=found.time_precision)
    if changes := architecture_changes(found, wanted):
        raise ValueError(f"{start.run} is a student of another architecture than this run's: {', '.join(changes)}")
    for name in ("latent_mean", "latent_std"):
        if not torch.equal(net.get_parameter(name), teacher.get_parameter(name)):
            raise ValueError(f"{start.run} and the teacher have different latent statistics ({name})")
    codec = inherited_codec(net, start.run, features, weights_dir)
    _release(net)
    return InitialNetwork(
        net=net, codec=codec, licence=inherited_licence(start.run), digests={"student": file_sha256(path)[:12]}
    )


def empty_text(encoders: str, weights_dir: Path | None) -> Tensor | None:
    """Text features (77, 1024) of the empty caption; None for the embedded encoders, whose empty text is zero."""
    if encoders == "embedded":
        return None
    return load_encoders(encoders, weights_dir=weights_dir).text([""])[0].float().cpu()


def _weights_dir(codec: AudioCodec) -> Path | None:
    """Where a published codec found its files; the encoders' lie beside them."""
    return codec.models.weights_dir if isinstance(codec, MMAudioCodec) else None


def inherited_codec(net: MMAudio, run: Path, features: Path, weights_dir: Path | None = None) -> AudioCodec:
    """The features' codec with the statistics of a trained network.

    Raises ValueError where the features were made with another codec or other encoders than the network's run.
    """
    plain = load_codec(features, weights_dir=weights_dir)
    made, known = read_features_info(features), read_features_info(run)
    if made.encoders != known.encoders:
        raise ValueError(
            f"{features} was extracted with encoders {made.encoders!r}, {run} was trained with {known.encoders!r}; "
            f"extract again with --encoders {known.encoders}"
        )
    _check_shapes(net, plain, features)
    codec = plain.with_statistics(net.latent_mean.detach().flatten(), net.latent_std.detach().flatten())
    kept = run / "codec.safetensors"
    if kept.is_file() and open_codec(kept, weights_dir=weights_dir).digest != codec.digest:
        raise ValueError(
            f"the latents of {features} come from another codec than {kept}; extract with --codec-from {run}"
        )
    return codec


def inherited_licence(run: Path) -> str | None:
    """The licence that weights trained from a run folder's carry on; None where it states none."""
    licence = read_licence(run)
    return None if licence == UNSPECIFIED else licence


def _trained(start: FromWeights, features: Path, weights_dir: Path | None) -> InitialNetwork:
    path = weight_file(start.run, start.weights)
    net = load_network(start.run, weights=start.weights)
    if net.config.interval_embedding:
        raise ValueError(f"{start.run} is a distilled student; start from a teacher, whose flow has one time")
    codec = inherited_codec(net, start.run, features, weights_dir)
    _release(net)
    return InitialNetwork(
        net=net, codec=codec, licence=inherited_licence(start.run), digests={"start": file_sha256(path)[:12]}
    )


def _release(net: MMAudio) -> None:
    """Let a loaded network learn, but for statistics and stored features."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in FROZEN_PARAMETERS)


def _check_shapes(net: MMAudio, codec: AudioCodec, features: Path) -> None:
    """Rates and channels; the length of the clips may differ, since positions are relative."""
    wanted, found = (net.config.sequence, net.config.latent_channels), (codec.sequence, codec.latent_channels)
    if wanted != found:
        raise ValueError(
            f"{features} holds latents of {found[1]} channels at {found[0].sample_rate} Hz, the network has "
            f"{wanted[1]} at {wanted[0].sample_rate} Hz; choose a network or a codec of the other's rate"
        )
