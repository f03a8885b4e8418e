"""Reading and writing media files: the public names of `media_open`, `media_read`, `media_sound` and `media_write`."""

from teacher.data.media_open import MediaError, MediaInfo, check_wave, probe
from teacher.data.media_read import FrameRequest, read_frames
from teacher.data.media_sound import read_audio
from teacher.data.media_write import remux, replacing, write_audio, write_video

__all__ = [
    "FrameRequest",
    "MediaError",
    "MediaInfo",
    "check_wave",
    "probe",
    "read_audio",
    "read_frames",
    "remux",
    "replacing",
    "write_audio",
    "write_video",
]
