"""The one place that knows MMAudio's clock: tau = 1 - t, so v(x_t, t) = -net(x_t, 1 - t), and u likewise.

`meanflow` counts t = 1 as noise; MMAudio's networks were trained with 0 as noise. Reversing the clock flips the sign of
every velocity (instantaneous or average) and leaves interval lengths alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow.guidance import Guidance
from teacher.conditions import Conditions
from teacher.network import Encoded, MMAudio


def teacher_velocity(net: MMAudio, x_t: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
    """v(x_t, t) of a flow-matching network."""
    return -net.predict(x_t, 1 - t, encoded)


def student_velocity(net: MMAudio, x_t: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
    """u(x_t, r, t) of a network with an interval embedding."""
    return -net.predict(x_t, 1 - t, encoded, t - r)


@dataclass(frozen=True)
class Guide:
    """Wraps a prediction on encoded conditions with classifier-free guidance, both halves in one batched forward.

    `observe`, if given, receives the rescaling scalars s* (B,) of every evaluation.
    """

    conditional: Encoded
    unconditional: Encoded | None
    guidance: Guidance
    observe: Callable[[Tensor], None] | None = None

    @classmethod
    def of(
        cls,
        net: MMAudio,
        conditions: Conditions,
        latent_frames: int,
        guidance: Guidance,
        observe: Callable[[Tensor], None] | None = None,
        negative_text: Tensor | None = None,
    ) -> "Guide":
        """Encode `conditions`, and their unconditional twin only if the guidance needs it.

        `negative_text` (1 or B, tokens, width): features of words to stay away from; they take the place of the empty
        text in the twin.
        """
        conditional = net.encode_conditions(conditions, latent_frames)
        if not guidance.active:
            return cls(conditional, None, guidance, observe)
        twin = net.encode_conditions(conditions.unconditional(negative_text), latent_frames)
        return cls(conditional, twin, guidance, observe)

    def __call__(
        self, predict: Callable[[Tensor, Tensor, Tensor, Encoded], Tensor], x: Tensor, r: Tensor, t: Tensor
    ) -> Tensor:
        """Guided prediction; `predict(x, r, t, encoded)` is one of the two functions above."""
        if self.unconditional is None:
            return predict(x, r, t, self.conditional)
        both = predict(
            torch.cat([x, x]), torch.cat([r, r]), torch.cat([t, t]), Encoded.cat(self.conditional, self.unconditional)
        )
        p_cond, p_uncond = both.chunk(2)
        guided = self.guidance(p_cond, p_uncond, t)
        if self.observe is not None:
            self.observe(guided.s_star)
        return guided.value


@dataclass(frozen=True)
class TeacherVelocity:
    """v(x_t, t, conditions) of a flow-matching network, in this project's clock."""

    net: MMAudio

    def __call__(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return teacher_velocity(self.net, x_t, t, self.net.encode_conditions(conditions, x_t.shape[1]))
