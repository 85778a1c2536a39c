"""The blocks of code in the documentation, and what their commands print: `python -m tests.docs`.

A block runs, unless a comment right before it says why not: `<!-- not run: REASON -->`. Commands run in
a folder with the `demo-output` of `make demo`. A block that begins with `$ ` shows a command with its
output; `python -m tests.docs` puts today's output there.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ("$ ", "lmms-eval ", "mir-task ", "python", "torchrun ", "export ", "make ", "pip ")
_BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code on a page."""

    page: Path
    language: str
    """`command` for a command, also where the page names no language."""
    text: str
    not_run: str | None
    """Why."""

    @property
    def command(self) -> str:
        """Of a command, what is typed."""
        return self.text.split("\n")[0].removeprefix("$ ") if self.shows_output else self.text

    @property
    def shows_output(self) -> bool:
        return self.text.startswith("$ ")

    @property
    def output(self) -> str:
        return self.text.partition("\n")[2]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that are code; what a command printed, by itself, is none."""
    for reason, language, text in _BLOCK.findall(page.read_text("utf-8")):
        if language or text.startswith(COMMANDS):
            yield Block(page, language or "command", text, reason or None)


def make_demo(folder: Path) -> None:
    """`make demo` in a folder."""
    in_shell(f"{sys.executable} -m mir_task demo demo-output", folder)


def in_shell(command: str, folder: Path) -> str:
    """What a command prints, which is to exit with 0."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder))
        for page in PAGES:
            text = page.read_text("utf-8")
            for block in blocks(page):
                if block.shows_output and not block.not_run:
                    output = in_shell(block.command, Path(folder)).strip("\n")
                    text = text.replace(block.text, f"$ {block.command}\n{output}\n")
            page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
