"""One file per published objective, all with the call of `ObjectiveLike`."""

from typing import TypeAlias

from meanflow.objectives.alpha_flow import AlphaFlow
from meanflow.objectives.base import Needs, ObjectiveLike, Residual, StudentCalls
from meanflow.objectives.consistency import ConsistencyTraining
from meanflow.objectives.improved import ImprovedMeanFlow
from meanflow.objectives.meanflow import MeanFlow
from meanflow.objectives.plain import PlainFlowMatching
from meanflow.objectives.split import SplitMeanFlow
from meanflow.objectives.terminal import TerminalVelocity
from meanflow.objectives.transition import TransitionModel

Objective: TypeAlias = (
    MeanFlow
    | ImprovedMeanFlow
    | AlphaFlow
    | SplitMeanFlow
    | TransitionModel
    | TerminalVelocity
    | ConsistencyTraining
    | PlainFlowMatching
)
"""Every objective that a training run can be configured with; a new one is its file and its name here."""

__all__ = [
    "AlphaFlow", "ConsistencyTraining", "ImprovedMeanFlow", "MeanFlow", "Needs", "Objective", "ObjectiveLike",
    "PlainFlowMatching", "Residual", "SplitMeanFlow", "StudentCalls", "TerminalVelocity", "TransitionModel",
]  # fmt: skip
