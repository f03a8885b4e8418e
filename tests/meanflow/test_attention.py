"""Attention inside a derivative: exact tangents, bounded memory, the choice and its reasons."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from meanflow import ForwardAD
from meanflow import attention as module
from meanflow.attention import attention, choose_attention, chunked_attention, exact_tangents

KERNEL = {"device": "cuda", "dtype": torch.bfloat16, "head_dim": 64, "tokens": 250, "installed": True}


def _qkv(queries, keys, generator, dtype=torch.float64):
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    draw = lambda: tuple(torch.randn(s, generator=generator, dtype=dtype) for s in shapes)  # noqa: E731
    return draw(), draw()


def _plain(primals, tangents):
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        return torch.func.jvp(F.scaled_dot_product_attention, primals, tangents)


@pytest.mark.parametrize("chunk", [1, 5, 16, 37, None])
@pytest.mark.parametrize(("queries", "keys"), [(37, 37), (37, 11), (1, 64)])
def test_chunks_agree_with_the_plain_form(generator, queries, keys, chunk):
    """Float64 sums of at most 64 terms of size 1: a few times 1e-15."""
    primals, tangents = _qkv(queries, keys, generator)
    with torch.no_grad():
        made = torch.func.jvp(lambda q, k, v: chunked_attention(q, k, v, chunk), primals, tangents)
    torch.testing.assert_close(made, _plain(primals, tangents), rtol=0, atol=1e-12)


@pytest.mark.parametrize("constant", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_inputs_without_a_tangent_are_constants(generator, constant):
    primals, tangents = _qkv(20, 20, generator)
    varying = [i for i in range(3) if i not in constant]

    def of(attend):
        def f(extra, *some):
            full = list(primals)
            for i, x in zip(varying, some, strict=True):
                full[i] = x
            return attend(*full) + extra

        return f

    inputs = [torch.zeros(2, 3, 20, 8, dtype=torch.float64), *(primals[i] for i in varying)]
    along = [torch.ones_like(inputs[0]), *(tangents[i] for i in varying)]
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        expected = torch.func.jvp(of(F.scaled_dot_product_attention), tuple(inputs), tuple(along))
        made = torch.func.jvp(of(lambda q, k, v: chunked_attention(q, k, v, 7)), tuple(inputs), tuple(along))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


def test_a_tangent_is_refused_by_the_fused_form_outside_a_derivative(generator):
    """Someone's own torch.func.jvp is never silently wrong: it fails, or is exact where MATH alone is allowed."""
    primals, tangents = _qkv(37, 37, generator)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(attention, primals, tangents)
    with sdpa_kernel([SDPBackend.MATH]):
        made = torch.func.jvp(attention, primals, tangents)
    torch.testing.assert_close(made, _plain(primals, tangents), rtol=0, atol=1e-12)


class Largest(TorchDispatchMode):
    """The most elements that any tensor made inside has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.elements = max([self.elements, *(x.numel() for x in made if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("own", [True, False])
def test_scores_of_all_queries_never_exist(generator, monkeypatch, own):
    """1 x 1 x 512 x 512 scores in chunks of 2^14: at most 2^14 elements or an input with its tangent, 512 x 16. The
    second case is a module that calls scaled_dot_product_attention itself."""
    monkeypatch.setattr(module, "SCORES", {"cpu": 2**14, "gpu": 0})
    x, v = torch.randn(2, 1, 1, 512 * 8, generator=generator, dtype=torch.float64)
    r, t = torch.tensor([0.2, 0.5], dtype=torch.float64).split(1)
    attend = attention if own else F.scaled_dot_product_attention

    def u(x, r, t):
        q = x.view(1, 1, 512, 8) * t[:, None, None, None]
        return attend(q, q.sin(), q.cos()).reshape(x.shape)

    with Largest() as seen:
        ForwardAD()(u, x, r, t, v)
    assert seen.elements <= 2**14


def test_half_precision_is_multiplied_in_float32(generator):
    """bfloat16 inputs, exact products: only rounding of the result, 2^-9 relative to its largest, remains."""
    primals, tangents = (tuple(x.bfloat16() for x in xs) for xs in _qkv(37, 37, generator))
    wide = _plain(*(tuple(x.double() for x in xs) for xs in (primals, tangents)))
    with torch.no_grad():
        made = torch.func.jvp(lambda q, k, v: chunked_attention(q, k, v, 5), primals, tangents)
    for a, b in zip(made, wide, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).abs().max() < 2**-8 * b.abs().max()


def test_kernel_is_chosen_where_it_applies():
    name, reason = choose_attention(**KERNEL)
    assert name == "kernel"
    assert "250 tokens" in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cpu"}, "the device is cpu"),
        ({"installed": False}, "not installed"),
        ({"dtype": torch.float32}, "full precision"),
        ({"head_dim": 48}, "head_dim is 48"),
        ({"tokens": 391}, "391 tokens"),
        ({"tokens": 30}, "30 tokens"),
        ({"same_shape": False}, "differ in shape"),
        ({"tangents": False}, "have a tangent"),
    ],
)
def test_chunks_are_chosen_elsewhere_with_the_reason(change, reason):
    choice = choose_attention(**KERNEL | change)
    assert choice.name == "chunked"
    assert reason in choice.reason


def test_choice_is_said_once_per_reason(generator, capsys):
    module._say.cache_clear()
    (q, k, v), _ = _qkv(8, 8, generator)
    with torch.no_grad(), exact_tangents():
        attention(q, k, v)
        attention(q, k, v)
    assert capsys.readouterr().err.splitlines() == [
        "attention inside a derivative: chunked (the device is cpu, the kernel needs cuda)"
    ]


def test_the_kernel_gets_dual_tensors_in_half_precision(generator, monkeypatch):
    """A stand-in for the package, with the plain form inside: the call and the tangents are those of the seam."""
    import sys
    from types import ModuleType, SimpleNamespace

    seen = []

    def fwd_dual(q, k, v):
        seen.append(q.dtype)
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v

    fake = ModuleType("jvp_flash_attention.jvp_attention")
    fake.JVPAttn = SimpleNamespace(fwd_dual=fwd_dual)
    monkeypatch.setitem(sys.modules, "jvp_flash_attention", ModuleType("jvp_flash_attention"))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(module, "choose_attention", lambda **_: module.Choice("kernel", "a test"))
    primals, tangents = _qkv(32, 32, generator, torch.float32)
    with torch.no_grad(), exact_tangents(), torch.autocast("cpu", torch.bfloat16):
        made = torch.func.jvp(attention, primals, tangents)
    assert seen == [torch.bfloat16]
    for a, b in zip(made, _plain(primals, tangents), strict=True):
        assert (a - b).abs().max() < 0.03 * b.abs().max()


def test_fused_attention_is_used_for_training(generator):
    """Outside a derivative, values and gradients are those of scaled_dot_product_attention, to the bit."""
    (q, k, v), _ = _qkv(16, 16, generator)
    results = []
    for attend in (attention, F.scaled_dot_product_attention):
        leaf = q.clone().requires_grad_()
        out = attend(leaf, k, v)
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
