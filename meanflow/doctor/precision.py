"""bfloat16 layer by layer: relative errors of the value and of the tangent of every submodule, against float32.

`own` is the error of the submodule alone in bfloat16, on float32 inputs and tangents, so that errors of earlier layers
do not count. `sofar` is that of its output when everything before it runs in bfloat16 too. A container is listed only
where its own error is more than twice that of its worst part: then the error arises in the code between its parts.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from meanflow.doctor.patient import Patient, map_tensors, plain_attention, relative, tensors_in
from meanflow.doctor.verdict import Verdict, figure

Mode: TypeAlias = Literal["autocast", "weights"]
MODES: tuple[Mode, ...] = ("autocast", "weights")
SAMPLED = 16_384
"""Values stored of every output: enough for a relative error to two digits, whatever the size of the network."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Relative errors of one submodule at its first call; None where it has no tangent or refuses bfloat16."""

    name: str
    kind: str
    mode: Mode
    own_value: float | None
    own_tangent: float | None
    sofar_value: float | None
    sofar_tangent: float | None

    @property
    def worst(self) -> float:
        """The larger of the two own errors, by which layers are sorted."""
        return max(self.own_value or 0.0, self.own_tangent or 0.0)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Errors of the whole module, and its submodules, worst own error first."""

    autocast_u: float
    autocast_dudt: float | None
    weights_u: float | None
    """None if the module cast to bfloat16 does not run."""
    weights_dudt: float | None
    layers: tuple[Layer, ...]
    complete: bool
    """False if the time limit was reached before every submodule had been run alone."""
    verdict: Verdict


class _Out(NamedTuple):
    value: Tensor
    tangent: Tensor | None


def examine_precision(patient: Patient, *, tangents: bool = True, limit_s: float = 60.0) -> Precision:
    """Four passes: float32 (with every layer alone in bfloat16 on the way), autocast and bfloat16 weights.

    tangents: False for a module without forward mode, whose values alone are compared.
    """
    base = patient.to(torch.float32)
    kind = base.x_t.device.type
    half = {"autocast": base.to(torch.float32), "weights": base.to(torch.bfloat16)}
    deadline = time.monotonic() + limit_s
    own: dict[tuple[str, Mode], _Out] = {}
    twins = {mode: dict(half[mode].module.named_modules()) for mode in MODES}

    def alone(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        for mode in MODES:
            if name == "" or (name, mode) in own or time.monotonic() > deadline:
                continue
            given, named = map_tensors(lambda a: _as(a, half[mode].x_t.dtype), (args, options))  # noqa: B023
            try:
                torch.manual_seed(patient.seed)
                with _form(mode, kind):
                    own[name, mode] = _taken(twins[mode][name](*given, **named))
            except Exception:  # a layer that refuses bfloat16 has no figure
                continue

    reference = _pass(base, tangents, before=alone)
    passes: dict[Mode, dict[str, _Out]] = {}
    for mode in MODES:
        try:
            with _form(mode, kind):
                passes[mode] = _pass(half[mode], tangents)
        except Exception:  # a module with casts in its code may not run in bfloat16 as a whole
            passes[mode] = {}
    layers = [
        _layer(name, type(part).__name__, mode, reference[name], own.get((name, mode)), passes[mode].get(name))
        for name, part in base.module.named_modules()
        for mode in MODES
        if name and name in reference
    ]
    whole = {mode: _errors(reference[""], passes[mode].get("")) for mode in MODES}
    called = sum(1 for name in reference if name)
    shown = sorted(_without_containers(layers), key=lambda layer: -layer.worst)
    return Precision(
        autocast_u=whole["autocast"][0] if whole["autocast"][0] is not None else float("nan"),
        autocast_dudt=whole["autocast"][1], weights_u=whole["weights"][0], weights_dudt=whole["weights"][1],
        layers=tuple(shown), complete=time.monotonic() <= deadline or len(own) == 2 * called,
        verdict=_verdict(whole, shown),
    )  # fmt: skip


def _pass(
    patient: Patient,
    tangents: bool,
    before: Callable[[str, tuple[Any, ...], dict[str, Any]], None] | None = None,
) -> dict[str, _Out]:
    """First output of every submodule ("" is the whole), under a dual level where tangents are wanted."""
    found: dict[str, _Out] = {}
    handles = []
    for name, part in patient.module.named_modules():

        def entering(_: nn.Module, args: Any, options: Any, name: str = name) -> None:
            if before is not None and name not in found:
                before(name, args, options)

        def leaving(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
            if name not in found and any(a.is_floating_point() for a in tensors_in(out)):
                found[name] = _taken(out)

        handles += [
            part.register_forward_pre_hook(entering, with_kwargs=True),
            part.register_forward_hook(leaving),
        ]
    x_t, r, t = patient.x_t, patient.r, patient.t
    try:
        with torch.no_grad(), plain_attention(), forward_ad.dual_level() if tangents else nullcontext():
            if tangents:
                x_t = forward_ad.make_dual(x_t, patient.v)
                r = forward_ad.make_dual(r, torch.zeros_like(r))
                t = forward_ad.make_dual(t, torch.ones_like(t))
            patient.u(x_t, r, t)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _form(mode: Mode, device: str) -> AbstractContextManager[Any]:
    """A fresh autocast region, or none for a module whose weights are bfloat16."""
    return torch.autocast(device, torch.bfloat16) if mode == "autocast" else nullcontext()


def _as(a: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in another precision (a layer may work in place); integers and masks stay as they are."""
    return a.to(dtype, copy=True) if a.is_floating_point() else a.clone()


def _taken(out: Any) -> _Out:
    """At most SAMPLED evenly spaced values of the first floating tensor, and of its tangent, in float32."""
    a = next(a for a in tensors_in(out) if a.is_floating_point())
    dual = forward_ad.unpack_dual(a) if forward_ad._current_level >= 0 else None
    value, tangent = (a, None) if dual is None else (dual.primal, dual.tangent)
    step = max(1, value.numel() // SAMPLED)
    thin = [None if b is None else b.detach().flatten()[::step].float().clone() for b in (value, tangent)]
    return _Out(thin[0] if thin[0] is not None else value, thin[1])


def _errors(reference: _Out, other: _Out | None) -> tuple[float | None, float | None]:
    if other is None or other.value.shape != reference.value.shape:
        return None, None
    value = relative(other.value, reference.value)
    if reference.tangent is None:
        return value, None
    tangent = torch.zeros_like(reference.tangent) if other.tangent is None else other.tangent
    return value, relative(tangent, reference.tangent)


def _layer(name: str, kind: str, mode: Mode, reference: _Out, own: _Out | None, sofar: _Out | None) -> Layer:
    (own_value, own_tangent), (value, tangent) = _errors(reference, own), _errors(reference, sofar)
    return Layer(
        name=name, kind=kind, mode=mode, own_value=own_value, own_tangent=own_tangent, sofar_value=value,
        sofar_tangent=tangent,
    )  # fmt: skip


def _without_containers(layers: list[Layer]) -> list[Layer]:
    chosen = []
    for layer in layers:
        parts = [a.worst for a in layers if a.mode == layer.mode and a.name.startswith(f"{layer.name}.")]
        if not parts or layer.worst > 2 * max(parts):
            chosen.append(layer)
    return chosen


def _verdict(whole: dict[Mode, tuple[float | None, float | None]], layers: list[Layer]) -> Verdict:
    """The published study finds 0.6 to 1 % for du/dt under autocast; 5 % is where something is out of the ordinary."""
    u, dudt = whole["autocast"]
    cast = whole["weights"]
    line = (
        f"autocast: u {figure(u)}, du/dt {figure(dudt)}; bfloat16 weights: u {figure(cast[0])}, du/dt {figure(cast[1])}"
    )
    sick = [layer for layer in layers if layer.mode == "autocast" and layer.worst > 0.05]
    worst = f"; worst alone: {sick[0].name} ({figure(sick[0].worst)})" if sick else ""
    if u is None:
        return Verdict(level="unknown", line="does not run under bfloat16 autocast")
    error = max(u, dudt or 0.0)
    return Verdict(level="bad" if error > 0.3 else "warn" if error > 0.05 else "ok", line=line + worst)
