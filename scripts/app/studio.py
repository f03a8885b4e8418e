"""What the buttons of the web page do, without the page: check requests, encode scenes once and cache them, and make,
write and time sounds."""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from eval.compare.examples import spectrogram_png
from eval.speed.budget import Budget
from eval.speed.measure import measure_budget
from eval.speed.stages import StagedGenerator, Workload
from meanflow import Guidance
from scripts.app.workspace import Workspace
from teacher.files import file_sha256
from teacher.media import MediaError, MediaInfo, probe
from teacher.sampling.pipeline import Pipeline, Scene, Sound
from teacher.sampling.stages import StageClock, never_stop

MAX_WORDS = 400
"""Characters of a prompt."""
MAX_STEPS, MAX_GUIDANCE, MAX_SEED = 100, 20.0, 2**31 - 1
GRIDS = (4, 8)
KEEP_SCENES_S = 600.0
"""Seconds of encoded video kept in memory, 0.15 MB each."""
BUDGET_RUNS = 5
"""How often a budget runs every stage: counted, warmed up, timed three times."""
Check: TypeAlias = Callable[[], None]
"""Called before every stage and every evaluation of a network; raises StoppedError when the click is to end."""
Key: TypeAlias = tuple[object, ...]


class StoppedError(ValueError):
    """The visitor pressed Stop or has gone, or the page is being closed."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one click, so that other visitors are served too."""

    seconds: float = 60.0
    """Longest video and longest sound."""
    pixels: float = 4e9
    """Pixels of a video in all its frames; a minute of 1920 x 1080 at 30 frames a second has 3.7e9."""
    evaluated_s: float = 4000.0
    """Seconds of sound times evaluations of the networks: seeds x steps, twice that under guidance. A minute at 25
    guided steps has 3000."""


@dataclass(frozen=True, kw_only=True)
class ModelSetting:
    """Steps and guidance of one model. Raises ValueError with the name and the value that is wrong."""

    model: str
    steps: int
    guidance: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _whole(f"steps of the {self.model}", self.steps, 1, MAX_STEPS))
        object.__setattr__(self, "guidance", _number(f"guidance of the {self.model}", self.guidance, 0.0, MAX_GUIDANCE))


@dataclass(frozen=True, kw_only=True)
class SoundRequest:
    """The scene that a visitor requests sound for. Raises ValueError with a message that the page shows."""

    video: Path | None
    prompt: str | None
    negative_prompt: str | None
    duration_s: float
    """Seconds of a sound without video."""

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            object.__setattr__(self, name, _words(name.replace("_", " "), getattr(self, name)))
        if self.video is None and self.prompt is None:
            raise ValueError("upload a video or type a prompt")
        object.__setattr__(self, "duration_s", _number("duration", self.duration_s, 0.0, math.inf))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network under the name it has on the page."""

    name: str
    pipeline: Pipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class Take:
    """One sound and its files."""

    model: str
    sound: Sound
    audio: Path
    picture: Path
    film: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ClickResult:
    """The results of one click."""

    takes: tuple[Take, ...]
    seconds: dict[str, dict[str, float]]
    """Seconds of this click by model and stage; without stages of encoding where an earlier click encoded the scene."""
    shared: bool
    """Whether something was encoded once in this click for several models; its time then stands with each of them."""
    audio_s: float
    """Sound made by one model."""


@dataclass(kw_only=True)
class Studio:
    """The models, and the scenes that are cached between clicks. One click is served at a time."""

    models: Sequence[Model]
    workspace: Workspace
    limits: Limits = field(default_factory=Limits)
    _scenes: OrderedDict[Key, Scene] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check_video(self, video: Path) -> MediaInfo:
        """Properties of the video. Raises MediaError when it has no picture or exceeds the limits of the page."""
        info = probe(video)
        if not info.has_video:
            raise MediaError(f"{video}: has no picture to make sound for; type a prompt instead")
        if info.duration_s > self.limits.seconds:
            raise MediaError(f"{video}: lasts {info.duration_s:.1f} s, this page takes up to {self.limits.seconds:g} s")
        pixels = info.width * info.height * info.fps * info.duration_s
        if pixels > self.limits.pixels:
            raise MediaError(
                f"{video}: {info.width} x {info.height} at {info.fps:.4g} frames/s for {info.duration_s:.1f} s are "
                f"{pixels / 1e9:.1f} billion pixels, this page takes up to {self.limits.pixels / 1e9:g}; send a "
                "smaller or shorter one"
            )
        return info

    def compare(
        self, ask: SoundRequest, settings: Sequence[ModelSetting], seed: int, check: Check = never_stop
    ) -> ClickResult:
        """One sound of every model from the same seed, and the video again with each."""
        return self._make(ask, settings, [_whole("seed", seed, 0, MAX_SEED)], check, films=True)

    def grid(
        self, ask: SoundRequest, setting: ModelSetting, seed: int, count: int, check: Check = never_stop
    ) -> ClickResult:
        """`count` sounds of one model from consecutive seeds, asked of the pipeline in a single call."""
        if count not in GRIDS:
            raise ValueError(f"a grid has {' or '.join(map(str, GRIDS))} sounds, got {count}")
        first = _whole("seed", seed, 0, MAX_SEED)
        return self._make(ask, [setting], list(range(first, first + count)), check, films=False)

    def budget(self, ask: SoundRequest, setting: ModelSetting, check: Check = never_stop) -> Budget:
        """Every stage of one window counted and timed on its own, a few times over (eval/speed/measure.py)."""
        pipeline = self._model(setting.model).pipeline
        total_s = self._length_s(ask, pipeline, self._video_s(ask))
        self._check_work(min(total_s, pipeline.window_s), [setting], BUDGET_RUNS)
        workload = Workload(
            duration_s=min(total_s, pipeline.window_s),
            captions=(ask.prompt or "",),
            windows=() if ask.video is None else ((ask.video, 0.0),),
        )
        with self._lock:
            check()
            return measure_budget(
                StagedGenerator.of_pipeline(pipeline, setting.model),
                workload,
                steps=(setting.steps,),
                guidance=(Guidance(omega=setting.guidance),),
                repeats=BUDGET_RUNS - 2,
                report=lambda line: check(),
            )

    def finish(self, timeout_s: float) -> None:
        """Wait until no click is served any more, for at most this many seconds."""
        if self._lock.acquire(timeout=timeout_s):
            self._lock.release()

    def _check_work(self, length_s: float, settings: Sequence[ModelSetting], runs: int) -> None:
        """Raise ValueError when sounds of this length and number cost more than one click may."""
        asked = sum(length_s * runs * s.steps * (1 if s.guidance == 1.0 else 2) for s in settings)
        if asked > self.limits.evaluated_s:
            raise ValueError(
                f"{length_s:.3g} s with these steps, guidance and seeds are {asked:.0f} seconds x evaluations; "
                f"a click may have {self.limits.evaluated_s:.0f}: ask for fewer steps, fewer sounds or less time"
            )

    def _make(
        self, ask: SoundRequest, settings: Sequence[ModelSetting], seeds: list[int], check: Check, *, films: bool
    ) -> ClickResult:
        seconds: dict[str, dict[str, float]] = {}
        encoded: dict[Key, dict[str, float]] = {}
        drawn: list[tuple[str, list[Sound]]] = []
        shared = False
        video_s = self._video_s(ask)
        lengths = {s.model: self._length_s(ask, self._model(s.model).pipeline, video_s) for s in settings}
        self._check_work(max(lengths.values()), settings, len(seeds))
        digest = None if ask.video is None else file_sha256(ask.video)
        with self._lock:
            clock = StageClock(check=check)
            for setting in settings:
                check()
                pipeline = self._model(setting.model).pipeline
                key = self._key(ask, digest, lengths[setting.model], pipeline)
                scene, encoding = self._scene(ask, lengths[setting.model], pipeline, key, clock)
                shared |= bool(encoded.get(key))
                encoding = encoded.setdefault(key, encoding)
                sounds, generation = self._draw(scene, setting, seeds, clock)
                seconds[setting.model] = encoding | generation
                drawn.append((setting.model, sounds))
            takes = self._written(drawn, check, films=films)
        audio_s = sum(sound.duration_s for sound in drawn[0][1])
        return ClickResult(takes=tuple(takes), seconds=seconds, shared=shared, audio_s=audio_s)

    def _written(self, drawn: Sequence[tuple[str, list[Sound]]], check: Check, *, films: bool) -> list[Take]:
        folder = self.workspace.new_result()
        takes = []
        try:
            for name, sounds in drawn:
                for sound in sounds:
                    check()
                    takes.append(_write(name, sound, folder, film=films))
        except BaseException:
            self.workspace.drop(folder)
            raise
        return takes

    def _draw(
        self, scene: Scene, setting: ModelSetting, seeds: list[int], clock: StageClock
    ) -> tuple[list[Sound], dict[str, float]]:
        pipeline = self._model(setting.model).pipeline
        sounds = pipeline(scene, seeds=seeds, steps=setting.steps, guidance=setting.guidance, clock=clock)
        return sounds, clock.take()

    def _key(self, ask: SoundRequest, digest: str | None, length_s: float, pipeline: Pipeline) -> Key:
        """What an encoded scene depends on: the digest of the video, words, length, encoders and codec."""
        return (
            digest,
            ask.prompt,
            ask.negative_prompt,
            length_s,
            tuple(sorted(pipeline.encoders.names.items())) if ask.video else pipeline.encoders.text.name,
            pipeline.codec.sequence,
            pipeline.window_s,
        )

    def _scene(
        self, ask: SoundRequest, length_s: float, pipeline: Pipeline, key: Key, clock: StageClock
    ) -> tuple[Scene, dict[str, float]]:
        """The encoded scene, and the seconds that its encoding took now by stage: none where a click before did it."""
        if key in self._scenes:
            self._scenes.move_to_end(key)
            # The same pictures may have come again under another name; the film is made from the file at hand.
            return replace(self._scenes[key], video=ask.video), {}
        scene = pipeline.encode(
            video=ask.video,
            prompt=ask.prompt,
            negative_prompt=ask.negative_prompt,
            duration_s=length_s if ask.video is None else None,
            clock=clock,
        )
        self._scenes[key] = scene
        while len(self._scenes) > 1 and sum(scene.total_s for scene in self._scenes.values()) > KEEP_SCENES_S:
            self._scenes.popitem(last=False)
        return scene, clock.take()

    def _video_s(self, ask: SoundRequest) -> float | None:
        """Duration of the video, None without one. Raises MediaError for a video that cannot be used here."""
        return None if ask.video is None else self.check_video(ask.video).duration_s

    def _length_s(self, ask: SoundRequest, pipeline: Pipeline, video_s: float | None) -> float:
        """Seconds of sound. Raises ValueError for too many."""
        if video_s is not None:
            return video_s
        length_s = ask.duration_s or pipeline.window_s
        if length_s > self.limits.seconds:
            raise ValueError(f"{length_s:g} s of sound is too long, this page makes up to {self.limits.seconds:g} s")
        return length_s

    def _model(self, name: str) -> Model:
        for model in self.models:
            if model.name == name:
                return model
        raise ValueError(f"the model must be one of {', '.join(m.name for m in self.models)}, got {name!r}")


def _write(model: str, sound: Sound, folder: Path, *, film: bool) -> Take:
    """The sound with its provenance, its spectrogram and, for a video, the video with it."""
    name = f"{model}-seed{sound.seed}-{hashlib.sha256(str(sound.sampling).encode()).hexdigest()[:6]}"
    audio, picture = folder / f"{name}.flac", folder / f"{name}.png"
    sound.save(audio)
    spectrogram_png(sound.wave.numpy(), sound.sample_rate, picture)
    shown = folder / f"{name}.mp4" if film and sound.scene.video is not None else None
    return Take(model=model, sound=sound, audio=audio, picture=picture, film=shown and sound.save_film(shown))


def _words(name: str, text: object) -> str | None:
    """The text without blanks around it, None for none."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the {name} must be text")
    words = " ".join((text or "").split())
    if len(words) > MAX_WORDS:
        raise ValueError(f"the {name} may have {MAX_WORDS} characters, it has {len(words)}")
    return words or None


def _number(name: str, value: object, lowest: float, highest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
        raise ValueError(f"{name} must be a number from {lowest:g} to {highest:g}, got {value!r}")
    return float(value)


def _whole(name: str, value: object, lowest: int, highest: int) -> int:
    number = _number(name, value, lowest, highest)
    if number != int(number):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(number)
