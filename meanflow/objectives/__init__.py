"""One file per published objective, all with the call of `ObjectiveLike`."""

from typing import TypeAlias

from meanflow.objectives.correction import Correction
from meanflow.objectives.field import Field, Headed, ObjectiveLike, Residual, RowsOf, VelocityOf
from meanflow.objectives.meanflow import MeanFlow

Objective: TypeAlias = MeanFlow
"""Every objective that a training run can be configured with."""

__all__ = [
    "Correction", "Field", "Headed", "MeanFlow", "Objective", "ObjectiveLike", "Residual", "RowsOf", "VelocityOf",
]  # fmt: skip
