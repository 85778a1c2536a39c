"""What a measurement leaves on disk: one JSON file and one plot."""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mir_task import __version__
from mir_task.metric import MIRResult
from mir_task.settings import TOKENS

SCHEMA_VERSION = 1


def write_report(stem: Path, result: MIRResult, run: dict[str, Any]) -> list[Path]:
    """Write `stem`.json and `stem`.png, each whole or not at all, and return the two paths.

    Args:
        stem: path without its suffix; folders are made.
        result: goes into the top level of the JSON, so that `MIRResult.from_dict` reads it.
        run: what was measured and how; goes beside it. Its keys must not be the result's, whose
            `vision_*` are of the tokens of `settings.mir_modality`.
    """
    content = {"schema_version": SCHEMA_VERSION, **result.to_dict(), **run}
    data, plot = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")
    write_json(data, content)
    partial = plot.with_name(f".partial.{plot.name}")
    title = f"{run['task']} · {'/'.join(run['model_name'].split('/')[-2:])}"
    plot_layers(result, partial, title=title, tokens=TOKENS[run["settings"]["mir_modality"]])
    os.replace(partial, plot)
    return [data, plot]


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a file whole or not at all, and return its path; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def read_reports(folder: Path) -> tuple[list[dict[str, Any]], dict[Path, str]]:
    """The side files in a folder and below, oldest first, and what is wrong with those left out."""
    reports, faults = [], {}
    for path in sorted(folder.rglob("*_mir_*.json"), key=lambda path: path.name):
        try:
            report = load_report(path)
            MIRResult.from_dict(report)
        except FAULTS as error:
            faults[path] = in_words(error)
        else:
            reports.append(report)
    return reports, faults


def plot_layers(result: MIRResult, path: Path, *, title: str, tokens: str) -> None:
    """Draw F_k and its two terms, and the raw norms of both modalities, over the layers.

    Args:
        result: to draw.
        path: of the image file.
        title: above both panels.
        tokens: what the tokens that are compared with text are called.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    layers = [layer.layer for layer in result.layers]
    figure = Figure(figsize=(9, 3.8), layout="constrained", dpi=150)
    distances, norms = figure.subplots(1, 2)
    error = "" if result.mir_stderr is None else f" ± {result.mir_stderr:.3f}"
    figure.suptitle(f"{title}\nMIR {result.mir:.3f}{error}", fontsize=11)

    distances.plot(layers, [x.frechet for x in result.layers], "o-", color="black", ms=3, label="$F_k$")
    distances.plot(
        layers, [x.mean_term for x in result.layers], "--", color="tab:blue", label="mean term"
    )
    distances.plot(
        layers,
        [x.covariance_term for x in result.layers],
        ":",
        color="tab:red",
        label="covariance term",
    )
    distances.set_ylabel("Fréchet distance (text norm = 1)")
    norms.plot(layers, [x.vision_norm for x in result.layers], "o-", ms=3, label=f"{tokens} tokens")
    norms.plot(layers, [x.text_norm for x in result.layers], "s-", ms=3, label="text tokens")
    norms.set_ylabel("mean L2 norm")
    for axes in (distances, norms):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        low, high = axes.get_ylim()
        axes.yaxis.set_minor_formatter("{x:g}" if high / low < 20 else NullFormatter())
        axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.set_xlabel("decoder layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3, which="both", lw=0.4)
        axes.legend(fontsize=8)
    figure.savefig(path)


def versions() -> dict[str, str]:
    """Versions of the packages that a value can depend on."""
    others = {name: version(name) for name in ("lmms-eval", "transformers", "torch")}
    return {"mir-task": __version__, **others}


FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file can raise that is truncated, foreign or not JSON at all."""


def load_report(path: Path) -> dict[str, Any]:
    """A side file's content.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is no side file of this version.
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
