"""Which weights are meant: digests of the files of a run folder, and what it says of licence and teacher."""

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from teacher.weights import WeightsError, read_licence, read_run_config, weight_file

DIGEST = re.compile(r"[0-9a-f]{12,64}")
"""A SHA-256 in hexadecimal digits, or the beginning of one."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which weights are meant, whatever their files are called today."""

    name: str
    """Name of the run folder or of the published model."""
    weights: str
    """Which weights of it: model, ema-0.05, ..."""
    digest: str
    """SHA-256 of their file."""
    licence: str = "unspecified"
    teacher: str | None = None
    """Name of what a student was distilled from."""
    teacher_digest: str | None = None
    """SHA-256 of its file, or the first 12 digits."""
    codec_digest: str | None = None
    """SHA-256 of the codec's file, where the run folder holds one."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read once as long as its size and time of change stay the same."""
    path = Path(path).resolve()
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    del size, changed_ns  # part of the key only
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def identify(run: Path, weights: str = "auto") -> ModelIdentity:
    """The identity of the weights that `weights` names in a run folder, read from its files. Raises WeightsError."""
    run = Path(run)
    file = weight_file(run, weights)
    config = read_run_config(run)
    training, digests = config.get("run"), config.get("digests")
    teacher = training.get("teacher") if isinstance(training, dict) else None
    digest = digests.get("teacher") if isinstance(digests, dict) else None
    codec = run / "codec.safetensors"
    folder = run.resolve()
    name = folder.name
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):  # the hub's cache
        name = folder.parents[1].name.removeprefix("models--").replace("--", "/")
    return ModelIdentity(
        name=name,
        weights=file.stem,
        digest=file_sha256(file),
        licence=read_licence(run),
        teacher=Path(teacher).name if isinstance(teacher, str) else None,
        teacher_digest=digest if isinstance(digest, str) and DIGEST.fullmatch(digest) else None,
        codec_digest=file_sha256(codec) if codec.is_file() else None,
    )


def which_weights(digest: str, run: Path) -> str | None:
    """The weights of a run folder (model, ema-0.05, ...) that have this digest; None if none have."""
    files = sorted(Path(run).glob("*.safetensors"))
    files = [file for file in files if file.stem != "codec"]
    if not files:
        raise WeightsError(f"{run} holds no weights to compare with")
    return next((f.stem for f in files if same_digest(file_sha256(f), digest)), None)


def same_digest(one: str, other: str) -> bool:
    """Whether two digests agree as far as both go; never on fewer than 12 digits."""
    length = min(len(one), len(other))
    return length >= 12 and one[:length] == other[:length]
