"""Recordings of the metrics, reproduced from the recorded features and logits through the functions of `eval`."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eval.alignment import paired_cosines
from eval.desync import DeSync
from eval.frechet import frechet_distance
from eval.inception_score import inception_score
from eval.kl import kl_divergence, kl_sigmoid_positive_part
from eval.statistics import Features, GaussianStats
from teacher.encoders.synchformer_sync import class_offsets_s
from tests.golden.deviation import Deviation, relative
from tests.golden.recipe import Recording

FLOAT32 = 1e-6
"""Ten times what float32 sums of the recorded code differ by from float64 ones."""


def metric_fd(recording: Recording) -> Iterator[Deviation]:
    """Frechet distances of float64 statistics; a recorded root of a singular product is good to 1e-4 only."""
    for case, tolerance in (("full_rank", 1e-9), ("rank_deficient", 1e-4), ("identical", 1e-9)):
        sets = [recording.tensors[f"in.{case}.{name}"] for name in ("reference", "generated")]
        yield _number(case, _frechet(*sets), recording.document["expected"][f"{case}.fd_from_float64"], tolerance)


def metric_kl(recording: Recording) -> Iterator[Deviation]:
    """Mean softmax divergence, the reference first."""
    value = recording.document["expected"]["f64.kl_softmax"]
    made = kl_divergence(recording.tensors["in.reference_logits"], recording.tensors["in.generated_logits"]).mean()
    yield _number("kl_softmax", float(made), value, 1e-10)
    value = recording.document["expected"]["f64.kl_sigmoid"]
    made = kl_sigmoid_positive_part(recording.tensors["in.reference_logits"], recording.tensors["in.generated_logits"])
    yield _number("kl_sigmoid", float(made.mean()), value, 1e-10)


def metric_isc(recording: Recording) -> Iterator[Deviation]:
    """Inception score with 10 splits and 1, shuffled and not."""
    for splits in (10, 1):
        for name, seed in (("shuffled", 2020), ("unshuffled", None)):
            value = recording.document["expected"][f"splits{splits}.{name}.mean"]
            made = inception_score(recording.tensors["in.logits"], splits=splits, seed=seed).mean
            yield _number(f"splits{splits}.{name}", made, value, 1e-10)


def metric_cosine(recording: Recording) -> Iterator[Deviation]:
    """Cosine of each pair and its mean, for both kinds of embedding."""
    for kind in recording.document["config"]["pairs"]:
        made = paired_cosines(*(recording.tensors[f"in.{kind}.{side}"] for side in ("a", "b")))
        yield relative(f"{kind}.per_pair", torch.from_numpy(made), recording.tensors[f"out.{kind}.per_pair"], FLOAT32)
        yield _number(f"{kind}.score", made.mean(), recording.document["expected"][f"{kind}.score"], FLOAT32)


def metric_desync(recording: Recording) -> Iterator[Deviation]:
    """The seconds of the classes, |offset| of both windows of every clip, and the score."""
    made = DeSync.from_logits(recording.tensors["in.logits_first"], recording.tensors["in.logits_last"])
    recorded = recording.tensors
    yield relative("grid", class_offsets_s(), recorded["out.grid"], FLOAT32)
    offsets = torch.from_numpy(made.offsets_s).abs()
    yield relative("abs_offset_per_sample", offsets, recorded["out.abs_offset_per_sample"], FLOAT32)
    yield _number("desync", made.mean_s, recording.document["expected"]["desync"], FLOAT32)


def metric_evaluate(recording: Recording) -> Iterator[Deviation]:
    """Every metric of a paired evaluation.

    The recorded sets differ: FD-VGG and FD-PANN compare all clips of both sides, ISC-PANNS reads all generated ones,
    and everything else only clips on both sides, in the order of the generated ones. FD-VGG takes every patch as a row.
    """
    references, generated = (recording.document["config"][f"{side}_names"] for side in ("reference", "generated"))
    reduced = [recording.document["reduced_names"][name] for name in generated]
    pairs = [(references.index(name), row) for row, name in enumerate(reduced) if name in references]
    rows = dict(zip(("gt", "pr"), (torch.tensor(side) for side in zip(*pairs, strict=True)), strict=True))

    def every(name: str) -> Tensor:
        return recording.tensors[f"in.{name}"]

    def paired(name: str) -> Tensor:
        return every(name)[rows[name.partition(".")[0]]]

    def head(visual: Tensor, audio: Tensor) -> Tensor:
        return visual.mean(dim=(1, 2)) @ every("offset_head.A") + audio.mean(dim=(1, 2)) @ every("offset_head.B")

    made = {
        "FD-VGG": _frechet(every("pr.vggish_features").flatten(0, 1), every("gt.vggish_features").flatten(0, 1)),
        "FD-PANN": _frechet(every("pr.pann_features"), every("gt.pann_features")),
        "FD-PASST": _frechet(paired("pr.passt_features"), paired("gt.passt_features")),
        "KL-PANNS-softmax": kl_divergence(paired("gt.pann_logits"), paired("pr.pann_logits")).mean(),
        "KL-PASST-softmax": kl_divergence(paired("gt.passt_logits"), paired("pr.passt_logits")).mean(),
        "IB-Score": paired_cosines(paired("gt.imagebind_video"), paired("pr.imagebind_audio")).mean(),
        "DeSync": DeSync.from_features(paired("gt.synchformer_video"), paired("pr.synchformer_audio"), head).mean_s,
        "LAION-CLAP-Score": paired_cosines(paired("gt.clap_laion_text"), paired("pr.clap_laion_audio")).mean(),
        "MS-CLAP-Score": paired_cosines(paired("gt.clap_ms_text"), paired("pr.clap_ms_audio")).mean(),
    }
    for name, logits in (("PANNS", every("pr.pann_logits")), ("PASST", paired("pr.passt_logits"))):
        score = inception_score(logits)
        made |= {f"ISC-{name}-mean": score.mean, f"ISC-{name}-std": score.std}
    for key, value in recording.document["expected"].items():
        name = key.removeprefix("metric.")
        yield _number(name, float(made.get(name, float("inf"))), value, FLOAT32)


def _frechet(a: Features, b: Features) -> float:
    return frechet_distance(GaussianStats.from_features(a), GaussianStats.from_features(b))


def _number(name: str, made: float, recorded: float, tolerance: float) -> Deviation:
    """|made - recorded| / max(1, |recorded|)."""
    return Deviation(name, abs(float(made) - recorded) / max(1.0, abs(recorded)), tolerance)
