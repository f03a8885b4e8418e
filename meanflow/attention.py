"""Attention that forward-mode differentiation can go through: fused in training, with exact tangents in a derivative.

Fused kernels have no forward-mode formula, and the plain form holds N x N scores and their tangent whole. Networks
that call `attention` get, inside `ForwardAD`, either the kernel of `jvp_flash_attention` or the chunks below. Outside
it `attention` is `scaled_dot_product_attention`, whose fused forms refuse a forward-mode derivative themselves.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.autograd.forward_ad as fw
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Queries: TypeAlias = Float[Tensor, "batch heads queries head_dim"]
Keys: TypeAlias = Float[Tensor, "batch heads keys head_dim"]

KERNEL = "jvp_flash_attention"
KERNEL_HEAD_DIMS = (16, 32, 64, 128, 256)
SCORES = {"cpu": 2**19, "gpu": 2**25}
"""Largest number of scores in a chunk: 2 MiB in float32 on a CPU, which fits a core's cache; 128 MiB on a GPU, where
launching kernels costs more than memory."""
LEAST_QUERIES = 16


class Choice(NamedTuple):
    """What computes the tangents of an attention, and why."""

    name: Literal["kernel", "chunked"]
    reason: str


class _State:
    """Whether a derivative is being taken. It is a plain flag, so that torch.compile can guard on it, and it belongs to
    the process, as the switches of `sdpa_kernel` do. Another thread that finds it set gets the same numbers in chunks.
    """

    active = False


@contextmanager
def exact_tangents() -> Iterator[None]:
    """Context in which `attention` computes exact tangents, entered by `ForwardAD`. Use it under `torch.no_grad`."""
    before, _State.active = _State.active, True
    try:
        yield
    finally:
        _State.active = before


def attention(q: Queries, k: Keys, v: Keys) -> Queries:
    """softmax(q k^T / sqrt(head_dim)) v for self- or cross-attention; every query attends to every key, without a mask.

    Where gradients are recorded this is always the fused form. A forward-mode derivative taken without `ForwardAD` uses
    the fused form as well and raises NotImplementedError there, unless `sdpa_kernel` allows MATH alone.
    """
    if not _State.active:
        return F.scaled_dot_product_attention(q, k, v.contiguous())
    tangents = [fw.unpack_dual(x).tangent is not None for x in (q, k, v)]
    choice = choose_attention(
        device=q.device.type,
        dtype=_result_dtype(q),
        head_dim=q.shape[-1],
        tokens=q.shape[-2],
        same_shape=q.shape == k.shape == v.shape,
        tangents=all(tangents),
        installed=kernel_installed(),
    )
    _say(choice)
    return _kernel(q, k, v) if choice.name == "kernel" else chunked_attention(q, k, v)


@lru_cache(maxsize=64)
def choose_attention(
    *,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    tokens: int,
    same_shape: bool = True,
    tangents: bool = True,
    installed: bool = False,
) -> Choice:
    """Choose the kernel where it applies, else chunks, and give the first reason against the kernel.

    `tangents` says whether q, k and v all depend on what is differentiated; the kernel accepts no other case.
    """
    against = {
        f"the device is {device}, the kernel needs cuda": device != "cuda",
        f"the package {KERNEL} is not installed": not installed,
        f"{dtype} keeps full precision, the kernel's products are of half precision": dtype.itemsize != 2,
        f"head_dim is {head_dim}, the kernel takes {', '.join(map(str, KERNEL_HEAD_DIMS))}": head_dim
        not in KERNEL_HEAD_DIMS,
        f"{tokens} tokens, the kernel takes even numbers from 32": tokens < 32 or tokens % 2 == 1,
        "queries, keys and values differ in shape": not same_shape,
        "not all of queries, keys and values have a tangent": not tangents,
    }
    for reason, holds in against.items():
        if holds:
            return Choice("chunked", reason)
    return Choice("kernel", f"{KERNEL} takes {tokens} tokens of head_dim {head_dim} in {dtype}")


@lru_cache(maxsize=1)
def kernel_installed() -> bool:
    """Whether the fused kernel's package can be found; it is imported at its first use."""
    return importlib.util.find_spec(KERNEL) is not None


@lru_cache(maxsize=64)
def _say(choice: Choice) -> None:
    """One line per process and reason."""
    print(f"attention inside a derivative: {choice.name} ({choice.reason})", file=sys.stderr)


def _kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`JVPAttn.fwd_dual`, which takes primal and tangent out of the dual tensors itself."""
    dtype = _result_dtype(q)
    module = importlib.import_module(f"{KERNEL}.{KERNEL.removesuffix('_flash_attention')}_attention")
    out: Tensor = module.JVPAttn.fwd_dual(*(x.to(dtype) for x in (q, k, v)))
    return out


def chunked_attention(q: Queries, k: Keys, v: Keys, chunk: int | None = None) -> Queries:
    """`attention` with exact tangents, `chunk` queries at a time (by default as many as SCORES allows).

    With scores s = q k^T / sqrt(head_dim), p = softmax(s) and dots for tangents,

        ds = (dq k^T + q dk^T) / sqrt(head_dim),   w = p ds,
        out = p v,                                 dout = w v + p dv - rowsum(w) out,

    which takes four products and holds the scores of one chunk at a time. Half-precision inputs are multiplied in
    float32.
    """
    duals = [fw.unpack_dual(x) for x in (q, k, v)]
    dtype = _result_dtype(q)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (dual.primal.to(wide) for dual in duals)
        tangents = [None if dual.tangent is None else dual.tangent.to(wide) for dual in duals]
        scale = q.shape[-1] ** -0.5
        if all(tangent is None for tangent in tangents):
            parts = [c.matmul(k.mT).softmax(-1).matmul(v) for c in (q * scale).split(chunk or _chunk(q, k), dim=2)]
            return torch.cat(parts, dim=2).to(dtype)
        dq, dk, dv = (torch.zeros_like(x) if dx is None else dx for x, dx in zip((q, k, v), tangents, strict=True))
        out, dout = _with_tangents(q * scale, k, v, dq * scale, dk, dv, chunk or _chunk(q, k))
    return fw.make_dual(out.to(dtype), dout.to(dtype))


def _with_tangents(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """out and dout for queries that are scaled already."""
    dim = v.shape[-1]
    both_q, both_k = torch.cat([dq, q], dim=-1), torch.cat([k, dk], dim=-1).mT
    k, v, both_v = k.mT.contiguous(), v.contiguous(), torch.cat([v, dv], dim=-1)
    out, dout = torch.empty_like(q), torch.empty_like(q)
    for start in range(0, q.shape[2], chunk):
        rows = slice(start, start + chunk)
        p = q[:, :, rows].matmul(k).softmax(-1)
        w = both_q[:, :, rows].matmul(both_k).mul_(p)
        value, dvalue = p.matmul(both_v).split(dim, dim=-1)
        out[:, :, rows] = value
        dout[:, :, rows] = w.matmul(v) + dvalue - w.sum(-1, keepdim=True) * value
    return out, dout


def _chunk(q: Tensor, k: Tensor) -> int:
    """Queries per chunk, for scores (batch, heads, queries, keys)."""
    scores = SCORES["cpu" if q.device.type == "cpu" else "gpu"]
    return max(LEAST_QUERIES, scores // (q.shape[0] * q.shape[1] * k.shape[2]))


def _result_dtype(q: Tensor) -> torch.dtype:
    """What `scaled_dot_product_attention` returns: the autocast type if there is one, but float64 stays."""
    device = q.device.type
    if q.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return q.dtype
