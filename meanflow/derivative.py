"""Total derivative of an average velocity along the flow, du/dt = (v . grad_x) u + d_t u with r fixed.

This is the Jacobian-vector product of u at (x_t, r, t) with tangents (v, 0, 1) (arXiv 2505.13447, eq. 8). It only
enters targets under stop-gradient, so both forms here return a tensor without a graph.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow.shapes import AverageVelocity, Latent, Time, expand_right


@dataclass(frozen=True, kw_only=True)
class ForwardAD:
    """Exact derivative by forward-mode differentiation (torch.func.jvp).

    Fused attention kernels have no forward-mode formula, so scaled_dot_product_attention runs its MATH form inside.
    """

    def __call__(self, u_fn: AverageVelocity, x_t: Latent, r: Time, t: Time, v: Latent) -> Latent:
        with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
            tangents = (v.to(x_t.dtype), torch.zeros_like(r), torch.ones_like(t))
            dudt: Latent = torch.func.jvp(u_fn, (x_t, r, t), tangents)[1]
        return dudt.detach()


@dataclass(frozen=True, kw_only=True)
class CentralDifference:
    """du/dt ~ [u(x_t + eps v, r, t + eps) - u(x_t - eps v, r, t - eps)] / (2 eps), error O(eps^2).

    Needs no forward mode and so runs everywhere, but only in float32 or better: under bfloat16 the error reaches tens
    of per cent. t +- eps may leave [0, 1] by eps, where the network is smooth.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 < self.eps < 0.1:
            raise ValueError(f"eps must lie in (0, 0.1), got {self.eps}")

    def __call__(self, u_fn: AverageVelocity, x_t: Latent, r: Time, t: Time, v: Latent) -> Latent:
        if x_t.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(x_t.device.type):
            raise ValueError("CentralDifference needs float32 or float64 without autocast; use ForwardAD")
        with torch.no_grad():
            ahead = u_fn(x_t + self.eps * v, r, t + self.eps)
            behind = u_fn(x_t - self.eps * v, r, t - self.eps)
        return (ahead - behind) / (2 * self.eps)


TotalDerivative: TypeAlias = ForwardAD | CentralDifference


def identity_residual(u: Latent, dudt: Latent, v: Latent, r: Time, t: Time) -> Latent:
    """u + (t - r) du/dt - v, zero for a true average velocity (arXiv 2505.13447, eq. 6)."""
    return u + expand_right(t - r, u) * dudt - v
