"""A document's medium: from a cell of a data set to what adapters take."""

import functools
import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any

import av
from PIL import Image

from mir_task.documents.cells import Cell, check_modality
from mir_task.documents.folders import kind_of_file
from mir_task.documents.pictures import open_image
from mir_task.errors import MIRError


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
    kind = kind_of_file(cell["path"] or "")
    if kind not in (None, "text"):
        check_modality(str(cell["path"]), str(kind), modality)
    if modality == "image":
        return open_image(_source(cell))
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
