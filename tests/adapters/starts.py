"""Which adapters of the harness can start: each is imported and built up to its checkpoint's files.

`python -m tests.adapters.starts FILE [PACKAGE ...]` writes what became of them, with packages hidden as
if they were not installed; `run` has that done in a process of its own.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mir_task.errors import MIRError
from mir_task.harness import adapter as adapters


class Cause(NamedTuple):
    """Why adapters cannot start."""

    title: str
    pattern: str
    """Regular expression of the error, with the missing packages in brackets behind it."""
    way: str
    """What lets them start, or else what to take instead."""


EXTRAS = ("decord", "librosa")
"""What extras of this package bring for adapters to import."""
_MEND = "none in this release of the harness"
CAUSES = (
    Cause(
        "A file or a class of the harness is not there",
        r"No module named 'lmms_eval|module 'lmms_eval\S* has no attribute",
        _MEND,
    ),
    Cause("The class lacks a method that the harness asks for", "abstract class", _MEND),
    Cause(
        "An engine or the client of an API is not installed",
        r"sglang|vllm|reka|google-genai|fastvideo",
        "none: its model runs outside the process; an adapter that is measured, for the same model",
    ),
    Cause(
        "This release of transformers is too old",
        r"available in transformers|SAM3 is required",
        "transformers 5",
    ),
    Cause("There is no GPU here", "NVIDIA", "a machine with one"),
    Cause(
        "Packages of PyPI are not installed",
        r"\[(autopep8|diffusers|easydict|librosa|moviepy|qwen_omni_utils|torchaudio|ujson|, )+\]$",
        "`pip install` what is named",
    ),
    Cause(
        "The code of the model's authors is not installed, or another package has its name",
        ".",
        "their repository, beside the harness; LLaVA: `pip install --no-deps llava-torch` "
        "and transformers 4, or `llava_hf`",
    ),
)


def cause(failure: dict[str, Any]) -> Cause:
    """The first cause that a failure's error or packages show."""
    shown = f"{failure['error']} [{', '.join(failure['missing'])}]"
    return next(found for found in CAUSES if re.search(found.pattern, shown, re.IGNORECASE))


def pairs() -> Iterator[tuple[str, str]]:
    """Every adapter of the harness itself, with each of its kinds."""
    from lmms_eval.models import MODEL_REGISTRY_V2

    for name in MODEL_REGISTRY_V2.list_canonical_model_ids():
        manifest = MODEL_REGISTRY_V2.get_manifest(name)
        if (manifest.simple_class_path or "").startswith("lmms_eval."):
            yield name, "simple"
        if (manifest.chat_class_path or "").startswith("lmms_eval."):
            yield name, "chat"


def names() -> list[str]:
    """Of `pairs`: an adapter's, with the kind where it has both."""
    found = list(pairs())
    kinds = Counter(name for name, _ in found)
    return [f"{name} ({kind})" if kinds[name] > 1 else name for name, kind in found]


def build(name: str, kind: str) -> str:
    """What comes of building an adapter without its checkpoint.

    Raises:
        Exception: it cannot start.
    """
    from lmms_eval.models import get_model

    adapter = get_model(name, force_simple=kind == "simple")
    arguments = {}
    for parameter in inspect.signature(adapter.__init__).parameters.values():
        if parameter.name in ("device", "device_map"):
            arguments[parameter.name] = "cpu"
        if parameter.name == "pretrained" and parameter.default in (parameter.empty, ""):
            arguments[parameter.name] = "nobody/nothing"
    try:
        lm = adapter(**arguments)
    except OSError:  # that of the checkpoint's files, which are not here
        return "loads a checkpoint"
    try:
        adapters.torch_models(lm)
    except MIRError:
        return "holds no model"
    raise AssertionError(f"{name} has a model without a checkpoint")


def absent_packages(error: BaseException) -> list[str]:
    """Packages that the adapter's file which an error comes from imports in vain, functions apart.

    The one of the error where it does not come from an adapter's file.
    """
    from lmms_eval import models

    frame, path = error.__traceback__, None
    while frame:
        if frame.tb_frame.f_code.co_filename.startswith(str(Path(models.__file__).parent) + os.sep):
            path = Path(frame.tb_frame.f_code.co_filename)
        frame = frame.tb_next
    if path is None or path.parent.name not in ("simple", "chat"):
        name = str(error.name) if isinstance(error, ModuleNotFoundError) else ""
        return [name] if name and not name.startswith("lmms_eval") else []
    names = {name.split(".")[0]: None for name in _imports(ast.parse(path.read_text("utf-8")))}
    return [name for name in names if importlib.util.find_spec(name) is None]


def _imports(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef() | ast.ClassDef():
                continue
            case ast.Import():
                yield from (alias.name for alias in child.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.Call(func=ast.Name("optional_import"), args=[ast.Constant(str(module)), *_]):
                yield module
        yield from _imports(child)


def one_line(error: BaseException) -> str:
    """The first sentence of an error."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {text}".split(". ")[0].removesuffix(".")


def main(target: str, *hidden: str) -> None:
    """Try every adapter and write what became of each."""
    for name in hidden:
        sys.modules[name] = None
    found = []
    for shown, (name, kind) in zip(names(), pairs(), strict=True):
        entry: dict[str, Any] = {"adapter": shown}
        try:
            entry["outcome"] = build(name, kind)
        except Exception as error:  # noqa: BLE001 - it is the outcome
            entry |= {
                "outcome": "cannot start",
                "error": one_line(error),
                "missing": absent_packages(error),
            }
        found.append(entry)
    Path(target).write_text(json.dumps(found))


def run(*hidden: str) -> list[dict[str, Any]]:
    """`main` in another process, in a folder that is thrown away, with keys for the clients of APIs."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        keys = {name: "none" for name in ("OPENAI_API_KEY", "REKA_API_KEY")}
        here = str(Path(__file__).parents[2])
        subprocess.run(
            [sys.executable, "-m", "tests.adapters.starts", str(target), *hidden],
            cwd=folder,
            env={**os.environ, **keys, "HF_HUB_OFFLINE": "1", "PYTHONPATH": here},
            timeout=600,
            check=True,
            capture_output=True,
        )
        return json.loads(target.read_text())


def summary() -> dict[str, Any]:
    """What became of all adapters, and which of them start by one of `EXTRAS` only."""
    found, bare = run(), run(*EXTRAS)
    by_outcome: dict[str, list[Any]] = defaultdict(list)
    for entry in found:
        by_outcome[entry.pop("outcome")].append(entry if "error" in entry else entry["adapter"])
    started = {entry["adapter"] for entry in found if "error" not in entry}
    by_package: dict[str, list[str]] = defaultdict(list)
    for entry in bare:
        if entry["adapter"] in started and "error" in entry:
            needed = ", ".join(name for name in EXTRAS if name in entry["missing"])
            by_package[needed].append(entry["adapter"])
    return {**by_outcome, "only with": by_package}


if __name__ == "__main__":
    main(*sys.argv[1:])
