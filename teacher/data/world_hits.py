"""Kinds of the procedural world with free event times: hammer blows, falling drops, a beeping lamp, a rattle."""

import math

import numpy as np

from teacher.data.world_canvas import PALETTE, Canvas
from teacher.data.world_scene import (
    FLOOR_Y,
    MIN_GAP_S,
    Event,
    Scene,
    flash,
    last_before,
    next_after,
    spaced_times,
)

WEAKEST = 0.4


def strike(rng: np.random.Generator, material: str, duration_s: float) -> Scene:
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

    return Scene(kind="strike", material=material, events=events, draw=draw)


def drip(rng: np.random.Generator, material: str, duration_s: float) -> Scene:
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

    return Scene(kind="drip", material=material, events=events, draw=draw)


def beep(rng: np.random.Generator, colour: str, duration_s: float) -> Scene:
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

    return Scene(kind="beep", material=colour, events=events, draw=draw)


def shake(rng: np.random.Generator, material: str, duration_s: float) -> Scene:
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
        share = max(0.0, 1 - (coming.time_s - time_s) / throw_s) ** 1.6
        return side * (reach * (1 - share) - coming.strength * share)

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

    return Scene(kind="shake", material=material, events=events, draw=draw)


def _free_events(rng: np.random.Generator, duration_s: float) -> tuple[Event, ...]:
    return tuple(Event(time_s=t, strength=float(rng.uniform(WEAKEST, 1.0))) for t in spaced_times(rng, duration_s))
