"""What a training starts from: a fresh network, a trained one or an earlier student, matched to the training features.

Every file of weights is read once and its digest is computed once; a feature folder's codec is opened once.
"""

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
    """A network before training, with the codec of its latents, its licence and the digests of its files."""

    net: MMAudio
    codec: AudioCodec
    """Codec of the features, with the statistics that the network's latents are normalised by."""
    licence: str | None = None
    """Licence of the weights it starts from; None for a fresh network."""
    digests: dict[str, str]
    """Digests of the files that the network starts from."""


def loaded(run: Path, weights: str = "auto") -> tuple[MMAudio, str]:
    """The network of a run folder, rebuilt from config.json and loaded strictly, and the digest of its weights (12
    hexadecimal digits), as a run that starts from them records it."""
    return load_network(run, weights=weights), file_sha256(weight_file(run, weights))[:12]


def load_student(run: Path | str, *, weights: str = "auto") -> MMAudio:
    """The student of a run folder, u(x_t, r, t), rebuilt from its config.json and loaded strictly, in evaluation mode.

    `weights` is model (the last step), ema-0.05 and so on; auto is the narrowest average of the run, else the last
    step. Raises WeightsError for what is missing or damaged, ValueError for the run folder of a teacher.
    """
    net = load_network(Path(run), weights=weights)
    if not net.config.interval_embedding:
        raise ValueError(f"{run} is a teacher; a distilled student has a second time")
    return net


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
    codec: AudioCodec,
    features: Path,
    *,
    any_times: bool,
    weights_dir: Path | None = None,
) -> InitialNetwork:
    """The student of an earlier run as the starting point of this one.

    `wanted` is the architecture of this run's student; with `any_times` the time embedding may differ. `codec` is the
    teacher's, which is the student's too, since both have the same latent statistics. Raises ValueError for a teacher,
    another architecture, other latent statistics than the teacher's, and features of other encoders or another codec
    than the earlier run's.
    """
    net, digest = loaded(start.run, start.weights)
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
    _check_encoders(start.run, features)
    _check_codec(codec, start.run, features, weights_dir)
    _release(net)
    return InitialNetwork(net=net, codec=codec, licence=inherited_licence(start.run), digests={"student": digest})


def empty_text(encoders: str, weights_dir: Path | None) -> Tensor | None:
    """Text features (77, 1024) of the empty caption; None for the embedded encoders, whose features of it are zero."""
    if encoders == "embedded":
        return None
    return load_encoders(encoders, weights_dir=weights_dir).text([""])[0].float().cpu()


def _weights_dir(codec: AudioCodec) -> Path | None:
    """Where a published codec found its files; the encoders' lie beside them."""
    return codec.models.weights_dir if isinstance(codec, MMAudioCodec) else None


def inherited_codec(net: MMAudio, run: Path, features: Path, weights_dir: Path | None) -> AudioCodec:
    """The features' codec with the statistics of a trained network.

    Raises ValueError where the features were made with another codec or other encoders than the network's run.
    """
    plain = load_codec(features, weights_dir=weights_dir)  # first: it names what a folder without features lacks
    _check_encoders(run, features)
    _check_shapes(net, plain, features)
    codec = plain.with_statistics(net.latent_mean.detach().flatten(), net.latent_std.detach().flatten())
    _check_codec(codec, run, features, weights_dir)
    return codec


def _check_encoders(run: Path, features: Path) -> None:
    found, wanted = read_features_info(features).encoders, read_features_info(run).encoders
    if found != wanted:
        raise ValueError(
            f"{features} was extracted with encoders {found!r}, {run} was trained with {wanted!r}; "
            f"extract again with --encoders {wanted}"
        )


def _check_codec(codec: AudioCodec, run: Path, features: Path, weights_dir: Path | None) -> None:
    """Whether the codec of the features is the one that a run folder was trained with, where it holds one."""
    path = run / "codec.safetensors"
    if path.is_file() and open_codec(path, weights_dir=weights_dir).digest != codec.digest:
        raise ValueError(
            f"the latents of {features} come from another codec than {path}; extract with --codec-from {run}"
        )


def inherited_licence(run: Path) -> str | None:
    """The licence of a run folder's weights, which holds for weights trained from them; None where none is stated."""
    licence = read_licence(run)
    return None if licence == UNSPECIFIED else licence


def _trained(start: FromWeights, features: Path, weights_dir: Path | None) -> InitialNetwork:
    net, digest = loaded(start.run, start.weights)
    if net.config.interval_embedding:
        raise ValueError(f"{start.run} is a distilled student; start from a teacher, whose flow has one time")
    codec = inherited_codec(net, start.run, features, weights_dir)
    _release(net)
    return InitialNetwork(net=net, codec=codec, licence=inherited_licence(start.run), digests={"start": digest})


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
