"""A document's medium: from a cell of a data set to what adapters take."""

import functools
import hashlib
import io
import mimetypes
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageFile, ImageOps

from mir_task.errors import MIRError

Cell = dict[str, Any]
"""`bytes` and `path` of a file, of which one may be None."""
MODALITIES = ("image", "video", "audio")


def as_cell(cell: str | bytes | dict[str, Any], path: str) -> Cell:
    """Bytes and path of a file, of which one may be None; a string is a path beside its data set."""
    if isinstance(cell, bytes):
        return {"bytes": cell, "path": None}
    if isinstance(cell, str):
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        return {"bytes": None, "path": str(folder / cell)}
    if isinstance(cell, dict) and (cell.get("bytes") or cell.get("path")):
        return {"bytes": cell.get("bytes"), "path": cell.get("path")}
    raise MIRError(
        f"{path}: a file, or the path of one, has to stand in each row of mir_media_column; found "
        f"{type(cell).__name__} {str(cell)[:60]}"
    )


def check_modality(name: str, kind: str, modality: str) -> None:
    """Raise MIRError where what is called `name` holds another modality than the task's."""
    if kind != modality:
        raise MIRError(
            f"{name} holds {kind} and mir_modality is {modality}; set mir_modality: {kind}, or name "
            f"another mir_media_dataset or mir_media_column"
        )


def with_bytes(cell: Cell) -> Cell:
    """The cell with its file's content.

    Raises:
        MIRError: the file cannot be read.
    """
    if cell["bytes"] is not None:
        return cell
    try:
        return {"bytes": Path(cell["path"]).read_bytes(), "path": Path(cell["path"]).name}
    except OSError as error:
        raise MIRError(f"the file {cell['path']} cannot be read ({error})") from error


def _source(cell: Cell) -> io.BytesIO | str:
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else str(cell["path"])


def open_media(cell: Cell, modality: str) -> Image.Image | str | dict[str, Any]:
    """What adapters take for an undecoded cell: an image, the path of a video, or audio.

    Raises:
        MIRError: the file is of another modality, or cannot be read.
    """
    kind = (mimetypes.guess_type(cell["path"] or "")[0] or "").partition("/")[0]
    if kind in MODALITIES:
        check_modality(cell["path"], kind, modality)
    if modality == "image":
        return open_image(cell)
    return open_audio(cell) if modality == "audio" else open_video(cell)


def open_video(cell: Cell) -> str:
    """The path of a video, which is written to a temporary file where the cell holds its bytes.

    Raises:
        MIRError: the video has no frame that can be read.
    """
    path = cell["path"] or ""
    if cell["bytes"] is not None:
        # Adapters tell videos from images by their ending.
        name = hashlib.sha256(cell["bytes"]).hexdigest() + (Path(path).suffix or ".mp4")
        file = Path(_temporary_videos().name, name)
        if not file.exists():
            file.write_bytes(cell["bytes"])
        path = str(file)
    try:
        with av.open(path) as container:
            next(container.decode(video=0))
    except (av.FFmpegError, OSError, IndexError, StopIteration) as error:
        reason = "it has no frames" if isinstance(error, IndexError | StopIteration) else error
        raise MIRError(f"the video cannot be read ({reason}); replace or leave out the file") from error
    return path


@functools.cache
def _temporary_videos() -> tempfile.TemporaryDirectory[str]:
    """A folder that is gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="mir_task_")


def open_audio(cell: Cell) -> dict[str, Any]:
    """Audio as the harness's tasks give it: `array`, float32 [samples], and `sampling_rate` in Hz.

    Channels are averaged.

    Raises:
        MIRError: the file cannot be read or holds no samples, or soundfile is not installed.
    """
    soundfile = soundfile_package()
    try:
        samples, rate = soundfile.read(_source(cell), dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:
        reason = getattr(error, "error_string", error)  # without the address of a buffer
        raise MIRError(f"the audio cannot be read ({reason}); replace or leave out the file") from error
    if not len(samples):
        raise MIRError("the audio holds no samples; replace or leave out the file")
    return {"array": samples.mean(axis=1), "sampling_rate": rate}


def soundfile_package() -> Any:
    """The optional package that reads audio.

    Raises:
        MIRError: it is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # the package, or its library
        raise MIRError(
            f"audio is read with soundfile, which is not there ({error}): pip install 'mir-task[audio]'"
        ) from error
    return soundfile


def open_image(cell: Cell) -> Image.Image:
    """The RGB picture of an undecoded image cell, turned as its EXIF says.

    Raises:
        MIRError: the file cannot be read in full.
    """
    # The harness lets Pillow fill up truncated files, which would measure grey areas.
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with Image.open(_source(cell)) as file:
            image = to_rgb(ImageOps.exif_transpose(file))
            # Image processors take a side of 1 or 3 pixels for the colour channels.
            return image if min(image.size) > 3 else ImageOps.scale(image, 4, Image.Resampling.NEAREST)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MIRError(f"the image cannot be read ({error}); replace or leave out the file") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB: 16-bit grey scaled to 8, transparent areas on white."""
    if image.mode.startswith("I") and np.asarray(image).max() > 255:  # Pillow would clip the rest
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
