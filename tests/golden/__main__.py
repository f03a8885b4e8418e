"""Reproduce every recording of a folder: `python -m tests.golden DIR`.

Dispatches on each recording's `kind`, prints the largest deviation relative to the largest recorded value beside its
tolerance, and leaves with status 1 if one is beyond it or if a kind has no implementation here yet.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from teacher.audio.mel import MEL_16K, MEL_44K, log_mel
from teacher.sequence import SEQUENCE_16K, SEQUENCE_44K, image_frames, sync_frames
from tests.golden import audio, meanflow, metrics, network, sync
from tests.golden.deviation import Deviation
from tests.golden.recipe import Recording


def sequence_lengths(recording: Recording) -> Iterator[Deviation]:
    """Lengths as a function of the duration, exact."""
    wrong = 0
    for duration_s, mode, *recorded in recording.document["rows"]:
        sequence = SEQUENCE_16K if mode == "16k" else SEQUENCE_44K
        lengths = (sequence.latent_frames(duration_s), image_frames(duration_s), sync_frames(duration_s))
        wrong += [*lengths, sequence.num_samples(duration_s)] != recorded
    yield Deviation("rows that differ", float(wrong), 0.0)


def mel(recording: Recording) -> Iterator[Deviation]:
    """Log-mel spectrogram, absolute deviation in log units."""
    config = MEL_16K if recording.document["config"]["mode"] == "16k" else MEL_44K
    made = log_mel(recording.tensors["in.waveform"], config)
    yield Deviation("log_mel", float((made - recording.tensors["out.log_mel"]).abs().max()), 7e-5)


CHECKS: tuple[Callable[[Recording], Iterator[Deviation]], ...] = (
    audio.vae, audio.vocoder, meanflow.meanflow_jax, meanflow.meanflow_meanaudio, meanflow.meanflow_py,
    meanflow.time_samplers, mel, metrics.metric_cosine, metrics.metric_desync, metrics.metric_evaluate,
    metrics.metric_fd, metrics.metric_isc, metrics.metric_kl, network.mmaudio_network, sequence_lengths,
    sync.sync_full, sync.sync_visual,
)  # fmt: skip
KINDS = {check.__name__: check for check in CHECKS}


def main(folder: Path) -> int:
    """Print one line per recording; the exit status."""
    documents = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    kinds = {name: str(d["kind"]) for name, d in documents.items() if isinstance(d, dict) and "kind" in d}
    if not kinds:
        print(f"{folder} holds no recordings")
        return 1
    failed = missing = 0
    for name, kind in kinds.items():
        if kind not in KINDS:
            missing += 1
            print(f"{name:32s} not implemented: {kind}")
            continue
        deviations = list(KINDS[kind](Recording.read(folder, name)))
        worst = max(deviations, key=_share)
        beyond = [d.name for d in deviations if not d.value <= d.tolerance]
        failed += bool(beyond)
        state = "FAILED" if beyond else "ok"
        print(
            f"{name:32s} {state}  {len(deviations)} quantities, largest deviation {worst.value:.1e} ({worst.name}, at "
            f"most {worst.tolerance:.0e}){'; beyond: ' + ', '.join(beyond) if beyond else ''}",
            flush=True,
        )
    print(f"{len(kinds) - failed - missing} reproduced, {failed} failed, {missing} of kinds not implemented here")
    return 1 if failed or missing else 0


def _share(d: Deviation) -> float:
    """Deviation over tolerance: what is nearest to failing comes first."""
    if d.value != d.value:
        return float("inf")
    return d.value / d.tolerance if d.tolerance else (float("inf") if d.value else 0.0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.golden DIR")
    sys.exit(main(Path(sys.argv[1])))
