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
    fm_fraction   P(r = t), the fraction of plain flow-matching rows

Arguments are always ordered (x_t, r, t, ...).
"""

from meanflow.attention import choose_attention
from meanflow.closed_form import GaussianFlow
from meanflow.derivative import CentralDifference, Correction, ForwardAD, TotalDerivative
from meanflow.guidance import Guidance, GuidanceRule, Guided, JointGuidance, MixedGuidance, default_omega
from meanflow.loss import AdaptiveL2, Loss, PseudoHuber
from meanflow.mixture import GuidedFlow, MixtureFlow, Quadrature
from meanflow.objectives import (
    AlphaFlow,
    ConsistencyTraining,
    ImprovedMeanFlow,
    MeanFlow,
    Needs,
    Objective,
    ObjectiveLike,
    PlainFlowMatching,
    Residual,
    SplitMeanFlow,
    StudentCalls,
    TerminalVelocity,
    TransitionModel,
)
from meanflow.ode import Adaptive, Integrated
from meanflow.path import data_from_velocity, interpolate, jump, noise_from_velocity, velocity
from meanflow.sampling import euler, heun, midpoint, sample, time_grid
from meanflow.shapes import (
    AverageVelocity,
    Latent,
    Prediction,
    Time,
    Velocity,
    expand_right,
    moving_rows,
    on_moving_rows,
    u_only,
)
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
    "Correction", "Density", "ForwardAD", "Gap", "GaussianFlow", "Guidance", "GuidanceRule", "Guided", "GuidedFlow",
    "ImprovedMeanFlow", "Integrated", "JointGuidance", "Latent", "LogitNormal", "Loss", "MeanFlow", "MixedGuidance",
    "MixedTimes", "MixtureFlow", "Needs", "Objective", "ObjectiveLike", "Ordered", "PUBLISHED", "Pairs",
    "PlainFlowMatching", "Prediction", "PseudoHuber", "Quadrature", "Residual", "Shifted", "SplitMeanFlow",
    "StudentCalls", "TerminalVelocity", "Time", "TimePairs", "Times", "TotalDerivative", "TransitionModel",
    "Uniform", "Velocity", "choose_attention", "data_from_velocity", "default_omega", "euler", "expand_right",
    "heun", "interpolate", "jump", "midpoint", "moving_rows", "noise_from_velocity", "on_moving_rows",
    "other_clock", "sample", "time_grid", "u_only", "velocity",
]  # fmt: skip
