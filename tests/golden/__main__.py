"""Reproduce every recording of a folder: `python -m tests.golden DIR`.

Dispatches on each recording's `kind` (a document that names a `manifest` lists the tensors of a full-size model and is
of kind `manifest`), and prints the largest deviation relative to the largest recorded value beside its tolerance.
Cases, splits, sizes and names are those of the recording. A recording that cannot be read or computed is one line and
the next one follows; JSON without a kind, an index for instance, is passed over. The exit status is 1 if a recording is
beyond its tolerance or could not be reproduced, or if a kind has no implementation here.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.golden import audio, inputs, manifests, meanflow, metrics, network, sync
from tests.golden.deviation import Deviation
from tests.golden.recipe import Recording, recipe

Check = Callable[[Recording], Iterator[Deviation]]

CHECKS: tuple[Check, ...] = (
    audio.vae, audio.vocoder, inputs.clip_tokens, inputs.film_lengths, inputs.mel, inputs.sequence_lengths,
    manifests.manifest, meanflow.meanflow_jax, meanflow.meanflow_meanaudio, meanflow.meanflow_py,
    meanflow.time_samplers, metrics.metric_cosine, metrics.metric_desync, metrics.metric_evaluate, metrics.metric_fd,
    metrics.metric_isc, metrics.metric_kl, network.mmaudio_network, recipe, sync.sync_full, sync.sync_visual,
)  # fmt: skip
KINDS = {check.__name__: check for check in CHECKS}


def main(folder: Path) -> int:
    """Print one line per recording and a summary; the exit status."""
    if not folder.is_dir():
        print(f"{folder} is not a folder of recordings")
        return 1
    results = dict.fromkeys(("reproduced", "failed", "with errors", "of kinds not implemented here"), 0)
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_text())
            kind = kind_of(document)
            if kind is None:
                continue
            if kind not in KINDS:
                result, line = "of kinds not implemented here", f"not implemented here: {kind}"
            else:
                result, line = judged(list(KINDS[kind](Recording.read(folder, path.stem))))
        except Exception as error:  # whatever one recording does, the next ones are still reproduced
            result, line = (
                "with errors",
                f"ERROR  {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}",
            )
        results[result] += 1
        print(f"{path.stem:32s} {line}", flush=True)
    print(", ".join(f"{count} {result}" for result, count in results.items()))
    if not sum(results.values()):
        print(f"{folder} holds no recordings: no JSON file there names a kind")
    return 0 if sum(results.values()) == results["reproduced"] > 0 else 1


def kind_of(document: Any) -> str | None:
    """The kind that a document names, or None for one that is no recording."""
    if not isinstance(document, dict):
        return None
    return str(document["kind"]) if "kind" in document else ("manifest" if "manifest" in document else None)


def judged(deviations: list[Deviation]) -> tuple[str, str]:
    """The result of one recording, and its line. Nothing compared is nothing reproduced."""
    if not deviations:
        return "failed", "FAILED  it holds nothing to compare"
    worst = max(deviations, key=_share)
    beyond = [d.name for d in deviations if not d.value <= d.tolerance]
    return (
        "failed" if beyond else "reproduced",
        f"{'FAILED' if beyond else 'ok'}  {len(deviations)} quantities, largest deviation {worst.value:.1e} "
        f"({worst.name}, at most {worst.tolerance:.0e}){'; beyond: ' + ', '.join(beyond) if beyond else ''}",
    )


def _share(d: Deviation) -> float:
    """Deviation over tolerance: what is nearest to failing comes first."""
    if d.value != d.value:
        return float("inf")
    return d.value / d.tolerance if d.tolerance else (float("inf") if d.value else 0.0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.golden DIR")
    sys.exit(main(Path(sys.argv[1])))
