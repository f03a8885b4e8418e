"""Long convolutions with fewer multiplications (Toom 1963, Cook 1966; for networks Lavin and Gray, arXiv 1509.09308).

Four outputs of a filter of four taps are the transpose of a product of polynomials, which takes seven multiplications
instead of sixteen. With the points P = 0, 1, -1, 2, -2, 1/2 and infinity and E_k (7, k) the first k powers of P,

    y = E_4^T [ (E_4 g) * (E_7^-T x) ]        g (4,) taps, x (7,) inputs, y (4,) outputs

A kernel of k taps is cut into ceil(k / 4) pieces of four taps; piece q reads the inputs of the tile q places further
right, so every tile is transformed once. Over channels the seven multiplications are seven matrix products. A signal
under dilation d is d interleaved signals without dilation. Per output, kernels of 7 taps take 3.5 products instead of
7, and kernels of 11 take 5.25 instead of 11.

Rounding errors are about seven times those of the direct form, so this is for float32 and wider; inference only.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

TILE = 4
"""Outputs of a tile, and taps of a piece of the kernel."""
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)
"""Evaluation points besides infinity. Of eleven sets tried on random signals, this one and 0, 1, -1, 1/2, -1/2, 2 had
the smallest rounding errors."""
LEAST_DEPTH = 576
"""Least channels x pieces for which this is faster on a CPU: kernels of 7 from 384 channels on, of 11 from 192 on.
Below, transforming the signal costs as much as the products save; kernels of 3 never gain."""


@functools.lru_cache(maxsize=1)
def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices that transform the taps (7, 4), the inputs (7, 7) and the outputs (4, 7); float64, on the CPU."""
    with torch.inference_mode(False):
        powers = torch.tensor(POINTS, dtype=torch.float64, device="cpu")[:, None]

        def at_points(degrees: int) -> Tensor:
            finite = powers ** torch.arange(degrees, device="cpu")
            return torch.cat([finite, torch.eye(degrees, dtype=torch.float64, device="cpu")[-1:]])

        return at_points(TILE), torch.linalg.inv(at_points(2 * TILE - 1)).T.contiguous(), at_points(TILE).T.contiguous()


class ToomCookConv1d(nn.Module):
    """Computes what an nn.Conv1d of stride 1 with "same" padding does, up to rounding. (B, in, T) -> (B, out, T).

    It stores 7 ceil(k / 4) / k times as many weights, about twice. Raises ValueError for a convolution with another
    stride, padding or groups, and for weights in half precision.
    """

    weight: Tensor
    """Transformed taps, (7, pieces, out, in)."""
    inputs: Tensor
    outputs: Tensor

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        (size,), (dilation,) = conv.kernel_size, conv.dilation
        same = conv.padding == (dilation * (size // 2),) and conv.padding_mode == "zeros" and size % 2 == 1
        if not same or conv.stride != (1,) or conv.groups != 1:
            raise ValueError(f'a convolution must have stride 1, one group, odd size and "same" padding, got {conv}')
        if conv.weight.dtype.itemsize < 4:
            raise ValueError(f"the weights of a convolution must be float32 or wider here, got {conv.weight.dtype}")
        self.size, self.dilation, self.bias = size, dilation, conv.bias
        taps, inputs, outputs = transforms()
        pieces = functional.pad(conv.weight.detach().double(), (0, -size % TILE)).unflatten(2, (-1, TILE))
        made = torch.einsum("pr,oiqr->pqoi", taps.to(pieces.device), pieces)
        self.register_buffer("weight", made.to(conv.weight).contiguous(), persistent=False)
        self.register_buffer("inputs", inputs.to(conv.weight), persistent=False)
        self.register_buffer("outputs", outputs.to(conv.weight), persistent=False)

    def forward(self, x: Float[Tensor, " batch in time"]) -> Float[Tensor, "batch out time"]:
        made = torch.stack([self._row(row) for row in x])
        return made if self.bias is None else made.add_(self.bias[:, None])

    def _row(self, x: Float[Tensor, "in time"]) -> Float[Tensor, "out time"]:
        (channels, length), d = x.shape, self.dilation
        points, pieces, out, _ = self.weight.shape
        tiles = -(-length // (TILE * d))
        read, left = tiles + pieces, d * (self.size // 2)
        padded = functional.pad(x, (left, TILE * d * read - length - left))
        place = padded.view(channels, read, TILE, d).permute(2, 3, 0, 1).reshape(TILE, -1)
        transformed = self.inputs[:, :TILE] @ place  # the next three inputs are the first of the next tile
        transformed[:, :-1].addmm_(self.inputs[:, TILE:], place[:-1, 1:])
        transformed = transformed.view(points, d, channels, read)
        sums = x.new_empty(points, d, out, tiles)
        for point in range(points):
            for phase in range(d):
                y, v = sums[point, phase], transformed[point, phase]
                torch.mm(self.weight[point, 0], v[:, :tiles], out=y)
                for piece in range(1, pieces):
                    y.addmm_(self.weight[point, piece], v[:, piece : piece + tiles])
        made = (self.outputs @ sums.view(points, -1)).view(TILE, d, out, tiles)
        return made.permute(2, 3, 0, 1).reshape(out, -1)[:, :length]
