"""A run folder around a published network, so that sampling and training take it like one of their own.

config.json            kind "official", the network's configuration, licences, digests of the official files
model.safetensors      the converted network: a hard link where the file system allows it, else a copy
codec.safetensors      latent_mean and latent_std from the network; VAE and vocoder stay in the weights folder
features.json          8 s windows, MMAudio's encoders and codec, the weights folder
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meanflow.config import to_plain
from teacher.files import FolderLock, link_file, write_digests, write_json
from teacher.files.components import read_component_info, read_tensors
from teacher.files.errors import WeightsError
from teacher.weights.cards import bundle, bundle_licence, card
from teacher.weights.convert import Report, component_path, ensure_component, find_source
from teacher.weights.run_folder import read_run_config, run_config, write_run_config

KIND = "official"
WINDOW_S = 8.0
"""Every published network was trained on windows of 8 s."""
RECORDED = ("config.json", "model.safetensors", "codec.safetensors", "features.json")
"""What digests.json records of the run folder."""
NEEDED_FOR = {
    "vae": "every sound: sampling, and features for training",
    "vocoder": "every sound: sampling, and features for training",
    "sync": "what is seen; sound from words alone needs none",
    "clip": "what is seen and said, in sampling and in features for training",
}
"""What does not work without a component, by kind of card."""


@dataclass(frozen=True, kw_only=True)
class OfficialRun:
    """What was made, and what is missing for what."""

    run: Path
    components: dict[str, Path]
    """Component files found or converted."""
    missing: tuple[str, ...]
    """Components whose files are not in the weights folder."""
    linked: bool
    """model.safetensors shares its bytes with the component file."""

    def __str__(self) -> str:
        lines = [f"{self.run}: {', '.join(self.components)}"]
        lines.append(f"model.safetensors is a {'hard link to' if self.linked else 'copy of'} the converted network")
        for component in self.missing:
            known = card(component)
            lines.append(f"missing {component} ({known.file}, {known.size_text}): needed for {NEEDED_FOR[known.kind]}")
        if self.missing:
            lines.append(
                "the network itself can be used as it is; add the missing files and run the same command again"
            )
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
    """Convert what a published variant needs and make its run folder; config.json is written last.

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
    """The folder is new, or holds the same variant, which is made again."""
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
