"""Less memory and less time per block: activation checkpointing and regional compilation, switched on in place."""

from itertools import chain

from torch import nn

from teacher.network.mmaudio import MMAudio

RECOMPILES = 64
"""Versions of a forward that torch.compile keeps before it silently runs further ones uncompiled. Its own limit of 8
counts the joint blocks of both kinds together, and each kind has a version for gradients, for the first size of batch
without, for all other sizes, and as many again in another precision."""


def blocks_of(net: MMAudio) -> list[nn.Module]:
    """Joint and fused blocks, those of a velocity head included, in the order in which they run."""
    head = net.velocity_blocks if net.config.velocity_head else ()
    return list(chain(net.joint_blocks, net.fused_blocks, head))


def prepare_blocks(net: MMAudio, *, checkpoint: bool, compile: bool) -> None:
    """Switch on what LoopConfig asks for, in place and before an engine wraps `net`; names of parameters stay.

    `checkpoint`: with gradients recorded, blocks keep their inputs alone and compute the rest again in the backward
    pass (torch.utils.checkpoint without reentry). Derivatives, targets and samples, which record none, do not notice.

    `compile`: each block is compiled by itself when it is first called, so blocks of a kind share one compilation;
    ForwardAD runs them as written. A deep copy of the network is not compiled: call this on the copy too.
    """
    net.checkpoint_blocks = checkpoint
    if compile:
        import torch._dynamo.config as limits  # takes seconds

        limits.recompile_limit = max(limits.recompile_limit, RECOMPILES)
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * RECOMPILES)
        for block in blocks_of(net):
            block.compile()
    else:
        for block in blocks_of(net):
            block._compiled_call_impl = None
