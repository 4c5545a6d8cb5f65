"""Reading and writing of videos; a still is a video of one frame. PIL reads animated PNG, WEBP and GIF; PyAV, which the extra
``video`` installs, reads mp4 and the like. Torch-free to import."""

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
"""Frames per second of written videos."""
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
"""Suffixes that PyAV reads."""
PICTURES = (*SUFFIXES, *VIDEOS)
"""Suffixes of pictures and videos in a folder."""
MOST = 1024
"""Maximum number of frames to read from a file."""
BT709 = 1
"""Colour space of written mp4 files, as a code of ITU-T H.273."""
SHEET = 3
"""Maximum number of frames in a row of a contact sheet."""


def check_video(what: str) -> None:
    """Raise TiltingError if PyAV is not installed; ``what`` needs it."""
    if find_spec("av") is None:
        raise TiltingError(f"{what} needs PyAV: pip install 'tilting[video]'")


def is_video(path: str | Path) -> bool:
    """Whether a file has the suffix of a format that PyAV reads."""
    return Path(path).suffix.lower() in VIDEOS


def evenly(frames: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` frames, evenly spaced from the first to the last; a single one is the middle."""
    if wanted >= frames:
        return list(range(frames))
    return [frames // 2] if wanted == 1 else [round(i * (frames - 1) / (wanted - 1)) for i in range(wanted)]


def open_frames(path: str | Path, most: int = MOST) -> list[Image]:
    """The first frames of a file as RGB images, upright and fully decoded; a still has one.

    Raises:
        TiltingError: a reason without the file's name, as of `tilting.features.picture.open_rgb`.
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
                return [first]  # several pages of a TIFF are not frames
            shown = [
                (upright(frame.copy()), frame.info.get("duration") or 1)
                for frame in islice(ImageSequence.Iterator(opened), most)
            ]
    except TiltingError:
        raise
    except Exception as error:  # decoders of PIL raise nearly anything on a broken file
        raise TiltingError("cannot be read to its end") from error
    shortest = min(time for _, time in shown)  # PIL merges identical frames into a longer one
    return [frame for frame, time in shown for _ in range(min(round(time / shortest), most))][:most]


def _of_video(path: Path, most: int) -> list[Image]:
    import av  # type: ignore[import-not-found]

    try:
        with av.open(str(path)) as opened:
            frames = [frame.to_image() for frame in islice(opened.decode(video=0), most)]
    except Exception as error:  # from FFmpeg, or a file without a video stream
        raise TiltingError(f"cannot be read as a video: {getattr(error, 'strerror', None) or 'it has no pictures'}") from error
    if not frames:
        raise TiltingError("cannot be read as a video: it has no pictures")
    return frames


def read_frames(path: str | Path) -> Tensor:
    """Read a still (3, h, w) or a video (frames, 3, h, w), float in [0, 1]. Raises TiltingError naming an unreadable file."""
    try:
        frames = open_frames(path)
    except TiltingError as error:
        raise TiltingError(f"the picture {str(path)!r} {error}") from error
    return tensor_of(np.stack([np.asarray(frame) for frame in frames]) if len(frames) > 1 else np.array(frames[0]))


def frames_of(image: Tensor) -> list[Image]:
    """An image (3, h, w), or the frames of a video (frames, 3, h, w), in [0, 1] as 8-bit images."""
    from PIL import Image

    pixels = (image.detach().float().reshape(-1, *image.shape[-3:]).permute(0, 2, 3, 1) * 255).round().clamp(0, 255)
    return [Image.fromarray(frame) for frame in pixels.byte().cpu().numpy()]


def contact_sheet(frames: list[Image]) -> Image:
    """Frames evenly spaced from the first to the last in full rows, at most `SHEET` wide; a still is returned unchanged."""
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
    """Encode frames of one size as H.264 with a comment in the metadata; slightly lossy, plays in browsers.

    Raises:
        TiltingError: PyAV is not installed.
    """
    check_video("writing mp4")
    import av  # type: ignore[import-not-found]

    file, (width, height) = BytesIO(), frames[0].size
    kind = "yuv444p" if width % 2 or height % 2 else "yuv420p"  # 4:2:0 plays everywhere, but needs even sides
    with av.open(file, "w", format="mp4") as out:
        out.metadata["comment"] = comment
        stream: Any = out.add_stream("libx264", rate=RATE, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, kind
        context = stream.codec_context
        context.thread_count = 1  # deterministic output
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
