"""What goes on, said every few seconds, so that no command is silent while it works."""

import contextlib
import os
import re
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

EVERY = 4.0
"""Seconds between two lines, so that nothing is silent for five."""

_TAIL = 4096
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@contextlib.contextmanager
def telling(what: str, said: Callable[[], str] = str) -> Iterator[None]:
    """Say what the block does, at its beginning and every few seconds until it ends.

    Args:
        what: is done, such as "Loading the model".
        said: gives what is to be said beside it, such as the last line of a log.
    """
    started, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(EVERY):
            click.echo(progress(what, time.monotonic() - started, said()))

    click.echo(f"{what} ...")
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def progress(what: str, seconds: float, said: str) -> str:
    """One line of progress.

    >>> progress("measuring", 8.2, "loading weights")
    'measuring: 8 s, loading weights'
    """
    line = f"{what}: {seconds:.0f} s"
    return f"{line}, {textwrap.shorten(said, 90, placeholder=' …')}" if said else line


def last_line(log: Path) -> str:
    """The last line of a log, without what bars draw before it and what loggers put before a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = (line.strip() for line in re.split(r"[\r\n]+", _COLOURS.sub("", text)))
    said = [line for line in lines if line]
    return said[-1].split(" - ", 1)[-1] if said else ""
