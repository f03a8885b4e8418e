"""A clip of the procedural world before it is rendered: kind, material, events and its picture at any time.

Lengths are in picture heights, x to the right and y downwards; times in seconds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from teacher.world.canvas import Canvas

QUIET_START_S = 0.08
QUIET_END_S = 0.1
MIN_GAP_S = 0.15
EVENTS_PER_SECOND = 2.5
FLOOR_Y = 0.82


@dataclass(frozen=True, kw_only=True)
class Event:
    """The onset of a sound. `strength` in (0, 1] is what the picture shows; `length_s` is used by tones only."""

    time_s: float
    strength: float
    length_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WorldClip:
    """A clip before it is rendered; `draw` is exact at any time, so motion is consistent between frames.

    `speed` (picture heights per second, vectorised over time) is given for a rolling body, which makes a lasting noise.
    """

    kind: str
    material: str
    events: tuple[Event, ...]
    draw: Callable[[Canvas, float], None]
    speed: Callable[[np.ndarray], np.ndarray] | None = None


def flash(events: tuple[Event, ...], time_s: float, decay_s: float = 0.05) -> float:
    """Strength of the last event times exp(-age / decay_s); 0 before the first."""
    last = last_before(events, time_s)
    return last.strength * math.exp((last.time_s - time_s) / decay_s) if last else 0.0


def last_before(events: tuple[Event, ...], time_s: float) -> Event | None:
    """The latest event at or before `time_s`."""
    return next((e for e in reversed(events) if e.time_s <= time_s), None)


def next_after(events: tuple[Event, ...], time_s: float) -> Event | None:
    """The first event after `time_s`."""
    return next((e for e in events if e.time_s > time_s), None)


def spaced_times(rng: np.random.Generator, duration_s: float) -> list[float]:
    """Random times, 0.5 to 2.5 a second, at least MIN_GAP_S apart and off the quiet edges of the clip."""
    room_s = duration_s - QUIET_START_S - QUIET_END_S
    most = max(1, min(int(EVENTS_PER_SECOND * duration_s), int(room_s / MIN_GAP_S)))
    count = int(rng.integers(max(1, round(duration_s / 2)), most + 1))
    offsets = np.sort(rng.uniform(0, room_s - (count - 1) * MIN_GAP_S, count))
    return [QUIET_START_S + float(offset) + MIN_GAP_S * i for i, offset in enumerate(offsets)]


def episodes(duration_s: float) -> list[tuple[float, float]]:
    """(start, end) of the pieces of about 2 s that a clip of a falling or rolling body is made of."""
    count = max(1, round(duration_s / 2))
    return [(i * duration_s / count, (i + 1) * duration_s / count) for i in range(count)]
