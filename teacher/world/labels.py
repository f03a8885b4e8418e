"""Labels of the procedural world: kinds and materials, and the label, split and caption of a clip."""

from collections.abc import Callable

import numpy as np

from teacher.lists.manifest import Split
from teacher.world.clip import WorldClip
from teacher.world.kinds import beep, bounce, drip, roll, shake, strike, tick

ClipMaker = Callable[[np.random.Generator, str, float], WorldClip]
BODIES = ("wood", "metal", "glass", "rubber", "stone")
KINDS: dict[str, tuple[ClipMaker, tuple[str, ...]]] = {
    "bounce": (bounce, BODIES),
    "strike": (strike, BODIES),
    "drip": (drip, ("water", "metal", "wood")),
    "beep": (beep, ("red", "yellow", "green", "blue")),
    "roll": (roll, BODIES),
    "tick": (tick, ("wood", "metal", "glass")),
    "shake": (shake, BODIES),
}
LABELS = tuple((kind, material) for kind, (_, materials) in KINDS.items() for material in materials)
LABEL_STRIDE = 7
"""Coprime to the 30 labels: neighbouring clips differ in kind, every 30 clips hold each label once."""
SPLIT_CYCLE = 20
COUNTS = ("no", "one", "two", "three", "four", "five")
TEMPLATES: dict[str, tuple[str, ...]] = {
    "bounce": (
        "a {adjective} ball bounces on the floor",
        "a ball made of {material} is dropped and bounces",
        "{adjective} ball hitting the ground {times}",
        "bouncing {adjective} ball",
    ),
    "strike": (
        "{material} being struck {times}",
        "a hammer hits a {adjective} block",
        "someone hammers on a piece of {material}",
        "{count} hammer blows on {material}",
    ),
    "drip": ("drops fall {onto}", "dripping {onto}, {count} drops", "a tap drips {onto}"),
    "beep": (
        "a {material} lamp flashes and beeps",
        "{count} beeps with a {material} light",
        "an electronic tone while a {material} lamp is lit",
    ),
    "roll": (
        "a {adjective} ball rolls along the floor and knocks against a wall",
        "rolling {adjective} ball that bumps into the wall",
        "{adjective} ball rolling on a hard floor",
    ),
    "tick": (
        "a {adjective} metronome ticks",
        "ticking of a {adjective} pendulum",
        "{adjective} clockwork ticking {times}",
    ),
    "shake": (
        "a box of {adjective} pieces is shaken",
        "rattling {adjective} bits in a box",
        "someone shakes a box with {material} inside, {times}",
    ),
}


def clip_label(index: int) -> tuple[str, str]:
    """(kind, material) of clip number `index`."""
    return LABELS[index * LABEL_STRIDE % len(LABELS)]


def clip_split(index: int) -> Split:
    """Split of a clip: over 20 rounds of the labels, each label is 15 times train, once val and 4 times test."""
    slot = index * LABEL_STRIDE % len(LABELS)
    place = (index // len(LABELS) + 7 * slot) % SPLIT_CYCLE
    return "val" if place == 8 else "test" if place % 5 == 1 else "train"


def fill_caption(clip: WorldClip, rng: np.random.Generator) -> str:
    """A caption for a clip: one of the templates of its kind, drawn by `rng` and filled in."""
    templates = TEMPLATES[clip.kind]
    template = templates[int(rng.integers(len(templates)))]
    number = len(clip.events)
    count = COUNTS[number] if number < len(COUNTS) else "many"
    times = {1: "once", 2: "twice"}.get(number, f"{count} times")
    adjective = "wooden" if clip.material == "wood" else clip.material
    onto = "into water" if clip.material == "water" else f"onto a {adjective} plate"
    text = template.format(material=clip.material, adjective=adjective, count=count, times=times, onto=onto)
    return (
        text.replace("one beeps", "one beep")
        .replace("one hammer blows", "one hammer blow")
        .replace("one drops", "one drop")
    )
