"""A pipeline as a folder to publish.

    config.json         network, licence, recipe, teacher, digests       model.safetensors   weights
    codec.safetensors   audio codec                                      features.json       window, encoders, codec
    README.md           model card                                       weights/            published parts, on request
    digests.json        length and SHA-256 of each, compared whenever weights are read

`Pipeline.from_pretrained` reads it, as it reads run folders. It contains no code, and no paths of the machine that
wrote it.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanflow.config import to_plain
from teacher.audio.codec import AudioCodec, write_codec_file
from teacher.audio.registry import CODECS
from teacher.encoders.registry import ENCODERS
from teacher.files import LOCK, file_digest, file_sha256, new_folder, write_digests, write_json
from teacher.files.errors import WeightsError
from teacher.files.safetensors import opened, read_content, write_tensors
from teacher.network.mmaudio import MMAudio
from teacher.weights.loading import ModelIdentity, weight_file
from teacher.weights.run_folder import read_features_info, read_run_config

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILES = ("*.json", "*.safetensors", "README.md", "weights/*.json", "weights/*.safetensors")
"""The files that are downloaded from a hub; code and pickles are not."""
PARTS = "weights"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The entries of a model card that its author provides; the others come from the weights and their run."""

    name: str
    description: str = ""
    data: str = "not stated"
    """Training data and its licence."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Value of each metric by name; `measured` must describe the clips."""
    measured: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name must not be empty")
        if self.metrics and not self.measured.strip():
            raise ValueError("measured must describe on which clips and how the metrics were measured")


def folder_of(path_or_id: str | Path) -> Path:
    """The folder itself, or the downloaded snapshot of a hub repository NAME/NAME (data files only, `FILES`).

    Raises:
        WeightsError: it is neither a folder nor such a name, or the hub cannot be reached.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(str(path_or_id)):
        raise WeightsError(f"{path_or_id} is neither a folder nor the name of a hub repository (NAME/NAME)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise WeightsError(f"{path_or_id} is not a folder here; pip install huggingface_hub to fetch it") from error
    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=list(FILES)))
    except Exception as error:  # of many kinds: no network, no such repository, no permission
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path_or_id} is not a folder here and cannot be fetched: {reason}") from error


def model_card(about: Mapping[str, Any], card: ModelCard) -> str:
    """The text of README.md with the hub's front matter: licence, teacher, data, recipe, metrics and usage."""
    licence = str(about["licence"])
    short = {"MIT": "mit", "CC BY-NC 4.0": "cc-by-nc-4.0", "CC-BY-NC 4.0": "cc-by-nc-4.0"}.get(licence, "other")
    front = ["---", f"license: {short}"]
    if short == "other":
        front.append(f"license_name: {json.dumps(licence)}")
    front += ["library_name: mf-mjt", "pipeline_tag: text-to-audio", "tags: [video-to-audio, meanflow]", "---"]
    run = dict(about["run"])
    teacher = run.pop("teacher", None)
    recipe = json.dumps(run, indent=1, ensure_ascii=False)
    parts = [
        "\n".join(front),
        f"# {card.name}",
        card.description,
        f"A {about['kind']} for sound from video and from text: windows of {about['window_s']:g} s at "
        f"{about['sample_rate']} Hz.",
        "```python\nfrom teacher import Pipeline\n\n"
        'pipe = Pipeline.from_pretrained("path/to/this/folder")\n'
        'pipe(prompt="rain on a tin roof", seeds=0)[0].save("rain.flac")\n```',
        f"**Licence of the weights:** {licence}",
        f"**Teacher:** {teacher or 'none'}",
        f"**Data:** {card.data}",
        f"**SHA-256 of model.safetensors** begins with {about['digest']}",
    ]
    if card.metrics:
        rows = "\n".join(f"| {name} | {value:g} |" for name, value in card.metrics.items())
        parts.append(f"## Metrics\n\n{card.measured}\n\n| score | value |\n|---|---|\n{rows}")
    parts.append(f"## Recipe\n\n```json\n{recipe}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedModel:
    """The content of the folder: a network and its codec, with their licence and origin."""

    net: MMAudio
    codec: AudioCodec
    window_s: float
    licence: str
    rounded: bool
    """Whether the network was rounded when it was loaded; then its tensors are written, not its original file."""
    source: Path | None
    """Run folder that the network was loaded from."""
    identity: ModelIdentity | None
    weights_dir: Path | None
    """Folder of published codec and encoder files."""

    def write(self, folder: Path, card: ModelCard, *, parts: bool = False) -> Path:
        """Write the folder of this module's description; it appears complete or not at all.

        parts: also copy the published codec and encoder files, which may be gigabytes under licences of their own.

        Raises:
            ValueError: the folder exists and is not empty.
            WeightsError: `parts` is set, but there are no such files.
        """
        with new_folder(folder) as staging:
            self._save_weights(staging / "model.safetensors")
            self._save_codec(staging / "codec.safetensors")
            about = self._about(file_digest(staging / "model.safetensors"))
            write_json(staging / "config.json", about)
            write_json(staging / "features.json", self._features(parts))
            if parts:
                self._copy_parts(staging / PARTS)
                write_digests(staging / PARTS, [path.name for path in (staging / PARTS).iterdir()])
            (staging / "README.md").write_text(model_card(about, card), encoding="utf-8")
            write_digests(staging, [path.name for path in staging.iterdir() if path.is_file() and path.name != LOCK])
        return folder

    def _about(self, digest: str) -> dict[str, Any]:
        """config.json: the network, and of the run what does not name a place on a disk."""
        document = {} if self.source is None else read_run_config(self.source)
        run = document.get("run")
        run = run if isinstance(run, dict) else {}
        recipe = {name: run[name] for name in ("method", "loop") if name in run}
        teacher = run.get("teacher")
        return {
            "kind": "student" if self.net.config.interval_embedding else "teacher",
            "network": to_plain(self.net.config),
            "licence": self.licence,
            "window_s": self.window_s,
            "sample_rate": self.codec.sequence.sample_rate,
            "digest": digest,
            "digests": document.get("digests") or {},
            "run": recipe | ({} if teacher is None else {"teacher": Path(str(teacher)).name}),
        }

    def _features(self, parts: bool) -> dict[str, Any]:
        source = None if self.source is None else read_features_info(self.source)
        return {
            "config": {
                "duration_s": self.window_s,
                "encoders": "embedded" if source is None else source.encoders,
                "codec": "embedded" if source is None else source.codec,
            },
            "codec": {"digest": self.codec.digest},
            "weights_dir": PARTS if parts else None,
        }

    def _save_weights(self, path: Path) -> None:
        """The file the network was loaded from, byte for byte, so that its digest stays; else the network's tensors."""
        if self.source is not None and self.identity is not None and not self.rounded:
            file = weight_file(self.source, self.identity.weights)
            state = self.net.state_dict()
            with opened(file) as file_tensors:
                same = set(file_tensors.keys()) == set(state) and all(
                    t.cpu().equal(file_tensors.get_tensor(n)) for n, t in state.items()
                )
            if same and file_sha256(file) == self.identity.digest:  # not where the network was changed or replaced
                shutil.copyfile(file, path)
                if file_sha256(path) != self.identity.digest:
                    raise WeightsError(f"{file} changed while it was copied; the disk may be failing")
                return
        write_tensors(path, self.net.state_dict(), {"format": "pt"})

    def _save_codec(self, path: Path) -> None:
        """The codec's file, with the folder of its parts named relative to this one."""
        self.codec.save(path)
        tensors, metadata = read_content(path)
        if "weights_dir" in metadata:
            write_codec_file(path, tensors, metadata | {"weights_dir": PARTS})  # equal codecs, equal bytes

    def _copy_parts(self, target: Path) -> None:
        folder = self.weights_dir
        files = [] if folder is None else sorted(_weight_files(folder))
        if not files:
            raise WeightsError("there are no published parts beside this pipeline: its codec and encoders need none")
        target.mkdir()
        for file in files:
            shutil.copyfile(file, target / file.name)


def _weight_files(folder: Path) -> Iterable[Path]:
    """Files of codecs and encoders; networks and what lies there besides are not part of the pipeline."""
    parts = [entry.files for entry in ENCODERS.values()] + [entry.files for entry in CODECS.values()]
    names = {file for files in parts for file in files}
    return (path for path in folder.iterdir() if path.name in names)
