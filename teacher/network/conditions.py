"""Conditions of the multimodal network: image, synchronisation and text features with presence masks."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from teacher.network.sequence import MMAUDIO_WIDTHS, ConditionWidths, image_frames, sync_frames


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions of a batch of sounds: features and presence masks. They are never modified in place.

    clip (B, Tc, image width), sync (B, Ts, sync width) and text (B, tokens, text width) are features, with the widths
    of `ConditionWidths` (1024, 768, 77 and 1024 in MMAudio). has_* (B,) are bool: where False, the network uses its
    learned empty token for that row and ignores the features.
    """

    clip: Tensor
    sync: Tensor
    text: Tensor
    has_clip: Tensor
    has_sync: Tensor
    has_text: Tensor

    @classmethod
    def empty(cls, batch: int, duration_s: float, widths: ConditionWidths = MMAUDIO_WIDTHS) -> Self:
        """No condition at all: zeros of these widths, with the sequence lengths of `duration_s` seconds."""
        none = torch.zeros(batch, dtype=torch.bool)
        return cls(
            clip=torch.zeros(batch, image_frames(duration_s), widths.image),
            sync=torch.zeros(batch, sync_frames(duration_s), widths.sync),
            text=torch.zeros(batch, widths.text_tokens, widths.text),
            has_clip=none,
            has_sync=none,
            has_text=none,
        )

    def __len__(self) -> int:
        return self.clip.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """The same conditions with features on `device` in `dtype`, and masks on `device`."""
        moved = {
            f.name: getattr(self, f.name).to(device, None if f.name.startswith("has_") else dtype) for f in fields(self)
        }
        return type(self)(**moved)

    def rows(self, index: Tensor | slice) -> Self:
        """The conditions of the rows that a slice, an index or a bool mask selects."""
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def unconditional(self, negative_text: Tensor | None = None) -> Self:
        """The same lengths with every modality marked absent.

        A negative prompt takes the place of the empty text alone: `negative_text` (1, tokens, width) for every row, or
        (B, tokens, width), holds the features of the caption to steer away from. Raises ValueError for another shape.
        """
        none = torch.zeros_like(self.has_clip)
        absent = replace(self, has_clip=none, has_sync=none, has_text=none)
        if negative_text is None:
            return absent
        if negative_text.shape[1:] != self.text.shape[1:] or len(negative_text) not in (1, len(self)):
            raise ValueError(
                f"negative_text must be (1 or {len(self)}, *{tuple(self.text.shape[1:])}) like the text features, "
                f"got {tuple(negative_text.shape)}"
            )
        text = negative_text.to(self.text).expand_as(self.text)
        return replace(absent, text=text, has_text=torch.ones_like(self.has_text))

    def without_video(self) -> Self:
        """The same conditions with image and synchronisation marked absent, as text-to-audio uses them."""
        none = torch.zeros_like(self.has_clip)
        return replace(self, has_clip=none, has_sync=none)

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """Conditions of several batches, one after the other."""
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)})
