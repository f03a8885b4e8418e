"""codec.safetensors: a few tensors, and metadata whose "kind" says which codec they belong to.

"content" in the metadata is a SHA-256 of everything else, so that damage is noticed wherever the file is read; files of
older versions have none.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from teacher.files import compare_recorded, parts_digest, replacing
from teacher.weights.errors import WeightsError
from teacher.weights.files import tensor_parts

FITTED = "embedded"
"""Kind of a fitted codec, and of files written before there were kinds."""
CONTENT = "content"


def write_codec_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write through a temporary file and a rename, so that a reader never meets half a file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {name: text for name, text in metadata.items() if name != CONTENT}
    content = save(plain, metadata=described | {CONTENT: _content(plain, described)})
    with replacing(path) as temporary:
        temporary.write_bytes(_sorted_metadata(content))


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({error})") from error
    recorded = metadata.pop(CONTENT, None)
    if recorded is not None and recorded != _content(tensors, metadata):
        raise WeightsError(f"{path} is damaged: its content is not what was written; restore it from a copy")
    return tensors, metadata


def _content(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return parts_digest([*tensor_parts(tensors), ("metadata", json.dumps(dict(metadata), sort_keys=True).encode())])


def _sorted_metadata(content: bytes) -> bytes:
    """Equal codecs give equal bytes: the library writes several entries of metadata in any order."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]
