"""`docs/messages.md` is what the tests have the package say today."""

import ast
import html
import re
from pathlib import Path

from tests.messages import DOCUMENT, ROOT

ERRORS = {"MIRError", "MixedModels", "NothingArrived"}


def documented() -> dict[str, list[str]]:
    """Messages by module."""
    found: dict[str, list[str]] = {}
    for part in DOCUMENT.read_text("utf-8").split("\n## ")[1:]:
        module, *lines = part.splitlines()
        found[module] = [html.unescape(line[2:]) for line in lines if line.startswith("- ")]
    return found


def patterns(module: Path) -> list[str]:
    """Of the messages of each place that makes a MIRError."""
    found = []
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args:
            parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            found.append("".join(".*" if text is None else re.escape(text) for text in texts))
    return found


def test_every_message_is_one_of_the_module_that_it_is_listed_under() -> None:
    messages = documented()
    assert sum(map(len, messages.values())) >= 60
    for module, lines in messages.items():
        known = patterns(ROOT / module)
        for line in lines:
            whole = line.removesuffix("…")
            cut = [pattern.split(".*")[0] for pattern in known] if line != whole else []
            fits = any(re.fullmatch(pattern, line) for pattern in known)
            assert fits or any(whole.startswith(re.sub(r"\\(.)", r"\1", start)) for start in cut), line
