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
"""Windows of one sound generated at once; bounds memory, on long videos too."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A network with the codec and encoders it was trained with."""

    net: MMAudio
    codec: AudioCodec
    encoders: Encoders
    window_s: float
    """Duration the network was trained on; longer sounds are made in overlapping windows of it."""
    device: str = "cpu"
    precision: Precision = "float32"
    licence: str = "unspecified"
    """Of the network's weights; belongs into the metadata of every sound."""
    source: Path | None = None
    """Folder it was loaded from."""
    identity: ModelIdentity | None = None
    """Name and digest of the weights, licence and teacher; None for a network that was not loaded from files."""
    weights_dir: Path | None = None
    """Folder of published codec and encoder files, where it uses them."""
    fast: bool = False
    """Whether sounds are made by the fast form of the generator (`teacher.sampling.fast`); MMAudio's codec alone."""
    cache: EncodedCache | None = None
    """Folder of encoded pictures by the digest of their film; none unless set with `dataclasses.replace`."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.fast:
            check_fast(self.codec)

    @cached_property
    def generator(self) -> Generator:
        """What turns noise into sound for encoded conditions."""
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
        """Everything a run folder names; strict, nothing is downloaded.

        `weights_dir`, the folder of codec and encoder files, replaces the one the run folder was made with.
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
        """From a run folder, a folder of `save_pretrained`, or a hub repository NAME/NAME, which is fetched.

        `weights_dir`: folder of published codec and encoder files, where the folder holds no parts of its own. Raises
        WeightsError in one line naming what is missing, damaged or cannot be fetched.
        """
        return cls.load(
            folder_of(path_or_id), weights=weights, weights_dir=weights_dir, device=device, precision=precision
        )

    def save_pretrained(self, folder: Path | str, card: ModelCard, *, parts: bool = False) -> Path:
        """Write a folder to give away: safetensors, configuration and a model card (`teacher.sampling.model_card`)."""
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
        """Pictures and words of one sound, encoded now, window by window, and held in memory.

        The sound will last as long as the video (or `duration_s` of it), or `duration_s` for words alone, by default
        one window. Raises MediaError (unreadable or too short video) and ValueError (neither video nor prompt).
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
        """As `encode`, but windows are encoded when they are asked for and not held: memory stays that of a few."""
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
        """One sound per seed for a scene, or for a video and/or words, which are then encoded first.

        guidance: scale of classifier-free guidance with scalar rescaling, "auto" (by the number of steps, for the
        published weights), or a rule. `sampling` replaces steps and guidance. `clock` adds up the seconds of every
        stage and may end the work between them (`teacher.sampling.stages`).

        A sound does not depend on the other seeds: each is made in batches of its own windows, `BATCH` at a time, and
        is bit by bit the one that its seed gives alone on the same machine. In a batch with other seeds, latents
        would be rounded otherwise (by 2e-7 in float32, at unit size), of which Griffin-Lim, where peaks and rises
        decide how a phase goes on, makes up to 0.03 in a wave within [-1, 1].

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
        """A wave together with how it was made; `sampling` holds its seed."""
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
        """The sounds of all seeds piece by piece, as soon as no later window can change them; together exactly
        round(total_s * sample_rate) samples. Memory does not grow with the length of the scene."""
        if scene.negative is not None and not sampling.guidance.active:
            raise ValueError("a negative prompt acts through guidance; set a guidance scale other than 1")
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
    """Whether the codec is the one that features.json states, or the same one with the statistics of the network, which
    a training from another one's weights keeps. Folders that state none are taken as they are."""
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
    """The same network in bfloat16 throughout, the table of time frequencies included."""
    with torch.device("meta"):
        rounded = MMAudio(replace(net.config, time_precision="bfloat16"))
    rounded.load_state_dict(net.state_dict(), strict=True, assign=True)
    return rounded.to(torch.bfloat16).eval().requires_grad_(False)
