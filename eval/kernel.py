"""Kernel distance (KAD): unbiased squared maximum mean discrepancy with a Gaussian kernel."""

import numpy as np
from scipy.spatial.distance import cdist, pdist

from eval.statistics import Features, as_matrix

KAD_SCALE = 100.0
"""KAD is printed as 100 x MMD^2 (arXiv 2502.15602)."""


def reference_bandwidth(reference: Features) -> float:
    """Median distance between different clips of the reference.

    The bandwidth belongs to the reference, never to the evaluated set: distances with different kernels do not compare.
    """
    matrix = as_matrix(reference, "reference")
    if len(matrix) < 2:
        raise ValueError(f"reference must have at least 2 clips, got {len(matrix)}")
    bandwidth = float(np.median(pdist(matrix)))
    if bandwidth <= 0.0:
        raise ValueError("reference must have distinct clips: the median distance between them is 0")
    return bandwidth


def kernel_distance(reference: Features, generated: Features, *, bandwidth: float) -> float:
    """100 x unbiased MMD^2 with k(x, y) = exp(-||x - y||^2 / (2 bandwidth^2)).

    The diagonal is left out of both within-set means, so the expectation is 0 when the laws are equal and a single
    value may be negative.
    """
    if not bandwidth > 0.0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    x, y = as_matrix(reference, "reference"), as_matrix(generated, "generated")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both sets must have the same dimension, got {x.shape[1]} and {y.shape[1]}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"both sets must have at least 2 clips, got {len(x)} and {len(y)}")
    gamma = 0.5 / bandwidth**2
    within_x = float(np.exp(-gamma * pdist(x, "sqeuclidean")).mean())
    within_y = float(np.exp(-gamma * pdist(y, "sqeuclidean")).mean())
    across = float(np.exp(-gamma * cdist(x, y, "sqeuclidean")).mean())
    return KAD_SCALE * (within_x + within_y - 2.0 * across)
