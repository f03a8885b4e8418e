"""KL divergence and inception score against closed forms and recorded numbers."""

import importlib
import importlib.util
import json
import math
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eval.metrics.inception import inception_score
from eval.metrics.kl import kl_divergence


def test_kl_of_equal_posteriors_is_zero():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert kl_divergence(logits, logits + 3.0).abs().max() < 1e-6  # softmax ignores a common shift


def test_kl_of_two_classes_is_the_closed_form_and_the_reference_comes_first():
    p, q = 0.9, 0.4
    reference = torch.tensor([[math.log(p), math.log(1 - p)]], dtype=torch.float64)
    generated = torch.tensor([[math.log(q), math.log(1 - q)]], dtype=torch.float64)
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert kl_divergence(reference, generated).item() == pytest.approx(expected, rel=1e-12)
    assert kl_divergence(generated, reference).item() != pytest.approx(expected, rel=0.1)


def test_kl_refuses_unpaired_or_broken_logits():
    with pytest.raises(ValueError, match="one shape"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="generated_logits must be finite"):
        kl_divergence(torch.zeros(1, 2), torch.tensor([[0.0, math.nan]]))


def test_inception_score_of_identical_rows_is_one():
    assert inception_score(torch.randn(1, 6, generator=torch.Generator().manual_seed(1)).repeat(20, 1)).mean == (
        pytest.approx(1.0, abs=1e-12)
    )


def test_inception_score_of_balanced_certain_classes_is_their_number():
    logits = 60.0 * torch.eye(7).repeat(5, 1)  # exp(-60) = 1e-26 elsewhere
    assert inception_score(logits, splits=1).mean == pytest.approx(7.0, abs=1e-9)


def test_inception_score_equals_an_independent_calculation():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(43, 11)) * 2
    shuffled = logits[np.random.RandomState(2020).permutation(43)]
    p = np.exp(shuffled) / np.exp(shuffled).sum(1, keepdims=True)
    scores = []
    for s in range(4):
        part = p[s * 43 // 4 : (s + 1) * 43 // 4]
        # Entropy of the mean minus mean of the entropies.
        marginal = part.mean(0)
        scores.append(np.exp(-(marginal * np.log(marginal)).sum() + (part * np.log(part)).sum(1).mean()))
    result = inception_score(torch.from_numpy(logits), splits=4)
    assert result.mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert result.std == pytest.approx(np.std(scores), rel=1e-10)


class Shim(types.ModuleType):
    """A module whose every attribute is an empty class: enough to import what only names torchvision."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.fixture
def torch_fidelity_isc(monkeypatch):
    """torch-fidelity's arithmetic. It imports torchvision for its image networks, which are not wanted here."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    for name in ("torchvision", *(f"torchvision.{n}" for n in ("transforms", "transforms.functional", "datasets"))):
        module, (parent, _, child) = Shim(name), name.rpartition(".")
        monkeypatch.setitem(sys.modules, name, module)
        if parent:
            setattr(sys.modules[parent], child, module)
    yield importlib.import_module("torch_fidelity.metric_isc")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        del sys.modules[name]


def test_inception_score_equals_torch_fidelity(torch_fidelity_isc):
    logits = torch.randn(57, 13, generator=torch.Generator().manual_seed(3)) * 3
    theirs = torch_fidelity_isc.isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
    ours = inception_score(logits, splits=10)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-7)


def test_inception_score_refuses_more_splits_than_clips():
    with pytest.raises(ValueError, match="splits must be between 1 and the number of clips, 5, got 10"):
        inception_score(torch.zeros(5, 3))


def test_recorded_kl(recordings):
    tensors = load_file(recordings / "H2_kl.safetensors")
    expected = json.loads((recordings / "H2_kl.json").read_text())["expected"]["f64.kl_softmax"]
    actual = kl_divergence(tensors["in.reference_logits"], tensors["in.generated_logits"]).mean().item()
    assert actual == pytest.approx(expected, rel=1e-12)


def test_recorded_inception_score(recordings):
    recorded = json.loads((recordings / "H3_isc.json").read_text())
    logits = load_file(recordings / "H3_isc.safetensors")["in.logits"]
    for splits in (10, 1):
        for name, seed in (("shuffled", 2020), ("unshuffled", None)):
            result = inception_score(logits, splits=splits, seed=seed)
            assert result.mean == pytest.approx(recorded["expected"][f"splits{splits}.{name}.mean"], rel=1e-12)
            assert result.std == pytest.approx(recorded["expected"][f"splits{splits}.{name}.std"], abs=1e-11)
