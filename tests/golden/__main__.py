"""Reproduce every recording of a folder: `python -m tests.golden DIR`.

Dispatches on each recording's `kind`, prints the largest deviation relative to the largest recorded value beside its
tolerance, and leaves with status 1 if one is beyond it or if a kind has no implementation here yet.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from eval.frechet import frechet_distance
from eval.inception_score import inception_score
from eval.kl import kl_divergence
from eval.statistics import GaussianStats
from teacher.audio.mel import MEL_16K, MEL_44K, log_mel
from teacher.sequence import SEQUENCE_16K, SEQUENCE_44K, image_frames, sync_frames
from tests.golden.deviation import Deviation, relative
from tests.golden.recipe import Recording, recorded_network


@torch.no_grad()
def mmaudio_network(recording: Recording) -> Iterator[Deviation]:
    """Outputs, conditions and 25 guided Euler steps of the flow network, float32."""
    net, conditions = recorded_network(recording)
    t = recording.tensors
    yield relative("forward", net(t["in.latent"], t["in.t"], conditions), t["out.forward"], 2e-5)
    none = conditions.unconditional()
    if "in.negative_text_f" in t:
        none = replace(none, text=t["in.negative_text_f"].expand_as(none.text), has_text=~none.has_text)
    encoded = net.encode_conditions(conditions, t["in.latent"].shape[1])
    free = net.encode_conditions(none, t["in.latent"].shape[1])
    yield relative("unconditional", net.predict(t["in.latent"], t["in.t"], free), t["out.predict_flow_uncond"], 2e-5)
    for name, made in (("clip_f", encoded.clip), ("sync_f", encoded.sync), ("text_f", encoded.text)):
        yield relative(f"cond.{name}", made, t[f"out.cond.{name}"], 2e-5)
    config = recording.document["config"]
    strength, steps = config["cfg_strengths"][0], config["euler_steps"]
    x, ts = t["in.x0_noise"], torch.linspace(0, 1, steps + 1)
    for now, after in pairwise(ts):
        at = now.expand(len(x))
        x = x + (after - now) * (strength * net.predict(x, at, encoded) + (1 - strength) * net.predict(x, at, free))
    yield relative("euler.x1", x, t["out.euler.x1"], 4e-5)


def sequence_lengths(recording: Recording) -> Iterator[Deviation]:
    """Lengths as a function of the duration, exact."""
    wrong = 0
    for duration_s, mode, latent, clip, sync, samples in recording.document["rows"]:
        sequence = SEQUENCE_16K if mode == "16k" else SEQUENCE_44K
        made = (
            sequence.latent_frames(duration_s), image_frames(duration_s), sync_frames(duration_s),
            sequence.num_samples(duration_s),
        )  # fmt: skip
        wrong += made != (latent, clip, sync, samples)
    yield Deviation("rows that differ", float(wrong), 0.0)


def mel(recording: Recording) -> Iterator[Deviation]:
    """Log-mel spectrogram, absolute deviation in log units."""
    config = MEL_16K if recording.document["config"]["mode"] == "16k" else MEL_44K
    made = log_mel(recording.tensors["in.waveform"], config)
    yield Deviation("log_mel", float((made - recording.tensors["out.log_mel"]).abs().max()), 7e-5)


def metric_fd(recording: Recording) -> Iterator[Deviation]:
    """Frechet distances of float64 statistics; a recorded root of a singular product is good to 1e-4 only."""
    for case, tolerance in (("full_rank", 1e-9), ("rank_deficient", 1e-4), ("identical", 1e-9)):
        sets = [GaussianStats.from_features(recording.tensors[f"in.{case}.{n}"]) for n in ("reference", "generated")]
        value = recording.document["expected"][f"{case}.fd_from_float64"]
        yield Deviation(case, abs(frechet_distance(*sets) - value) / max(1.0, abs(value)), tolerance)


def metric_kl(recording: Recording) -> Iterator[Deviation]:
    """Mean softmax divergence, the reference first."""
    value = recording.document["expected"]["f64.kl_softmax"]
    made = kl_divergence(recording.tensors["in.reference_logits"], recording.tensors["in.generated_logits"]).mean()
    yield Deviation("kl_softmax", abs(float(made) - value) / abs(value), 1e-10)


def metric_isc(recording: Recording) -> Iterator[Deviation]:
    """Inception score with 10 splits and 1, shuffled and not."""
    for splits in (10, 1):
        for name, seed in (("shuffled", 2020), ("unshuffled", None)):
            value = recording.document["expected"][f"splits{splits}.{name}.mean"]
            made = inception_score(recording.tensors["in.logits"], splits=splits, seed=seed).mean
            yield Deviation(f"splits{splits}.{name}", abs(made - value) / abs(value), 1e-10)


KINDS: dict[str, Callable[[Recording], Iterator[Deviation]]] = {
    f.__name__: f for f in (mmaudio_network, sequence_lengths, mel, metric_fd, metric_kl, metric_isc)
}


def main(folder: Path) -> int:
    """Print one line per recording; the exit status."""
    names = sorted(p.stem for p in folder.glob("*.json") if p.stem != "INDEX")
    if not names:
        print(f"{folder} holds no recordings")
        return 1
    failed = missing = 0
    for name in names:
        kind = json.loads((folder / f"{name}.json").read_text())["kind"]
        if kind not in KINDS:
            missing += 1
            print(f"{name:32s} not implemented: {kind}")
            continue
        deviations = list(KINDS[kind](Recording.read(folder, name)))
        worst = max(deviations, key=lambda d: d.value - d.tolerance)
        beyond = [d for d in deviations if not d.value <= d.tolerance]
        failed += bool(beyond)
        state = "FAILED" if beyond else "ok"
        print(f"{name:32s} {state}  largest {worst.value:.1e} ({worst.name}, at most {worst.tolerance:.0e})")
    print(f"{len(names) - failed - missing} reproduced, {failed} failed, {missing} of kinds not implemented here")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.golden DIR")
    sys.exit(main(Path(sys.argv[1])))
