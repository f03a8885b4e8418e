"""Corpus metrics against scipy's sqrtm and torch-fidelity: `OMP_NUM_THREADS=1 python -m benchmarks.metrics_speed`.

Both sides compute every metric from the same float64 features (logits for the inception score) in one process, in turn;
the results are compared too. Prints every row when it is finished, and a Markdown table at the end. At 15,000 x 2,048
torch-fidelity's kernel distance stores whole kernel matrices, about 14 GB.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import scipy
import torch
import tyro

from eval.ledger import NumberTable, record
from eval.metrics.inception import inception_score
from eval.metrics.kernel import KAD_SCALE, kernel_distance, reference_bandwidth
from eval.metrics.moments.distance import frechet_distance
from eval.metrics.moments.jackknife import frechet_jackknife
from eval.metrics.uncertainty import jackknife
from mf_mjt_torchvision import guard_torchvision

Metric = Literal["inception_score", "frechet", "jackknife", "kad", "sqrtm"]
"""`frechet`: against torch-fidelity; `sqrtm`: against scipy's matrix root; `jackknife`: against deleting the groups one
by one, which takes as long as 20 distances."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    clips: int = 15_000
    dimensions: int = 2048
    classes: int = 527
    inception_repeats: int = 5
    """Times that each side computes the inception score, in turn; medians are printed."""
    frechet_repeats: int = 3
    """Times that each side computes the Frechet distance, in turn; medians are printed."""
    groups: int = 20
    """Groups of the jackknife."""
    metrics: tuple[Metric, ...] = ("inception_score", "frechet", "jackknife", "kad", "sqrtm")
    record: Path | None = None
    """Also write the figures to this file of the ledger."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A result, and its wall-clock and CPU seconds."""

    value: float
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Side:
    """One implementation of a metric."""

    name: str
    calculate: Callable[[], float]

    def timed(self) -> Timed:
        """One call."""
        wall, cpu = time.perf_counter(), time.process_time()
        value = self.calculate()
        return Timed(value=value, wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu)


def in_turns(sides: list[Side], repeats: int) -> list[Timed]:
    """Medians of `repeats` calls of every side, the sides taking turns."""
    runs = [[side.timed() for side in sides] for _ in range(repeats)]
    return [
        Timed(
            value=of_side[0].value,
            wall_s=statistics.median(run.wall_s for run in of_side),
            cpu_s=statistics.median(run.cpu_s for run in of_side),
        )
        for of_side in zip(*runs, strict=True)
    ]


def features(options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Two sets (clips, dimensions) with standard deviations falling as i^-1/2, rotated; the second moved and wider."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, options.dimensions + 1) ** -0.5
    rotation = np.linalg.qr(rng.normal(size=(options.dimensions, options.dimensions)))[0]
    shape = (options.clips, options.dimensions)
    return (rng.normal(size=shape) * scale) @ rotation, (1.1 * rng.normal(size=shape) * scale + 0.02) @ rotation


def sqrtm_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The Frechet distance by scipy's matrix square root, as av-benchmark and others compute it."""
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(axis=0) - y.mean(axis=0)
    root = scipy.linalg.sqrtm(first @ second)
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2.0 * np.trace(root).real)


def fidelity_distance(x: np.ndarray, y: np.ndarray) -> float:
    """torch-fidelity's Frechet distance from features."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    sides = [fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
    return float(fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"])


def fidelity_kernel_distance(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """torch-fidelity's unbiased squared discrepancy with its Gaussian kernel, all clips in one subset, x 100."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    kernel = {"kid_kernel": "rbf", "kid_kernel_rbf_sigma": bandwidth}
    subsets = {"kid_subsets": 1, "kid_subset_size": min(len(x), len(y))}
    found = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **kernel, **subsets, verbose=False)
    return KAD_SCALE * float(found["kernel_inception_distance_mean"])


def fidelity_inception_score(logits: torch.Tensor) -> float:
    """torch-fidelity's inception score, 10 splits."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    return float(isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)["inception_score_mean"])


def comparisons(options: Options) -> Iterator[tuple[str, int, Side, list[Side]]]:
    """Metric, repeats, our side and the others."""
    if "inception_score" in options.metrics:
        generator = torch.Generator().manual_seed(0)
        logits = 3.0 * torch.randn(options.clips, options.classes, generator=generator)
        ours = Side(name="eval", calculate=lambda: inception_score(logits).mean)
        theirs = Side(name="torch-fidelity", calculate=lambda: fidelity_inception_score(logits))
        shape = f"{options.clips:,} x {options.classes}"
        yield f"inception score, {shape}", options.inception_repeats, ours, [theirs]
    if not {"frechet", "jackknife", "kad", "sqrtm"} & set(options.metrics):
        return
    x, y = features(options)
    shape = f"{options.clips:,} x {options.dimensions:,}"
    if "kad" in options.metrics:
        width = Side(name="bandwidth", calculate=lambda: reference_bandwidth(x)).timed()
        ours = Side(name="eval", calculate=lambda: kernel_distance(x, y, bandwidth=width.value))
        theirs = Side(name="torch-fidelity", calculate=lambda: fidelity_kernel_distance(x, y, width.value))
        yield f"KAD, {shape}", 1, ours, [theirs]
    others = (
        [Side(name="torch-fidelity", calculate=lambda: fidelity_distance(x, y))] if "frechet" in options.metrics else []
    )
    if "sqrtm" in options.metrics:
        others.append(Side(name="scipy sqrtm", calculate=lambda: sqrtm_distance(x, y)))
    if others:
        ours = Side(name="eval", calculate=lambda: frechet_distance(x, y))
        yield f"Frechet distance, {shape}", options.frechet_repeats, ours, others
    if "jackknife" in options.metrics:
        name = f"standard error of it, {options.groups} groups"
        ours = Side(name="eval", calculate=lambda: frechet_jackknife(x, y, groups=options.groups).standard_error)
        plain = partial(jackknife, frechet_distance, x, y, groups=options.groups)
        theirs = Side(name="group by group", calculate=lambda: plain().standard_error)
        yield name, 1, ours, [theirs]


def run(options: Options) -> None:
    """Print the table."""
    guard_torchvision()
    import torch_fidelity

    versions = f"torch {torch.__version__}, scipy {scipy.__version__}, torch-fidelity {torch_fidelity.__version__}"
    print(f"{torch.get_num_threads()} thread(s), {versions}\n")
    measured = []
    for metric, repeats, ours, others in comparisons(options):
        mine, *theirs = in_turns([ours, *others], repeats)
        for other, its in zip(others, theirs, strict=True):
            difference = abs(mine.value - its.value) / abs(its.value)
            ratios = (its.wall_s / mine.wall_s, its.cpu_s / mine.cpu_s)
            measured.append((metric, other.name, mine.wall_s, mine.cpu_s, its.wall_s, its.cpu_s, *ratios, difference))
            print(*measured[-1], flush=True)
    table = NumberTable(
        columns=(
            "metric", "against", "eval s", "CPU s", "other s", "CPU s", "faster", "by CPU s", "relative difference",
        ),
        formats=("", "", ".2f", ".2f", ".2f", ".2f", ".1f", ".1f", ".0e"),
        rows=tuple(measured),
    )  # fmt: skip
    print(f"\n{table.markdown()}")
    if options.record:
        record(options.record, tables={"metrics": table})


if __name__ == "__main__":
    run(tyro.cli(Options))
