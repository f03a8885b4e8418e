"""Official checkpoints -> component files: `weights/<component>.safetensors`, float32, names as the models have them.

A file is accepted only if its names and shapes are exactly those of a known component, so that a wrong, renamed or
half-finished file is refused here and not somewhere in a model.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from teacher.files import FolderLock, write_digests
from teacher.files.components import ComponentInfo, check_fit, read_component_info, write_component
from teacher.files.errors import WeightsError
from teacher.weights.cards import COMPONENTS, card
from teacher.weights.layouts import TABLES, Layout, canonical, identify, layouts
from teacher.weights.untrusted import check_volume, read_checkpoint

BLOCK = 2**20
Report = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Digests:
    """SHA-256 and MD5 of one file."""

    sha256: str
    md5: str

    @classmethod
    def of(cls, path: Path) -> "Digests":
        """Both in one pass over the file, in blocks."""
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with path.open("rb") as stream:
            while block := stream.read(BLOCK):
                sha256.update(block)
                md5.update(block)
        return cls(sha256=sha256.hexdigest(), md5=md5.hexdigest())


def component_path(weights_dir: Path, component: str) -> Path:
    """Where a converted component lies in a weights folder."""
    return weights_dir / f"{component}.safetensors"


def convert_file(
    source: Path,
    weights_dir: Path,
    *,
    component: str | None = None,
    strict_digest: bool = False,
    report: Report = lambda line: None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Convert one official file; the path of the component file, which is left alone if it came from the same bytes.

    component None recognises it by names and shapes. Raises WeightsError in one line, and LockedError where
    another conversion writes there; nothing is written then.
    """
    tensors = read_checkpoint(source)
    component = _recognise(source, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, component)
    check_volume(source, tensors)
    target = component_path(weights_dir, component)
    if target.exists() and target.samefile(source):
        raise WeightsError(f"{source} lies where its component goes; move it to another folder first")
    digests = Digests.of(source)
    _compare_digest(source, component, digests, strict_digest, report)
    if _converted_from(target, digests):
        return target
    stored = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"}
    if stored:
        report(f"{source.name} holds {', '.join(sorted(stored))} numbers; they are widened or rounded to float32")
    made = _canonical_tensors(source, component, tensors)
    _check_values(source, component, made)
    info = ComponentInfo(
        component=component,
        licence=card(component).licence,
        source=source.name,
        sha256=digests.sha256,
        md5=digests.md5,
    )
    with FolderLock(weights_dir, what="the folder of components"):
        write_digests(weights_dir, (), forget=[target.name])
        write_component(target, made, info, progress=progress)
        write_digests(weights_dir, [target.name])
    return target


def ensure_component(
    component: str,
    weights_dir: Path,
    *,
    strict_digest: bool = False,
    report: Report = lambda line: None,
    progress: Progress = lambda done, total: None,
) -> Path | None:
    """The component file in a weights folder, converted from the official file if that is there; None if neither is."""
    source, target = find_source(component, weights_dir), component_path(weights_dir, component)
    if source is not None:
        return convert_file(
            source, weights_dir, component=component, strict_digest=strict_digest, report=report, progress=progress
        )
    if not target.exists():
        return None
    found = read_component_info(target).component
    if found != component:
        raise WeightsError(f"{target} says it is {found}; remove it and convert again")
    return target


def find_source(component: str, weights_dir: Path) -> Path | None:
    """The official file of a component in a weights folder, under one of its names."""
    names = (card(component).file, *card(component).aliases)
    return next((weights_dir / name for name in names if (weights_dir / name).exists()), None)


def _recognise(source: Path, shapes: Layout, component: str | None) -> str:
    """The component these tensors are, which must be the one asked for, if any."""
    if component is not None and component not in COMPONENTS:
        raise WeightsError(f"unknown component {component!r}; choose one of {', '.join(COMPONENTS)}")
    if component is not None and canonical(component, shapes) in layouts(component):
        return component
    found = identify(shapes)
    if component is None and found is None:
        raise WeightsError(f"{source} is none of the known components; name one with --component to see what differs")
    if component is not None and found is not None:
        raise WeightsError(f"{source} holds {found}, not {component}")
    if component is not None:
        check_fit(layouts(component)[0], canonical(component, shapes), f"{source} as {component}")
    assert found is not None
    return found


def _canonical_tensors(source: Path, component: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names and in the shapes of `layouts.canonical`."""
    if component.startswith("mmaudio_"):
        return {name: tensor for name, tensor in tensors.items() if name not in TABLES}
    if component.startswith("bigvgan_"):
        from teacher.audio.vocoder import fold_weight_norm

        try:
            return fold_weight_norm(tensors)
        except WeightsError as error:
            raise WeightsError(f"{source}: {error}") from error
    if component == "clip_dfn5b_h14_378":
        return tensors | {"logit_scale": tensors["logit_scale"].reshape(())}
    return tensors


def _check_values(source: Path, component: str, tensors: dict[str, Tensor]) -> None:
    """A network without its latent statistics turns every sound into NaN, so it is refused."""
    if not component.startswith("mmaudio_"):
        return
    mean, std = tensors["latent_mean"].float(), tensors["latent_std"].float()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
        raise WeightsError(
            f"{source}: latent_mean or latent_std is not set (NaN, infinite or not positive): the network was saved "
            "without its latent statistics and cannot be used"
        )


def _compare_digest(source: Path, component: str, digests: Digests, strict: bool, report: Report) -> None:
    published = card(component).md5
    if published is None or published == digests.md5:
        return
    difference = f"{source.name} is not the published {component}: its md5 is {digests.md5}, published is {published}"
    if strict:
        raise WeightsError(f"{difference}; without --strict-digest it is converted all the same")
    report(f"warning: {difference}")


def _converted_from(target: Path, digests: Digests) -> bool:
    """Whether the component file is there and was made from these bytes. A file of another origin is not replaced."""
    return target.exists() and read_component_info(target).sha256 == digests.sha256
