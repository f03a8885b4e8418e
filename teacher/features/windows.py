"""Windows: the pieces of media files that become training examples.

The first pass of an extraction probes every file and finds its windows (`probe_files`); the last one reads and encodes
a window at a time (`WindowReader.read`). A `WindowReader` is sent to worker processes with every job.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from teacher.encoders.registry import SHORTEST_FRACTION, encoder_set, load_encoders, read_window_frames
from teacher.features import store
from teacher.features.workers import DIED, WorkerPool
from teacher.files import json_digest, write_json
from teacher.files.errors import FeatureError
from teacher.files.processes import Processes
from teacher.files.tensor_file import AGAIN
from teacher.lists.manifest import Item, SkippedItem
from teacher.media import MediaError, MediaInfo, probe, read_audio
from teacher.network.sequence import MIN_DURATION_S

SILENT_PEAK = 1e-4
"""Peak (-80 dB of full scale) below which a sound counts as silent."""
PEAK = 0.95
SHORTEST_SOUND_FRACTION = 0.5
"""Least fraction of a window that must have sound; the rest is padded with silence."""
PADDED_FROM_S = 0.05
"""Shorter missing sound is due to a codec's rounding and does not count as padding."""
BLOCK = 256
"""Items whose windows are recorded in one file; an interruption loses at most one file."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the pass, the jobs done and their number."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One piece of one file: [start_s, start_s + duration_s)."""

    id: str
    item: Item
    start_s: float
    has_video: bool
    media: MediaInfo | None = field(default=None, compare=False)
    """Result of `probe` for the file, if this process probed it; otherwise the file is probed when it is read."""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """A skipped file or window, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FileWindows:
    """Windows of a file: their starts in seconds, and whether they have a picture."""

    starts_s: tuple[float, ...]
    has_video: bool
    media: MediaInfo | None = field(default=None, compare=False)
    """As in `Window`."""

    def of(self, item: Item) -> list[Window]:
        """The windows as rows of an item; a single one has the item's id, others have ids with their start time."""
        single = len(self.starts_s) == 1
        return [
            Window(
                id=item.id if single else f"{item.id}@{s:g}s",
                item=item,
                start_s=s,
                has_video=self.has_video,
                media=self.media,
            )
            for s in self.starts_s
        ]


@dataclass(frozen=True, kw_only=True)
class WindowContent:
    """A window's sound (samples,), its image and synchronisation features, and whether its end is padded.

    `image` and `sync` are float32 features, or uint8 frames if the encoders run in another process; None without a
    picture. `padded`: the end is silence or repeated frames. They are arrays, because tensors would take a file
    descriptor each between processes.
    """

    wave: np.ndarray
    image: np.ndarray | None
    sync: np.ndarray | None
    padded: bool


@dataclass(frozen=True, kw_only=True)
class WindowReader:
    """Finds and reads the windows of a file."""

    encoders: str
    """Name of a set of encoders."""
    duration_s: float
    sample_rate: int
    peak_normalise: bool
    max_windows: int
    max_windows_video: int | None = None
    """Most windows of a file with a picture; None takes `max_windows`."""
    spread: bool = False
    """Whether sounds without picture give only whole windows, evenly spread over the file."""
    frames_only: bool = False
    """Whether to return frames instead of features."""

    def find(self, path: Path) -> FileWindows | str:
        """Non-overlapping windows of a file, at most `max_windows`, or the reason why there is none.

        They follow each other from the start. A last piece shorter than duration_s is used when a video shows at least
        0.9 of it, or a sound file holds at least half of it and 0.64 s; it is then padded when read. With `spread`, a
        sound of T seconds gives n = min(max_windows, floor(T / D)) windows, the last ending with the file where n > 1
        (the crops of arXiv 2412.15322, section 3.5.1).
        """
        duration_s = self.duration_s
        try:
            info = probe(path)
        except MediaError as error:
            return _without_path(error, path)
        if not info.has_audio:
            return "no audio stream that can be decoded"
        whole = int(info.duration_s / duration_s + 1e-6)
        spread = self.spread and not info.has_video
        shortest_sound_s = max(MIN_DURATION_S, SHORTEST_SOUND_FRACTION * duration_s)
        least_s = SHORTEST_FRACTION * duration_s if info.has_video else shortest_sound_s
        rest_s = info.duration_s - whole * duration_s
        count = whole + (not spread and rest_s >= least_s - 1e-6)
        if count == 0:
            kind = "video" if info.has_video else "audio"
            return f"too short: {info.duration_s:.2f} s of {kind}, need {duration_s:g} s"
        most = self.max_windows_video if info.has_video and self.max_windows_video is not None else self.max_windows
        count = min(count, most)
        step_s = duration_s
        if spread and count > 1:
            # Whole milliseconds, rounded down, so that the last window does not reach past the end.
            step_s = max(duration_s, math.floor(1e3 * (info.duration_s - duration_s) / (count - 1)) / 1e3)
        starts = tuple(round(k * step_s, 6) if spread else k * step_s for k in range(count))
        return FileWindows(starts_s=starts, has_video=info.has_video, media=info if info.has_video else None)

    def read_sound(self, window: Window) -> tuple[np.ndarray, bool] | str:
        """Sound of a window; see the function `read_sound`."""
        return read_sound(
            window.item.path,
            window.start_s,
            duration_s=self.duration_s,
            sample_rate=self.sample_rate,
            peak_normalise=self.peak_normalise,
        )

    def read(self, window: Window) -> WindowContent | Skip:
        """Sound of a window and its features, or its frames where `frames_only`."""
        path, sound = window.item.path, self.read_sound(window)
        if isinstance(sound, str):
            return Skip(id=window.id, reason=sound)
        wave, padded = sound
        if not window.has_video:
            return WindowContent(wave=wave, image=None, sync=None, padded=padded)
        try:
            info = window.media or probe(path)
            image, sync = read_window_frames(encoder_set(self.encoders).requests, info, window.start_s, self.duration_s)
        except MediaError as error:
            return Skip(id=window.id, reason=_without_path(error, path))
        padded = padded or info.duration_s - window.start_s < self.duration_s - PADDED_FROM_S
        if not self.frames_only:
            encoders = load_encoders(self.encoders)
            image, sync = encoders.image(image).numpy(), encoders.sync(sync).numpy()
        return WindowContent(wave=wave, image=image, sync=sync, padded=padded)


def read_sound(
    path: Path, start_s: float, *, duration_s: float, sample_rate: int, peak_normalise: bool
) -> tuple[np.ndarray, bool] | str:
    """Sound of exactly round(D sample_rate) samples from start_s on, and whether its end was padded with silence.

    float32 (samples,), scaled to a peak of 0.95 with `peak_normalise`, else clipped to [-1, 1]. For an unusable sound
    the reason is returned instead: the file cannot be read, the sound is silent or not finite, or it covers less than
    half of the window (or 0.64 s).
    """
    try:
        wave = read_audio(path, sample_rate=sample_rate, start_s=start_s, duration_s=duration_s)
    except MediaError as error:
        return _without_path(error, path)
    held_s = len(wave) / sample_rate
    if held_s < min(duration_s, max(MIN_DURATION_S, SHORTEST_SOUND_FRACTION * duration_s)) - 1e-3:
        return f"too short: {held_s:.2f} s of audio, need {duration_s:g} s"
    if not np.isfinite(wave).all():
        return "its sound holds NaN or infinity"
    peak = float(np.abs(wave).max())
    if peak < SILENT_PEAK:
        return "silent"
    count = round(duration_s * sample_rate)
    wave = np.pad(wave, (0, max(0, count - len(wave))))[:count]
    scaled = wave * (PEAK / peak) if peak_normalise else np.clip(wave, -1.0, 1.0)
    return scaled.astype(np.float32), duration_s - held_s > PADDED_FROM_S


def blocks_of(out: Path, items: Sequence[Item]) -> list[tuple[Path, Sequence[Item]]]:
    """The files that record the windows, plan/00000.json and so on, each with its items."""
    parts = [items[begin : begin + BLOCK] for begin in range(0, len(items), BLOCK)]
    return [(out / "plan" / f"{k:05d}.json", part) for k, part in enumerate(parts)]


def probe_files(
    out: Path,
    items: Sequence[Item],
    plan: str,
    reader: WindowReader,
    pool: WorkerPool,
    processes: Processes,
    progress: Progress,
) -> tuple[list[Window], list[SkippedItem]]:
    """Windows of all items, in order, and the items without any. Files recorded in a block are not probed again.

    plan: digest of the extraction's plan, recorded in each block. Raises FeatureError naming the items when two windows
    have the same id.
    """
    blocks = blocks_of(out, items)
    paths = [path for path, _ in blocks]
    mine = [k for k in range(len(blocks)) if processes.mine(k)]
    jobs = {k: list(dict.fromkeys(item.path for item in blocks[k][1])) for k in mine if not paths[k].is_file()}
    results = pool.ordered(reader.find, [path for wanted in jobs.values() for path in wanted], died=lambda _: DIED)
    films: dict[Path, MediaInfo] = {}
    done, total = 0, sum(len(blocks[k][1]) for k in mine)
    for k in mine:
        block = blocks[k][1]
        if k in jobs:
            found = {}
            for wanted in jobs[k]:
                path, found[wanted] = next(results)
                if path != wanted:
                    raise RuntimeError(f"asked for the windows of {wanted}, got those of {path}")
                progress("probe", done + len(found), total)
            entries = [_described(found[item.path]) for item in block]
            write_json(paths[k], {"plan": plan, "items": entries, "digest": _digest(entries)}, indent=None)
            films |= {path: one.media for path, one in found.items() if not isinstance(one, str) and one.media}
        done += len(block)
        progress("probe", done, total)
    processes.wait(lambda: all(path.is_file() for path in paths), what="the probing of all files", on=processes.others)
    windows: list[Window] = []
    skipped: list[SkippedItem] = []
    for path, block in blocks:
        for item, noted in zip(block, read_block(path, len(block)), strict=True):
            if isinstance(noted, FileWindows):
                windows.extend(replace(noted, media=films.get(item.path)).of(item))
            else:
                skipped.append((item.id, noted))
    _refuse_repeated(windows)
    return windows, skipped


def _refuse_repeated(windows: Sequence[Window]) -> None:
    """Raise FeatureError for two windows of one id: a window of item "a" has an id such as "a@1s", which another item
    may have too."""
    counts = Counter(window.id for window in windows)
    for name in (name for name, count in counts.items() if count > 1):
        owners = ", ".join(repr(window.item.id) for window in windows if window.id == name)
        raise FeatureError(f"items {owners} both have a piece called {name!r}; rename one of them in the manifest")


def _digest(entries: Sequence[dict[str, Any]]) -> str:
    return json_digest(entries, sort_keys=False)


def _described(found: FileWindows | str) -> dict[str, Any]:
    return {"skip": found} if isinstance(found, str) else {"starts_s": found.starts_s, "video": found.has_video}


def read_block(path: Path, count: int, plan: str | None = None) -> list[FileWindows | str]:
    """The windows that a block records for each of its `count` items, or the reason why an item has none.

    Raises FeatureError naming a damaged file, or one of another plan than `plan`.
    """
    block = store.read_json(path)
    if plan is not None and block.get("plan", plan) != plan:
        raise FeatureError(f"{path}: belongs to another extraction")
    try:
        entries = block["items"]
        if block.get("digest", _digest(entries)) != _digest(entries):
            raise ValueError("its digest is not the recorded one")
        found = [
            str(entry["skip"])
            if "skip" in entry
            else FileWindows(starts_s=tuple(float(s) for s in entry["starts_s"]), has_video=bool(entry["video"]))
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FeatureError(f"{path}: is damaged ({error}); {AGAIN}") from error
    if len(found) != count:
        raise FeatureError(f"{path}: holds {len(found)} items instead of {count}; {AGAIN}")
    return found


def window_events(window: Window, duration_s: float) -> tuple[float, ...] | None:
    """Events inside the window, in seconds from its start; None if the manifest has no events for the item."""
    if window.item.events_s is None:
        return None
    shifted = (event - window.start_s for event in window.item.events_s)
    return tuple(round(event, 6) for event in shifted if 0 <= event < duration_s and math.isfinite(event))


def _without_path(error: MediaError, path: Path) -> str:
    """The reason without the path, because the report names the item."""
    return str(error).removeprefix(f"{path}: ")
