"""A caution where a Frechet distance is of too few clips to be told from its own bias."""

from collections.abc import Iterator, Mapping, Sequence

from eval.metrics import metric
from eval.report.intervals import span
from eval.report.paired import Setting
from eval.report.tables import GENERATORS, signed, steps_title

DIMENSIONS: Mapping[str, int] = {"fd_passt": 768, "fd_panns": 2048, "fd_vggish": 128, "frechet": 84}
"""Numbers per clip (per 0.96 s for VGGish) that each distance is of."""
FEWEST_CLIPS = 50


def few_clips(chosen: Sequence[Setting]) -> str:
    """Distances of fewer clips than twice their dimension or than 50, each with its bias; empty where there are none.

    The bias is that of the setting with the lowest generated value, which it weighs on most.
    """
    told = list(_told(chosen))
    if not told:
        return ""
    return (
        f"A Fréchet distance wants {FEWEST_CLIPS} clips and twice as many as its features have dimensions. "
        f"{' '.join(told)} Compare only rows with equal numbers of clips, and look at KAD, which has no such bias."
    )


def _told(chosen: Sequence[Setting]) -> Iterator[str]:
    for key, dimension in DIMENSIONS.items():
        having = [s for s in chosen if key in s.summary.mean]
        made = [s for s in having if s.summary.kind in GENERATORS] or having
        if not made:
            continue
        clips = min(s.summary.num_clips for s in made)
        if clips >= max(2 * dimension, FEWEST_CLIPS):
            continue
        text, lowest = metric(key), min(made, key=lambda s: s.summary.mean[key])
        found, value = span(lowest, key), signed(lowest.summary.mean[key], metric(key).digits)
        bias = "its bias was not kept"
        if found is not None:
            bias = (
                f"its bias, itself rough at so few clips, is as large as {signed(found.bias, text.digits)}, which is "
                f"part of the lowest value, {value} of {steps_title(lowest.summary)}"
            )
        yield f"{text.label}: few clips, {clips} in {dimension} dimensions; {bias}."
