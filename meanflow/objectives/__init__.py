"""One file per published objective, all with the call of `ObjectiveLike`."""

from typing import TypeAlias

from meanflow.objectives.alpha_flow import AlphaFlow
from meanflow.objectives.consistency import ConsistencyTraining
from meanflow.objectives.correction import Correction
from meanflow.objectives.field import Field, Headed, ObjectiveLike, Residual, RowsOf, VelocityOf
from meanflow.objectives.heads import bare, parted
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
"""Every objective that a training run can be configured with."""

__all__ = [
    "AlphaFlow", "ConsistencyTraining", "Correction", "Field", "Headed", "ImprovedMeanFlow", "MeanFlow", "Objective",
    "ObjectiveLike", "PlainFlowMatching", "Residual", "RowsOf", "SplitMeanFlow", "TerminalVelocity",
    "TransitionModel", "VelocityOf", "bare", "parted",
]  # fmt: skip
