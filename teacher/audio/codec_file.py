"""codec.safetensors: a few tensors, and metadata whose "kind" says which codec they belong to."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from teacher.files import compare_recorded, replacing
from teacher.weights.errors import WeightsError

FITTED = "embedded"
"""Kind of a fitted codec, and of files written before there were kinds."""


def write_codec_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write through a temporary file and a rename, so that a reader never meets half a file."""
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=dict(metadata))
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Equal codecs give equal bytes: the library writes several entries of metadata in any order."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def read_codec_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; WeightsError when the file is missing or damaged, by digests.json beside it too."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such codec file")
    try:
        compare_recorded(path)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({error})") from error
