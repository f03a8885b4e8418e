"""The words on scores: key, label, which direction is better, digits, what it tells.

Names, directions and one-line explanations of the scores a report shows; none of a row is without."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher"]
Words = tuple[str, str, Better | None, int, str]
FRECHET = (
    "Fréchet distance between the {features} of all generated and all real clips: how far the sounds as a set are from "
    "real ones, in kind and in variety. Other real clips do not score zero: sampling alone keeps it above, so compare "
    "only equal numbers of clips."
)
INFINITE = (
    "The same distance extrapolated to infinitely many clips, a line against 1/n: without the first-order bias, and "
    "noisier."
)
KERNEL = (
    "Kernel distance of {features}, 100 x unbiased squared maximum mean discrepancy, bandwidth from the real clips: as "
    "FD, without its bias from few clips. As an unbiased estimate of a distance that is zero for real sound it may "
    "come out negative, which means no more than zero."
)
KL = (
    "Divergence from the class posterior of each real clip to that of the clip generated for the same video or "
    "caption, softmax over {classes}, averaged: whether the right kind of sound was made."
)
INCEPTION = (
    "Inception score over {classes}: clear and varied classes score high, from 1 to the number of classes. It never "
    "looks at the real clips; their own value is what to aim at. It rises with the number of clips."
)
CLAP = "Cosine between the sound and its caption in the space of {model}, mean over clips, not times 100."
MANIFOLD = {
    "precision": "share of generated clips that lie among real ones: quality",
    "recall": "share of real clips that lie among generated ones: variety",
    "density": "how many real neighbourhoods a generated clip lies in, relative to the neighbours counted: quality, "
    "without one outlier deciding",
    "coverage": "share of real clips that have a generated one in their neighbourhood: variety",
}


def _manifold(prefix: str, of: str, features: str) -> tuple[Words, ...]:
    return tuple(
        (prefix + name, f"{name.capitalize()} ({of})", "higher", 3, f"In {features}, 5 neighbours: {what}.")
        for name, what in MANIFOLD.items()
    )


MAIN: tuple[Words, ...] = (
    ("fd_passt", "FD (PaSST)", "lower", 2, FRECHET.format(features="PaSST features (768)")),
    ("fd_panns", "FD (PANNs)", "lower", 2, FRECHET.format(features="PANNs features (2048)")),
    ("fd_vggish", "FD (VGGish)", "lower", 2, FRECHET.format(features="VGGish features (128), every 0.96 s a row,")),
    ("kl_panns", "KL (PANNs)", "lower", 3, KL.format(classes="527 AudioSet classes by PANNs")),
    ("kl_passt", "KL (PaSST)", "lower", 3, KL.format(classes="527 AudioSet classes by PaSST")),
    ("is_panns", "IS (PANNs)", "higher", 2, INCEPTION.format(classes="527 AudioSet classes by PANNs")),
    (
        "ib_score",
        "IB-score",
        "higher",
        4,
        "ImageBind: cosine between the sound and the picture, mean over clips; papers print it times 100.",
    ),
    (
        "desync",
        "DeSync (s)",
        "lower",
        3,
        "Synchformer: mean absolute offset between sound and picture in seconds, first and last 4.8 s of each clip. "
        "Guessing gives 1.05 s.",
    ),
    ("clap_laion", "CLAP (LAION)", "higher", 3, CLAP.format(model="LAION-CLAP")),
    ("clap_ms", "CLAP (MS)", "higher", 3, CLAP.format(model="MS-CLAP 2023")),
    ("frechet", "FD (embedded)", "lower", 2, FRECHET.format(features="features")),
    ("kad", "KAD (embedded)", "lower", 2, KERNEL.format(features="embedded features")),
    ("kl", "KL (embedded)", "lower", 3, KL.format(classes="the embedded classes")),
    ("inception_score", "IS (embedded)", "higher", 2, INCEPTION.format(classes="the embedded classes")),
    (
        "onset_f1",
        "Onset F1",
        "higher",
        3,
        "Whether sounds begin when something happens in the picture: detected onsets matched one to one "
        "with the known events within 50 ms, counts pooled over clips. The row of real sound is what the detector "
        "reaches on the truth. Video-to-audio only.",
    ),
)
MORE: tuple[Words, ...] = (
    ("onset_precision", "Onset precision", "higher", 3, "Share of the detected onsets that belong to a known event."),
    ("onset_recall", "Onset recall", "higher", 3, "Share of the known events with a detected onset."),
    ("onset_clips", "Onset clips", None, 0, "Clips whose events are known, which the onset scores are of."),
    (
        "distance_clips",
        "Clips of the floor",
        None,
        0,
        "Real clips outside the test set that the distances of real sound are of; with fewer than the models have, "
        "sampling alone makes FD of real sound larger than theirs, and it is no floor.",
    ),
    ("is_passt", "IS (PaSST)", "higher", 2, INCEPTION.format(classes="527 AudioSet classes by PaSST")),
    ("kad_passt", "KAD (PaSST)", "lower", 2, KERNEL.format(features="PaSST features")),
    ("kad_panns", "KAD (PANNs)", "lower", 2, KERNEL.format(features="PANNs features")),
    ("pam", "PAM", "higher", 3, "Probability of “the sound is clear and clean” against its opposite by MS-CLAP."),
    ("aes_pq", "AES quality", "higher", 2, "Audiobox-Aesthetics: production quality, 1 to 10."),
    (
        "aes_pc",
        "AES complexity",
        None,
        2,
        "Audiobox-Aesthetics: production complexity, 1 to 10; neither end is better.",
    ),
    ("aes_ce", "AES enjoyment", "higher", 2, "Audiobox-Aesthetics: content enjoyment, 1 to 10."),
    ("aes_cu", "AES usefulness", "higher", 2, "Audiobox-Aesthetics: content usefulness, 1 to 10."),
    ("fd_passt_inf", "FD∞ (PaSST)", "lower", 2, INFINITE),
    ("fd_panns_inf", "FD∞ (PANNs)", "lower", 2, INFINITE),
    ("fd_vggish_inf", "FD∞ (VGGish)", "lower", 2, INFINITE),
    ("frechet_inf", "FD∞ (embedded)", "lower", 2, INFINITE),
    *_manifold("passt_", "PaSST", "PaSST features"),
    *_manifold("", "embedded", "embedded features"),
    (
        "gh_accuracy",
        "GH accuracy",
        "higher",
        3,
        "As MMAudio's Greatest Hits script prints it, faults included: share of the known events it matches.",
    ),
    (
        "gh_ap",
        "GH AP",
        "higher",
        3,
        "As MMAudio's Greatest Hits script prints it, faults included: silence scores 1. Read Onset F1 instead.",
    ),
    (
        "gh_f1",
        "GH F1",
        "higher",
        3,
        "As MMAudio's Greatest Hits script prints it, faults included: events that were missed after the last "
        "detection are not counted.",
    ),
)
WORDS: Mapping[bool, tuple[Words, ...]] = {True: MAIN, False: MORE}
"""By whether they stand in the main table."""


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
