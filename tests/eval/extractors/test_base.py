"""Official files: read as nothing but tensors, loaded strictly under other names too; and exact float32 for a while."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eval.extractors.base import OfficialFile, exact_float32, load_official, read_official
from eval.extractors.panns import CNN14_16K
from teacher.files.errors import WeightsError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1, 2])}
FILE = OfficialFile(file="model.pth", url="u", licence="l")


def test_key_prefix_and_safetensors_hold_the_same(tmp_path):
    prefixed = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    torch.save(WEIGHTS, tmp_path / "flat.pth")
    torch.save({"epoch": 15, "state_dict": prefixed}, tmp_path / "training.pt")
    torch.save({"model": prefixed}, tmp_path / "model.pth")
    save_file(prefixed, tmp_path / "other.safetensors")
    for file in ("flat.pth", "training.pt", "model.pth", "other.safetensors"):
        read = read_official(tmp_path / file)
        assert set(read) == set(WEIGHTS)
        assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)
    torch.save(WEIGHTS | prefixed, tmp_path / "both.pth")  # a prefix that not all names share stays
    assert set(read_official(tmp_path / "both.pth")) == set(WEIGHTS) | set(prefixed)


class Attack:
    """Runs a function when it is unpickled, if the reader lets it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_runs_nothing_that_a_file_holds(tmp_path, zipped):
    trace = tmp_path / "was-here"
    path = tmp_path / "attack.pth"
    torch.save({"model": WEIGHTS, "x": Attack(str(trace))}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="asks for code"):
        read_official(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"model": {}}, "holds no tensors"),
        ({"model": {"a": torch.zeros(1), "step": 3}}, "something else than tensors: step"),
        ({"model": {"a": np.zeros(3)}}, "something else than tensors: a"),
        ({"a": torch.tensor([1.0, math.inf])}, "NaN or infinite"),
    ],
)
def test_refuses_files_of_another_kind(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=message):
        read_official(tmp_path / "other.pth")


def test_refuses_files_that_are_not_there_or_not_whole(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(WeightsError, match="is not there"):
        read_official(path)
    path.touch()
    with pytest.raises(WeightsError, match="is empty"):
        read_official(path)
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match=r"x\.pth is"):
        read_official(path)


def test_published_digest_is_known_from_others():
    digest = "e2ee543a2791"
    assert CNN14_16K.is_published(digest) is True
    assert CNN14_16K.is_published("0" * 12) is False
    short = OfficialFile(file="f", url="u", licence="l", sha256="e2ee")
    assert (short.is_published(digest), short.is_published("e2ef" + "0" * 8)) == (True, False)
    assert OfficialFile(file="f", url="u", licence="l").is_published(digest) is None


# Loading


def triple() -> nn.Module:
    """Three layers that a file holds as one, and a counter."""
    module = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("query", "key", "value")})
    module.register_buffer("steps", torch.tensor(0))
    return module


NAMES = {"qkv": ("query.weight", "key.weight", "value.weight"), "seen_steps": ("steps",)}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_goes_in_equal_parts_under_several_names(tmp_path, device):
    with torch.device(device):
        module = triple()
    whole = torch.arange(12.0).reshape(6, 2)
    torch.save({"qkv": whole.half(), "seen_steps": torch.tensor(7)}, tmp_path / "model.pth")
    load_official(module, tmp_path / "model.pth", FILE, names=NAMES)
    state = module.state_dict()
    assert torch.equal(torch.cat([state[f"{name}.weight"] for name in ("query", "key", "value")]), whole)
    assert state["query.weight"].dtype == torch.float32
    assert (int(state["steps"]), state["steps"].dtype) == (7, torch.int64)
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(5, 2)}, r"1 of another shape \(qkv \(5, 2\) instead of \(6, 2\)\)"),
        ({"query.weight": torch.zeros(2, 2)}, r"1 unexpected \(query.weight\)"),
        ({"seen_steps": torch.tensor(7.0)}, r"another kind \(integer or floating point\): seen_steps"),
        ({"qkv": None}, r"1 missing \(qkv\)"),
    ],
)
def test_what_does_not_fit_is_named_as_in_the_file(tmp_path, change, message):
    content = {"qkv": torch.zeros(6, 2), "seen_steps": torch.tensor(7)} | change
    torch.save({name: tensor for name, tensor in content.items() if tensor is not None}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=rf"is not model\.pth: .*{message}"):
        load_official(triple(), tmp_path / "model.pth", FILE, names=NAMES)


def test_a_callers_precision_is_left_as_it_was():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
