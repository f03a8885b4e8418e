"""Run folders: the files of a training, a published model or a saved student, and their descriptions in JSON.

    config.json          what the run is, written before step 0 (`write_run_config`); a command with another
                         configuration is refused. {"kind": "teacher", "student" or "official"; "run": configuration of
                         the training, and "network": that of the network, both as `meanflow.config` writes dataclasses;
                         "digests": SHA-256 (12 digits) of what was read, such as "features", "teacher" and "start";
                         "package_version"; "licence" where one is inherited}
    model.safetensors    weights of the last save, named as in the network's state dict: a hard link to the file of the
                         newest checkpoint where the file system has links. Adapters are merged into it
    ema-0.05.safetensors and other widths: the same, averaged with that relative width (`average_name`). Sampling takes
                         the narrowest that training saves (`teacher.weights.loading`)
    adapter.safetensors  of a run that trains adapters: the adapters alone
    codec.safetensors    the codec of its latents (`teacher.audio.codec`)
    features.json        that of the features it was trained on (`read_features_info`)
    digests.json         length and SHA-256 of all of these, and the step of weights (`teacher.files.digests`)
    trainer/step-NNNNNNN checkpoints, all that resuming needs: model, optimizer and averages, state.json, and
                         manifest.json with the SHA-256 of each (`distill.checkpoints.store`)
    ema_ckpts/           snapshots of averages, of which `mf-ema` makes others (`distill.checkpoints.posthoc`)
    held_out.safetensors the teacher's latents of held-out clips, with which a student is compared while it trains
    metrics.jsonl        logged numbers, a line for every `log_every` steps
    history.jsonl        a line for every stretch of steps that one process, or one group of them, made: {"step": steps
                         before it, "precision", "engine", "processes", "device", "save_every", ...}
    skipped.jsonl        steps left out because loss or gradient was not finite (`distill.loop.watchdog`)
    tensorboard/         the same numbers, with sounds and pictures, for TensorBoard
    .lock                while a training writes here (`teacher.files.folders`)

Sampling needs config.json, one file of weights, codec.safetensors and features.json. Folders of one model hold just
these and digests.json: those that `mf-consolidate` takes out of a run (its config.json has "consolidated"), those that
`Pipeline.save_pretrained` writes to give away (it has "digest"; README.md and perhaps weights/ lie beside it), and
those that `mf-convert` makes around a published network (its kind is "official"). Nothing here can execute code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher.files import DIGEST, Moved, read_json, write_text
from teacher.files.errors import WeightsError
from teacher.files.version import package_version
from teacher.network.sequence import check_window

METRICS, HISTORY = "metrics.jsonl", "history.jsonl"
SNAPSHOTS = "ema_ckpts"
CONSOLIDATED = "consolidated"
"""Entry of config.json in a folder of weights that was exported from a run (`mf-consolidate`)."""
UNSPECIFIED = "unspecified"
"""Licence of a run without an entry "licence"."""
LONGEST_LICENCE, LONGEST_NAME = 2000, 100
"""Most characters that are read of a licence, and of the name of encoders or of a codec."""


def run_config(
    kind: str, run: object, network: object, digests: Mapping[str, str], licence: str | None = None
) -> dict[str, Any]:
    """The content of config.json: `run` and `network` as plain values."""
    stated = {} if licence is None else {"licence": licence}
    described = {"kind": kind, "run": run, "network": network, "digests": dict(digests)}
    return described | {"package_version": package_version()} | stated


def write_run_config(run: Path, content: Mapping[str, Any]) -> None:
    """Replace config.json atomically and flush it to disk."""
    write_text(run / "config.json", json.dumps(content, indent=2, allow_nan=False))


def read_run_config(run: Path) -> dict[str, object]:
    """config.json of a run folder as plain values. Raises WeightsError if it is missing or damaged."""
    try:
        return read_json(run / "config.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"{run} is not a run folder: it has no config.json") from error
    except ValueError as error:
        raise WeightsError(str(error)) from error


def read_licence(run: Path) -> str:
    """Licence of the weights, one line from config.json; "unspecified" if there is none."""
    text = " ".join(str(read_run_config(run).get("licence") or UNSPECIFIED)[: 2 * LONGEST_LICENCE].split())
    return "".join(c for c in text if c.isprintable())[:LONGEST_LICENCE]


@dataclass(frozen=True)
class FeaturesInfo:
    """Description of the features that a run was trained on, from its features.json."""

    duration_s: float
    encoders: str
    codec: str = "embedded"
    weights_dir: Path | None = None
    """Folder of the official components, if encoders or codec need them."""
    codec_digests: tuple[str, ...] = ()
    """Digests of the codec that encoded the features, with and without its statistics; empty if not recorded."""


def read_features_info(run: Path) -> FeaturesInfo:
    """Window duration, encoders, codec and weights folder from the features.json of a run folder."""
    path = run / "features.json"
    try:
        document = read_json(path)
        config, folder = document["config"], document.get("weights_dir")
        duration_s = float(config["duration_s"])
        check_window("duration_s", duration_s)
        return FeaturesInfo(
            duration_s=duration_s,
            encoders=str(config["encoders"])[:LONGEST_NAME],
            codec=str(config.get("codec", "embedded"))[:LONGEST_NAME],
            weights_dir=None if folder is None else Moved(run)(run / folder),
            codec_digests=_codec_digests(document.get("codec")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise WeightsError(f"{path} cannot be used: {error}; is {run} the run folder of a training?") from error


def _codec_digests(stated: object) -> tuple[str, ...]:
    if not isinstance(stated, dict):
        return ()
    digests = (stated.get("digest"), stated.get("latent_space"))
    return tuple(one for one in digests if isinstance(one, str) and DIGEST.fullmatch(one))
