"""The cost of a call on any machine: floating-point operations, and bytes that have to come from memory.

Counted while the call runs for real, eagerly, operator by operator:

    flops    matrix products, convolutions and attention, 2 per multiply-add (torch's FlopCounterMode, and the
             processor's fused attention, which it leaves out). Not counted: everything element-wise, FFTs, solvers
    bytes    the least: weights and inputs once for every operator that reads them, and what the call returns. Whatever
             is made on the way is taken to stay on the chip. Weights are read again by every evaluation of a network:
             25 steps read them 25 times, so where a cache holds them all a call may beat its floor
    traffic  what eager execution moves if nothing stays on the chip: every operator reads its tensors and writes its
             result. Views move nothing, an expanded dimension is read once, a lookup reads the rows it takes

bytes <= traffic. A fused kernel moves something between the two.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from eval.speed.budget import StageCost

_aten = torch.ops.aten
UNTOUCHED = (_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided)
"""Operators that allocate memory without writing it."""
OVERWRITING = (_aten.copy_, _aten.fill_, _aten.zero_, _aten.normal_, _aten.uniform_)
"""Operators that write their first argument without reading it."""
LOOKUPS = (_aten.embedding, _aten.index, _aten.index_select, _aten.gather)
"""Operators that read only those elements of their first argument that they return."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A cost, what the call returned, and the attention operators that were taken."""

    cost: StageCost
    result: Any
    attention: frozenset[str]


def count(call: Callable[[], Any]) -> Counted:
    """Run `call` once and count. Counts operators of torch alone, in this thread, and none of compiled code."""
    moved = _Operands()
    with FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention_flops}) as flops, moved:
        result = call()
    returned = sum(_size(t) for t in _distinct(_tensors(result)))
    cost = StageCost(
        flops=flops.get_total_flops(),
        bytes=moved.outside + returned,
        traffic=max(moved.traffic, moved.outside + returned),
        operators=moved.operators,
    )
    return Counted(cost=cost, result=result, attention=frozenset(moved.attention))


_CPU_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """2 B H Nq Nk (D + Dv) of shapes (B, H, N, D); a causal mask saves nothing here, as in torch's own counts."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


class _Operands(TorchDispatchMode):
    """Adds up operand and result sizes of every operator, and those operands that the call did not make itself."""

    def __init__(self) -> None:
        super().__init__()
        self.outside = self.traffic = self.operators = 0
        self.attention: set[str] = set()
        # A weak reference keeps the address of a freed storage from being given to another one.
        self._made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet, outputs = func.overloadpacket, _tensors(result)
        read = args[1:] if packet in OVERWRITING else (args, {k: v for k, v in kwargs.items() if k != "out"})
        operands = _distinct(_tensors(read))
        known = {_storage(t) for t in _tensors((args, kwargs))}
        if "attention" in str(packet):
            self.attention.add(str(packet).removeprefix("aten."))
        view = not func._schema.is_mutable and outputs and all(_storage(t) in known for t in outputs)
        if view or func.namespace == "prim":  # prim: questions about a tensor, such as its device
            return result
        if packet in UNTOUCHED:
            self._keep(outputs)
            return result
        written = sum(_size(t) for t in _distinct(outputs))
        self.operators += 1
        self.traffic += written
        for k, operand in enumerate(operands):
            size = min(_size(operand), written) if k == 0 and packet in LOOKUPS else _size(operand)
            self.traffic += size
            self.outside += 0 if _storage(operand) in self._made else size
        self._keep(t for t in outputs if _storage(t) not in known)
        return result

    def _keep(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            reference = StorageWeakRef(tensor.untyped_storage())
            self._made[reference.cdata] = reference


def _tensors(tree: Any) -> list[Tensor]:
    """Tensors in nested lists, tuples and dictionaries: what operators take and give."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    return [leaf for part in tree for leaf in _tensors(part)] if isinstance(tree, list | tuple) else []


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors in order, without repetitions of the same memory with the same shape and strides."""
    return list({(_storage(t), t.storage_offset(), t.shape, t.stride()): t for t in tensors}.values())


def _size(tensor: Tensor) -> int:
    """Bytes of the elements that differ in their place: a dimension of stride 0 counts once."""
    numel = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numel *= size if stride else min(size, 1)
    return min(numel * tensor.element_size(), tensor.untyped_storage().nbytes())
