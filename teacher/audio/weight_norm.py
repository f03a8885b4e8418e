"""Generator checkpoints on disk -> plain convolution weights: w = g v / ||v||, norm over all dimensions but the first.

For transposed convolutions the first dimension is the input channel. Three namings exist: `weight_g`/`weight_v`,
`parametrizations.weight.original0`/`original1`, and `weight` where somebody has folded already.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from teacher.audio.alias_free import kaiser_sinc_filter
from teacher.weights.errors import WeightsError

WRAPPER = "generator"
GAIN_AND_DIRECTION = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
FILTER_TOLERANCE = 1e-6
"""A stored resampling filter may differ by float32 rounding; the smallest tap is 2e-3."""


def generator_state(checkpoint: Any) -> dict[str, Tensor]:
    """The generator's tensors of a loaded checkpoint, with or without the top-level key "generator"."""
    state = checkpoint.get(WRAPPER, checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(f"not a vocoder checkpoint: expected a dict of tensors, or one under the key {WRAPPER!r}")
    return dict(state)


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain weights of any of the namings, in the order of `state`; resampling filters are checked and dropped.

    Half precision is folded in float32, float64 stays. Raises WeightsError listing every name that is wrong: a gain
    without its direction or the reverse, a convolution stored twice, shapes that do not belong together, a direction of
    length zero, a filter other than the one computed in alias_free.py.
    """
    folded: dict[str, Tensor] = {}
    faults: list[str] = []
    for name, tensor in state.items():
        if name.endswith(".filter"):
            if not _is_our_filter(tensor):
                faults.append(f"{name} is not the 12-tap Kaiser-sinc filter of BigVGAN")
            continue
        module, gain_name, direction_name = _pair(name)
        if gain_name is None:
            target, value = name, tensor
        elif gain_name not in state or direction_name not in state:
            faults.append(f"{name} without {direction_name if name == gain_name else gain_name}")
            continue
        elif name == direction_name:
            continue  # made when its gain is met
        else:
            target = f"{module}.weight"
            gain, direction = state[gain_name], state[direction_name]
            fault = _pair_fault(gain, direction)
            if fault:
                faults.append(f"{module}: {fault}")
                continue
            value = _fold(gain, direction)
        if target in folded:
            faults.append(f"{target} is stored more than once")
        folded[target] = value
    if faults:
        raise WeightsError("the vocoder checkpoint cannot be folded: " + "; ".join(faults))
    return folded


def _pair(name: str) -> tuple[str, str | None, str]:
    """Module, name of the gain and name of the direction that `name` belongs to; the gain is None for other tensors."""
    for gain, direction in GAIN_AND_DIRECTION:
        for suffix in (gain, direction):
            if name.endswith(suffix):
                module = name.removesuffix(suffix)
                return module, module + gain, module + direction
    return name, None, ""


def _pair_fault(gain: Tensor, direction: Tensor) -> str | None:
    if gain.shape != (*direction.shape[:1], *(1,) * (direction.ndim - 1)):
        return f"gain of shape {tuple(gain.shape)} for a direction of shape {tuple(direction.shape)}"
    if not bool(direction.flatten(1).any(dim=1).all()):
        return "a direction of length zero"
    return None


def _fold(gain: Tensor, direction: Tensor) -> Tensor:
    dtype = torch.promote_types(direction.dtype, torch.float32)
    v = direction.to(dtype)
    norm = torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)
    return v * (gain.to(dtype) / norm)


def _is_our_filter(stored: Tensor) -> bool:
    ours = kaiser_sinc_filter().to(stored.dtype).double()  # a file in half precision holds rounded taps
    return stored.numel() == len(ours) and bool(
        torch.allclose(stored.double().cpu().flatten(), ours, rtol=0, atol=FILTER_TOLERANCE)
    )
