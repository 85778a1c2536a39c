"""Runs of lmms-eval inside the test process, for cases where the command itself is not the point."""

import atexit
import functools
import gc
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch

BENCHMARKS = Path(__file__).parent / "benchmarks"
"""Tasks whose score is a hash of the answers, in their order."""
DEMO = {
    "task": "mir_test",
    "mir_base": "mir_demo",
    "mir_documents": 6,
    "mir_groups": 3,
}


def task(**changes: Any):
    """`mir_demo` under another name, with fewer documents and changed keys."""
    from mir_task.harness import MIRTask

    return MIRTask({**DEMO, **changes})


def pairs_of(task: Any) -> list[tuple[Any, str]]:
    """The documents of a task as `mir_task.measure` takes them."""
    return [(task.doc_to_visual(row)[0], row["text"]) for row in task.dataset["test"]]


def load(checkpoint: Path, *, model: str = "llava_hf", force_simple: bool = False, **arguments: Any):
    """The harness's adapter with a checkpoint on the CPU."""
    from lmms_eval.models import get_model

    settings = {"pretrained": str(checkpoint), "device": "cpu", "device_map": "cpu", **arguments}
    return get_model(model, force_simple).create_from_arg_string(
        ",".join(f"{key}={value}" for key, value in settings.items() if value is not None)
    )


def tasks_of(*folders: Path) -> Any:
    """An index of the packaged tasks and of those in some folders, without the harness's own."""
    from lmms_eval.tasks import TaskManager

    from mir_task.tasks import TASK_CONFIGS

    paths = [str(folder) for folder in (*folders, BENCHMARKS, TASK_CONFIGS)]
    return TaskManager(include_path=paths, include_defaults=False)


@functools.cache
def task_manager():
    """The harness's index of tasks, which takes seconds to make."""
    from lmms_eval.tasks import TaskManager

    manager = TaskManager()
    # The harness collects garbage after every run, which goes through all modules otherwise.
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
    return manager


def evaluate(
    lm: Any, *tasks: Any, output: Path | None = None, manager: Any = None, **arguments: Any
) -> dict[str, Any]:
    """`simple_evaluate` on a loaded adapter."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(output) if output else None)
    return simple_evaluate(
        model=lm,
        tasks=list(tasks),
        task_manager=manager or task_manager(),
        evaluation_tracker=tracker,
        bootstrap_iters=0,
        **arguments,
    )


def report(folder: Path) -> dict[str, Any]:
    """The one side file under a folder."""
    (path,) = folder.rglob("*_mir_*.json")
    return json.loads(path.read_text())


def variant(checkpoint: Path, folder: Path, *, template=None, weights=None) -> Path:
    """A copy of a checkpoint with a changed chat template or changed weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, folder)
    if template is not None:
        for name in ("chat_template.jinja", "tokenizer_config.json", "processor_config.json"):
            path = folder / name
            if name.endswith(".jinja"):
                path.write_text(template(path.read_text()))
            elif path.exists():
                content = json.loads(path.read_text())
                if "chat_template" in content:
                    content["chat_template"] = template(content["chat_template"])
                path.write_text(json.dumps(content))
    if weights is not None:
        state = load_file(folder / "model.safetensors")
        weights(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Received:
    """What a model class is called with from outside: arguments of `generate`, or of `forward`."""

    def __init__(self, model_class: type, monkeypatch) -> None:
        self.calls: list[dict[str, Any]] = []
        self._inside = False
        for name in ("generate", "forward"):
            monkeypatch.setattr(model_class, name, self._watch(getattr(model_class, name)))

    def _watch(self, method):
        def watched(model, *args, **kwargs):
            if self._inside:
                return method(model, *args, **kwargs)
            named = {**dict(zip(("input_ids",), args, strict=False)), **kwargs}
            self.calls.append({k: v.clone() for k, v in named.items() if isinstance(v, torch.Tensor)})
            self._inside = True
            try:
                return method(model, *args, **kwargs)
            finally:
                self._inside = False

        watched.__signature__ = inspect.signature(method)  # transformers reads it
        return watched

    @property
    def documents(self) -> list[dict[str, torch.Tensor]]:
        """The calls in their order, those with the same ids once, without the probe after the first."""
        calls = {call["input_ids"].numpy().tobytes(): call for call in self.calls}
        first, _, *others = calls.values()
        return [first, *others]
