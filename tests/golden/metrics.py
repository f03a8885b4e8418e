"""Recordings of the metrics, reproduced from the recorded features and logits through the functions of `eval`."""

import math
import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from eval.metrics.alignment import paired_cosines
from eval.metrics.desync import DeSync, first_and_last
from eval.metrics.inception import inception_score
from eval.metrics.kl import kl_divergence, kl_sigmoid_positive_part
from eval.metrics.moments.distance import frechet_distance
from eval.metrics.moments.gaussian import GaussianStats
from teacher.encoders.synchformer_sync import class_offsets_s
from tests.golden.deviation import Deviation, relative
from tests.golden.recipe import Recording
from tests.rounding import UNIT

FLOAT32 = 1e-6
"""Ten times what float32 sums of the recorded code differ by from float64 ones."""
FLOAT64 = 1e-10
FRECHET = 1e-9
"""Roots of products of regular covariances lose a few digits."""
SINGULAR = 1e-4
"""What a recorded root of a singular product is good to."""
SPLITS, SEED = 10, 2020
"""Of the inception score in a whole evaluation, unless its recording says otherwise."""


def metric_fd(recording: Recording) -> Iterator[Deviation]:
    """Frechet distances of every recorded case; `fd_from_float64` started from float64 copies of the features."""
    for key, value in recording.document["expected"].items():
        case, _, what = key.rpartition(".")
        sets = [recording.tensors.get(f"in.{case}.{name}") for name in ("generated", "reference")]
        if what in ("fd", "fd_from_float64") and not any(one is None for one in sets):
            yield _frechet(key, *sets, value, single_means=what == "fd")
        else:
            yield Deviation.missing(key)


def metric_kl(recording: Recording) -> Iterator[Deviation]:
    """Mean divergences, the reference first. Of several generated sets the last counts, `generated`."""
    sets = [recording.tensors[f"in.{name}_logits"] for name in ("reference", "generated")]
    made = {"kl_softmax": kl_divergence(*sets).mean(), "kl_sigmoid": kl_sigmoid_positive_part(*sets).mean()}
    for key, value in recording.document["expected"].items():
        prefix, _, what = key.rpartition(".")
        if what in made:
            yield _number(key, float(made[what]), value, FLOAT64 if prefix == "f64" else FLOAT32)
        else:
            yield Deviation.missing(key)


def metric_isc(recording: Recording) -> Iterator[Deviation]:
    """Inception scores, mean and deviation over the splits, shuffled by the recorded seed and not; and the shuffle."""
    document, logits = recording.document, recording.tensors["in.logits"]
    seed = document["config"].get("rng_seed", SEED)
    for key, value in document["expected"].items():
        found = re.fullmatch(r"splits(\d+)\.(shuffled|unshuffled)\.(mean|std)", key)
        if found is None:
            yield Deviation.missing(key)
            continue
        score = inception_score(logits, splits=int(found[1]), seed=seed if found[2] == "shuffled" else None)
        yield _number(key, score.mean if found[3] == "mean" else score.std, value, FLOAT64)
    if "permutation" in document:
        shuffle = np.random.RandomState(seed).permutation(len(logits)).tolist()
        wrong = sum(a != b for a, b in zip(shuffle, document["permutation"], strict=True))
        yield Deviation("rows shuffled to another place", float(wrong), 0.0)


def metric_cosine(recording: Recording) -> Iterator[Deviation]:
    """Cosine of each pair and its mean, for every recorded kind of embedding."""
    for key in recording.document["outputs"]:
        kind, _, what = key.rpartition(".")
        sides = [recording.tensors.get(f"in.{kind}.{side}") for side in ("a", "b")]
        if what not in ("per_pair", "score") or any(side is None for side in sides):
            yield Deviation.missing(key)
            continue
        made = paired_cosines(*sides)
        if what == "score":
            yield _number(key, made.mean(), recording.document["expected"][key], FLOAT32)
        else:
            yield relative(key, torch.from_numpy(made), recording.tensors[f"out.{key}"], FLOAT32)


def metric_desync(recording: Recording) -> Iterator[Deviation]:
    """The seconds of the classes, |offset| of both windows of every clip, and the score."""
    made = DeSync.from_logits(recording.tensors["in.logits_first"], recording.tensors["in.logits_last"])
    recorded = recording.tensors
    yield relative("grid", class_offsets_s(), recorded["out.grid"], FLOAT32)
    offsets = torch.from_numpy(made.offsets_s).abs()
    yield relative("abs_offset_per_sample", offsets, recorded["out.abs_offset_per_sample"], FLOAT32)
    yield _number("desync", made.per_clip_s.mean(), recording.document["expected"]["desync"], FLOAT32)


def metric_evaluate(recording: Recording) -> Iterator[Deviation]:
    """Every metric of a paired evaluation.

    The recorded sets differ: FD-VGG and FD-PANN compare all clips of both sides, ISC-PANNS reads all generated ones,
    and everything else only clips on both sides, in the order of the generated ones: KL-PANNS by the names themselves,
    the others by names reduced to a video's. FD-VGG takes every patch as a row.
    """
    config, reduced = recording.document["config"], recording.document["reduced_names"]
    references, generated = (config[f"{side}_names"] for side in ("reference", "generated"))
    unreduced = _pairs(references, generated)
    rows = _pairs(references, [reduced.get(name, name) for name in generated])

    def every(name: str) -> Tensor:
        return recording.tensors[f"in.{name}"]

    def paired(name: str, rows: dict[str, Tensor] = rows) -> Tensor:
        return every(name)[rows[name.partition(".")[0]]]

    def head(visual: Tensor, audio: Tensor) -> Tensor:
        return visual.mean(dim=(1, 2)) @ every("offset_head.A") + audio.mean(dim=(1, 2)) @ every("offset_head.B")

    visual, audio = paired("gt.synchformer_video"), paired("pr.synchformer_audio")
    windows = [head(visual[:, window], audio[:, window]) for window in first_and_last(visual.shape[1])]
    distances = {
        "FD-VGG": (every("pr.vggish_features").flatten(0, 1), every("gt.vggish_features").flatten(0, 1)),
        "FD-PANN": (every("pr.pann_features"), every("gt.pann_features")),
        "FD-PASST": (paired("pr.passt_features"), paired("gt.passt_features")),
    }
    made = {
        "KL-PANNS-softmax": kl_divergence(
            paired("gt.pann_logits", unreduced), paired("pr.pann_logits", unreduced)
        ).mean(),
        "KL-PASST-softmax": kl_divergence(paired("gt.passt_logits"), paired("pr.passt_logits")).mean(),
        "IB-Score": paired_cosines(paired("gt.imagebind_video"), paired("pr.imagebind_audio")).mean(),
        "DeSync": DeSync.from_logits(*windows).per_clip_s.mean(),
        "LAION-CLAP-Score": paired_cosines(paired("gt.clap_laion_text"), paired("pr.clap_laion_audio")).mean(),
        "MS-CLAP-Score": paired_cosines(paired("gt.clap_ms_text"), paired("pr.clap_ms_audio")).mean(),
    }
    for name, logits in (("PANNS", every("pr.pann_logits")), ("PASST", paired("pr.passt_logits"))):
        score = inception_score(logits, splits=config.get("splits", SPLITS), seed=config.get("rng_seed", SEED))
        made |= {f"ISC-{name}-mean": score.mean, f"ISC-{name}-std": score.std}
    for key, value in recording.document["expected"].items():
        name = key.removeprefix("metric.")
        if name in distances:
            yield _frechet(name, *distances[name], value, single_means=True)
        elif name in made:
            yield _number(name, float(made[name]), value, FLOAT32)
        else:
            yield Deviation.missing(name)


def _pairs(references: list[str], generated: list[str]) -> dict[str, Tensor]:
    """Rows of the reference ("gt") and of the generated side ("pr") of every generated name that has a reference."""
    pairs = [(references.index(name), row) for row, name in enumerate(generated) if name in references]
    return {side: torch.tensor([pair[k] for pair in pairs], dtype=torch.long) for k, side in enumerate(("gt", "pr"))}


def _frechet(name: str, a: Tensor, b: Tensor, value: float, *, single_means: bool) -> Deviation:
    """The Frechet distance of two sets of rows, and how well a recorded one is determined.

    A covariance of no more rows than dimensions is singular, and a root of an eigenvalue that should be zero is as
    large as the root of its rounding. A mean summed in float32 is off by sqrt(n) UNIT of its size, half of n roundings
    being up, and moves |mu_a - mu_b|^2 by twice that times |mu_a - mu_b|.
    """
    stats = [GaussianStats.from_features(one) for one in (a, b)]
    tolerance = SINGULAR if any(len(one) <= one.shape[1] for one in (a, b)) else FRECHET
    if single_means:
        apart = float(np.linalg.norm(stats[0].mean - stats[1].mean))
        off = sum(math.sqrt(one.count) * UNIT * float(np.linalg.norm(one.mean)) for one in stats)
        tolerance += FLOAT32 + 2 * apart * off / max(1.0, abs(value))
    return _number(name, frechet_distance(*stats), value, tolerance)


def _number(name: str, made: float, recorded: float, tolerance: float) -> Deviation:
    """|made - recorded| / max(1, |recorded|)."""
    return Deviation(name, abs(float(made) - recorded) / max(1.0, abs(recorded)), tolerance)
