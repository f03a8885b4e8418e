"""Weights in safetensors files: strict loading into modules, and the components that `mf-convert` makes.

A component is one file of float32 tensors whose metadata describe its origin (`ComponentInfo`). Files are compared with
digests.json beside them when they are read.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from teacher.files.digests import compare_recorded
from teacher.files.errors import WeightsError
from teacher.files.replace import replacing
from teacher.files.safetensors import Described, read_content, read_header, stream_values

LISTED = 8
"""Most names that a message lists; it gives the number of the others."""


@dataclass(frozen=True, kw_only=True)
class ComponentInfo:
    """Origin of a component file, stored as JSON in its metadata."""

    component: str
    """Name of the component, as in its file name."""
    licence: str
    """Licence of the weights, one line."""
    source: str
    """Name of the file it was converted from."""
    sha256: str
    """SHA-256 of that file."""
    md5: str
    """MD5 of that file, to compare with the published one."""

    def metadata(self) -> dict[str, str]:
        """Metadata of the safetensors file."""
        return {"json": json.dumps(asdict(self), ensure_ascii=False)}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; WeightsError if it is missing, damaged, or differs from digests.json beside it."""
    compare_weights(path)
    try:
        return read_content(path).tensors
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error


def compare_weights(path: Path, *, folder: Path | None = None) -> None:
    """As `compare_recorded`, with a WeightsError."""
    try:
        compare_recorded(path, folder=folder)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights: {error}") from error


def read_component_info(path: Path) -> ComponentInfo:
    """Read the description of a component file, without the tensors. WeightsError if it is not a component."""
    try:
        metadata = read_header(path).metadata
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error
    try:
        plain = json.loads(metadata["json"])
        return ComponentInfo(**{name: str(plain[name]) for name in ComponentInfo.__dataclass_fields__})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} is not a component made by mf-convert; move it away and give it to mf-convert --file"
        ) from error


def write_component(
    path: Path,
    tensors: Mapping[str, Tensor],
    info: ComponentInfo,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write tensors of any floating-point type as float32, in their order, with memory for one of them.

    Raises WeightsError and leaves nothing behind if a value is NaN or infinite. `progress` is called with (bytes that
    are written, bytes in all) after each tensor.
    """
    described = [Described(name, torch.float32, tuple(tensor.shape)) for name, tensor in tensors.items()]
    total = sum(one.size for one in described)

    def values() -> Iterator[Tensor]:
        done = 0
        for one in described:
            made = tensors[one.name].detach().to("cpu", torch.float32)
            if not bool(torch.isfinite(made).all()):
                raise WeightsError(f"{info.source}: {one.name} holds NaN or infinity; the file is damaged")
            yield made
            done += one.size
            progress(done, total)

    with replacing(path) as staging:
        stream_values(staging, described, values(), info.metadata())


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone; WeightsError if it is absent or damaged."""
    try:
        return {name: entry.shape for name, entry in read_header(path).entries.items()}
    except (OSError, ValueError) as error:
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
        misfit = "; ".join(f"{len(names)} {what} ({few(names)})" for what, names in misfits if names)
        raise WeightsError(f"{where} does not fit: {misfit}")


def few(names: Sequence[str]) -> str:
    """The first LISTED names, and the number of the others, as text."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def shape_of(tensors: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """Shape of a tensor that must be there with `dims` dimensions; WeightsError otherwise."""
    if name not in tensors:
        raise WeightsError(f"lacks the tensor {name}")
    shape = tuple(tensors[name].shape)
    if len(shape) != dims:
        raise WeightsError(f"holds {name} of shape {shape}, which should have {dims} dimensions")
    return shape


def count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the largest n of the names `prefix` n `.`...; WeightsError when there is none."""
    places = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    numbers = [int(place) for place in places if place.isdecimal()]
    if not numbers:
        raise WeightsError(f"lacks the tensors {prefix}0.*")
    return 1 + max(numbers)
