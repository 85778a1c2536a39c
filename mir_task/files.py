"""Files written whole or not at all, and the versions that a value depends on."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mir_task._version import __version__
from mir_task.errors import MIRError


def files_below(folder: Path) -> list[Path]:
    """Files of a folder and of those below it, linked ones too; hidden folders are left out.

    A folder that is not there, or that goes while others are read, has none.

    Raises:
        MIRError: a folder cannot be read, or a link leads back to where it stands.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise MIRError(f"{error.filename} cannot be read: {error.strerror}") from error

    found: list[Path] = []
    above: dict[Path, tuple[Path, ...]] = {folder: (folder.resolve(),)}
    """Of each folder: itself and those that lead to it, without links."""
    for name, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(name)
        folders[:] = [each for each in folders if not each.startswith(".")]
        for path in (here / each for each in folders):
            target = path.resolve()
            if path.is_symlink() and any(each.is_relative_to(target) for each in above[here]):
                raise MIRError(f"{path} is a link to {target}, in which it stands: remove the link")
            above[path] = (*above[here], target)
        found += [here / each for each in files]
    return found


@contextlib.contextmanager
def written_whole(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A path to write to inside, which takes the place of `path` at the end; folders are made.

    It has the same ending. What was at `path` before stays where the block raises.

    Args:
        path: of the file.
        new: whether a file that is at `path` by then has to stay.

    Raises:
        FileExistsError: `new`, and there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Others may write the same file: threads, processes, machines with a disk in common.
    partial = path.with_name(f".partial-{uuid.uuid4().hex}.{path.suffix.lstrip('.')}")
    try:
        yield partial
        if new:
            _move_new(partial, path)
        else:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _move_new(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)  # fails where there is a file, at once for whoever comes second
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(str(path)) from None
        os.replace(partial, path)


def write_json(path: Path, content: Any, *, new: bool = False) -> Path:
    """Write plain values as JSON without NaN or infinity, and return the path; `new` as above."""
    with written_whole(path, new=new) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def versions() -> dict[str, str]:
    """Versions of the packages that a value can depend on, as far as they are installed."""
    found = {"mir-task": __version__}
    for name in ("lmms-eval", "lm-eval", "transformers", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
