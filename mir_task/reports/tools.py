"""Tools whose benchmark scores are read, and how a column says which of them measured it."""

from collections.abc import Iterable, Mapping
from typing import Any

OWN, LM_EVAL, VLMEVALKIT = "lmms-eval", "lm-eval", "VLMEvalKit"

_WAYS = {True: "↑", False: "↓", None: "(which way is better is not known)"}


def column(name: str, tool: str) -> str:
    """Name of a column; tools that measure the same benchmark differ in prompts and parsing."""
    return name if tool == OWN else f"{name} ({tool})"


def measured_by(benchmarks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Which columns of a board another tool than lmms-eval has measured, and which way each goes.

    Args:
        benchmarks: of the board: `name`, `tool` and `higher_is_better` of each.
    """
    of_tool: dict[str, list[str]] = {}
    for benchmark in benchmarks:
        tool, way = benchmark["tool"], _WAYS[benchmark["higher_is_better"]]
        if tool != OWN:
            of_tool.setdefault(tool, []).append(f"{benchmark['name'].removesuffix(f' ({tool})')} {way}")
    return [f"Measured by {tool}: {', '.join(names)}." for tool, names in of_tool.items()]
