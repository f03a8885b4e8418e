"""Conversion from MMAudio's time tau = 1 - t to this project's t: v(x_t, t) = -net(x_t, 1 - t), and u likewise.

`meanflow` counts t = 1 as noise; MMAudio's networks were trained with 0 as noise. Reversing the clock flips the sign of
every velocity (instantaneous or average) and leaves interval lengths alone.

On conditions that are encoded already, for evaluations without a graph, several of them on one encoding:
`teacher_velocity`, `student_velocity`, `student_prediction`. From conditions as features, in the single call that a
training step makes of a network which a data-parallel engine may have wrapped: `forward_velocity`,
`forward_prediction`. `Guide` adds guidance to a prediction while sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn

from meanflow.guidance import GuidanceRule, Guided
from meanflow.shapes import Prediction
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import Encoded, MMAudio


def teacher_velocity(net: MMAudio, x_t: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
    """v(x_t, t) of a flow-matching network."""
    return -net.predict(x_t, 1 - t, encoded)


def student_velocity(
    net: MMAudio, x_t: Tensor, r: Tensor, t: Tensor, encoded: Encoded, omega: Tensor | float = 1.0
) -> Tensor:
    """u(x_t, r, t) of a network with an interval embedding; a velocity head is not run.

    `omega`, one number or (B,), is the guidance scale for a network that embeds it, which returns the guided average
    velocity in this one evaluation. Raises ValueError for a scale other than 1 with any other network.
    """
    return -net.predict(x_t, 1 - t, encoded, t - r, _shown_scale(net, t, omega))


def student_prediction(
    net: MMAudio, x_t: Tensor, r: Tensor, t: Tensor, encoded: Encoded, omega: Tensor | float = 1.0
) -> Prediction:
    """The same with the velocity head's v(x_t, t) where the network has a head."""
    if not net.config.velocity_head:
        return Prediction(student_velocity(net, x_t, r, t, encoded, omega))
    return _turned(net.predict_headed(x_t, 1 - t, encoded, t - r, _shown_scale(net, t, omega)))


def forward_velocity(model: nn.Module, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
    """v(x_t, t) by one call of a flow-matching network, with a graph; `model` may be wrapped by an engine."""
    v: Tensor = -model(x_t, 1 - t, conditions)
    return v


def forward_prediction(
    model: nn.Module, x_t: Tensor, r: Tensor, t: Tensor, conditions: Conditions, omega: Tensor | None = None
) -> Prediction:
    """u(x_t, r, t), and the head's v(x_t, t) where there is one, by one call of a student, with a graph.

    `model` may be wrapped by an engine. `omega` (B,) is the guidance scale for a network that embeds it, else None.
    """
    return _turned(model(x_t, 1 - t, conditions, t - r, *(() if omega is None else (omega,))))


def _turned(output: Tensor | Prediction) -> Prediction:
    """The output of a network in MMAudio's time, converted to a prediction in this project's (opposite sign)."""
    if isinstance(output, Tensor):
        return Prediction(-output)
    return Prediction(-output.u, None if output.v is None else -output.v)


def _shown_scale(net: MMAudio, t: Tensor, omega: Tensor | float) -> Tensor | None:
    """omega (B,) where the network embeds it, else None."""
    if net.config.guidance_embedding:
        return omega if isinstance(omega, Tensor) else torch.full_like(t, omega)
    if isinstance(omega, Tensor) or omega != 1.0:
        raise ValueError(
            "this network was not trained with guidance as an input (guidance_embedding=False): omega must stay 1"
        )
    return None


@dataclass(frozen=True)
class Guide:
    """Wraps a prediction on encoded conditions with classifier-free guidance, all its parts in one batched forward.

    `video`, the conditions without text, is needed by `JointGuidance` only. `observe`, if given, receives the combined
    prediction of every evaluation, with its rescaling scalars s* and where they were clamped.
    """

    conditional: Encoded
    unconditional: Encoded | None
    guidance: GuidanceRule
    observe: Callable[[Guided], None] | None = None
    video: Encoded | None = None

    @classmethod
    def of(
        cls,
        net: MMAudio,
        conditions: Conditions,
        latent_frames: int,
        guidance: GuidanceRule,
        observe: Callable[[Guided], None] | None = None,
        negative_text: Tensor | None = None,
    ) -> "Guide":
        """Encode `conditions`, and their unconditional and video-only twins only if the guidance needs them.

        `negative_text` (1 or B, tokens, width): features of a negative prompt, which replace the empty text there.
        """
        conditional = net.encode_conditions(conditions, latent_frames)
        if not guidance.active:
            return cls(conditional, None, guidance, observe)
        nothing = conditions.unconditional(negative_text)
        twin = net.encode_conditions(nothing, latent_frames)
        if not guidance.separates_video:
            return cls(conditional, twin, guidance, observe)
        video = replace(nothing, has_clip=conditions.has_clip, has_sync=conditions.has_sync)
        return cls(conditional, twin, guidance, observe, net.encode_conditions(video, latent_frames))

    def __call__(
        self, predict: Callable[[Tensor, Tensor, Tensor, Encoded], Tensor], x: Tensor, r: Tensor, t: Tensor
    ) -> Tensor:
        """Guided prediction; `predict(x, r, t, encoded)` is one of the functions above that return one tensor."""
        if self.unconditional is None:
            return predict(x, r, t, self.conditional)
        parts = [self.conditional, *([] if self.video is None else [self.video]), self.unconditional]
        n = len(parts)
        made = predict(torch.cat([x] * n), torch.cat([r] * n), torch.cat([t] * n), reduce(Encoded.cat, parts))
        combine: Callable[..., Guided] = self.guidance
        guided = combine(*made.chunk(n), t)
        if self.observe is not None:
            self.observe(guided)
        return guided.value
