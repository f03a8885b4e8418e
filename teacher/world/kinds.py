"""Kinds of the procedural world whose events follow from a motion: a bouncing ball, a rolling ball, a metronome.

Kinds of the procedural world with free event times: hammer blows, falling drops, a beeping lamp, a rattle."""

import math
from dataclasses import dataclass

import numpy as np

from teacher.world.canvas import PALETTE, Canvas
from teacher.world.clip import (
    EVENTS_PER_SECOND,
    FLOOR_Y,
    MIN_GAP_S,
    QUIET_END_S,
    QUIET_START_S,
    Event,
    WorldClip,
    episodes,
    flash,
    last_before,
    next_after,
    spaced_times,
)

GRAVITY = 6.5
TRIES = 1000
"""Most random schedules that are drawn until one has quiet edges of the clip, which about one in three has."""


@dataclass(frozen=True, kw_only=True)
class _Flight:
    """A ball in the air over [begin_s, end_s): height h - g (t - apex_s)^2 / 2; `held`: it rests at the apex before."""

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


def bounce(rng: np.random.Generator, material: str, duration_s: float) -> WorldClip:
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

    return WorldClip(kind="bounce", material=material, events=hits, draw=draw)


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


def roll(rng: np.random.Generator, material: str, duration_s: float) -> WorldClip:
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

    return WorldClip(kind="roll", material=material, events=knocks, draw=draw, speed=speed)


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
            part = abs(target - x0) * friction / abs(v0)
            hit_s = begin_s - math.log(1 - part) / friction if part < 1 else math.inf
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


def tick(rng: np.random.Generator, material: str, duration_s: float) -> WorldClip:
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

    return WorldClip(kind="tick", material=material, events=events, draw=draw)


WEAKEST = 0.4


def strike(rng: np.random.Generator, material: str, duration_s: float) -> WorldClip:
    """A hammer swings down on a block; a harder blow comes from higher up."""
    events = _free_events(rng, duration_s)
    half_width, height = rng.uniform(0.16, 0.22), rng.uniform(0.16, 0.26)
    shift = rng.uniform(0.08, 0.18)
    top = FLOOR_Y - height

    def lift(time_s: float) -> float:
        """Height of the hammer in 0..1: up after a blow, ready, then down ever faster to the next one."""
        coming, past = next_after(events, time_s), last_before(events, time_s)
        idle = 0.3 * math.sin(min(1.0, (time_s - past.time_s) / 0.12) * math.pi / 2) if past else 0.3
        if coming is None:
            return idle
        gap_s = coming.time_s - past.time_s if past else 1.0
        down_s = min(0.12, 0.5 * gap_s)
        left_s = coming.time_s - time_s
        if left_s <= down_s:
            return coming.strength * (1 - (1 - left_s / down_s) ** 2)
        ready = max(0.0, 1 - (left_s - down_s) / min(0.3, gap_s - down_s))
        return idle * (1 - ready) + coming.strength * ready**0.7

    def draw(canvas: Canvas, time_s: float) -> None:
        glow = flash(events, time_s)
        block_x = canvas.aspect / 2 + shift
        canvas.floor(FLOOR_Y)
        jolt = 0.015 * glow * math.sin(2 * math.pi * 18 * time_s)
        canvas.box(block_x + jolt, top + height / 2, half_width, height / 2, material, glow)
        angle = 1.15 * lift(time_s)
        pivot_x, pivot_y, arm = block_x - 0.44, top - 0.05, 0.44
        head_x, head_y = pivot_x + arm * math.cos(angle), pivot_y - arm * math.sin(angle)
        canvas.capsule(pivot_x, pivot_y, head_x, head_y, 0.02, (120, 84, 52))
        canvas.capsule(
            head_x - 0.07 * math.sin(angle), head_y - 0.07 * math.cos(angle), head_x, head_y, 0.05, (58, 58, 66)
        )
        canvas.sparks(head_x, top, glow)

    return WorldClip(kind="strike", material=material, events=events, draw=draw)


def drip(rng: np.random.Generator, material: str, duration_s: float) -> WorldClip:
    """Drops fall from a tap onto a plate, or into water; a larger drop is louder."""
    events = _free_events(rng, duration_s)
    place, surface, gravity, mouth = rng.uniform(0.35, 0.65), rng.uniform(0.7, 0.78), 7.0, 0.14
    fall_s = math.sqrt(2 * (surface - mouth) / gravity)
    drop_colour = (150, 205, 240)

    def draw(canvas: Canvas, time_s: float) -> None:
        glow = flash(events, time_s, 0.06)
        x = place * canvas.aspect
        if material == "water":
            canvas.rectangle(0.0, surface, canvas.aspect, 1.0, PALETTE["water"])
            canvas.rectangle(0.0, surface - 0.008, canvas.aspect, surface + 0.008, (120, 180, 226))
        else:
            canvas.floor(0.88)
            canvas.box(x, surface + 0.05, 0.27, 0.05, material, glow)
        canvas.capsule(x, -0.1, x, mouth - 0.06, 0.045, (96, 98, 104))
        for event in events:
            size = 0.02 + 0.028 * event.strength
            age = time_s - event.time_s
            if -fall_s - 0.2 < age < -fall_s:
                swell = 1 + (age + fall_s) / 0.2
                canvas.ellipse(x, mouth - size, size * swell, size * swell, drop_colour)
            elif -fall_s <= age < 0:
                y = mouth + (surface - mouth) * ((age + fall_s) / fall_s) ** 2
                canvas.ellipse(x, y - size, size * 0.85, size * 1.15, drop_colour)
            elif 0 <= age < 0.5:
                spread, fade = 0.05 + 0.5 * age, math.exp(-age / 0.13)
                canvas.ring(x, surface + 0.02, spread, 0.3 * spread, 0.012, (225, 242, 252), fade)
                for side in (-1.0, 1.0):
                    rise = max(0.0, 0.9 * event.strength * age - 3.5 * age**2)
                    canvas.ellipse(x + side * 0.7 * age, surface - rise, 0.016, 0.016, (190, 225, 245), fade)
        canvas.sparks(x, surface, glow)

    return WorldClip(kind="drip", material=material, events=events, draw=draw)


def beep(rng: np.random.Generator, colour: str, duration_s: float) -> WorldClip:
    """A lamp is lit for as long as its tone sounds; each colour has its pitch, a brighter lamp is louder."""
    plain = _free_events(rng, duration_s)
    # The last 20 ms before the next event stay silent, so that every onset is one.
    ends = [event.time_s for event in plain[1:]] + [duration_s]
    events = tuple(
        Event(
            time_s=e.time_s,
            strength=e.strength,
            length_s=min(rng.uniform(0.07, 0.25), max(0.05, end - e.time_s - 0.02)),
        )
        for e, end in zip(plain, ends, strict=True)
    )
    radius = rng.uniform(0.15, 0.22)
    red, green, blue = PALETTE[colour]

    def draw(canvas: Canvas, time_s: float) -> None:
        event = last_before(events, time_s)
        age = time_s - event.time_s if event else math.inf
        lit = 0.0
        if event is not None:
            # Warms up within 40 ms and cools down within 30 ms, so a frame shows how long ago the lamp was switched.
            lit = event.strength * min(1.0, 0.55 + age / 0.09)
            lit *= 1.0 if age < event.length_s else math.exp(-(age - event.length_s) / 0.03)
        x, y = canvas.aspect / 2, 0.42
        canvas.floor(0.88)
        canvas.capsule(x, 0.9, x, y + radius, 0.035, (70, 70, 76))
        canvas.ellipse(x, y, radius * 1.12, radius * 1.12, (52, 52, 58))
        low = 0.22 + 0.78 * lit
        canvas.ellipse(x, y, radius, radius, (red * low, green * low, blue * low))
        canvas.halo(x, y, radius, (255, 255, 245), 0.75 * lit)
        canvas.halo(x, y, 2 * radius, (red, green, blue), 0.6 * lit)

    return WorldClip(kind="beep", material=colour, events=events, draw=draw)


def shake(rng: np.random.Generator, material: str, duration_s: float) -> WorldClip:
    """A see-through box of pieces is thrown from side to side; the pieces rattle when it stops with a jerk."""
    events = _free_events(rng, duration_s)
    first_side = int(rng.integers(2))
    seats = np.stack([rng.uniform(-0.75, 0.75, 9), rng.uniform(0.45, 0.8, 9)], axis=1)
    leaps = rng.uniform(0.4, 1.0, 9)
    sways = rng.uniform(-0.5, 0.5, 9)

    def offset(time_s: float) -> float:
        """Place of the box in -1..1: a throw takes 0.13 s and ends at full speed at the event."""
        done = sum(e.time_s <= time_s for e in events)
        side = 1.0 if (done + first_side) % 2 else -1.0
        coming, past = next_after(events, time_s), last_before(events, time_s)
        reach = past.strength if past else 0.6
        if coming is None:
            return side * reach
        throw_s = min(0.13, coming.time_s - past.time_s if past else MIN_GAP_S)
        part = max(0.0, 1 - (coming.time_s - time_s) / throw_s) ** 1.6
        return side * (reach * (1 - part) - coming.strength * part)

    def draw(canvas: Canvas, time_s: float) -> None:
        glow = flash(events, time_s)
        x, y, half_width, half_height = canvas.aspect / 2 + 0.22 * offset(time_s), 0.52, 0.2, 0.2
        canvas.floor(0.88)
        canvas.capsule(x, y + half_height, x, y + half_height + 0.16, 0.04, (150, 112, 84))
        light = 60 + 110 * glow
        canvas.rectangle(x - half_width, y - half_height, x + half_width, y + half_height, (light, light, light * 0.95))
        canvas.rectangle(
            x - half_width + 0.025,
            y - half_height + 0.025,
            x + half_width - 0.025,
            y + half_height - 0.025,
            (34, 34, 38),
        )
        last = last_before(events, time_s)
        age = time_s - last.time_s if last else math.inf
        for (seat_x, seat_y), leap, sway in zip(seats, leaps, sways, strict=True):
            hop = 0.0
            if last is not None and age < 0.3:
                hop = leap * last.strength * max(0.0, 12 * age * (1 - age / (0.12 + 0.15 * leap)))
            piece_x = x + (seat_x + sway * min(1.0, hop)) * (half_width - 0.06)
            piece_y = y + (seat_y - min(1.3, hop)) * (half_height - 0.05)
            canvas.ball(piece_x, piece_y, 0.036, 0.036, material)
        if last is not None:
            side = 1.0 if offset(last.time_s) > 0 else -1.0
            canvas.sparks(x + side * half_width, y, glow)

    return WorldClip(kind="shake", material=material, events=events, draw=draw)


def _free_events(rng: np.random.Generator, duration_s: float) -> tuple[Event, ...]:
    return tuple(Event(time_s=t, strength=float(rng.uniform(WEAKEST, 1.0))) for t in spaced_times(rng, duration_s))
