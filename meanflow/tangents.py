"""Forward-mode rules without needless products, used by `ForwardAD` for every module.

torch's own rules treat every operand as variable: a product with a constant weight also multiplies by a tangent of
zeros, which makes three products of two. Here the tangent of a constant is left out: y = W x + b, dy = W dx.
Attention without a mask goes through `meanflow.attention`. Numbers are those of torch's rules up to rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as fw
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from meanflow.attention import attention


class SparingRules(TorchFunctionMode):
    """While active, calls of the functions in RULES go through their rule. Use it without a graph only."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = RULES.get(func)
        if rule is not None:
            try:
                return rule(func, *args, **(kwargs or {}))
            except RuntimeError as error:
                if "_unpack_dual" not in str(error):  # vmap inside u: no tangent can be taken out, torch's rule serves
                    raise
        return func(*args, **(kwargs or {}))


def _tangent(x: Any) -> Tensor | None:
    return fw.unpack_dual(x).tangent if isinstance(x, Tensor) else None


def _affine(
    func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """f(x, W, b) = f(x, W) + b for a linear map or a convolution with constant W and b."""
    x, dx = fw.unpack_dual(input)
    if dx is None or _tangent(weight) is not None or _tangent(bias) is not None:
        return func(input, weight, bias, *args, **kwargs)
    return fw.make_dual(func(x, weight, bias, *args, **kwargs), func(dx, weight, None, *args, **kwargs))


def _linear(func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same with all rows in one matrix: torch multiplies some three-dimensional inputs batch by batch."""
    if input.ndim < 3:
        return _affine(func, input, weight, bias)
    return _affine(func, input.flatten(0, -2), weight, bias).unflatten(0, input.shape[:-1])


def _product(func: Callable[..., Tensor], *factors: Any, **kwargs: Any) -> Tensor:
    """a b where one of them is constant."""
    if kwargs or len(factors) != 2:
        return func(*factors, **kwargs)
    (a, da), (b, db) = (_parts(factor) for factor in factors)
    if (da is None) == (db is None):
        return func(*factors)
    return fw.make_dual(func(a, b), func(a, db) if da is None else func(da, b))


def _sum(func: Callable[..., Tensor], *terms: Any, **kwargs: Any) -> Tensor:
    """a + b or a - b where one of them is constant."""
    if kwargs or len(terms) != 2:
        return func(*terms, **kwargs)
    (a, da), (b, db) = (_parts(term) for term in terms)
    if (da is None) == (db is None):
        return func(*terms)
    out = func(a, b)
    dout = func(torch.zeros_like(db), db) if db is not None else da
    assert dout is not None
    return fw.make_dual(out, dout.to(out.dtype).expand_as(out))


def _parts(x: Any) -> tuple[Any, Tensor | None]:
    """Value and tangent; a number has none."""
    return tuple(fw.unpack_dual(x)) if isinstance(x, Tensor) else (x, None)


def _attention(
    func: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Masks, dropout, grouped heads and a scale of one's own stay with torch (its MATH form)."""
    plain = not args and not any(value for name, value in kwargs.items() if name != "dropout_p")
    same_heads = query.ndim == 4 and query.shape[:2] == key.shape[:2] and query.shape[-1] == value.shape[-1]
    if plain and not kwargs.get("dropout_p") and same_heads:
        return attention(query, key, value)
    return func(query, key, value, *args, **kwargs)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    F.conv1d: _affine,
    F.conv2d: _affine,
    torch.matmul: _product,
    Tensor.matmul: _product,
    Tensor.__matmul__: _product,
    torch.mm: _product,
    torch.bmm: _product,
    F.scaled_dot_product_attention: _attention,
    torch.mul: _product,
    Tensor.mul: _product,
    torch.add: _sum,
    Tensor.add: _sum,
    torch.sub: _sum,
    Tensor.sub: _sum,
}
