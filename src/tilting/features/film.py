"""Films: several frames in a file, of which a still is one. Animated PNG, WEBP and GIF by PIL; mp4 and other videos by PyAV,
which the extra ``video`` installs. Torch-free to import."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.features.picture import SUFFIXES, open_rgb, tensor_of, upright
from tilting.lazy import np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image
    from torch import Tensor

RATE = 16
"""Frames a second of what is written."""
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
"""What PyAV reads here."""
PICTURES = (*SUFFIXES, *VIDEOS)
"""What counts as a picture or a film in a folder."""
MOST = 1024
"""The most frames that are read of a file."""
BT709 = 1
"""The colours that an mp4 says it has, in the numbers of its standard (ITU-T H.273)."""
SHEET = 3
"""The most frames in a row of a contact sheet."""


def check_video(what: str) -> None:
    """Refuse what needs PyAV where it is not installed. Raises TiltingError."""
    if find_spec("av") is None:
        raise TiltingError(f"{what} needs PyAV: pip install 'tilting[video]'")


def is_video(path: str | Path) -> bool:
    """Whether a file is called a video, which PIL does not read."""
    return Path(path).suffix.lower() in VIDEOS


def evenly(frames: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` frames, evenly spaced from the first to the last; a single one is the middle."""
    if wanted >= frames:
        return list(range(frames))
    return [frames // 2] if wanted == 1 else [round(i * (frames - 1) / (wanted - 1)) for i in range(wanted)]


def open_frames(path: str | Path, most: int = MOST) -> list[Image]:
    """The first frames of a file as RGB pictures, upright and wholly decoded; of a still one.

    Raises:
        TiltingError: a reason without the name of the file, as `tilting.features.picture.open_rgb` gives it.
    """
    if is_video(path):
        if not Path(path).is_file():
            raise TiltingError("is a folder" if Path(path).is_dir() else "is not there")
        check_video("reading a video")
        return _of_video(Path(path), most)
    first = open_rgb(path)
    from PIL import Image, ImageSequence

    try:
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) == 1 or opened.format not in ("PNG", "WEBP", "GIF"):
                return [first]  # the pages of a TIFF are no film
            shown = [
                (upright(frame.copy()), frame.info.get("duration") or 1)
                for frame in islice(ImageSequence.Iterator(opened), most)
            ]
    except TiltingError:
        raise
    except Exception as error:  # decoders of PIL raise nearly anything on a broken file
        raise TiltingError("cannot be read to its end") from error
    shortest = min(time for _, time in shown)  # frames that are alike are written as one that stays longer
    return [frame for frame, time in shown for _ in range(min(round(time / shortest), most))][:most]


def _of_video(path: Path, most: int) -> list[Image]:
    import av  # type: ignore[import-not-found]

    try:
        with av.open(str(path)) as opened:
            frames = [frame.to_image() for frame in islice(opened.decode(video=0), most)]
    except Exception as error:  # of FFmpeg, and of a file without pictures
        raise TiltingError(f"cannot be read as a video: {getattr(error, 'strerror', None) or 'it has no pictures'}") from error
    if not frames:
        raise TiltingError("cannot be read as a video: it has no pictures")
    return frames


def read_frames(path: str | Path) -> Tensor:
    """A still (3, h, w), or a film (frames, 3, h, w), float in [0, 1]. Raises TiltingError naming a file that is none."""
    try:
        frames = open_frames(path)
    except TiltingError as error:
        raise TiltingError(f"the picture {str(path)!r} {error}") from error
    return tensor_of(np.stack([np.asarray(frame) for frame in frames]) if len(frames) > 1 else np.array(frames[0]))


def frames_of(image: Tensor) -> list[Image]:
    """An image (3, h, w), or the frames of a film (frames, 3, h, w), in [0, 1] as pictures of 8 bits."""
    from PIL import Image

    pixels = (image.detach().float().reshape(-1, *image.shape[-3:]).permute(0, 2, 3, 1) * 255).round().clamp(0, 255)
    return [Image.fromarray(frame) for frame in pixels.byte().cpu().numpy()]


def contact_sheet(frames: list[Image]) -> Image:
    """Frames of a film, evenly spaced from the first to the last, in full rows, at most `SHEET`; a still is itself."""
    from PIL.Image import new

    if len(frames) == 1:
        return frames[0]
    rows = min(SHEET, isqrt(len(frames)))
    columns = len(frames) if rows == 1 else rows
    shown = [frames[i] for i in evenly(len(frames), rows * columns)]
    width, height = frames[0].size
    sheet = new("RGB", (columns * width, rows * height))
    for i, frame in enumerate(shown):
        sheet.paste(frame, (i % columns * width, i // columns * height))
    return sheet


def mp4(frames: list[Image], comment: str) -> bytes:
    """Frames of one size as an H.264 video, a comment in its metadata; what is seen in a browser, and a little is lost.

    Raises:
        TiltingError: PyAV is not installed.
    """
    check_video("writing mp4")
    import av  # type: ignore[import-not-found]

    file, (width, height) = BytesIO(), frames[0].size
    kind = "yuv444p" if width % 2 or height % 2 else "yuv420p"  # half the colours, which every player shows
    with av.open(file, "w", format="mp4") as out:
        out.metadata["comment"] = comment
        stream: Any = out.add_stream("libx264", rate=RATE, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, kind
        context = stream.codec_context
        context.thread_count = 1  # the same bytes on every machine
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = BT709
        for picture in _with_end(frames):
            frame = picture and av.VideoFrame.from_image(picture).reformat(
                format=kind, dst_colorspace="ITU709", dst_color_range="MPEG", interpolation="BICUBIC"
            )
            for packet in stream.encode(frame):
                out.mux(packet)
    return file.getvalue()


def _with_end(frames: list[Image]) -> Iterator[Image | None]:
    """Frames, and the None that tells an encoder there are no more."""
    yield from frames
    yield None
