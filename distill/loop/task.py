"""What the training loop is given: a network, its step, its data, and ways to judge and publish it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.config import LoopConfig
from distill.engines import Tensors
from distill.evaluation import HeldOut
from teacher.audio.codec import AudioCodec
from teacher.data.dataset import Batch, Examples
from teacher.network import MMAudio
from teacher.share import Share
from teacher.train import Terms

Step = Callable[[nn.Module, MMAudio, Batch, torch.Generator, float, Share], Terms]
"""(network to call with gradients, the same network plain, batch, generator, share of training done, which rows of the
whole batch these are) -> terms."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the loop trains: a network, its step, and a way to judge it."""

    kind: str
    config: Any
    """The run's dataclass, written to config.json."""
    loop: LoopConfig
    data: Examples
    """The training split, in the network's units."""
    features: Path
    """The feature folder whose description goes into the run folder."""
    codec: AudioCodec
    """The codec that decodes what the network makes; written into the run folder."""
    net: MMAudio
    step: Step
    evaluate: HeldOut
    """Called by every process; what the main process gets goes into the log."""
    best: str
    """The number of an evaluation of which the smallest marks the best checkpoint."""
    float32_only: bool = False
    """Whether the step is refused under mixed precision, because it takes differences of the network."""
    frozen: tuple[MMAudio, ...] = ()
    """Networks the step uses but does not train; moved to the device."""
    digests: dict[str, str]
    """Digests of everything the run starts from."""
    licence: str | None = None
    """Licence inherited from weights the run starts from."""
    publish: Callable[[str, Tensors], dict[str, Tensors]] | None = None
    """Turns a state dict of `net` into files for use, where training changes the names (adapters)."""
