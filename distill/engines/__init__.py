"""Engines, which distribute a run over processes: the only package that imports accelerate, DeepSpeed and FSDP."""

from distill.engines.base import Engine, Tensors
from distill.engines.choose import choose_engine

__all__ = ["Engine", "Tensors", "choose_engine"]
