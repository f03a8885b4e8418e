"""The linear path between data x (t = 0) and noise e (t = 1), and conversions along it.

x_t = (1 - t) x + t e,      v = d x_t / dt = e - x        (arXiv 2505.13447, section 3)
"""

from meanflow.shapes import Latent, Time, expand_right


def interpolate(x: Latent, e: Latent, t: Time) -> Latent:
    """x_t = (1 - t) x + t e; shapes (B, N, C), (B, N, C), (B,)."""
    t_ = expand_right(t, x)
    return (1 - t_) * x + t_ * e


def velocity(x: Latent, e: Latent) -> Latent:
    """Conditional velocity v = e - x of the linear path."""
    return e - x


def data_from_velocity(x_t: Latent, v: Latent, t: Time) -> Latent:
    """x = x_t - t v."""
    return x_t - expand_right(t, x_t) * v


def noise_from_velocity(x_t: Latent, v: Latent, t: Time) -> Latent:
    """e = x_t + (1 - t) v."""
    return x_t + (1 - expand_right(t, x_t)) * v


def jump(x_t: Latent, u: Latent, r: Time, t: Time) -> Latent:
    """x_r = x_t - (t - r) u(x_t, r, t): a step with an average velocity (arXiv 2505.13447, eq. 12)."""
    return x_t - expand_right(t - r, x_t) * u
