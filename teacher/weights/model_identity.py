"""Which weights are meant: digests of the files of a run folder, and what it says of licence and teacher."""

from dataclasses import dataclass
from pathlib import Path

from teacher.files import DIGEST, file_sha256, same_digest
from teacher.weights import WeightsError, read_licence, read_run_config, weight_file


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
