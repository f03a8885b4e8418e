"""Finds the operators of a module that have no forward-mode formula, by trying every one of them.

A plain forward is recorded operator by operator; each kind that meets a tensor depending on (x_t, r, t) is then called
once more on its own inputs with tangents. What raises lacks the formula; what answers without a tangent lost it.
"""

import weakref
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from meanflow.doctor.patient import Patient, map_tensors, tensors_in, where_called
from meanflow.doctor.verdict import Verdict, one_line

NO_VALUE = ("_like", "new_", "empty", "zeros", "ones", "full", "sign", "floor", "ceil", "fill_", "zero_")
"""Operators whose result does not depend on the values of their inputs, so that it rightly has no tangent."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One operator and the submodules that call it."""

    operator: str
    where: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Operators:
    """`missing` as the module runs by itself, `missing_with_math` where attention takes its MATH form."""

    missing: tuple[Finding, ...]
    missing_with_math: tuple[Finding, ...]
    dropped: tuple[Finding, ...]
    """Operators whose result has no tangent (detach, rounding): the derivative treats it as a constant."""
    forward_ad: str
    """"" if the whole module goes through ForwardAD, else where and how it failed."""
    verdict: Verdict

    @property
    def works(self) -> bool:
        """Whether ForwardAD gives a derivative at all."""
        return not self.forward_ad


def examine_operators(patient: Patient) -> Operators:
    """Record, try, and run the whole module through ForwardAD once."""
    bench = patient.to(torch.float32)
    plain, dropped = _tried(bench, math=False)
    with_math, _ = _tried(bench, math=True)
    failure = _failure(bench)
    if failure:
        verdict = Verdict(level="bad", line=f"forward mode fails {failure}")
    elif plain:
        names = ", ".join(f.operator for f in plain)
        verdict = Verdict(level="warn", line=f"{names} has no forward mode; ForwardAD works by another form of it")
    else:
        verdict = Verdict(level="ok", line="every operator has a forward mode")
    if dropped and not failure:
        lost = "; ".join(f"{f.operator} in {f.where[0]}" for f in dropped[:3])
        verdict = Verdict(level="warn", line=f"{verdict.line}; a tangent is dropped by {lost}")
    return Operators(missing=plain, missing_with_math=with_math, dropped=dropped, forward_ad=failure, verdict=verdict)


def _failure(bench: Patient) -> str:
    """How ForwardAD fails on the whole module, and where; "" if it works.

    The place comes from a second call, with hooks on every submodule: some layers take another path under hooks.
    """
    torch.manual_seed(bench.seed)
    try:
        bench.dudt()
        return ""
    except Exception as error:  # the kind of error depends on operator and release
        reason = one_line(error)
    place = "the module"
    with where_called(bench.module) as stack:
        try:
            bench.dudt()
        except Exception:
            place = stack[-1] if stack else place
    return f"in {place}: {reason}"


@dataclass
class _Call:
    operator: Any
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    carries: tuple[bool, ...]
    """For every tensor among inputs and options, in order: does it depend on (x_t, r, t)?"""
    where: list[str] = field(default_factory=list)


class _Recorder(TorchDispatchMode):
    """Keeps one call of each kind of operator, and follows which tensors depend on the inputs."""

    def __init__(self, sources: tuple[Tensor, ...], stack: list[str]) -> None:
        super().__init__()
        self.stack = stack
        self.calls: dict[tuple[Any, ...], _Call] = {}
        self.dependent: dict[int, weakref.ref[Tensor]] = {}
        self._mark(sources)

    def _mark(self, value: Any) -> None:
        for a in tensors_in(value):
            self.dependent[id(a)] = weakref.ref(a)

    def _depends(self, a: Tensor) -> bool:
        known = self.dependent.get(id(a))
        return known is not None and known() is a  # an address may be taken again by another tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        given = list(tensors_in((args, options)))
        carries = tuple(self._depends(a) and a.is_floating_point() for a in given)
        call = None
        if any(carries):
            kind = (func, carries, tuple(a.dtype for a in given))
            if kind not in self.calls:  # stored as they are now: the operator may work in place
                keep = map_tensors(lambda a: a.detach().clone(), (args, options))
                self.calls[kind] = _Call(func, keep[0], keep[1], carries)
            call = self.calls[kind]
        result = func(*args, **options)
        if call is not None:
            here = self.stack[-1] if self.stack else "(root)"
            if here not in call.where:
                call.where.append(here)
        if any(self._depends(a) for a in given):
            self._mark(result)
        return result


def _tried(bench: Patient, *, math: bool) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """(operators without forward mode, operators that drop the tangent) of one plain forward."""
    form = sdpa_kernel([SDPBackend.MATH]) if math else nullcontext()
    with torch.no_grad(), where_called(bench.module) as stack, form:
        inputs = tuple(a.clone() for a in (bench.x_t, bench.r, bench.t))
        recorder = _Recorder(inputs, stack)
        with recorder:
            bench.u(*inputs)
    missing: dict[str, Finding] = {}
    dropped: dict[str, Finding] = {}
    for call in recorder.calls.values():
        name = str(call.operator).removesuffix(".default")
        reason, tangent = _try(call)
        group = missing if reason else dropped if tangent is False and not _valueless(name) else None
        if group is not None:
            before = group[name].where if name in group else ()
            where = (*before, *(w for w in call.where if w not in before))
            group[name] = Finding(operator=name, where=where, reason=reason)
    return tuple(missing.values()), tuple(dropped.values())


def _try(call: _Call) -> tuple[str, bool | None]:
    """(error, whether the result has a tangent); (None for a result that cannot have one)."""
    with torch.no_grad(), forward_ad.dual_level():
        carries = iter(call.carries)

        def dual(a: Tensor) -> Tensor:
            return forward_ad.make_dual(a.clone(), torch.ones_like(a)) if next(carries) else a.clone()

        inputs, options = map_tensors(dual, (call.inputs, call.options))
        try:
            result = call.operator(*inputs, **options)
        except Exception as error:  # NotImplementedError for most; custom operators raise what they like
            return one_line(error), None
        floating = [a for a in tensors_in(result) if a.is_floating_point()]
        if not floating:
            return "", None
        return "", any(forward_ad.unpack_dual(a).tangent is not None for a in floating)


def _valueless(name: str) -> bool:
    operator = name.removeprefix("aten.").split(".")[0]
    return any(part in operator for part in NO_VALUE)
