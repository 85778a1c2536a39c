"""Pictures as adapters take them: RGB, upright, of any mode and depth."""

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from mir_task.errors import MIRError

_pillow = threading.Lock()
_CHANNELS = ((), (3,), (4,))
"""Of an array, behind height and width."""
# Tags of TIFF: bits of a sample, the largest sample of whole and of other numbers, and the orientation.
_BITS, _LARGEST, _LARGEST_FLOAT, _ORIENTATION = 258, 281, 341, 274


def open_image(file: io.BytesIO | str | Path) -> Image.Image:
    """The RGB picture of a file, turned as its EXIF says.

    Raises:
        MIRError: the file cannot be read in full, or holds no picture.
    """
    try:
        with _in_full(), Image.open(file) as image:
            return as_seen(image)
    except MIRError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MIRError(f"the image cannot be read ({error}); replace or leave out the file") from error


def picture_of(medium: Any) -> Any:
    """The picture that someone passed: a PIL image, an array, or the path of a file.

    Args:
        medium: a path may be a string; one that is an address or holds the file's content is left to
            the processor.

    Raises:
        MIRError: it is none of them, with its type, or an array of other than bytes.
    """
    if isinstance(medium, Image.Image):
        return as_seen(medium)
    if isinstance(medium, np.ndarray):
        if medium.dtype != np.uint8 or medium.ndim not in (2, 3) or medium.shape[2:] not in _CHANNELS:
            raise MIRError(
                f"an image is an array of {medium.dtype} {list(medium.shape)}: pass uint8, 0 to 255, of "
                "[height, width], [height, width, 3] or [height, width, 4], or a PIL image"
            )
        return as_seen(Image.fromarray(medium))
    if isinstance(medium, str) and (
        medium.startswith(("http:", "https:", "data:")) or len(medium) > 999
    ):
        return medium
    if isinstance(medium, str | Path):
        if not Path(medium).is_file():
            raise MIRError(
                f"an image is {str(medium)!r}, and there is no file {Path(medium).absolute()}"
            )
        return open_image(medium)
    raise MIRError(
        f"an image is of type {type(medium).__name__}: pass a PIL image, an array of uint8 or a path"
    )


@contextlib.contextmanager
def _in_full() -> Iterator[None]:
    """Have Pillow refuse truncated files, which the harness lets it fill up with grey areas.

    One thread at a time, so that each puts back what it found.
    """
    with _pillow:
        tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def as_seen(image: Image.Image) -> Image.Image:
    """An image of any mode as it is seen: RGB, upright, transparent areas on white.

    Deep samples are scaled by the range that the file states, else by their own: of whole numbers to the
    next power of two, of others to 1, 255 or their largest.

    Raises:
        MIRError: samples that are negative or no numbers.
    """
    picture = _eight_bits(image) if image.mode.startswith(("I", "F")) else image
    picture = to_rgb(ImageOps.exif_transpose(picture))
    # Image processors take a side of 1 or 3 pixels for the colour channels.
    return picture if min(picture.size) > 3 else ImageOps.scale(picture, 4, Image.Resampling.NEAREST)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of eight bits a sample in RGB, transparent areas on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.float64)
    if not np.isfinite(samples).all() or (samples < 0).any():
        raise MIRError("the image holds samples that are negative or no numbers, so it is no picture")
    scaled = samples * (255 / _range(image, float(samples.max(initial=0.0))))
    picture = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    if orientation := image.getexif().get(_ORIENTATION):
        picture.getexif()[_ORIENTATION] = orientation
    return picture


def _range(image: Image.Image, largest: float) -> float:
    """The sample that is white."""
    tags = getattr(image, "tag_v2", {})
    stated = tags.get(_LARGEST_FLOAT if image.mode == "F" else _LARGEST)
    stated = stated[0] if isinstance(stated, tuple) else stated
    if stated and stated >= largest:
        return float(stated)
    if image.mode == "F":
        return next((white for white in (1.0, 255.0) if largest <= white), largest)
    bits = tags.get(_BITS, (16,))
    bits = bits[0] if isinstance(bits, tuple) else bits
    if (tags and bits < 16) or image.format == "PNG":
        return float(2**bits - 1)
    return float(max(2 ** int(np.ceil(np.log2(largest + 1))) - 1, 255))
