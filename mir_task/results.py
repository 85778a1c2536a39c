"""What a measurement leaves on disk: one JSON file, one plot, and some tokens where asked for."""

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from mir_task import __version__, plot
from mir_task.result import MIRResult
from mir_task.settings import TOKENS

SCHEMA_VERSION = 1


def write_report(
    stem: Path,
    result: MIRResult,
    run: dict[str, Any],
    rows: Mapping[int, tuple[Tensor, Tensor]] | None = None,
) -> list[Path]:
    """Write `stem`.json, `stem`.png and `stem`.npz, each whole or not at all, and return the paths.

    Args:
        stem: path without its suffix; folders are made.
        result: goes into the top level of the JSON, so that `MIRResult.from_dict` reads it.
        run: what was measured and how; goes beside it. Its keys must not be the result's, whose
            `vision_*` are of the tokens of `settings.mir_modality`.
        rows: of some vision and some text tokens, by layer number; without any there is no `stem`.npz.
    """
    content = {"schema_version": SCHEMA_VERSION, **result.to_dict(), **run}
    data, picture, sample = (stem.with_name(f"{stem.name}.{end}") for end in ("json", "png", "npz"))
    write_json(data, content)
    named = {
        "title": plot.title_of(run),
        "tokens": TOKENS[run["settings"]["mir_modality"]],
    }
    plot.draw_layers({run["model_name"]: result}, picture, **named)
    return [data, picture, *([plot.write_rows(sample, rows, **named)] if rows else [])]


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a file whole or not at all, and return its path; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def versions() -> dict[str, str]:
    """Versions of the packages that a value can depend on."""
    others = {name: version(name) for name in ("lmms-eval", "transformers", "torch")}
    return {"mir-task": __version__, **others}


FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file can raise that is truncated, foreign or not JSON at all."""


def read_report(path: Path) -> dict[str, Any]:
    """A side file's content.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is no side file of this version (`FAULTS`).
    """
    report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if report["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"its schema_version is {report['schema_version']}, not {SCHEMA_VERSION}")
    return report


def in_words(fault: Exception) -> str:
    """What is wrong with a file, for a person to read."""
    if isinstance(fault, KeyError):
        return f"it has no {fault}"
    return f"{type(fault).__name__}: {fault}"
