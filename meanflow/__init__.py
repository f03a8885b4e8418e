"""Average-velocity mathematics on tensors (MeanFlow, arXiv 2505.13447); depends on torch alone.

Notation, which is also the variable names:

    t, r     times, t = 1 noise, t = 0 data, 0 <= r <= t, shape (B,)         (MMAudio's clock is 1 - t)
    x, e     clean latent and Gaussian noise, (B, frames, channels)
    x_t      (1 - t) x + t e
    v        instantaneous velocity, e - x or a network's
    v_g, v_cond, v_uncond    guided, conditional, unconditional velocity
    u        average velocity over [r, t]; u(x_t, t, t) = v
    dudt     total derivative of u along (v, 0, 1) in (x_t, r, t)
    u_target v - (t - r) dudt, no gradient
    omega    guidance scale, 1 = off;  kappa  weight of the model's own v_cond
    s_star   scalar that rescales the unconditional prediction
    p, c     adaptive weight (||delta||^2 + c)^-p
    fm_fraction   P(r = t), the share of plain flow-matching rows

Arguments are always ordered (x_t, r, t, ...).
"""

from meanflow.attention import choose_attention
from meanflow.closed_form import GaussianFlow
from meanflow.derivative import CentralDifference, ForwardAD, TotalDerivative
from meanflow.guidance import Guidance, GuidanceRule, Guided, JointGuidance, MixedGuidance, default_omega
from meanflow.loss import AdaptiveL2, Loss, PseudoHuber
from meanflow.mixture import GuidedFlow, MixtureFlow, Quadrature
from meanflow.objectives import (
    AlphaFlow,
    ConsistencyTraining,
    Correction,
    Field,
    Headed,
    ImprovedMeanFlow,
    MeanFlow,
    Objective,
    ObjectiveLike,
    PlainFlowMatching,
    Residual,
    SplitMeanFlow,
    TerminalVelocity,
    TransitionModel,
)
from meanflow.ode import Adaptive, Integrated
from meanflow.path import data_from_velocity, interpolate, jump, noise_from_velocity, velocity
from meanflow.sampling import euler, heun, midpoint, sample, time_grid
from meanflow.shapes import AverageVelocity, Latent, Time, Velocity, expand_right
from meanflow.time_sampling import (
    PUBLISHED,
    Capped,
    Density,
    Gap,
    LogitNormal,
    MixedTimes,
    Ordered,
    Pairs,
    Shifted,
    TimePairs,
    Times,
    Uniform,
    other_clock,
)  # fmt: skip

__all__ = [
    "Adaptive", "AdaptiveL2", "AlphaFlow", "AverageVelocity", "Capped", "CentralDifference", "ConsistencyTraining",
    "Correction", "Density", "Field", "ForwardAD", "Gap", "GaussianFlow", "Guidance", "GuidanceRule", "Guided",
    "GuidedFlow", "Headed", "ImprovedMeanFlow", "Integrated", "JointGuidance", "Latent", "LogitNormal", "Loss",
    "MeanFlow", "MixedGuidance", "MixedTimes", "MixtureFlow", "Objective", "ObjectiveLike", "Ordered", "PUBLISHED",
    "Pairs", "PlainFlowMatching", "PseudoHuber", "Quadrature", "Residual", "Shifted", "SplitMeanFlow",
    "TerminalVelocity", "Time", "TimePairs", "Times", "TotalDerivative", "TransitionModel", "Uniform", "Velocity",
    "choose_attention", "data_from_velocity", "default_omega", "euler", "expand_right", "heun",
    "interpolate", "jump", "midpoint", "noise_from_velocity", "other_clock", "sample", "time_grid", "velocity",
]  # fmt: skip
