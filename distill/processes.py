"""The process of a launch: the one place that reads RANK, WORLD_SIZE, LOCAL_RANK and the address of the launch.

torchrun, `accelerate launch` and Slurm's scripts set them; without them there is one process. They are read when a
function is called, never at import.
"""

import os
from typing import NamedTuple

COUNTED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which launchers (torchrun, mpirun, srun) state how many processes they started."""


class Process(NamedTuple):
    """One process of a launch."""

    rank: int
    """Number of the process, from 0 to world_size - 1; process 0 writes and prints."""
    world_size: int
    local_rank: int
    """Number of the process on this machine, and so of its GPU."""
    meeting_point: str
    """Address and port, which the processes of one launch have in common and no other launch has."""

    @property
    def main(self) -> bool:
        """Whether this is process 0, which prints what is to be printed once."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether the launch has more than one process."""
        return self.world_size > 1


def this_process() -> Process:
    """This process, as its launcher described it. Raises ValueError for a variable that is no whole number."""
    return Process(
        rank=_number("RANK", 0),
        world_size=_number("WORLD_SIZE", 1),
        local_rank=_number("LOCAL_RANK", 0),
        meeting_point=f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}",
    )


def is_single_in_place_of_several() -> bool:
    """Whether accelerate's launcher of a single process ran for several: it then gives a port to meet at, which a
    launcher of several accompanies with their number."""
    launched = "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ
    return launched and not any(name in os.environ for name in COUNTED)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{variable} must be a whole number, as launchers set it, got {text!r}") from None
