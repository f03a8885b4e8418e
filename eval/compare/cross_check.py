"""FD, KAD and IS of a comparison, computed a second time by torch-fidelity from the features the comparison stored.

The package is the field's reference implementation; its computation uses no code of `eval.metrics`:

- FD: `fid_statistics_to_metric`, the eigenvalues of the product of both covariances.
- KAD: `kid_features_to_metric`, 100 times the kernel distance with our Gaussian kernel (not KID's polynomial one, which
  would be another number), all clips as one subset. The package takes subsets of one size and holds whole kernel
  matrices, so that sets of different sizes, and large ones, are left out.
- IS: `isc_features_to_metric` with the same parts and the same shuffle.

Only its arithmetic on features is used: no image network of it is built, and nothing is downloaded.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from eval.compare.rows import Row
from eval.compare.verify import features_of_row
from eval.metrics import set_metrics
from eval.metrics.base import Formula, SetMetric
from eval.metrics.embeddings import Embeddings
from eval.metrics.inception import SHUFFLE_SEED
from eval.metrics.kernel import KAD_SCALE, SINGLE_PAIRS, SINGLE_REACH, reference_bandwidth
from mf_mjt_torchvision import guard_torchvision
from teacher.files import replacing

PACKAGE = "torch-fidelity"
FILE = "cross-check.json"
"""Name of the file of cross-checks beside rows.jsonl."""
FRECHET_RELATIVE = 1e-6
"""Largest relative difference of FD: of large sets ours takes products in float32, which costs a tenth of it."""
INCEPTION_RELATIVE = 1e-9
"""Largest relative difference of IS: sums in float64 over clips and classes, taken in another order."""
MOST_FOR_KERNEL = 5000
"""Clips up to which the package computes KAD: three matrices of as many rows and columns in float64, 0.6 GB."""
UNIT = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class CrossCheck:
    """One metric of one row by both implementations."""

    row: Row
    metric: str
    """Its key in rows.jsonl."""
    ours: float
    """The value in the row."""
    theirs: float
    tolerance: float
    """Greatest difference that the arithmetic of both explains."""

    @property
    def agrees(self) -> bool:
        """Whether both are finite and differ by at most `tolerance`."""
        return abs(self.ours - self.theirs) <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.row.title}: {self.metric} {self.ours:.10g}, {PACKAGE} {self.theirs:.10g}, difference "
            f"{self.theirs - self.ours:.3g} (at most {self.tolerance:.2g}): {'agrees' if self.agrees else 'DIFFERS'}"
        )

    def facts(self) -> dict[str, object]:
        """Its entry in the file."""
        r = self.row
        return {
            "task": r.task,
            "model": r.model,
            "steps": r.steps,
            "guidance": r.guidance,
            "seed": r.seed,
            "metric": self.metric,
            "ours": self.ours,
            "theirs": self.theirs,
        }


def cross_checks(
    rows_path: Path, rows: Sequence[Row], *, report: Callable[[str], None] = lambda line: None
) -> Iterator[CrossCheck]:
    """Every FD, KAD and IS of the rows whose features were stored, in the order of the rows and of `METRICS`. `report`
    receives a line about each that is left out.

    Raises:
        ValueError: stored features that cannot be read or belong to other rows.
    """
    for row in rows:
        features = features_of_row(rows_path, row)
        if features is None:
            continue
        for metric in set_metrics():
            sides = features.sides(metric)
            if metric.formula is None or metric.key not in row.metrics or sides is None:
                continue
            found = COMPUTED[metric.formula](*sides, metric, row.metrics)
            if isinstance(found, str):
                report(f"{row.title}: {metric.key} left out: {found}")
                continue
            theirs, tolerance = found
            ours = row.metrics[metric.key]
            yield CrossCheck(row=row, metric=metric.key, ours=ours, theirs=theirs, tolerance=tolerance)


def write_cross_checks(rows_path: Path, checks: Iterable[CrossCheck]) -> Path:
    """Write cross-check.json beside rows.jsonl atomically: package, version, and one entry per check whose values are
    both finite."""
    entries = [check.facts() for check in checks if math.isfinite(check.ours) and math.isfinite(check.theirs)]
    content = {"package": f"{PACKAGE} {version(PACKAGE)}", "rows": entries}
    path = rows_path.with_name(FILE)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


Found = tuple[float, float] | str
"""The package's value and the tolerance, or the reason why it is not asked."""


def frechet(reference: Embeddings, generated: Embeddings, metric: SetMetric, values: Mapping[str, float]) -> Found:
    """||mu_a - mu_b||^2 + Tr(S_a + S_b) - 2 sum_i sqrt(l_i), l the eigenvalues of S_a S_b as a general matrix.

    Each l comes out with an error of about e = u ||S_a|| ||S_b||, u the unit of float64 (LAPACK Users' Guide, section
    4.8, with the growth factor it leaves to practice taken as 1), and its root with e / sqrt(l), or sqrt(e) where l is
    no larger than e. With fewer clips than dimensions most l are zero, and sqrt(e) is what each of them may add; over
    features of 84, 768 and 2048 dimensions that sum was seven times the difference or more.
    """
    guard_torchvision()
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    sides = [fid_features_to_statistics(torch.from_numpy(side.matrix)) for side in (reference, generated)]
    theirs = fid_statistics_to_metric(*sides, verbose=False)[KEY_METRIC_FID]
    first, second = (side["sigma"] for side in sides)
    values_of_first, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values_of_first.clip(min=0.0))
    eigenvalues = np.linalg.eigvalsh(root.T @ second @ root)  # those of S_a S_b, from a symmetric matrix
    error = UNIT * float(values_of_first[-1] * np.linalg.norm(second, 2))
    roots = float((error / np.sqrt(eigenvalues.clip(min=error))).sum()) if error > 0.0 else 0.0
    return theirs, FRECHET_RELATIVE * abs(theirs) + 2.0 * roots


def kernel(reference: Embeddings, generated: Embeddings, metric: SetMetric, values: Mapping[str, float]) -> Found:
    """100 times the unbiased kernel distance of the mean rows of the clips, the bandwidth that of the reference.

    They take ||x||^2 + ||y||^2 - 2 x.y of rows that are not centred, which is off by about 8 u max ||x||^2, and so is
    the exponent, over 2 bandwidth^2. Ours takes x.y in float32 in large sets: up to SINGLE_REACH 1e-7 in the exponent
    of a pair, and by averaging over SINGLE_PAIRS pairs a thousandth of it in the distance.
    """
    guard_torchvision()
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    x, y = reference.means, generated.means
    if len(x) != len(y):
        return f"{PACKAGE} takes sets of one size, these have {len(x)} and {len(y)} clips"
    if len(x) > MOST_FOR_KERNEL:
        return f"{PACKAGE} holds whole kernel matrices, too large for more than {MOST_FOR_KERNEL} clips"
    bandwidth = reference_bandwidth(x)
    theirs = kid_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        kid_kernel="rbf",
        kid_kernel_rbf_sigma=bandwidth,
        kid_subsets=1,
        kid_subset_size=len(x),
        verbose=False,
    )[KEY_METRIC_KID_MEAN]
    largest = max(float(np.square(side).sum(axis=1).max()) for side in (x, y))
    exponent = 8.0 * UNIT * largest / (2.0 * bandwidth**2) + SINGLE_REACH * 1e-7 / math.sqrt(SINGLE_PAIRS)
    return KAD_SCALE * theirs, 4.0 * KAD_SCALE * exponent


def inception(reference: Embeddings, generated: Embeddings, metric: SetMetric, values: Mapping[str, float]) -> Found:
    """Mean over the parts of exp(mean KL(p(y|x) || p(y))), in float64 by both."""
    guard_torchvision()
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    splits = int(values.get(f"{metric.key}_splits", 1))
    found = isc_features_to_metric(generated.class_logits, splits=splits, shuffle=True, rng_seed=SHUFFLE_SEED)
    theirs = found[KEY_METRIC_ISC_MEAN]
    return theirs, INCEPTION_RELATIVE * abs(theirs)


COMPUTED: Mapping[Formula, Callable[[Embeddings, Embeddings, SetMetric, Mapping[str, float]], Found]] = {
    "frechet": frechet,
    "kernel": kernel,
    "inception": inception,
}
