"""The stages on the way from a film and words to sound: their names, and the one clock that they are timed with.

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
"""The parts of decoding in a codec that has them; another codec decodes in one stage, DECODE."""
STAGES = (*ENCODING, FLOW, DECODE)


def never_stop() -> None:
    """The check of work that nobody ends."""


@dataclass(frozen=True, kw_only=True)
class StageClock:
    """Adds up the seconds of every stage, and ends the work between stages where `check` raises.

    Sampling enters a stage once for every batch of windows. Results of every stage lie on the processor, so that no
    GPU has work left when a stage ends.
    """

    check: Callable[[], None] = never_stop
    """Called before every stage and every evaluation of the network. Whatever it raises ends the work."""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        self.check()
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Return the seconds that were added since the last call, with the parts of decoding as one stage."""
        taken = dict(self.seconds)
        self.seconds.clear()
        parts = [taken.pop(part) for part in DECODE_PARTS if part in taken]
        return taken | ({DECODE: sum(parts) + taken.get(DECODE, 0.0)} if parts else {})
