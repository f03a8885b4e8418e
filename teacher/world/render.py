"""A procedural audio-visual world: clips of bodies that bounce, strike, drip, beep, roll, tick and rattle.

The picture shows exactly when something sounds, how hard and of what material; it does not show pitch, timbre details,
room and background, which are random (see `sound.py`). Every clip is a function of (seed, index) alone.
"""

import json
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from teacher.files import write_json
from teacher.lists.manifest import Item, write_manifest
from teacher.media import write_video
from teacher.network.sequence import MIN_DURATION_S
from teacher.world.canvas import Canvas
from teacher.world.clip import WorldClip
from teacher.world.labels import KINDS, LABELS, clip_label, clip_split, fill_caption
from teacher.world.sound import render_sound

__all__ = [
    "LABELS",
    "WorldConfig",
    "clip_label",
    "clip_split",
    "make_frames",
    "make_clip",
    "make_sound",
    "render_world",
]

CLIPS_PER_TASK = 4
RNG_LOOKS, RNG_CLIP, RNG_SOUND, RNG_WORDS = range(4)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Configuration of a world. Clips do not depend on `num_clips`, so a world can be enlarged later."""

    num_clips: int = 768
    """Number of clips; about 75 % are for training, 5 % for validation and 20 % for testing."""
    seed: int = 0
    """Seed of all random choices; another seed gives other clips of the same kinds."""
    duration_s: float = 2.0
    """Length of a clip in seconds, at least 0.64."""
    sample_rate: int = 16_000
    """Samples a second of the sound: 16000 or 44100."""
    height: int = 96
    """Height of the picture in pixels, even."""
    width: int = 96
    """Width of the picture in pixels, even."""
    fps: float = 25.0
    """Pictures a second."""

    def __post_init__(self) -> None:
        if self.num_clips < 1:
            raise ValueError(f"num_clips must be at least 1, got {self.num_clips}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not MIN_DURATION_S <= self.duration_s <= 60:
            raise ValueError(f"duration_s must be between {MIN_DURATION_S} and 60, got {self.duration_s}")
        if self.sample_rate not in (16_000, 44_100):
            raise ValueError(f"sample_rate must be 16000 or 44100, got {self.sample_rate}")
        for name, value in (("height", self.height), ("width", self.width)):
            if not 32 <= value <= 1024 or value % 2:
                raise ValueError(f"{name} must be even and between 32 and 1024, got {value}")
        if not 5 <= self.fps <= 120:
            raise ValueError(f"fps must be between 5 and 120, got {self.fps}")


def make_clip(config: WorldConfig, index: int) -> WorldClip:
    """A clip before it is rendered: its events and its motion."""
    kind, material = clip_label(index)
    return KINDS[kind][0](_generator(config, index, RNG_CLIP), material, config.duration_s)


def make_sound(config: WorldConfig, index: int, clip: WorldClip) -> np.ndarray:
    """The sound of a clip, float32 (round(duration_s sample_rate),)."""
    return render_sound(clip, config.duration_s, config.sample_rate, _generator(config, index, RNG_SOUND))


def make_frames(config: WorldConfig, index: int, clip: WorldClip) -> np.ndarray:
    """The pictures of a clip, uint8 (T, H, W, 3); picture k shows the time k / fps."""
    canvas = Canvas(config.height, config.width, _generator(config, index, RNG_LOOKS))
    count = round(config.duration_s * config.fps)
    frames = np.empty((count, config.height, config.width, 3), np.uint8)
    for number in range(count):
        canvas.clear()
        clip.draw(canvas, number / config.fps)
        frames[number] = canvas.image()
    return frames


def render_world(
    out: Path, config: WorldConfig, *, workers: int = 2, progress: Callable[[int], None] | None = None
) -> Path:
    """Render clips/NNNNN.mp4 with a JSON file of exact event times beside each, and return the path of manifest.jsonl.

    Finished clips of an earlier run with the same settings stay; a folder with other settings is refused. Clips
    appear complete or not at all, so an interrupted run can be continued. `progress` is called with the number of clips
    that were finished since its last call; `workers` below 2 renders in this process.
    """
    out = Path(out)
    (out / "clips").mkdir(parents=True, exist_ok=True)
    _claim(out, config)
    report = progress or (lambda _: None)
    missing = [index for index in range(config.num_clips) if _read_facts(out, index) is None]
    report(config.num_clips - len(missing))
    tasks = [missing[start : start + CLIPS_PER_TASK] for start in range(0, len(missing), CLIPS_PER_TASK)]
    if workers < 2 or len(tasks) < 2:
        for task in tasks:
            report(_render_clips(out, config, task))
    else:
        _render_parallel(out, config, tasks, workers, report)
    items = []
    for index in range(config.num_clips):
        facts = _read_facts(out, index)
        if facts is None:
            raise RuntimeError(f"{_clip_path(out, index)}: was not rendered; run the same command again")
        items.append(
            Item(
                id=str(facts["id"]),
                path=_clip_path(out, index),
                caption=str(facts["caption"]),
                label=str(facts["label"]),
                split=clip_split(index),
                events_s=tuple(event["time_s"] for event in facts["events"]),
            )
        )
    write_manifest(items, out / "manifest.jsonl")
    return out / "manifest.jsonl"


def _generator(config: WorldConfig, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, index, purpose])


def _clip_path(out: Path, index: int) -> Path:
    return out / "clips" / f"{index:05d}.mp4"


def _claim(out: Path, config: WorldConfig) -> None:
    """Write world.json, or compare with an existing one, from which only `num_clips` may differ."""
    path = out / "world.json"
    wanted = asdict(config)
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: is not valid JSON; remove the folder or choose another --out") from error
        differing = [k for k in wanted if k != "num_clips" and found.get(k) != wanted[k]]
        if differing:
            changes = ", ".join(f"{k} {found.get(k)} there, {wanted[k]} asked" for k in differing)
            raise ValueError(f"{out}: holds a world with other settings ({changes}); choose another folder")
    write_json(path, wanted)


def _read_facts(out: Path, index: int) -> dict | None:
    """The JSON file of a finished clip; it is written after the video, so its presence means both are whole."""
    path = _clip_path(out, index)
    facts = path.with_suffix(".json")
    if not (path.is_file() and facts.is_file()):
        return None
    try:
        return json.loads(facts.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # Not ours: files appear whole. The clip is rendered again.
        return None


def _render_clips(out: Path, config: WorldConfig, indices: list[int]) -> int:
    for index in indices:
        clip = make_clip(config, index)
        path = _clip_path(out, index)
        write_video(
            path, make_frames(config, index, clip), config.fps, make_sound(config, index, clip), config.sample_rate
        )
        facts = {
            "id": path.stem,
            "kind": clip.kind,
            "material": clip.material,
            "label": f"{clip.kind} {clip.material}",
            "caption": fill_caption(clip, _generator(config, index, RNG_WORDS)),
            "events": [{"time_s": round(e.time_s, 5), "strength": round(e.strength, 4)} for e in clip.events],
        }
        write_json(path.with_suffix(".json"), facts)
    return len(indices)


def _render_parallel(
    out: Path, config: WorldConfig, tasks: list[list[int]], workers: int, report: Callable[[int], None]
) -> None:
    """Spread tasks over processes; on an interrupt those under way are finished and the rest is dropped."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        with _interrupts_ignored():  # The workers start here and inherit it; Ctrl-C goes to the whole process group.
            pending = {pool.submit(_render_clips, out, config, task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    report(future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C for the moment; only the main thread may ask for that, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
