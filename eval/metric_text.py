"""Names, directions and one-line explanations of the scores a report shows; none of a row is without."""

from collections.abc import Iterable
from dataclasses import dataclass

from eval.metric_words import WORDS, Better

EMBEDDED_NOTE = (
    "Scores marked (embedded) use this project's own audio features and classes, which need no weights. They rank the "
    "models of this run against each other and against real sound. They are not comparable with published figures, "
    "which use pretrained networks (PaSST, PANNs, VGGish) and other clips."
)
PUBLISHED_NOTE = (
    "Scores named after a published network use its official weights, with this project's own reading of sound and "
    "its own front ends. They can be placed beside published figures only for the same clips, number of clips and "
    "length."
)
SUFFIXES = {
    "_std": ("deviation", 3, "Standard deviation over the parts that {label} is averaged over; no error of it."),
    "_splits": ("parts", 0, "Parts of the clips that {label} is averaged over; only equal numbers can be compared."),
    "_error": ("error", 3, "Standard error of the intercept that {label} is."),
    "_bias": ("bias", 2, "First-order bias of {label} at this number of clips, as rows of older versions keep it."),
    "_clips": ("clips", 0, "Clips that {label} could be told of; it is their mean."),
}
"""What belongs to another score: word after its name, digits, explanation."""


@dataclass(frozen=True, kw_only=True)
class MetricText:
    """How one score is shown."""

    key: str
    label: str
    better: Better | None
    """None for counts and deviations, of which none is better."""
    digits: int
    explanation: str
    main: bool = False
    """Whether it stands in the main table; the others follow in a second one."""

    @property
    def arrow(self) -> str:
        return {"lower": "↓", "higher": "↑", None: ""}[self.better]

    @property
    def title(self) -> str:
        """Label and arrow."""
        return f"{self.label} {self.arrow}".strip()

    @property
    def embedded(self) -> bool:
        """Whether it is of the project's own features."""
        return "(embedded)" in self.label


METRICS = tuple(
    MetricText(key=key, label=label, better=better, digits=digits, explanation=explanation, main=main)
    for main, words in WORDS.items()
    for key, label, better, digits, explanation in words
)
"""Main scores first: those of published networks in the order of the tables they are known from, then embedded ones."""
ASPECTS = (
    ("fd_passt", "fd_panns", "fd_vggish", "frechet"),
    ("kl_passt", "kl_panns", "kl"),
    ("is_panns", "inception_score"),
    ("ib_score",),
    ("clap_laion", "clap_ms"),
    ("desync",),
    ("onset_f1",),
)
"""What scores are of; of each aspect one leads, those of published networks before embedded ones."""
_BY_KEY = {m.key: m for m in METRICS}


def metric(key: str) -> MetricText:
    """How a score is shown; one that is not known is shown under its key, without a direction."""
    if key in _BY_KEY:
        return _BY_KEY[key]
    for suffix, (word, digits, explanation) in SUFFIXES.items():
        stem = key.removesuffix(suffix)
        if stem != key:
            label = metric(stem).label
            return MetricText(
                key=key,
                label=f"{label}, {word}",
                better=None,
                digits=digits,
                explanation=explanation.format(label=label),
            )
    return MetricText(key=key, label=key, better=None, digits=3, explanation="A score this report has no words for.")


def metrics_of(keys: Iterable[str]) -> tuple[MetricText, ...]:
    """All of some scores, in the order of METRICS, what belongs to a score after it, unknown ones last."""
    order = {m.key: k for k, m in enumerate(METRICS)}

    def place(key: str) -> tuple[int, int]:
        for n, stem in enumerate((key, *(key.removesuffix(suffix) for suffix in SUFFIXES))):
            if stem in order:
                return order[stem], n
        return len(order), 0

    return tuple(metric(key) for key in sorted(dict.fromkeys(keys), key=place))


def leading(keys: Iterable[str]) -> list[str]:
    """Of some scores those that are looked at first: one of each aspect."""
    present = set(keys)
    return [key for aspect in ASPECTS for key in [k for k in aspect if k in present][:1]]
