"""Networks with and without a velocity head: one place that takes u from what a network returns."""

from torch import Tensor

from meanflow.objectives.field import Headed, RowsOf
from meanflow.shapes import AverageVelocity, Latent


def parted(output: Tensor | Headed, *, head: bool = False) -> tuple[Latent, Latent | None]:
    """(u, the head's v) of a network's output; v is None where there is no head.

    `head` says whether the objective trains a velocity head. A head that nothing trains, or one that is missing, is
    refused with a TypeError: the first would be saved untrained, the second leaves the tangent without a source.
    """
    if isinstance(output, Headed) is not head:
        raise TypeError(
            "this objective trains a velocity head, but the network returns u alone; give it a head or set head=False"
            if head
            else "the network returns Headed(u, v), but this objective trains no velocity head; "
            "use ImprovedMeanFlow(head=True) or a network without one"
        )
    return (output.u, output.v) if isinstance(output, Headed) else (output, None)


def bare(rows_of: RowsOf, *, head: bool = False) -> RowsOf:
    """The same network giving u alone; `parted` says what is refused. Every objective asks for u through this."""

    def of_rows(rows: Tensor | None) -> AverageVelocity:
        u_fn = rows_of(rows)
        return lambda x_t, r, t: parted(u_fn(x_t, r, t), head=head)[0]

    return of_rows
