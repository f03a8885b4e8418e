"""Is the derivative right? Forward mode against differences of fourth order, in float64, for every input by itself.

    du ~ [8 (u(+h) - u(-h)) - (u(+2h) - u(-2h))] / (12 h)        along (v, 0, 1), (v, 0, 0), (0, 1, 0) and (0, 0, 1)

h = 1e-5: for an embedding of w rad per unit time the truncation is (w h)^4 / 30, 3e-6 at w = 1e4, and rounding 1e-11.
Where a slope jumps within 2 h of a row's inputs (ReLU, SELU) that row's difference is off by the jump at this h, but
not at a smaller one: each row takes the h of STEPS that comes closest. A rule that is wrong is wrong at all of them.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from meanflow.doctor.patient import Patient, relative, rms
from meanflow.doctor.verdict import Verdict, figure

Part: TypeAlias = Literal["x_t", "r", "t"]
PARTS: tuple[Part, ...] = ("x_t", "r", "t")
STEPS = (1e-5, 1e-6, 1e-7)
FLOOR = 1e-3
"""Errors of a partial derivative are relative to it, or to this fraction of du/dt where it is smaller."""
ZERO = 1e-9
"""A partial derivative below this fraction of rms(u) counts as zero: rounding of differences is 1e-11 of u."""


@dataclass(frozen=True, kw_only=True)
class Partial:
    """The derivative along one input alone: by forward mode and by differences."""

    of: Part
    forward: float
    """rms of the forward-mode partial derivative."""
    difference: float
    """rms of the same by differences."""
    error: float
    """Relative distance of the two."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Relative errors of ForwardAD along (v, 0, 1)."""

    reference: str
    """float64, or float32 for a module that cannot run in float64; then only gross errors can be found."""
    error_float32: float
    error_float64: float
    reference_error: float
    """Estimated relative error of the differences themselves."""
    partials: tuple[Partial, ...]
    forgotten: tuple[str, ...]
    """Inputs that u depends on but whose tangent forward mode loses; "t - r" for a lost interval."""
    ignored: tuple[str, ...]
    """Inputs that u does not depend on at all."""
    verdict: Verdict


def examine_accuracy(patient: Patient) -> Accuracy:
    """Compare along the flow and along each input; raises what ForwardAD raises."""
    fine = patient.reference()
    exact = fine.x_t.dtype == torch.float64
    single = patient.to(torch.float32)
    steps = STEPS if exact else (1e-2,)
    zero = {"x_t": torch.zeros_like(fine.x_t), "r": torch.zeros_like(fine.r), "t": torch.zeros_like(fine.t)}
    along = {"x_t": fine.v, "r": torch.ones_like(fine.r), "t": torch.ones_like(fine.t)}

    ours, coarse = fine.dudt(), single.dudt()
    found = [fine.differences(along["x_t"], zero["r"], along["t"], step) for step in steps]
    dudt, gap = _closest(ours, [value for value, _ in found]), found[0][1]
    by_forward: dict[str, Tensor] = {}
    by_difference: dict[str, Tensor] = {}
    for part in PARTS:
        x_dot, r_dot, t_dot = ((along if name == part else zero)[name] for name in PARTS)
        by_forward[part] = fine.partial(part)
        tried = [fine.differences(x_dot, r_dot, t_dot, step)[0] for step in steps]
        by_difference[part] = _closest(by_forward[part], tried)
    nothing = (ZERO if exact else 1e-4) * rms(fine.u(fine.x_t, fine.r, fine.t).detach())
    floor = FLOOR * rms(dudt)
    partials = tuple(_partial(part, by_forward[part], by_difference[part], nothing, floor) for part in PARTS)
    forgotten = tuple(_forgotten(partials, by_forward, by_difference, nothing))
    ignored = tuple(p.of for p in partials if max(p.forward, p.difference) <= nothing)

    small = max(rms(dudt), rms(ours)) <= nothing
    errors = (0.0, 0.0) if small else (relative(coarse.to(dudt), dudt), relative(ours, dudt))
    doubt = 0.0 if small else gap**2 + torch.finfo(dudt.dtype).eps / steps[0] * rms(fine.v) / max(rms(dudt), nothing)
    return Accuracy(
        reference=str(fine.x_t.dtype).removeprefix("torch."), error_float32=errors[0], error_float64=errors[1],
        reference_error=doubt, partials=partials, forgotten=forgotten, ignored=ignored,
        verdict=_verdict(errors, doubt, partials, forgotten, ignored),
    )  # fmt: skip


def _closest(forward: Tensor, differences: list[Tensor]) -> Tensor:
    """Row by row, the differences that come closest to forward mode."""
    distances = torch.stack([(value - forward).flatten(1).norm(dim=1) for value in differences])
    return torch.stack(differences)[distances.argmin(0), torch.arange(len(forward), device=forward.device)]


def _partial(part: Part, forward: Tensor, difference: Tensor, nothing: float, floor: float) -> Partial:
    sizes = rms(forward), rms(difference)
    error = 0.0 if max(sizes) <= nothing else rms(forward - difference) / max(sizes[1], floor)
    return Partial(of=part, forward=sizes[0], difference=sizes[1], error=error)


def _forgotten(
    partials: tuple[Partial, ...], forward: dict[str, Tensor], difference: dict[str, Tensor], nothing: float
) -> list[str]:
    """Inputs without a forward-mode derivative that have one by differences.

    A lost interval h = t - r has a mark of its own: with u(x, t, h), forward mode then gives d_t u alone, which is the
    sum of the two partial derivatives by differences (d_t u + d_h u and -d_h u), and nothing for r.
    """
    lost: list[str] = [p.of for p in partials if p.forward <= nothing < p.difference]
    both = difference["t"] + difference["r"]
    close = 1e-3 * rms(difference["t"])
    if "r" in lost and rms(forward["t"] - both) < close < rms(forward["t"] - difference["t"]):
        return [name for name in lost if name not in ("r", "t")] + ["t - r"]
    return lost


def _verdict(
    errors: tuple[float, float],
    doubt: float,
    partials: tuple[Partial, ...],
    forgotten: tuple[str, ...],
    ignored: tuple[str, ...],
) -> Verdict:
    single, double = errors
    if forgotten:
        return Verdict(level="bad", line=f"forward mode loses the effect of {', '.join(forgotten)}")
    worst = max(partials, key=lambda p: p.error)
    if max(double, worst.error) > max(1e-4, 100 * doubt):
        what = f"du/dt is off by {figure(double)}, its part along {worst.of} by {figure(worst.error)}"
        return Verdict(level="bad", line=f"{what}: some operator's forward mode is wrong")
    if single > 1e-2:
        return Verdict(
            level="warn", line=f"right in float64 ({figure(double)}), but off by {figure(single)} in float32"
        )
    missing = f"; u does not depend on {', '.join(ignored)}" if ignored else ""
    line = f"du/dt agrees to {figure(double)} (float64) and {figure(single)} (float32){missing}"
    return Verdict(level="warn" if ignored else "ok", line=line)
