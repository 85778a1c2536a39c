"""The messages that the tests have the package raise, as a document: `python -m tests.messages`.

As a plugin of pytest (`-p tests.messages`) it notes each of them in the folder that `MIR_TASK_MESSAGES`
names.
"""

import html
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "messages.md"
MOST = 6
"""Of one place in the code, which may pass on many reasons."""
HEAD = """# Messages

What stops a measurement, or leaves a document out, is said in one message that names the cause and the
way out. These are the messages that the tests provoke, as they were printed, by the module that raises
them; `python -m tests.messages` writes this page. Paths are shortened to their last part.
"""

noted: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
"""By module and line: the first message of each shape."""


def shape(message: str) -> str:
    """A message without what differs from case to case."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", message)[:60]


def shown(message: str) -> str:
    """A message without the folders of its absolute paths, in one line."""
    message = re.sub(r"(?<![\w.:/])(?:/[\w.+@-]+)+/(?=[\w.])", "", " ".join(message.split()))
    message = re.sub(r" at 0x[0-9a-f]+", "", message)
    return message if len(message) <= 500 else f"{message[:500]}…"


def pytest_configure() -> None:
    from mir_task.errors import MIRError

    package = str(ROOT / "mir_task")

    def note(self: MIRError, *arguments: Any) -> None:
        ValueError.__init__(self, *arguments)
        caller = sys._getframe(1)
        path = caller.f_code.co_filename
        if path.startswith(package) and arguments:
            message = str(arguments[0])
            place = Path(path).relative_to(ROOT).as_posix(), caller.f_lineno
            noted[place].setdefault(shape(message), shown(message))

    MIRError.__init__ = note  # type: ignore[method-assign]


def pytest_sessionfinish() -> None:
    found = [[module, line, list(of.values())] for (module, line), of in noted.items()]
    path = Path(os.environ["MIR_TASK_MESSAGES"]) / f"{os.getpid()}.json"
    path.write_text(json.dumps(found), "utf-8")


def document(found: list[tuple[str, int, list[str]]]) -> str:
    """The page, of messages by module and line."""
    by_place: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for module, line, messages in found:
        for message in messages:
            by_place[module, line].setdefault(shape(message), message)
    lines, last = [HEAD], None
    for (module, _), messages in sorted(by_place.items()):
        if module != last:
            lines.append(f"\n## {module}\n")
            last = module
        lines += [f"- {html.escape(text, quote=False)}" for text in sorted(messages.values())[:MOST]]
    return "\n".join(lines) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ["-q", "-n", "2", "-m", "not slow", "-p", "tests.messages"]
        options += ["--ignore", "tests/test_messages.py"]  # which is of the page before
        environment = {**os.environ, "MIR_TASK_MESSAGES": folder}
        command = [sys.executable, "-m", "pytest", *options]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        parts = [json.loads(path.read_text("utf-8")) for path in Path(folder).glob("*.json")]
    DOCUMENT.write_text(document([tuple(each) for part in parts for each in part]), "utf-8")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
