"""MMAudio's own audio stack as one codec: mel front end, VAE, statistics of the latents, BigVGAN.

    posterior  wave -> log-mel -> VAE encoder -> mean, std
    encode     (mean - latent_mean) / latent_std
    decode     z latent_std + latent_mean -> VAE decoder -> log-mel -> vocoder -> wave

The codec's own file holds the statistics, the path of the folder of weights and the digests of the two component files,
which are not copied. Each model is loaded when first used: sampling never loads the encoder, extraction only that.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from teacher.audio.codec import Posterior, Stage, check_finite, check_statistics, read_codec_file, write_codec_file
from teacher.audio.mel import MEL_16K, MEL_44K, MelConfig, log_mel
from teacher.audio.vae import VAE, VAE_16K, VAE_44K, Part, VAEConfig, load_vae
from teacher.audio.vocoder import BIGVGAN_16K, BIGVGAN_V2_44K, BigVGAN, VocoderConfig
from teacher.files import Moved, json_digest
from teacher.files.components import read_component_info, read_tensors
from teacher.files.errors import WeightsError
from teacher.network.sequence import SEQUENCE_16K, SEQUENCE_44K, SequenceConfig


@dataclass(frozen=True, kw_only=True)
class AudioStack:
    """The mel front end, VAE and vocoder that belong together at one sample rate. Raises ValueError for a mismatch."""

    name: str
    sequence: SequenceConfig
    mel: MelConfig
    vae: VAEConfig
    vocoder: VocoderConfig
    vae_component: str
    vocoder_component: str

    @property
    def files(self) -> tuple[str, str]:
        """Names of the component files in a folder of weights: VAE and vocoder."""
        return f"{self.vae_component}.safetensors", f"{self.vocoder_component}.safetensors"

    def __post_init__(self) -> None:
        rates = (self.mel.sample_rate, self.mel.hop_length, self.vocoder.hop_length, self.sequence.latent_downsample)
        if rates != (self.sequence.sample_rate, self.sequence.hop_length, self.sequence.hop_length, 2):
            raise ValueError(f"{self.name}: the rates of front end, VAE, vocoder and sequence disagree")
        if not self.mel.num_mels == self.vae.data_dim == self.vocoder.num_mels:
            raise ValueError(f"{self.name}: front end, VAE and vocoder have different numbers of mel bins")


MMAUDIO_16K = AudioStack(
    name="mmaudio_16k",
    sequence=SEQUENCE_16K,
    mel=MEL_16K,
    vae=VAE_16K,
    vocoder=BIGVGAN_16K,
    vae_component="vae_16k",
    vocoder_component="bigvgan_16k",
)
MMAUDIO_44K = AudioStack(
    name="mmaudio_44k",
    sequence=SEQUENCE_44K,
    mel=MEL_44K,
    vae=VAE_44K,
    vocoder=BIGVGAN_V2_44K,
    vae_component="vae_44k",
    vocoder_component="bigvgan_v2_44k",
)
STACKS = {stack.name: stack for stack in (MMAUDIO_16K, MMAUDIO_44K)}


@dataclass(frozen=True, kw_only=True)
class Models:
    """The component files of a stack and the models in them, loaded when first used: frozen, float32, on `device`.

    Raises WeightsError when a file is missing.
    """

    stack: AudioStack
    weights_dir: Path
    device: str = "cpu"

    def __post_init__(self) -> None:
        for component in (self.stack.vae_component, self.stack.vocoder_component):
            if not self._file(component).is_file():
                raise WeightsError(
                    f"{self._file(component)} is missing: codec {self.stack.name} needs it; "
                    f"get {component} with mf-fetch, or convert a downloaded file with mf-convert"
                )

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files that the components were converted from."""
        named = {"vae": self.stack.vae_component, "vocoder": self.stack.vocoder_component}
        return {role: read_component_info(self._file(component)).sha256 for role, component in named.items()}

    @cached_property
    def encoder(self) -> VAE:
        """The encoder of the VAE, loaded at first use."""
        return self._vae("encoder")

    @cached_property
    def decoder(self) -> VAE:
        """The decoder of the VAE, loaded at first use."""
        return self._vae("decoder")

    @cached_property
    def vocoder(self) -> BigVGAN:
        """The vocoder, loaded at first use. Raises WeightsError if the file does not fit the stack."""
        path = self._file(self.stack.vocoder_component)
        tensors, config = read_tensors(path), self.stack.vocoder
        if "conv_pre.weight" in tensors:  # rates, kernels and bins are the stack's, the width is the file's
            config = replace(config, initial_channels=len(tensors["conv_pre.weight"]))
        try:
            return BigVGAN.from_folded(tensors, config).to(self.device)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from error

    def _vae(self, part: Part) -> VAE:
        path, expected = self._file(self.stack.vae_component), self.stack.vae
        vae = load_vae(path, part=part)
        if vae.config != replace(expected, width=vae.config.width):
            raise WeightsError(
                f"{path}: codec {self.stack.name} needs {expected} of any width, the file is {vae.config}"
            )
        return vae.to(self.device)

    def _file(self, component: str) -> Path:
        return self.weights_dir / f"{component}.safetensors"


@dataclass(frozen=True, kw_only=True)
class MMAudioCodec:
    """MMAudio's VAE and vocoder as an `AudioCodec`; made by `mmaudio_codec`, or read by `registry.open_codec`.

    It computes in float32 on the models' device and returns tensors on the device of the argument.
    """

    models: Models
    latent_mean: Float[Tensor, " channels"]
    latent_std: Float[Tensor, " channels"]

    def __post_init__(self) -> None:
        check_statistics(self.latent_mean, self.latent_std, self.latent_channels)

    @property
    def sequence(self) -> SequenceConfig:
        """Sample rate, hop length and mel frames per latent frame."""
        return self.models.stack.sequence

    @property
    def latent_channels(self) -> int:
        """Channels of the latent: 20 at 16 kHz, 40 at 44.1 kHz."""
        return self.models.stack.vae.latent_channels

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of the component files, the name of the stack and the statistics."""
        described = {"kind": self.models.stack.name, **self.models.digests}
        return json_digest(described, (one.numpy().tobytes() for one in (self.latent_mean, self.latent_std)))

    @property
    def facts(self) -> dict[str, float]:
        """Empty: a published codec is not fitted here."""
        return {}

    @torch.no_grad()
    def posterior(self, wave: Float[Tensor, "batch samples"]) -> Posterior:
        """Mean and std of the latent, (batch, ceil(samples / (2 hop)), channels); silence pads the last frame."""
        if wave.ndim != 2 or wave.shape[1] == 0:
            raise ValueError(f"wave must have shape (batch, samples) with samples > 0, got {tuple(wave.shape)}")
        given = wave.detach().to(self.models.device, torch.float32)
        padded = functional.pad(given, (0, -given.shape[1] % self.sequence.samples_per_latent))
        found = self.models.encoder.encode(log_mel(padded, self.models.stack.mel))
        mean, std = (part.transpose(1, 2).to(wave.device) for part in (found.mean, found.std))
        return Posterior(mean, std)

    def encode(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames channels"]:
        """Normalised latent: (posterior mean - latent_mean) / latent_std."""
        mean = self.posterior(wave).mean
        return (mean - self.latent_mean.to(mean)) / self.latent_std.to(mean)

    @torch.no_grad()
    def decode_mel(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch mels mel_frames"]:
        """Log-mel spectrogram of 2 * frames mel frames."""
        return self._mel(latent).to(latent.device)

    @torch.no_grad()
    def decode(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch samples"]:
        """Sound of frames * 2 hop samples within [-1, 1]. Raises ValueError for a latent that is not finite."""
        value = latent
        for stage in self.decode_stages():
            value = stage.call(value)
        return value.to(latent.device)

    def decode_stages(self) -> tuple[Stage, ...]:
        """`decode` in two stages: latent to log-mel by the VAE decoder, log-mel to sound by the vocoder.

        The spectrogram stays on the models' device; the sound is moved to the CPU.
        """
        return (Stage("latent decode", self._finite_mel), Stage("vocoder", self._sound))

    def save(self, path: Path) -> None:
        """Write the statistics, the folder of the component files and their digests; the files are not copied."""
        metadata = {"kind": self.models.stack.name, "weights_dir": str(self.models.weights_dir.resolve())}
        statistics = {"latent_mean": self.latent_mean, "latent_std": self.latent_std}
        write_codec_file(path, statistics, metadata | self.models.digests)

    @classmethod
    def load(cls, path: Path, *, weights_dir: Path | None = None, device: str = "cpu") -> "MMAudioCodec":
        """Read a file written by `save`; `weights_dir` replaces the folder of component files recorded in it.

        Raises WeightsError naming the file when it is something else, or when the component files are missing or their
        digests differ from the recorded ones.
        """
        tensors, metadata = read_codec_file(path)
        stack = STACKS.get(metadata.get("kind", ""))
        if stack is None or set(tensors) != {"latent_mean", "latent_std"} or "weights_dir" not in metadata:
            raise WeightsError(f"{path}: not a codec of kind {', '.join(STACKS)}")
        found = weights_dir or Moved(path.parent)(Path(metadata["weights_dir"]))
        models = Models(stack=stack, weights_dir=Path(found), device=device)
        for role, digest in models.digests.items():
            recorded = metadata.get(role, "")  # empty where the component was not there yet when the file was written
            if recorded not in ("", digest):
                raise WeightsError(
                    f"{path}: was made with another {role} than the one in {models.weights_dir} "
                    f"(sha256 {recorded[:12]}, found {digest[:12]})"
                )
        try:
            return cls(models=models, **tensors)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from error

    def with_statistics(self, mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"]) -> "MMAudioCodec":
        """A codec with other statistics that uses the same models in memory."""
        mean, std = check_statistics(mean, std, self.latent_channels)
        return replace(self, latent_mean=mean, latent_std=std)

    @torch.no_grad()
    def _finite_mel(self, latent: Tensor) -> Tensor:
        return self._mel(check_finite(latent))

    @torch.no_grad()
    def _sound(self, mel: Tensor) -> Tensor:
        wave: Tensor = self.models.vocoder(mel)[:, 0]
        return wave.cpu()

    def _mel(self, latent: Tensor) -> Tensor:
        if latent.ndim != 3 or latent.shape[2] != self.latent_channels:
            raise ValueError(
                f"latent must have shape (batch, frames, {self.latent_channels}), got {tuple(latent.shape)}"
            )
        given = latent.detach().to(self.models.device, torch.float32)
        raw = given * self.latent_std.to(given) + self.latent_mean.to(given)
        return self.models.decoder.decode(raw.transpose(1, 2))


def mmaudio_codec(name: str, weights_dir: Path, device: str = "cpu") -> MMAudioCodec:
    """The published codec `name` ("mmaudio_16k" or "mmaudio_44k") before its statistics are measured.

    latent_mean is 0 and latent_std 1. Raises ValueError for another name, WeightsError if a component file is missing.
    """
    if name not in STACKS:
        raise ValueError(f"codec must be one of {', '.join(STACKS)}, got {name!r}")
    channels = STACKS[name].vae.latent_channels
    models = Models(stack=STACKS[name], weights_dir=Path(weights_dir), device=device)
    return MMAudioCodec(models=models, latent_mean=torch.zeros(channels), latent_std=torch.ones(channels))
