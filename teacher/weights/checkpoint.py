"""Reading official checkpoints as nothing but named tensors. A file that asks for code is refused, and nothing is run.

Accepted: PyTorch files (zip or the older pickle) holding a dictionary of tensors, possibly under `generator`, and
safetensors. Values stay on disk until they are used wherever the format allows it.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from teacher.weights.errors import WeightsError
from teacher.weights.files import few, read_tensors

VOCODER_KEY = "generator"
"""The key under which vocoder files keep their tensors; beside it there may be a step number and the like."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors by name. Raises WeightsError in one line for anything but a flat dictionary of plain tensors."""
    if not path.exists():
        raise WeightsError(f"{path} is not there")
    if not path.is_file():
        raise WeightsError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty (0 bytes)")
    content = read_tensors(path) if is_safetensors(path) else load_untrusted(path)
    if isinstance(content, Mapping) and isinstance(content.get(VOCODER_KEY), Mapping):
        content = content[VOCODER_KEY]
    return _checked(path, content)


def load_untrusted(path: Path) -> Any:
    """torch.load of tensors only, mapped instead of read where the file is a zip archive."""
    try:
        with warnings.catch_warnings(action="ignore"):  # remarks on the format; what matters is raised
            return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"{path} asks for code ({asked[1]}), not only for tensors: it was not loaded, and nothing in it was run"
            ) from error
        raise WeightsError(f"{path} is not a PyTorch checkpoint; it was not loaded") from error
    except RuntimeError as error:
        if "legacy .tar" in str(error) or "TorchScript" in str(error):
            raise WeightsError(f"{path} is a program or an archive of an old kind, not a state dict") from error
        raise WeightsError(f"{path} is damaged or cut off, or is not a PyTorch checkpoint") from error
    except Exception as error:  # the reader of untrusted pickles fails in as many ways as there are wrong bytes
        raise WeightsError(f"{path} is not a PyTorch checkpoint, or it is damaged ({type(error).__name__})") from error


def _checked(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors by name")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise WeightsError(
            f"{path} is not a flat dictionary of tensors: under {few(others)} there is something else; "
            "it may be a training state: the weights alone are needed"
        )
    if not content:
        raise WeightsError(f"{path} holds no tensors")
    wrong = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in content.items()
        if tensor.layout is not torch.strided or not tensor.dtype.is_floating_point
    ]
    if wrong:
        raise WeightsError(f"{path} holds {len(wrong)} tensors that are not plain floating-point numbers: {few(wrong)}")
    return {name: tensor.detach() for name, tensor in content.items()}


def is_safetensors(path: Path) -> bool:
    """Eight bytes of header length, then a JSON object."""
    with path.open("rb") as stream:
        head = stream.read(9)
    length = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:] == b"{" and length <= path.stat().st_size - 8)
