"""The stages of sampling, from video and text to sound: their names, and the clock that times them.

decode+resize -> image encoder, motion encoder, text encoder -> flow network -> latent decode -> vocoder
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

READ, IMAGE, MOTION, TEXT = "decode+resize", "image encoder", "motion encoder", "text encoder"
ENCODING = (READ, IMAGE, MOTION, TEXT)
FLOW, DECODE = "flow network", "codec decode"
DECODE_PARTS = ("latent decode", "vocoder")
"""The two stages of decoding of a codec that has them; any other codec decodes in one stage, DECODE."""
STAGES = (*ENCODING, FLOW, DECODE)


def never_stop() -> None:
    """A check that never raises, for sampling that nobody stops."""


@dataclass(frozen=True, kw_only=True)
class StageClock:
    """Adds up the seconds of every stage, and stops the sampling between stages when `check` raises.

    Sampling enters a stage once for every batch of windows. Every stage returns its results on the CPU, so that the GPU
    has finished when a stage ends.
    """

    check: Callable[[], None] = never_stop
    """Called before every stage and every evaluation of the network; it stops the sampling by raising."""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Context that adds its duration to the seconds of stage `name`."""
        self.check()
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Return and reset the seconds of every stage, with the two stages of decoding summed up as DECODE."""
        taken = dict(self.seconds)
        self.seconds.clear()
        parts = [taken.pop(part) for part in DECODE_PARTS if part in taken]
        return taken | ({DECODE: sum(parts) + taken.get(DECODE, 0.0)} if parts else {})
