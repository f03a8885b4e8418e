"""Official checkpoints -> component files, and a run folder around a published network (`mf-convert`).

A component is `weights/<component>.safetensors`: float32, with the models' parameter names. A file is accepted only if
its names and shapes are exactly those of a known component, so that a wrong or incomplete file is refused here and not
when a model is loaded.

The run folder (`teacher.weights.run_folder`) makes a published network usable like one that was trained here:

config.json            kind "official", the network's configuration, licences, digests of the official files
model.safetensors      the converted network: a hard link where the file system allows it, else a copy
codec.safetensors      latent_mean and latent_std from the network; VAE and vocoder stay in the weights folder
features.json          8 s windows, MMAudio's encoders and codec, the weights folder
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from meanflow.config import to_plain
from teacher.files import FolderLock, link_file, write_digests, write_json
from teacher.files.components import ComponentInfo, check_fit, read_component_info, read_tensors, write_component
from teacher.files.errors import WeightsError
from teacher.weights.cards import COMPONENTS, bundle, bundle_licence, card
from teacher.weights.layouts import TABLES, Layout, canonical, identify, layouts
from teacher.weights.run_folder import read_run_config, run_config, write_run_config
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
        """Both digests, computed in one pass over the file."""
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with path.open("rb") as stream:
            while block := stream.read(BLOCK):
                sha256.update(block)
                md5.update(block)
        return cls(sha256=sha256.hexdigest(), md5=md5.hexdigest())


def component_path(weights_dir: Path, component: str) -> Path:
    """Path of a converted component in a weights folder."""
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
    """Convert one official file; returns the path of the component file, which is not rewritten for the same input.

    component None recognises it by names and shapes. Raises WeightsError in one line, and LockedError where
    another conversion writes there; nothing is written then.
    """
    tensors = read_checkpoint(source)
    component = _recognise(source, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, component)
    check_volume(source, tensors)
    target = component_path(weights_dir, component)
    if target.exists() and target.samefile(source):
        raise WeightsError(f"{source} has the path of the component to write; move it to another folder first")
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
        raise WeightsError(f"{target} contains {found}; remove it and convert again")
    return target


def find_source(component: str, weights_dir: Path) -> Path | None:
    """The official file of a component in a weights folder, under one of its names."""
    names = (card(component).file, *card(component).aliases)
    return next((weights_dir / name for name in names if (weights_dir / name).exists()), None)


def _recognise(source: Path, shapes: Layout, component: str | None) -> str:
    """Name of the component with these tensors. Raises WeightsError if it is not the requested one."""
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
    """Raise WeightsError for a network without latent statistics, which would turn every sound into NaN."""
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
    """Whether the component file exists and was converted from a file with these digests."""
    return target.exists() and read_component_info(target).sha256 == digests.sha256


KIND = "official"
WINDOW_S = 8.0
"""Every published network was trained on windows of 8 s."""
RECORDED = ("config.json", "model.safetensors", "codec.safetensors", "features.json")
"""Files of the run folder that are recorded in digests.json."""
NEEDED_FOR = {
    "vae": "every sound: sampling, and features for training",
    "vocoder": "every sound: sampling, and features for training",
    "sync": "video; sound from text alone does not need it",
    "clip": "video and text: sampling, and features for training",
}
"""What a component is needed for, by kind of card."""


@dataclass(frozen=True, kw_only=True)
class OfficialRun:
    """Result of `make_run`: the run folder, its components and the missing ones."""

    run: Path
    components: dict[str, Path]
    """Component files that were found or converted, by name."""
    missing: tuple[str, ...]
    """Components whose files are not in the weights folder."""
    linked: bool
    """Whether model.safetensors is a hard link to the component file."""

    def __str__(self) -> str:
        lines = [f"{self.run}: {', '.join(self.components)}"]
        lines.append(f"model.safetensors is a {'hard link to' if self.linked else 'copy of'} the converted network")
        for component in self.missing:
            known = card(component)
            lines.append(f"missing {component} ({known.file}, {known.size_text}): needed for {NEEDED_FOR[known.kind]}")
        if self.missing:
            lines.append("the network itself is complete; add the missing files and run the same command again")
        return "\n".join(lines)


def make_run(
    variant: str,
    weights_dir: Path,
    run: Path,
    *,
    strict_digest: bool = False,
    report: Report = lambda line: None,
    progress: Callable[[str], Callable[[int, int], None]] = lambda component: lambda done, total: None,
) -> OfficialRun:
    """Convert the components of a published variant and make its run folder; config.json is written last.

    Raises WeightsError if the network itself is missing, or the folder already holds another run.
    """
    from teacher.network.variants import variant as network_config

    names = bundle(variant)
    _check_free(run, variant)
    if find_source(names[0], weights_dir) is None and not component_path(weights_dir, names[0]).exists():
        raise WeightsError(
            f"{weights_dir / card(names[0]).file} is not there; fetch it with `mf-fetch {variant} --weights-dir "
            f"{weights_dir}` or put it there"
        )
    components: dict[str, Path] = {}
    for component in names:
        made = ensure_component(
            component, weights_dir, strict_digest=strict_digest, report=report, progress=progress(component)
        )
        if made is not None:
            components[component] = made
    with FolderLock(run, what="the run folder"):
        if (run / "config.json").exists():  # another conversion may have made it in the meantime
            _check_free(run, variant)
        write_digests(run, (), forget=RECORDED)
        link_file(components[names[0]], run / "model.safetensors")
        linked = (run / "model.safetensors").samefile(components[names[0]])
        _write_codec(run / "codec.safetensors", variant, weights_dir, components)
        features = {
            "duration_s": WINDOW_S,
            "encoders": "mmaudio",
            "codec": _codec_name(variant),
        }
        write_json(run / "features.json", {"config": features, "weights_dir": str(weights_dir.resolve())}, indent=2)
        made_of = {"variant": variant, "weights_dir": str(weights_dir.resolve())}
        digests = {component: read_component_info(path).sha256 for component, path in components.items()}
        network = to_plain(network_config(variant))
        write_run_config(run, run_config(KIND, made_of, network, digests, bundle_licence(variant)))
        write_digests(run, RECORDED)
    missing = tuple(component for component in names if component not in components)
    return OfficialRun(run=run, components=components, missing=missing, linked=linked)


def _check_free(run: Path, variant: str) -> None:
    """Raise WeightsError unless the folder is new or holds the same variant, which is then made again."""
    if not (run / "config.json").exists():
        if run.is_dir() and any(run.glob("*.safetensors")):
            raise WeightsError(f"{run} holds weights without a config.json; choose another --out")
        return
    recorded = read_run_config(run)
    made_of = recorded.get("run")
    if recorded.get("kind") != KIND or not isinstance(made_of, dict) or made_of.get("variant") != variant:
        raise WeightsError(f"{run} holds another run ({recorded.get('kind')}); choose another --out")


def _codec_name(variant: str) -> str:
    return f"mmaudio_{variant.split('_')[1]}"


def _write_codec(path: Path, variant: str, weights_dir: Path, components: dict[str, Path]) -> None:
    from teacher.audio.codec import write_codec_file

    network, vae, vocoder, *_ = bundle(variant)
    tensors = read_tensors(components[network])
    digests = {c: read_component_info(components[c]).sha256 if c in components else "" for c in (vae, vocoder)}
    metadata = {
        "kind": _codec_name(variant),
        "weights_dir": str(weights_dir.resolve()),
        "vae": digests[vae],
        "vocoder": digests[vocoder],
    }
    statistics = {name: tensors[name].flatten().clone() for name in ("latent_mean", "latent_std")}
    write_codec_file(path, statistics, metadata)
