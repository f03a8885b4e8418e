"""Reading and writing media files: the public names of the `media_*` modules beside this one."""

from teacher.data.media_describe import StreamInfo, stream_infos, text_tags
from teacher.data.media_open import MediaError, MediaInfo, check_wave, open_media, probe
from teacher.data.media_read import FrameRequest, read_frames
from teacher.data.media_sound import read_audio
from teacher.data.media_write import VIDEO_SUFFIXES, remux, write_video
from teacher.data.media_write_sound import SOUND_SUFFIXES, check_sound_format, write_audio

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
