"""Frechet distances (FD): how far the sounds of a set are from real ones, in kind and in variety.

    FD = ||mu_a - mu_b||^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))

of the mean and covariance of the features of all real and of all generated clips (`eval.metrics.moments.distance`),
and FD∞, its extrapolation to infinitely many clips (arXiv 1911.07023). FD_PaSST, FD_PANNs and FD_VGG are the distances
on the features of these networks; the embedded one needs no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eval.metrics.base import EMBEDDED, Aspect, PaperColumn, SetMetric
from eval.metrics.uncertainty import Estimate, groups_for, jackknife

if TYPE_CHECKING:
    from eval.metrics.embeddings import Embeddings

FEWEST_FOR_A_LINE = 60
"""Fifteen subsets of different sizes between a quarter of the clips and all need as many."""
EXPLANATION = (
    "Fréchet distance between the {features} of all generated and all real clips: how far the sounds as a set are from "
    "real ones, in kind and in variety. Other real clips do not score zero: sampling alone keeps it above, so compare "
    "only equal numbers of clips."
)
INFINITE = (
    "The same distance extrapolated to infinitely many clips, a line against 1/n: without the first-order bias, and "
    "noisier."
)


def frechet_metric(
    key: str, label: str, *, source: str, features: str, dimensions: int, paper: PaperColumn
) -> SetMetric:
    """The declaration of FD for one source of features; every row of features counts as a sample."""

    def value(reference: Embeddings, generated: Embeddings) -> dict[str, float]:
        from eval.metrics.moments.distance import frechet_distance

        return {key: frechet_distance(reference.matrix, generated.matrix)}

    def estimate(reference: Embeddings, generated: Embeddings) -> dict[str, Estimate]:
        found = frechet_interval(reference, generated)
        return {} if found is None else {key: found}

    return SetMetric(
        key=key,
        label=label,
        better="lower",
        digits=2,
        explanation=EXPLANATION.format(features=features),
        source=source,
        main=True,
        aspect=DISTANCE,
        paper=paper,
        dimensions=dimensions,
        needs="features",
        formula="frechet",
        value=value,
        estimate=estimate,
    )


def frechet_interval(reference: Embeddings, generated: Embeddings) -> Estimate | None:
    """Interval and bias of FD; None with too few clips.

    The interval is that of the jackknife over groups of clips, so that rows of one clip stay together. The bias is the
    closed form of `frechet_bias`. Where clips have several rows it is the jackknife's, since rows of one clip are alike
    and the closed form, which counts them as independent, would be far too small.
    """
    from eval.metrics.moments.distance import frechet_bias, frechet_distance
    from eval.metrics.moments.gaussian import GaussianStats
    from eval.metrics.moments.jackknife import frechet_jackknife

    groups = groups_for(len(reference), len(generated))
    if groups is None:
        return None
    x, y = reference.by_clip, generated.by_clip
    if not all(len(rows) == 1 for rows in (*x, *y)):
        found = jackknife(
            lambda reference, generated: frechet_distance(
                np.concatenate([x[k] for k in reference]), np.concatenate([y[k] for k in generated])
            ),
            np.arange(len(x)),
            np.arange(len(y)),
            groups=groups,
        )
        return Estimate.of_jackknife(found)
    found = frechet_jackknife(np.concatenate(x), np.concatenate(y), groups=groups)
    stats = GaussianStats.from_features(reference.matrix)
    bias = frechet_bias(stats, stats.count, len(generated.matrix))
    method = "first order, two samples of these sizes of the reference's own law"
    return Estimate.of_jackknife(found, bias=bias, bias_method=method)


def infinite_metric(key: str, label: str, *, source: str) -> SetMetric:
    """The declaration of FD∞ for one source, with the standard error of the line's intercept under KEY_error."""

    def value(reference: Embeddings, generated: Embeddings) -> dict[str, float]:
        from eval.metrics.moments.extrapolation import frechet_infinity

        if min(len(reference), len(generated)) < FEWEST_FOR_A_LINE:
            return {}
        found = frechet_infinity(reference.matrix, generated.matrix)
        return {key: found.intercept, f"{key}_error": found.standard_error}

    return SetMetric(
        key=key,
        label=label,
        better="lower",
        digits=2,
        explanation=INFINITE,
        source=source,
        needs="features",
        value=value,
        costly=True,
    )


DISTANCE: Aspect = "distance"
FD_PASST = frechet_metric(
    "fd_passt",
    "FD (PaSST)",
    source="passt",
    features="PaSST features (768)",
    dimensions=768,
    paper=PaperColumn(name="FD", sub="PaSST", tables=("vta",)),
)
FD_PANNS = frechet_metric(
    "fd_panns",
    "FD (PANNs)",
    source="panns",
    features="PANNs features (2048)",
    dimensions=2048,
    paper=PaperColumn(name="FD", sub="PANNs", tables=("vta", "tta")),
)
FD_VGGISH = frechet_metric(
    "fd_vggish",
    "FD (VGGish)",
    source="vggish",
    features="VGGish features (128), every 0.96 s a row,",
    dimensions=128,
    paper=PaperColumn(name="FD", sub="VGG", tables=("vta", "tta")),
)
FD_EMBEDDED = frechet_metric(
    "frechet",
    "FD (embedded)",
    source=EMBEDDED,
    features="features",
    dimensions=84,
    paper=PaperColumn(name="Embedded-FD"),
)
FD_PASST_INFINITE = infinite_metric("fd_passt_inf", "FD∞ (PaSST)", source="passt")
FD_PANNS_INFINITE = infinite_metric("fd_panns_inf", "FD∞ (PANNs)", source="panns")
FD_VGGISH_INFINITE = infinite_metric("fd_vggish_inf", "FD∞ (VGGish)", source="vggish")
FD_EMBEDDED_INFINITE = infinite_metric("frechet_inf", "FD∞ (embedded)", source=EMBEDDED)
