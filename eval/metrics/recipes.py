"""Scores of a whole set of clips, by name: what each is made of, its value, interval and bias."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eval.features.clip_features import FEATURES, LOGITS, ClipFeatures
from eval.metrics.inception import inception_jackknife, inception_score
from eval.metrics.kernel import kernel_distance, kernel_jackknife, reference_bandwidth
from eval.metrics.manifold import ManifoldScores, manifold_scores
from eval.metrics.moments.distance import frechet_bias, frechet_distance
from eval.metrics.moments.extrapolation import frechet_infinity
from eval.metrics.moments.gaussian import GaussianStats
from eval.metrics.moments.jackknife import frechet_jackknife
from eval.metrics.uncertainty import GROUPS, Estimate, Jackknife, group_labels, jackknife

Values = Mapping[str, float]
Estimates = Mapping[str, Estimate]
PUBLISHED_SPLITS = 10
"""Parts over which publications average the inception score."""
LEAST_PER_SPLIT = 10
"""With fewer clips than this per part one part is taken; the row says how many there were."""
FEWEST_CLIPS = 4
"""An interval needs at least two groups of two clips."""
NEIGHBOURS = 5
FEWEST_FOR_A_LINE = 60
"""Fifteen subsets of different sizes between a quarter of the clips and all need as many."""
MOST_FOR_NEIGHBOURS = 5000
"""Above this number of clips the intervals of neighbourhood scores, twenty times all pairs, are left out."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Scores of one kind from one source: `values` and `estimates` by name, from reference and generated clips."""

    source: str
    needs: Literal["features", "logits"]
    names: tuple[str, ...]
    values: Callable[[ClipFeatures, ClipFeatures], Values]
    estimates: Callable[[ClipFeatures, ClipFeatures], Estimates] = lambda reference, generated: {}
    uses_reference: bool = True
    """False for the inception score, which never looks at the reference."""
    costly: bool = False
    """Many distances instead of one; left out unless asked for."""

    def possible(self, reference: ClipFeatures, generated: ClipFeatures) -> bool:
        """Whether both sides hold what it is made of."""
        name = self.source + (FEATURES if self.needs == "features" else LOGITS)
        return name in generated.tensors and (not self.uses_reference or name in reference.tensors)


def groups_for(*counts: int) -> int | None:
    """Groups of the jackknife: 20, or one per clip where there are fewer; None below four clips."""
    fewest = min(counts)
    return None if fewest < FEWEST_CLIPS else min(GROUPS, fewest)


def splits_for(clips: int, *, wanted: int) -> int:
    """Parts the inception score is averaged over."""
    return wanted if clips >= LEAST_PER_SPLIT * wanted else 1


def frechet_recipe(source: str, name: str) -> Recipe:
    """Frechet distance; every row counts. Bias: the closed form of `frechet_bias`, the jackknife's where clips have
    several rows; interval: clips deleted by groups, so that rows of one clip stand and fall together."""

    def estimates(reference: ClipFeatures, generated: ClipFeatures) -> Estimates:
        groups = groups_for(len(reference), len(generated))
        if groups is None:
            return {}
        x, y = _by_clip(reference, source), _by_clip(generated, source)
        if not all(len(rows) == 1 for rows in (*x, *y)):
            found = jackknife(
                lambda kept, others: frechet_distance(
                    np.concatenate([x[k] for k in kept]), np.concatenate([y[k] for k in others])
                ),
                np.arange(len(x)),
                np.arange(len(y)),
                groups=groups,
            )
            # Rows of one clip are alike: the closed form, which counts them as independent, would be far too small.
            return {name: Estimate.of_jackknife(found)}
        found = frechet_jackknife(np.concatenate(x), np.concatenate(y), groups=groups)
        bias = _bias(reference, generated)
        told = "first order, two samples of these sizes of the reference's own law"
        return {name: Estimate.of_jackknife(found, bias=bias, bias_method=told)}

    def _bias(reference: ClipFeatures, generated: ClipFeatures) -> float:
        stats = GaussianStats.from_features(_rows(reference, source))
        return frechet_bias(stats, stats.count, len(_rows(generated, source)))

    return Recipe(
        source=source,
        needs="features",
        names=(name,),
        values=lambda reference, generated: {
            name: frechet_distance(_rows(reference, source), _rows(generated, source))
        },
        estimates=estimates,
    )


def infinite_recipe(source: str, name: str) -> Recipe:
    """Frechet distance extrapolated to infinitely many clips, and the standard error of the line's intercept."""

    def values(reference: ClipFeatures, generated: ClipFeatures) -> Values:
        if min(len(reference), len(generated)) < FEWEST_FOR_A_LINE:
            return {}
        found = frechet_infinity(_rows(reference, source), _rows(generated, source))
        return {name: found.intercept, f"{name}_error": found.standard_error}

    return Recipe(source=source, needs="features", names=(name, f"{name}_error"), values=values, costly=True)


def kernel_recipe(source: str, name: str) -> Recipe:
    """Kernel distance with the bandwidth of the reference, one row per clip (their mean where a clip has several)."""

    def values(reference: ClipFeatures, generated: ClipFeatures) -> Values:
        x = _clips(reference, source)
        return {name: kernel_distance(x, _clips(generated, source), bandwidth=reference_bandwidth(x))}

    def estimates(reference: ClipFeatures, generated: ClipFeatures) -> Estimates:
        groups = groups_for(len(reference), len(generated))
        if groups is None:
            return {}
        x = _clips(reference, source)
        found = kernel_jackknife(x, _clips(generated, source), bandwidth=reference_bandwidth(x), groups=groups)
        return {name: Estimate.of_jackknife(found, bias=0.0, bias_method="unbiased for a fixed bandwidth")}

    return Recipe(source=source, needs="features", names=(name,), values=values, estimates=estimates)


def inception_recipe(source: str, name: str, *, splits: int) -> Recipe:
    """Inception score, its deviation over the parts and their number."""
    names = (name, f"{name}_std", f"{name}_splits")

    def values(_: ClipFeatures, generated: ClipFeatures) -> Values:
        parts = splits_for(len(generated), wanted=splits)
        score = inception_score(generated.tensors[source + LOGITS], splits=parts)
        return dict(zip(names, (score.mean, score.std, float(parts)), strict=True))

    def estimates(_: ClipFeatures, generated: ClipFeatures) -> Estimates:
        parts = splits_for(len(generated), wanted=splits)
        groups = groups_for(len(generated) // parts)
        if groups is None:
            return {}
        return {
            name: Estimate.of_jackknife(
                inception_jackknife(generated.tensors[source + LOGITS], splits=parts, groups=groups)
            )
        }

    return Recipe(source=source, needs="logits", names=names, values=values, estimates=estimates, uses_reference=False)


def manifold_recipe(source: str, prefix: str = "") -> Recipe:
    """Precision, recall, density and coverage with 5 neighbours, one row per clip; nothing below 6 clips."""
    parts: tuple[tuple[str, Callable[[ManifoldScores], float]], ...] = (
        (f"{prefix}precision", lambda found: found.precision),
        (f"{prefix}recall", lambda found: found.recall),
        (f"{prefix}density", lambda found: found.density),
        (f"{prefix}coverage", lambda found: found.coverage),
    )

    def scores(x: NDArray[np.float64], y: NDArray[np.float64]) -> ManifoldScores:
        return manifold_scores(x, y, neighbours=NEIGHBOURS)

    def values(reference: ClipFeatures, generated: ClipFeatures) -> Values:
        if min(len(reference), len(generated)) <= NEIGHBOURS:
            return {}
        found = scores(_clips(reference, source), _clips(generated, source))
        return {name: of(found) for name, of in parts}

    def estimates(reference: ClipFeatures, generated: ClipFeatures) -> Estimates:
        counts = len(reference), len(generated)
        groups = groups_for(*counts)
        if groups is None or min(counts) < 2 * NEIGHBOURS + 2 or max(counts) > MOST_FOR_NEIGHBOURS:
            return {}
        x, y = _clips(reference, source), _clips(generated, source)
        labels = group_labels(counts, groups=groups)
        whole = scores(x, y)
        without = [scores(x[labels[0] != group], y[labels[1] != group]) for group in range(groups)]
        return {
            name: Estimate.of_jackknife(
                Jackknife(value=of(whole), replicates=tuple(map(of, without)), counts=counts, seed=0)
            )
            for name, of in parts
        }

    return Recipe(
        source=source,
        needs="features",
        names=tuple(name for name, _ in parts),
        values=values,
        estimates=estimates,
    )


RECIPES = (
    frechet_recipe("embedded", "frechet"),
    infinite_recipe("embedded", "frechet_inf"),
    kernel_recipe("embedded", "kad"),
    inception_recipe("embedded", "inception_score", splits=1),
    manifold_recipe("embedded"),
    frechet_recipe("passt", "fd_passt"),
    frechet_recipe("panns", "fd_panns"),
    frechet_recipe("vggish", "fd_vggish"),
    infinite_recipe("passt", "fd_passt_inf"),
    infinite_recipe("panns", "fd_panns_inf"),
    infinite_recipe("vggish", "fd_vggish_inf"),
    kernel_recipe("passt", "kad_passt"),
    kernel_recipe("panns", "kad_panns"),
    inception_recipe("passt", "is_passt", splits=PUBLISHED_SPLITS),
    inception_recipe("panns", "is_panns", splits=PUBLISHED_SPLITS),
    manifold_recipe("passt", "passt_"),
)
"""All scores of sets, in the order of a row. The embedded classes are few and so are its clips: one part."""
DIVERGENCES: Mapping[str, str] = {"embedded": "kl", "passt": "kl_passt", "panns": "kl_panns"}
"""Sources whose class posteriors are compared clip by clip, and the name of the divergence."""


def recipes(reference: ClipFeatures, generated: ClipFeatures, *, costly: bool) -> Iterator[Recipe]:
    """Those that the two sides hold the material of."""
    for recipe in RECIPES:
        if recipe.possible(reference, generated) and (costly or not recipe.costly):
            yield recipe


def _rows(heard: ClipFeatures, source: str) -> NDArray[np.float64]:
    return heard.tensors[source + FEATURES].double().numpy()


def _by_clip(heard: ClipFeatures, source: str) -> list[NDArray[np.float64]]:
    return np.split(_rows(heard, source), np.cumsum(heard.embeddings(source).counts)[:-1])


def _clips(heard: ClipFeatures, source: str) -> NDArray[np.float64]:
    """One row per clip, the mean where a clip has several."""
    return np.stack([rows.mean(axis=0) for rows in _by_clip(heard, source)])
