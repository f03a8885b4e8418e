"""From a video and/or words to sound with the networks of one run folder.

    pipe = Pipeline.from_pretrained("runs/demo/student")
    sounds = pipe(video="holiday.mov", prompt="waves on a beach", seeds=(0, 1, 2), guidance=1.4)
    sounds[0].save("holiday.flac")

`encode` encodes the video and the words once; new seeds, steps and guidance then cost only the generator.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from meanflow import Guidance
from meanflow.guidance import GuidanceRule, Guided, default_omega
from teacher.audio.codec import AudioCodec
from teacher.audio.registry import open_codec
from teacher.encoders.cache import EncodedCache
from teacher.encoders.registry import Encoders, load_encoders
from teacher.files.errors import WeightsError
from teacher.network.mmaudio import MMAudio
from teacher.sampling.fast import check_fast, fast_form
from teacher.sampling.generator import Generator, Precision, SamplingConfig
from teacher.sampling.model_card import ModelCard, SharedModel, folder_of
from teacher.sampling.scene import Scene, Sound, make_scene
from teacher.sampling.stages import StageClock
from teacher.sampling.windows import Joiner, overlap_s, window_noise
from teacher.weights.loading import ModelIdentity, identify, load_network
from teacher.weights.run_folder import read_features_info, read_licence

__all__ = ["ModelCard", "Pipeline", "Precision", "SamplingConfig", "Scene", "Sound", "as_in_the_demo"]

BATCH = 4
"""Windows of one sound per batch, which bounds the memory on long videos too."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A network together with its codec and encoders: generates sound from video and text."""

    net: MMAudio
    codec: AudioCodec
    encoders: Encoders
    window_s: float
    """Seconds that the network was trained on; longer sounds are generated in overlapping windows of this length."""
    device: str = "cpu"
    precision: Precision = "float32"
    licence: str = "unspecified"
    """Licence of the network's weights, which is written into the metadata of every sound."""
    source: Path | None = None
    """Folder that the pipeline was loaded from."""
    identity: ModelIdentity | None = None
    """Name and digest of the weights, licence and teacher; None for a network that was not loaded from files."""
    weights_dir: Path | None = None
    """Folder of the published codec and encoder files, if the pipeline uses any."""
    fast: bool = False
    """Whether to use the fast form of the generator (`teacher.sampling.fast`), which needs MMAudio's codec."""
    cache: EncodedCache | None = None
    """Cache of encoded pictures on disk, by the digest of their video; None unless set with `dataclasses.replace`."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.fast:
            check_fast(self.codec)

    def __repr__(self) -> str:
        """One line: what is loaded and from where, without the tensors."""
        kind = "student" if self.net.config.interval_embedding else "teacher"
        millions = sum(p.numel() for p in self.net.parameters()) / 1e6
        source = "" if self.source is None else f", from {self.source}"
        rate = self.codec.sequence.sample_rate
        return f"Pipeline({kind} of {millions:.1f} M weights, {rate} Hz, windows of {self.window_s:g} s{source})"

    @cached_property
    def generator(self) -> Generator:
        """The generator that turns noise and encoded conditions into sound."""
        made = Generator.of(self.net, self.codec.decode_stages(), device=self.device, precision=self.precision)
        return fast_form(made, self.codec, report=partial(print, file=sys.stderr)) if self.fast else made

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        weights: str = "auto",
        weights_dir: Path | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> Self:
        """Load network, codec and encoders of a run folder strictly; nothing is downloaded.

        `weights_dir`, the folder of codec and encoder files, replaces the one recorded in the run folder. Raises
        WeightsError naming a file that is missing, damaged or does not belong to the others.
        """
        info = read_features_info(run)
        folder = weights_dir or info.weights_dir
        net = load_network(run, weights=weights)
        if precision == "demo":
            net = as_in_the_demo(net)
        codec = open_codec(run / "codec.safetensors", weights_dir=folder, device=device)
        if codec.latent_channels != net.config.latent_channels:
            raise WeightsError(
                f"{run}: its network makes {net.config.latent_channels} latent channels, its codec.safetensors takes "
                f"{codec.latent_channels}: they do not belong together"
            )
        _check_codec(run, codec, net, info.codec_digests)
        return cls(
            net=net.to(device),
            codec=codec,
            encoders=load_encoders(info.encoders, weights_dir=folder, device=device),
            window_s=info.duration_s,
            device=device,
            precision=precision,
            licence=read_licence(run),
            source=run,
            identity=identify(run, weights),
            weights_dir=folder,
        )

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        device: str = "cpu",
        precision: Precision = "float32",
        weights: str = "auto",
        weights_dir: Path | None = None,
    ) -> Self:
        """Load a run folder, a folder written by `save_pretrained`, or a hub repository NAME/NAME (downloaded).

        `weights_dir`: folder of published codec and encoder files, if the folder does not contain them. Raises
        WeightsError in one line naming the file that is missing, damaged or cannot be downloaded.
        """
        return cls.load(
            folder_of(path_or_id), weights=weights, weights_dir=weights_dir, device=device, precision=precision
        )

    def save_pretrained(self, folder: Path | str, card: ModelCard, *, parts: bool = False) -> Path:
        """Write a folder to publish: weights, configuration and a model card (`teacher.sampling.model_card`).

        parts: also copy the published codec and encoder files. Raises ValueError for a folder that is not empty.
        """
        shared = SharedModel(
            net=self.net,
            codec=self.codec,
            window_s=self.window_s,
            licence=self.licence,
            rounded=self.precision == "demo",
            source=self.source,
            identity=self.identity,
            weights_dir=self.weights_dir,
        )
        return shared.write(Path(folder), card, parts=parts)

    def encode(
        self,
        *,
        video: Path | str | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        duration_s: float | None = None,
        clock: StageClock | None = None,
    ) -> Scene:
        """Encode video and prompt of one sound now, window by window; the features stay in memory.

        The sound lasts as long as the video (at most `duration_s`); without a video it lasts `duration_s`, by default
        one window. Raises MediaError for an unreadable or too short video, ValueError without video and prompt.
        """
        scene = self.scene(
            video=video, prompt=prompt, negative_prompt=negative_prompt, duration_s=duration_s, clock=clock
        )
        return scene.encoded(at_once=BATCH)

    def scene(
        self,
        *,
        video: Path | str | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        duration_s: float | None = None,
        clock: StageClock | None = None,
    ) -> Scene:
        """As `encode`, but windows are encoded when they are needed and not stored, so memory stays small."""
        return make_scene(
            self.encoders,
            self.codec.sequence,
            self.window_s,
            video=None if video is None else Path(video),
            prompt=prompt,
            negative_prompt=negative_prompt,
            duration_s=duration_s,
            cache=self.cache,
            clock=clock,
        )

    def __call__(
        self,
        scene: Scene | None = None,
        *,
        video: Path | str | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        duration_s: float | None = None,
        seeds: int | Sequence[int] = 0,
        steps: int = 1,
        guidance: float | GuidanceRule | Literal["auto"] = 1.0,
        sampling: SamplingConfig | None = None,
        observe: Callable[[Guided], None] | None = None,
        clock: StageClock | None = None,
    ) -> list[Sound]:
        """Generate one sound per seed for a scene, or for a video and/or prompt, which are then encoded first.

        guidance: scale of classifier-free guidance with scalar rescaling, "auto" (by the number of steps, for the
        published weights), or a rule. `sampling` replaces steps and guidance. `clock` adds up the seconds of every
        stage and may stop the sampling between stages (`teacher.sampling.stages`).

        A sound does not depend on the other seeds: its windows are batched only with each other, `BATCH` at a time, so
        it is bit by bit the sound that its seed gives alone on the same machine. Batching different seeds would round
        latents differently (by 2e-7 in float32, at unit size), and Griffin-Lim, whose phases depend on peaks and
        onsets, amplifies that to as much as 0.03 in a wave within [-1, 1].

        Raises:
            MediaError: an unreadable or too short video.
            ValueError: neither video nor prompt nor scene, a scene together with them, no seeds, or a negative
                prompt without guidance.
        """
        if (scene is None) == (video is None and prompt is None):
            raise ValueError("give either a scene or a video and/or a prompt")
        if scene is not None and (negative_prompt is not None or duration_s is not None):
            raise ValueError("a scene has its negative prompt and duration already; give them to encode")
        if scene is None:
            scene = self.scene(
                video=video, prompt=prompt, negative_prompt=negative_prompt, duration_s=duration_s, clock=clock
            )
        chosen = [seeds] if isinstance(seeds, int) else [int(seed) for seed in seeds]
        if not chosen:
            raise ValueError("seeds must hold at least one number")
        if sampling is None:
            if isinstance(guidance, str) and guidance != "auto":
                raise ValueError(f'guidance must be a scale, a rule or "auto", got {guidance!r}')
            scale = default_omega(steps) if isinstance(guidance, str) else guidance
            rule = Guidance(omega=scale) if isinstance(scale, int | float) else scale
            sampling = SamplingConfig(steps=steps, guidance=rule)
        pieces: list[list[Tensor]] = [[] for _ in chosen]
        for made in self.stream(scene, chosen, sampling, observe, clock):
            for before, piece in zip(pieces, made, strict=True):
                before.append(piece)
        return [
            self.sound(scene, replace(sampling, seed=seed), torch.cat(parts))
            for seed, parts in zip(chosen, pieces, strict=True)
        ]

    def sound(self, scene: Scene, sampling: SamplingConfig, wave: Float[Tensor, " samples"]) -> Sound:
        """The wave as a `Sound`, with the settings that generated it; `sampling` contains its seed."""
        return Sound(
            wave=wave,
            sample_rate=self.codec.sequence.sample_rate,
            seed=sampling.seed,
            sampling=sampling,
            scene=scene,
            licence=self.licence,
            identity=self.identity,
            precision=self.precision,
            device=self.device,
        )

    def stream(
        self,
        scene: Scene,
        seeds: Sequence[int],
        sampling: SamplingConfig,
        observe: Callable[[Guided], None] | None = None,
        clock: StageClock | None = None,
    ) -> Iterator[Float[Tensor, "seeds samples"]]:
        """Yield the sounds of all seeds in pieces (seeds, samples), each as soon as no later window can change it.

        Together they have exactly round(total_s * sample_rate) samples. Memory does not grow with the scene's length.
        """
        if scene.negative is not None and not sampling.guidance.active:
            raise ValueError("a negative prompt takes effect through guidance; set a guidance scale other than 1")
        sequence = self.codec.sequence
        fade, total = round(overlap_s(self.window_s) * sequence.sample_rate), self._samples(scene)
        joiners = [Joiner(fade=fade, total=total) for _ in seeds]
        frames = sequence.latent_frames(scene.length_s)
        begins = [start * sequence.samples_per_latent for start in scene.starts]
        thens = [*begins[1:], None]
        for first in range(0, len(scene), BATCH):
            last = min(first + BATCH, len(scene))
            conditions = scene.conditions(first, last)
            starts, channels = scene.starts[first:last], self.codec.latent_channels
            waves = []
            for seed in seeds:  # never together: see __call__
                e = window_noise(seed, starts, frames, channels)
                waves.append(
                    self.generator(conditions, e, sampling, negative=scene.negative, observe=observe, clock=clock)
                )
            for k, windows in enumerate(torch.stack(waves).unbind(1), start=first):
                made = zip(joiners, windows, strict=True)
                yield torch.stack([joiner.add(wave, begins[k], then=thens[k]) for joiner, wave in made])

    def _samples(self, scene: Scene) -> int:
        return round(scene.total_s * self.codec.sequence.sample_rate)


def _check_codec(run: Path, codec: AudioCodec, net: MMAudio, stated: Sequence[str]) -> None:
    """Raise WeightsError unless the codec's digest is the one recorded in features.json.

    It may also have the latent statistics of the network instead, as after training from another run's weights. Nothing
    is checked where no digest is recorded.
    """
    if not stated or codec.digest in stated:
        return
    own = [net.latent_mean.detach().float().cpu().flatten(), net.latent_std.detach().float().cpu().flatten()]
    if all(map(partial(torch.allclose, rtol=1e-2, atol=1e-2), own, [codec.latent_mean, codec.latent_std])):
        channels = codec.latent_channels
        if codec.with_statistics(torch.zeros(channels), torch.ones(channels)).digest in stated:
            return
    raise WeightsError(
        f"{run / 'codec.safetensors'} is not the codec that features.json states ({stated[0][:12]}): it belongs to "
        "another model; restore the file"
    )


def as_in_the_demo(net: MMAudio) -> MMAudio:
    """A copy of the network entirely in bfloat16, including the table of time frequencies, as in MMAudio's demo."""
    with torch.device("meta"):
        rounded = MMAudio(replace(net.config, time_precision="bfloat16"))
    rounded.load_state_dict(net.state_dict(), strict=True, assign=True)
    return rounded.to(torch.bfloat16).eval().requires_grad_(False)
