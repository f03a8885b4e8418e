"""Films and sounds: `open` refuses what cannot be trusted, `read` decodes, `write` encodes, each through PyAV."""

from teacher.media.open import MediaError, MediaInfo, StreamInfo, check_wave, open_media, probe, stream_infos, text_tags
from teacher.media.read import FrameRequest, read_audio, read_frames
from teacher.media.write import SOUND_SUFFIXES, VIDEO_SUFFIXES, check_sound_format, remux, write_audio, write_video

__all__ = [
    "FrameRequest",
    "MediaError",
    "MediaInfo",
    "SOUND_SUFFIXES",
    "StreamInfo",
    "VIDEO_SUFFIXES",
    "check_sound_format",
    "check_wave",
    "open_media",
    "probe",
    "read_audio",
    "read_frames",
    "remux",
    "stream_infos",
    "text_tags",
    "write_audio",
    "write_video",
]
