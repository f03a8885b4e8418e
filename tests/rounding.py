"""What float32 costs: bounds on rounding from which the tests derive their tolerances.

Processors add in other orders, fuse other products and round sines and logarithms by another last bit. Two of them
agree within the conditioning of a quantity, and no further.
"""

import math
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)

UNIT = 2.0**-24
"""Largest relative error of one rounding to float32."""


HANN = (math.pi + 1) * UNIT
"""Error of a Hann window 1/2 - cos(x) / 2 made in float32, where x, up to 2 pi, the cosine and the rest are rounded."""


def transform(frame_norm: Number, n_fft: int) -> Number:
    """Error of every bin of a fast transform: each of its log2(n_fft) levels rounds once, in every bin alike.

    The norm of the windowed frame is the root mean square of the bins, so that a quiet bin beside a loud one is as
    uncertain as that one.
    """
    return UNIT * math.log2(n_fft) * frame_norm


def two_ways(layers: int, terms: int, size: float) -> float:
    """How far two ways to run the same layers may differ, in other batches, lengths or numbers of threads.

    A sum of `terms` products of `size` in another order is off by sqrt(terms) UNIT size, its roundings being of both
    signs; every layer adds its own to what reaches it; both ways err; and twice that leaves room for the worst number.
    """
    return 4 * layers * math.sqrt(terms) * UNIT * size


def log_energy(
    energy: Number, *, floor: float, frame_norm: Number, n_fft: int, area: Number, filters: float = 0.0
) -> Number:
    """Bound on the rounding of ln(E + floor), with E = sum_k f_k |X_k|^2 the energy of one filter; numbers or tensors.

    With d = `transform`, by Cauchy and Schwarz dE <= 2 sqrt(E area) d + area d^2, where area = sum_k f_k; `filters` is
    the relative error of E that the weights f themselves bring.
    """
    d = transform(frame_norm, n_fft)
    return (2.0 * (energy * area) ** 0.5 * d + area * d**2 + energy * filters) / (energy + floor) + UNIT
