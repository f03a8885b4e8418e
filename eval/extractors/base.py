"""Common parts of the adapters of published embedding models: interface, loading of official files, exact float32.

An official file is given by its path and is never downloaded. It is read as nothing but tensors, loaded strictly and
recorded by digest. PyTorch files go through the reader of `mf-convert`, which runs nothing of what they hold;
safetensors are taken as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eval.metrics.embeddings import Embeddings
from teacher.files import file_digest
from teacher.files.components import check_fit, few, load_strictly, read_tensors
from teacher.files.errors import WeightsError
from teacher.weights.untrusted import is_safetensors, load_untrusted

KEYS = ("model", "state_dict")
"""Keys under which training states keep their tensors."""
PREFIX = "module."
"""Put before every name by data-parallel wrappers."""


class EmbeddingModel(Protocol):
    """A pretrained network that gives each clip one or more embedding rows, and perhaps class logits."""

    @property
    def name(self) -> str:
        """Model, version of our front end and digest of the file: everything that changes the values."""
        ...

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the waves it expects."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of a row."""
        ...

    @property
    def loaded(self) -> "LoadedFile":
        """The file it was loaded from."""
        ...

    def embed(self, waves: Tensor) -> Embeddings:
        """waves (batch, samples) of one length. A clip's rows and logits do not depend on the batch it is in."""
        ...


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """What is known of a published file."""

    file: str
    url: str
    licence: str
    sha256: str = ""
    """The SHA-256 or its first digits; empty where it is not known."""

    def is_published(self, digest: str) -> bool | None:
        """Whether a file of that digest is the published one; None where its digest is not known."""
        length = min(len(self.sha256), len(digest))
        return self.sha256[:length] == digest[:length] if self.sha256 else None


@dataclass(frozen=True, kw_only=True)
class LoadedFile:
    """The file that a model was loaded from."""

    path: Path
    digest: str
    """First 12 hexadecimal digits of its SHA-256."""
    published: bool | None
    """Whether it is the published file; None where that one's digest is not known."""

    def __str__(self) -> str:
        known = {True: "the published file", False: "NOT the published file", None: "published digest not known"}
        return f"{self.path.name} (sha256 {self.digest}..., {known[self.published]})"


class _NotRead:
    """Replaces NumPy's classes and functions in a checkpoint: it takes their arguments and drops them.

    The published Cnn14_16k file holds the order of its training clips as an array. With this in its place, NumPy is
    never called by a file, and what is not a tensor is lost.
    """

    def __init__(self, *ignored: object) -> None:
        pass

    def __setstate__(self, ignored: object) -> None:
        pass


_NUMPY_NAMES = (
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)


def read_official(path: Path, *, unused: Sequence[str] = ()) -> dict[str, Tensor]:
    """Tensors by name, without the key they are under and without a prefix "module." common to all names.

    Tensors whose name matches one of the patterns `unused` (fnmatch) are left out, whatever their values: the causal
    mask in ImageBind's file is minus infinity above the diagonal.

    Raises:
        WeightsError: in one line, where the file is absent or empty, asks for code, is damaged, holds anything but
            tensors beside or among the weights' names, or a value that is NaN or infinite.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is {'not a file' if path.exists() else 'not there'}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty (0 bytes)")
    if is_safetensors(path):
        content: Any = read_tensors(path)
    else:
        with torch.serialization.safe_globals([(_NotRead, name) for name in _NUMPY_NAMES]):
            content = load_untrusted(path)
    for key in KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return _checked(path, content, unused)


def _checked(path: Path, content: Any, unused: Sequence[str]) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors by name")
    if not content:
        raise WeightsError(f"{path} holds no tensors")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise WeightsError(f"{path} holds something else than tensors: {few(others)}")
    cut = len(PREFIX) if all(name.startswith(PREFIX) for name in content) else 0
    tensors = {
        name[cut:]: tensor.detach()
        for name, tensor in content.items()
        if not any(fnmatchcase(name[cut:], pattern) for pattern in unused)
    }
    broken = [
        name
        for name, tensor in tensors.items()
        if tensor.layout is not torch.strided or not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise WeightsError(f"{path} holds NaN or infinite values, or sparse tensors: {few(broken)}")
    return tensors


def load_official(
    module: nn.Module,
    path: Path,
    official: OfficialFile,
    *,
    unused: Sequence[str] = (),
    names: Mapping[str, Sequence[str]] | None = None,
) -> LoadedFile:
    """Load a file strictly into `module`, which is then frozen and set to evaluation.

    `names` states the names in the module of each tensor of the file; a tensor with several names is cut into
    as many equal parts along its first axis. None means that the file's names are the module's. `unused` are patterns
    (fnmatch) of names that may be in the file and are not wanted. Floating-point values are converted to the module's
    precision; integers stay integers. A module on the meta device gets storage on the CPU.

    Raises:
        WeightsError: as `read_official`; names missing, unexpected or of another shape or kind of number.
    """
    tensors = read_official(path, unused=unused)
    own = module.state_dict()
    names = {name: (name,) for name in own} if names is None else names
    expected = {name: _joined([own[part] for part in parts]) for name, parts in names.items()}
    try:
        other = [
            name
            for name, tensor in tensors.items()
            if name in expected and tensor.dtype.is_floating_point != expected[name].dtype.is_floating_point
        ]
        if other:
            raise WeightsError(f"numbers of another kind (integer or floating point): {few(other)}")
        check_fit(_shapes(expected), _shapes(tensors), "the set of tensors")
    except WeightsError as error:
        raise WeightsError(f"{path} is not {official.file}: {error}") from error
    parted: dict[str, Tensor] = {}
    for name, parts in names.items():
        pieces = tensors[name].chunk(len(parts)) if len(parts) > 1 else (tensors[name],)
        parted |= dict(zip(parts, pieces, strict=True))
    load_strictly(module, parted)
    module.eval().requires_grad_(False)
    digest = file_digest(path)
    return LoadedFile(path=path, digest=digest, published=official.is_published(digest))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_waves(waves: Tensor, *, model: str, sample_rate: int, shortest: int) -> None:
    """Raises ValueError unless waves are finite (clips, samples) of at least `shortest` samples and one clip."""
    if waves.ndim != 2 or len(waves) == 0:
        raise ValueError(f"{model} needs waves (clips, samples), got {tuple(waves.shape)}")
    if waves.shape[1] < shortest:
        raise ValueError(
            f"{model} needs clips of at least {shortest / sample_rate:g} s ({shortest} samples), got "
            f"{waves.shape[1] / sample_rate:g} s ({waves.shape[1]})"
        )
    if not torch.isfinite(waves).all():
        raise ValueError(f"{model} needs finite waves, got NaN or infinite samples")


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 convolutions and products without TF32, whose 10-bit mantissa would move scores between devices."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
