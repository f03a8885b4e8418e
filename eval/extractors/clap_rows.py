"""Rows of sounds and captions, made alike by both CLAP models: some at a time, in exact float32, on the processor."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from eval.extractors.base import Embeddings, check_waves, exact_float32
from eval.extractors.clap_tokens import CaptionTokenizer
from eval.extractors.htsat_front_end import Heard

CLIPS_AT_ONCE = 4
"""Clips per forward pass."""
CAPTIONS_AT_ONCE = 32
"""Captions per forward pass; each is 77 tokens long, so that its result does not depend on the others."""


@torch.no_grad()
def sound_rows(
    waves: Float[Tensor, "clips samples"],
    *,
    fit: Callable[..., Heard],
    hear: Callable[[Tensor], Tensor],
    samples: int,
    model: str,
    sample_rate: int,
    device: torch.device,
) -> Embeddings:
    """One row per clip: `hear` of what `fit` makes of it, `samples` long.

    Raises:
        ValueError: not (clips, samples), empty, or not finite.
    """
    check_waves(waves, model=model, sample_rate=sample_rate, shortest=1)
    with exact_float32():
        parts = [hear(fit(some.float(), samples=samples).waves.to(device)).cpu() for some in waves.split(CLIPS_AT_ONCE)]
    return Embeddings(rows=torch.cat(parts), counts=(1,) * len(waves))


@torch.no_grad()
def caption_rows(
    captions: Sequence[str], *, tokens: CaptionTokenizer, read: Callable[[Tensor], Tensor], device: torch.device
) -> Float[Tensor, "captions joint"]:
    """One row per caption, float32. Raises ValueError for no captions or an empty one."""
    with exact_float32():
        return torch.cat([read(some.to(device)).cpu() for some in tokens(captions).split(CAPTIONS_AT_ONCE)])
