"""Safetensors files: reading, strict loading, and the description that a converted component carries.

Models import this module alone: it knows no network.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from teacher.files import compare_recorded, file_sha256
from teacher.files.errors import WeightsError

LISTED = 8
"""Names that a message lists before it only counts."""


@dataclass(frozen=True, kw_only=True)
class ComponentInfo:
    """Where a component file came from; the JSON in its metadata."""

    component: str
    """Name of the component, as in its file name."""
    licence: str
    """Licence of the weights, one line."""
    source: str
    """Name of the file it was converted from."""
    sha256: str
    """SHA-256 of that file."""
    md5: str
    """MD5 of that file, which is what is published."""

    def metadata(self) -> dict[str, str]:
        """Metadata of the safetensors file."""
        return {"json": json.dumps(asdict(self), ensure_ascii=False)}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; WeightsError if it is absent or damaged, by digests.json beside it too."""
    compare_weights(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error


def compare_weights(path: Path, *, folder: Path | None = None) -> None:
    """As `compare_recorded`, with a WeightsError."""
    try:
        compare_recorded(path, folder=folder)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights: {error}") from error


def read_component(path: Path) -> tuple[dict[str, Tensor], ComponentInfo]:
    """Tensors and description of a converted component; WeightsError if it is absent, damaged or not one."""
    return read_tensors(path), read_component_info(path)


def read_component_info(path: Path) -> ComponentInfo:
    """The description alone, without the tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads((file.metadata() or {})["json"])
        return ComponentInfo(**{name: str(plain[name]) for name in ComponentInfo.__dataclass_fields__})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} is not a component made by mf-convert; move it away and give it to mf-convert --file"
        ) from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone; WeightsError if it is absent or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor] | Path) -> None:
    """Load tensors, or a safetensors file, whose names and shapes must be exactly those of `module`.

    Values are converted to the module's dtype. A module built on the meta device takes the tensors over as its own.
    A file's values are read only if its header fits.
    """
    expected = module.state_dict()
    shapes = {n: tuple(t.shape) for n, t in expected.items()}
    if isinstance(tensors, Mapping):
        given = tensors
        check_fit(shapes, {n: tuple(t.shape) for n, t in given.items()}, "the set of tensors")
    else:
        check_fit(shapes, read_shapes(tensors), str(tensors))
        given = read_tensors(tensors)
    if any(tensor.is_meta for tensor in expected.values()):
        owned = {n: given[n].to(t.dtype, copy=True, memory_format=torch.contiguous_format) for n, t in expected.items()}
        module.load_state_dict(owned, strict=True, assign=True)
    else:
        module.load_state_dict(dict(given), strict=True)


def check_fit(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], where: str) -> None:
    """Names and shapes must agree; WeightsError counts what is missing, unexpected and misshapen, and names a few."""
    misfits = [
        ("missing", [n for n in expected if n not in found]),
        ("unexpected", [n for n in found if n not in expected]),
        (
            "of another shape",
            [
                f"{n} {tuple(found[n])} instead of {tuple(expected[n])}"
                for n in expected
                if n in found and tuple(found[n]) != tuple(expected[n])
            ],
        ),
    ]
    if any(names for _, names in misfits):
        told = "; ".join(f"{len(names)} {what} ({few(names)})" for what, names in misfits if names)
        raise WeightsError(f"{where} does not fit: {told}")


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def file_digest(path: Path) -> str:
    """First 12 hexadecimal digits of a file's SHA-256; a file that was compared when opened is not read again."""
    return file_sha256(path)[:12]


def tensor_parts(tensors: Mapping[str, Tensor]) -> list[tuple[str, bytes]]:
    """Name, type and shape of every tensor with its bytes, the pieces of a digest of their content (`parts_digest`)."""
    return [
        (f"{name} {tensor.dtype} {list(tensor.shape)}", tensor.flatten().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    ]
