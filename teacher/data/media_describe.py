"""What a media file says of its streams, and the texts of its tags; nothing is decoded."""

from dataclasses import dataclass, replace

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from teacher.data.media_open import codec_name


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """One stream of a file. Figures that do not apply, or are not stated, are 0."""

    kind: str
    """video, audio, picture (cover art), subtitle, data or attachment."""
    codec: str
    sample_rate: int = 0
    channels: int = 0
    width: int = 0
    """As stored; rotation is not applied."""
    height: int = 0
    fps: float = 0.0
    duration_s: float = 0.0


def stream_infos(container: InputContainer) -> list[StreamInfo]:
    """What the header says of every stream; nothing is decoded."""
    infos = []
    for stream in container.streams:
        duration_s = 0.0
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        info = StreamInfo(kind=stream.type or "data", codec=codec_name(container, stream), duration_s=duration_s)
        if isinstance(stream, VideoStream):
            cover = bool(stream.disposition & av.stream.Disposition.attached_pic)
            info = replace(info, kind="picture" if cover else "video", fps=float(stream.average_rate or 0.0))
        if stream.codec_context is not None and isinstance(stream, AudioStream):
            info = replace(info, sample_rate=stream.sample_rate, channels=stream.channels)
        elif stream.codec_context is not None and isinstance(stream, VideoStream):
            info = replace(info, width=stream.codec_context.width, height=stream.codec_context.height)
        infos.append(info)
    return infos


def text_tags(container: InputContainer) -> list[str]:
    """The texts of all tags, of the file first and then of its streams; some containers know only one of the two."""
    tags = [container.metadata, *(stream.metadata for stream in container.streams)]
    return [value for group in tags for value in group.values()]
