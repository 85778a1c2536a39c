"""Files written whole or not at all, and the versions that a value depends on."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mir_task._version import __version__


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to inside, which takes the place of `path` at the end; folders are made.

    It has the same ending. What was at `path` before stays where the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{os.getpid()}-{threading.get_ident()}"  # others may write the same file
    partial = path.with_name(f".partial-{unique}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> Path:
    """Write plain values as JSON without NaN or infinity, and return the path."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def versions() -> dict[str, str]:
    """Versions of the packages that a value can depend on."""
    others = {name: version(name) for name in ("lmms-eval", "transformers", "torch")}
    return {"mir-task": __version__, **others}
