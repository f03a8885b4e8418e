"""Kinds of the procedural world whose events follow from a motion: a bouncing ball, a rolling ball, a metronome."""

import math
from dataclasses import dataclass

import numpy as np

from teacher.data.world_canvas import Canvas
from teacher.data.world_scene import (
    EVENTS_PER_SECOND,
    FLOOR_Y,
    MIN_GAP_S,
    QUIET_END_S,
    QUIET_START_S,
    Event,
    Scene,
    episodes,
    flash,
)

GRAVITY = 6.5
TRIES = 1000
"""Schedules are drawn until one keeps the edges of the clip quiet; about one in three does."""


@dataclass(frozen=True, kw_only=True)
class _Flight:
    """A ball in the air over [begin_s, end_s): height h - g (t - apex_s)^2 / 2; `held` keeps it at the apex before."""

    begin_s: float
    end_s: float
    apex_s: float
    apex: float
    x: float
    drift: float
    held: bool = False

    def height(self, time_s: float) -> float:
        since = max(time_s - self.apex_s, 0.0) if self.held else time_s - self.apex_s
        return max(0.0, self.apex - GRAVITY * since**2 / 2)


def bounce(rng: np.random.Generator, material: str, duration_s: float) -> Scene:
    """A ball falls and rebounds, every flight shorter than the last by the material's restitution."""
    squash = {"rubber": 0.4, "wood": 0.1}.get(material, 0.05)
    radius = rng.uniform(0.085, 0.12)
    events: list[Event] = []
    flights: list[_Flight] = []
    for start_s, end_s in episodes(duration_s):
        new_events, new_flights = _bounces(rng, material, start_s, end_s)
        events += new_events
        flights += new_flights
    hits = tuple(events)

    def draw(canvas: Canvas, time_s: float) -> None:
        flight = next((f for f in flights if time_s < f.end_s), flights[-1])
        height = flight.height(time_s)
        x = flight.x * canvas.aspect + flight.drift * (time_s - flight.begin_s)
        glow = flash(hits, time_s)
        flat = squash * flash(hits, time_s, 0.025)
        canvas.floor(FLOOR_Y, glow)
        canvas.ellipse(x, FLOOR_Y + 0.015, radius * (1 + 0.4 * height), 0.02, (15, 15, 15), 0.5 / (1 + 4 * height))
        canvas.ball(x, FLOOR_Y - radius * (1 - flat) - height, radius * (1 + flat), radius * (1 - flat), material)
        canvas.sparks(x, FLOOR_Y, glow)

    return Scene(kind="bounce", material=material, events=hits, draw=draw)


def _bounces(
    rng: np.random.Generator, material: str, start_s: float, end_s: float
) -> tuple[list[Event], list[_Flight]]:
    """One ball's impacts and flights within [start_s, end_s)."""
    room_s = end_s - start_s - QUIET_START_S - QUIET_END_S
    usual = {"rubber": 0.84, "metal": 0.68, "glass": 0.74, "wood": 0.62, "stone": 0.55}[material]
    for _ in range(TRIES):
        restitution = usual * rng.uniform(0.93, 1.05)
        hit_s = start_s + QUIET_START_S + rng.uniform(0.1, 0.95) * min(0.6, room_s)
        air_s = first_air_s = rng.uniform(0.38, 0.68)
        x, drift = rng.uniform(0.35, 0.65), rng.uniform(-0.1, 0.1)
        drop_s = air_s / (2 * restitution)
        flights = [
            _Flight(
                begin_s=start_s, end_s=hit_s, apex_s=hit_s - drop_s, apex=GRAVITY * drop_s**2 / 2,
                x=x, drift=0.0, held=True,
            )
        ]  # fmt: skip
        events: list[Event] = []
        while True:
            # The speed of impact is proportional to the time in the air that follows.
            events.append(Event(time_s=hit_s, strength=(0.55 + 0.65 * first_air_s) * air_s / first_air_s))
            if air_s < MIN_GAP_S or hit_s + air_s > end_s - QUIET_END_S:
                break
            apex = GRAVITY * air_s**2 / 8
            flights.append(
                _Flight(begin_s=hit_s, end_s=hit_s + air_s, apex_s=hit_s + air_s / 2, apex=apex, x=x, drift=drift)
            )
            x += drift * air_s
            hit_s, air_s = hit_s + air_s, air_s * restitution
        at_rest = air_s < MIN_GAP_S
        apex = 0.0 if at_rest else GRAVITY * air_s**2 / 8
        flights.append(
            _Flight(
                begin_s=hit_s, end_s=end_s, apex_s=hit_s + air_s / 2, apex=apex, x=x, drift=0.0 if at_rest else drift
            )
        )
        if len(events) <= max(3, round(EVENTS_PER_SECOND * (end_s - start_s))) and (at_rest or hit_s + air_s >= end_s):
            return events, flights
    raise RuntimeError(f"no bounces fit into {end_s - start_s:.2f} s")


@dataclass(frozen=True, kw_only=True)
class _Roll:
    """Rolling from begin_s to end_s: x = x0 + v0 (1 - exp(-k (t - begin_s))) / k."""

    begin_s: float
    end_s: float
    x0: float
    v0: float
    friction: float

    def x(self, time_s: float) -> float:
        return self.x0 + self.v0 * (1 - math.exp(-self.friction * (time_s - self.begin_s))) / self.friction


def roll(rng: np.random.Generator, material: str, duration_s: float) -> Scene:
    """A ball rolls along the floor, knocks at a wall and rolls back, slower and slower."""
    radius = rng.uniform(0.1, 0.14)
    events: list[Event] = []
    rolls: list[_Roll] = []
    for start_s, end_s in episodes(duration_s):
        new_events, new_rolls = _knocks(rng, start_s, end_s)
        events += new_events
        rolls += new_rolls
    knocks = tuple(events)
    wall = 0.05

    def draw(canvas: Canvas, time_s: float) -> None:
        now = next((r for r in rolls if time_s < r.end_s), rolls[-1])
        x = now.x(time_s)
        span = canvas.aspect - 2 * (wall + radius)
        glow = flash(knocks, time_s)
        canvas.floor(FLOOR_Y, 0.0)
        last = max((e.time_s for e in knocks if e.time_s <= time_s), default=None)
        side = None if last is None else round(next(r for r in rolls if r.begin_s == last).x0)
        for number, left in ((0, 0.0), (1, canvas.aspect - wall)):
            light = 90 + 160 * glow if number == side else 90.0
            canvas.rectangle(left, 0.3, left + wall, FLOOR_Y, (light, light * 0.95, light * 0.85))
        centre = wall + radius + x * span
        canvas.ellipse(centre, FLOOR_Y + 0.015, radius, 0.02, (15, 15, 15), 0.5)
        canvas.ball(centre, FLOOR_Y - radius, radius, radius, material, angle=x * span / radius)
        if side is not None:
            canvas.sparks(wall if side == 0 else canvas.aspect - wall, FLOOR_Y - radius, glow)

    def speed(times_s: np.ndarray) -> np.ndarray:
        total = np.zeros_like(times_s)
        for r in rolls:
            inside = (times_s >= r.begin_s) & (times_s < r.end_s)
            total += inside * abs(r.v0) * np.exp(-r.friction * np.clip(times_s - r.begin_s, 0, None))
        return total

    return Scene(kind="roll", material=material, events=knocks, draw=draw, speed=speed)


def _knocks(rng: np.random.Generator, start_s: float, end_s: float) -> tuple[list[Event], list[_Roll]]:
    """Knocks of one ball at walls at x = 0 and x = 1, and the rolls between them, within [start_s, end_s)."""
    room_s = end_s - start_s - QUIET_START_S - QUIET_END_S
    for _ in range(TRIES):
        friction = rng.uniform(0.4, 1.2)
        until_s = QUIET_START_S + rng.uniform(0.1, 0.9) * min(1.4, room_s)
        wall = int(rng.integers(2))
        distance = rng.uniform(0.25, 0.95)
        v0 = distance * friction / (1 - math.exp(-friction * until_s)) * (1 if wall else -1)
        x0 = 1 - distance if wall else distance
        rolls: list[_Roll] = []
        events: list[Event] = []
        begin_s = start_s
        while True:
            target = 1.0 if v0 > 0 else 0.0
            share = abs(target - x0) * friction / abs(v0)
            hit_s = begin_s - math.log(1 - share) / friction if share < 1 else math.inf
            rolls.append(_Roll(begin_s=begin_s, end_s=min(hit_s, end_s), x0=x0, v0=v0, friction=friction))
            if hit_s >= end_s - QUIET_END_S:
                break
            v_hit = v0 * math.exp(-friction * (hit_s - begin_s))
            events.append(Event(time_s=hit_s, strength=min(1.0, abs(v_hit) / 1.1)))
            begin_s, x0, v0 = hit_s, target, -v_hit * rng.uniform(0.4, 0.7)
        strengths_fit = all(e.strength >= 0.3 for e in events) and abs(rolls[0].v0) < 3.0
        if events and strengths_fit and hit_s >= end_s:
            return events, rolls
    raise RuntimeError(f"no knocks fit into {end_s - start_s:.2f} s")


def tick(rng: np.random.Generator, material: str, duration_s: float) -> Scene:
    """A metronome: the arm passes its bell at even intervals, every second tick accented."""
    for _ in range(TRIES):
        period_s = rng.uniform(1 / EVENTS_PER_SECOND, 0.95)
        first_s = rng.uniform(QUIET_START_S, period_s)
        times = np.arange(first_s, duration_s, period_s)
        if len(times) and times[-1] <= duration_s - QUIET_END_S:
            break
    else:
        raise RuntimeError(f"no ticks fit into {duration_s:.2f} s")
    swing, accent = rng.uniform(0.45, 0.75), int(rng.integers(2))
    events = tuple(
        Event(time_s=float(t), strength=1.0 if i % 2 == accent else 0.65) for i, t in enumerate(times.tolist())
    )

    def draw(canvas: Canvas, time_s: float) -> None:
        glow = flash(events, time_s)
        x = canvas.aspect / 2
        angle = swing * math.sin(math.pi * (time_s - first_s) / period_s) * (1 if accent else -1)
        canvas.floor(0.88)
        canvas.box(x, 0.74, 0.2, 0.14, material, 0.5 * glow)
        canvas.box(x, 0.13, 0.05, 0.045, material, glow)
        tip_x, tip_y = x + 0.55 * math.sin(angle), 0.74 - 0.55 * math.cos(angle)
        canvas.capsule(x, 0.74, tip_x, tip_y, 0.016, (214, 206, 188))
        canvas.ball(x + 0.42 * math.sin(angle), 0.74 - 0.42 * math.cos(angle), 0.065, 0.065, material)
        canvas.sparks(x, 0.16, glow)

    return Scene(kind="tick", material=material, events=events, draw=draw)
