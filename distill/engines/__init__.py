"""How a run is spread over processes: the only room that knows accelerate, DeepSpeed and FSDP."""

from distill.engines.base import Engine, Tensors
from distill.engines.choose import choose_engine

__all__ = ["Engine", "Tensors", "choose_engine"]
