"""One file per published objective, all with the call signature of MeanFlow."""

from meanflow.objectives.meanflow import MeanFlow, Residual, RowsOf

__all__ = ["MeanFlow", "Residual", "RowsOf"]
