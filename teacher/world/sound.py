"""Sound of the procedural world: struck bodies by modal synthesis, rolling, drips, tones, a room and its ambience.

A hit is a sum of damped modes, sum_k a_k exp(-t / tau_k) sin(2 pi f_k t + phi_k), plus a short burst of noise. What the
picture and the caption do not show is drawn at random on purpose (pitch of the clip, amplitude and phase of every mode
of every hit, reverberation, type, colour and level of the background): a predictor of the mean must come out blurred.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft, rfft, rfftfreq
from scipy.signal import fftconvolve

from teacher.world.clip import Event, WorldClip

PITCH_RANGE_SEMITONES = 2.0
AMBIENCE_DB = (-43.0, -33.0)
"""RMS of the background relative to the loudest hit's peak."""
PEAK_DBFS = (-6.0, -1.0)
ATTACK_S = 0.0005


@dataclass(frozen=True, kw_only=True)
class Timbre:
    """A struck body. `decay_s` is the time constant of the lowest mode; mode k decays in decay_s / ratio^damping."""

    pitch_hz: float
    ratios: tuple[float, ...]
    decay_s: float
    damping: float
    noise: float
    """Fraction of the amplitude that is the noise burst."""
    noise_hz: tuple[float, float]
    """Frequency band of the noise burst in Hz."""


TIMBRES = {
    "wood": Timbre(
        pitch_hz=380.0, ratios=(1.0, 2.57, 4.95, 7.1), decay_s=0.03, damping=0.6, noise=0.35, noise_hz=(200.0, 2500.0)
    ),
    "metal": Timbre(
        pitch_hz=620.0,
        ratios=(1.0, 1.58, 2.24, 2.92, 4.15, 5.43, 7.3),
        decay_s=0.20,
        damping=0.5,
        noise=0.10,
        noise_hz=(1500.0, 7000.0),
    ),
    "glass": Timbre(
        pitch_hz=1450.0, ratios=(1.0, 2.32, 3.1, 4.25), decay_s=0.12, damping=0.5, noise=0.10, noise_hz=(3000.0, 7500.0)
    ),
    "rubber": Timbre(
        pitch_hz=115.0, ratios=(1.0, 1.93, 3.2), decay_s=0.045, damping=0.9, noise=0.25, noise_hz=(60.0, 700.0)
    ),
    "stone": Timbre(
        pitch_hz=980.0,
        ratios=(1.0, 1.42, 2.1, 2.9, 3.7, 4.6),
        decay_s=0.014,
        damping=0.3,
        noise=0.60,
        noise_hz=(800.0, 6000.0),
    ),
    "water": Timbre(
        pitch_hz=820.0, ratios=(1.0, 1.51), decay_s=0.035, damping=0.3, noise=0.15, noise_hz=(900.0, 5000.0)
    ),
}
TONES_HZ = {"red": 330.0, "yellow": 560.0, "green": 920.0, "blue": 1480.0}
PITCH_OF_KIND = {"bounce": 1.0, "strike": 0.8, "drip": 1.3, "roll": 0.9, "tick": 1.7, "shake": 1.9}
DECAY_OF_KIND = {"bounce": 1.0, "strike": 1.3, "drip": 0.6, "roll": 0.8, "tick": 0.4, "shake": 0.25}


def render_sound(clip: WorldClip, duration_s: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """The clip's sound, float32 (round(duration_s sample_rate),), peak within PEAK_DBFS.

    Onsets are at the events' times to one sample; draws come from `rng` only.
    """
    size = round(duration_s * sample_rate)
    pitch = 2.0 ** (rng.uniform(-PITCH_RANGE_SEMITONES, PITCH_RANGE_SEMITONES) / 12)
    dry = np.zeros(size)
    for event in clip.events:
        level = (0.2 + 0.8 * event.strength) * 10 ** (rng.uniform(-2.0, 2.0) / 20)
        for offset_s, gain, sound in _event_sounds(clip, event, pitch, sample_rate, rng):
            start = round((event.time_s + offset_s) * sample_rate)
            part = sound[: max(0, size - start)]
            dry[start : start + len(part)] += level * gain * part
    loudest = float(np.abs(dry).max())
    if clip.speed is not None:
        dry += loudest * _rolling(clip, size, sample_rate, pitch, rng)
    wet = dry + _reverberation(dry, sample_rate, rng)
    wave = wet + loudest * _ambience(size, sample_rate, rng)
    wave *= 10 ** (rng.uniform(*PEAK_DBFS) / 20) / np.abs(wave).max()
    return wave.astype(np.float32)


def _event_sounds(
    clip: WorldClip, event: Event, pitch: float, sample_rate: int, rng: np.random.Generator
) -> list[tuple[float, float, np.ndarray]]:
    """(offset in s, gain, sound) of one event; the first is at offset 0."""
    if clip.kind == "beep":
        return [(0.0, 0.7, _tone(TONES_HZ[clip.material] * pitch, event.length_s, sample_rate, rng))]
    timbre = TIMBRES[clip.material]
    pitch = pitch * PITCH_OF_KIND[clip.kind]
    if clip.kind == "shake":
        offsets = np.concatenate([[0.0], np.sort(rng.exponential(0.022, rng.integers(5, 12)))])
        gains = np.concatenate([[1.0], rng.uniform(0.2, 0.9, len(offsets) - 1) * np.exp(-offsets[1:] / 0.04)])
        return [
            (float(o), float(g), _hit(timbre, pitch * rng.uniform(0.8, 1.25), clip.kind, sample_rate, rng))
            for o, g in zip(offsets, gains, strict=True)
        ]
    if clip.material == "water":
        return [(0.0, 1.0, _drop(timbre, pitch, sample_rate, rng))]
    return [(0.0, 1.0, _hit(timbre, pitch, clip.kind, sample_rate, rng))]


def _hit(timbre: Timbre, pitch: float, kind: str, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """The sound of one hit, with a peak of about 1."""
    decay_s = timbre.decay_s * DECAY_OF_KIND[kind] * rng.uniform(0.8, 1.25)
    seconds = np.arange(int(max(6 * decay_s, 0.02) * sample_rate)) / sample_rate
    sound = np.zeros_like(seconds)
    for order, ratio in enumerate(timbre.ratios):
        frequency = timbre.pitch_hz * pitch * ratio * (1 + 0.004 * rng.standard_normal())
        amplitude = math.exp(0.35 * rng.standard_normal()) / (1 + order) ** 0.6
        phase = rng.uniform(0, 2 * math.pi)
        if frequency < 0.46 * sample_rate:
            decay = seconds * (ratio**timbre.damping / decay_s)
            sound += amplitude * np.exp(-decay) * np.sin(2 * math.pi * frequency * seconds + phase)
    sound *= (1 - timbre.noise) / max(np.abs(sound).max(), 1e-9)
    burst = _burst(timbre.noise_hz, rng.uniform(0.003, 0.009), sample_rate, rng)[: len(sound)]
    sound[: len(burst)] += timbre.noise * burst
    return sound * np.minimum(1.0, (seconds + 1 / sample_rate) / ATTACK_S)


def _drop(timbre: Timbre, pitch: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A drop on water: bubbles whose pitch rises while they ring, after a faint splash."""
    seconds = np.arange(int(0.25 * sample_rate)) / sample_rate
    sound = np.zeros_like(seconds)
    for order, ratio in enumerate(timbre.ratios):
        decay_s = timbre.decay_s * rng.uniform(0.7, 1.4)
        rise = rng.uniform(2.0, 6.0)
        phase = 2 * math.pi * timbre.pitch_hz * pitch * ratio * (seconds + 0.5 * rise * seconds**2)
        sound += np.exp(-seconds / decay_s) * np.sin(phase + rng.uniform(0, 6.3)) / (1 + order)
    sound *= (1 - timbre.noise) / np.abs(sound).max()
    burst = _burst(timbre.noise_hz, 0.012, sample_rate, rng)[: len(sound)]
    sound[: len(burst)] += timbre.noise * burst
    return sound * np.minimum(1.0, (seconds + 1 / sample_rate) / ATTACK_S)


def _tone(frequency: float, length_s: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A beep with a few harmonics and 3 ms ramps."""
    seconds = np.arange(int(length_s * sample_rate)) / sample_rate
    sound = np.zeros_like(seconds)
    for order in range(1, 5):
        if order * frequency < 0.46 * sample_rate:
            weight = math.exp(0.5 * rng.standard_normal()) / order**1.5
            sound += weight * np.sin(2 * math.pi * order * frequency * seconds + rng.uniform(0, 2 * math.pi))
    ramp = np.minimum(1.0, (seconds + 1 / sample_rate) / ATTACK_S) * np.clip((length_s - seconds) / 0.003, 0, 1)
    return sound / max(np.abs(sound).max(), 1e-9) * ramp


def _burst(band: tuple[float, float], decay_s: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Band noise of unit peak under a decaying exponential."""
    size = int(5 * decay_s * sample_rate) + 8
    noise = _coloured(size, sample_rate, lambda f: _band(f, *band), rng)
    noise *= np.exp(-np.arange(size) / (decay_s * sample_rate))
    return noise / np.abs(noise).max()


def _rolling(clip: WorldClip, size: int, sample_rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """Noise around the body's pitch whose level follows the visible speed; at most 0.3 of the knock."""
    assert clip.speed is not None
    timbre = TIMBRES[clip.material]
    centre = min(timbre.pitch_hz * pitch, 0.25 * sample_rate)
    noise = _coloured(size, sample_rate, lambda f: _band(f, 0.4 * centre, 1.8 * centre), rng)
    coarse = np.linspace(0, size / sample_rate, max(2, size // 160))
    speed = np.interp(np.arange(size) / sample_rate, coarse, clip.speed(coarse))
    grain = np.exp(0.2 * _slow(size, sample_rate, 12.0, rng))
    envelope = np.clip(speed / 1.2, 0, 1) ** 1.2 * grain
    return rng.uniform(0.15, 0.3) * noise / np.abs(noise).max() * envelope


def _reverberation(dry: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """The tail of a random room: decaying noise (60 dB in 0.15 to 0.6 s) that starts 5 to 15 ms late."""
    decay_s = rng.uniform(0.15, 0.6)
    level = rng.uniform(0.02, 0.12)
    seconds = np.arange(int(decay_s * sample_rate)) / sample_rate
    tail = rng.standard_normal(len(seconds)) * np.exp(-6.9 * seconds / decay_s)
    tail[: int(rng.uniform(0.005, 0.015) * sample_rate)] = 0
    tail *= level / math.sqrt(0.001 * sample_rate)
    return fftconvolve(dry, tail)[: len(dry)]


def _ambience(size: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Background of random type, colour and slowly fluctuating level; RMS within AMBIENCE_DB."""
    kind = rng.choice(["hiss", "rumble", "band", "wind"])
    if kind == "hiss":
        low, high, depth = rng.uniform(300, 2000), rng.uniform(4000, 12000), 0.1
    elif kind == "rumble":
        low, high, depth = rng.uniform(20, 50), rng.uniform(120, 400), 0.3
    elif kind == "band":
        centre = 10 ** rng.uniform(2.3, 3.6)
        low, high, depth = 0.6 * centre, 1.6 * centre, 0.25
    else:
        low, high, depth = rng.uniform(40, 150), rng.uniform(300, 1200), 0.4
    tilt = rng.uniform(-0.6, 0.2)

    def colour(frequency: np.ndarray) -> np.ndarray:
        floor = 0.05 * (frequency + 50.0) ** -0.3
        return (_band(frequency, low, high) + floor) * ((frequency + 50.0) / 1000.0) ** tilt

    noise = _coloured(size, sample_rate, colour, rng) * np.exp(depth * _slow(size, sample_rate, 2.0, rng))
    return noise * (10 ** (rng.uniform(*AMBIENCE_DB) / 20) / np.sqrt(np.mean(noise**2)))


def _coloured(
    size: int, sample_rate: int, gain: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """White noise with its spectrum multiplied by gain(frequency in Hz)."""
    spectrum = rfft(rng.standard_normal(size)) * gain(rfftfreq(size, 1 / sample_rate))
    return irfft(spectrum, size)


def _band(frequency: np.ndarray, low: float, high: float) -> np.ndarray:
    """A band-pass magnitude of first order upwards and second order downwards."""
    return 1 / np.sqrt((1 + (low / (frequency + 1e-3)) ** 2) * (1 + (frequency / high) ** 4))


def _slow(size: int, sample_rate: int, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve of about unit variance that changes `rate_hz` times a second."""
    knots = max(2, math.ceil(size / sample_rate * rate_hz) + 1)
    return np.interp(np.linspace(0, knots - 1, size), np.arange(knots), rng.standard_normal(knots))
