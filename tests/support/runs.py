"""What runs leave on disk, made up: side files and the harness's results of models that never ran."""

import json
import math
import random
from pathlib import Path
from typing import Any

from mir_task.files import versions
from mir_task.reports.side_file import SCHEMA_VERSION
from mir_task.result import LayerResult, MIRResult


def result(
    mir: float, *, layers: int = 6, groups: int = 5, spread: float = 0.01, seed: int = 0
) -> MIRResult:
    """A result of that MIR whose distances fall from layer to layer."""
    noise = random.Random(seed)
    weights = [math.exp(-0.3 * layer + 0.1 * noise.gauss(0, 1)) for layer in range(layers)]
    distances = [10**mir * weight / sum(weights) for weight in weights]
    left_out = tuple(
        tuple(distance * math.exp(noise.gauss(0, spread)) for distance in distances)
        for _ in range(groups)
    )
    results = tuple(
        LayerResult(
            layer=number,
            frechet=distance,
            frechet_error=0.0,
            frechet_published_fast=1.1 * distance,
            mean_term=distance / 2,
            covariance_term=distance / 2,
            text_scale=0.1,
            vision_tokens=5760,
            text_tokens=4000,
            vision_outliers=3,
            text_outliers=2,
            vision_norm=12.0,
            text_norm=10.0,
        )
        for number, distance in enumerate(distances, start=1)
    )
    return MIRResult(layers=results, leave_one_group_out=left_out)


def side_file(folder: Path, name: str, measured: MIRResult, **changes: Any) -> Path:
    """A side file as the harness's task writes it; `changes` replace its keys."""
    documents = changes.pop("documents", 10)
    date, task = changes.pop("date", "20260101_000000"), changes.get("task", "mir_demo")
    content = {
        "schema_version": SCHEMA_VERSION,
        **measured.to_dict(),
        "task": task,
        "model": "llava_hf",
        "model_args": f"pretrained={name},device=cpu",
        "model_name": name,
        "adapter": "lmms_eval.models.chat.llava_hf.LlavaHf",
        "model_class": "LlavaForConditionalGeneration",
        "hidden_size": 64,
        "hidden_dtype": "float32",
        "placement": "assistant_chat",
        "settings": {"mir_modality": "image"},
        "documents": [
            {"id": f"d{number}", "row": number, "text_span": "A text. " * 100}
            for number in range(documents)
        ],
        "skipped": {},
        "warnings": ["5760 vision tokens are few"],
        "versions": versions(),
        "seconds": {"forwards": 1.0, "metric": 1.0},
    } | changes
    return _write(folder / f"{date}_mir_{task}.json", content)


def results_file(folder: Path, name: str, results: dict[str, Any], **changes: Any) -> Path:
    """The harness's results; `changes` replace keys of its `config`."""
    date = changes.pop("date", "20260101_000000")
    content = {
        "results": results,
        "higher_is_better": {task: {"acc": True} for task in results},
        "config": {"model": "llava_hf", "model_args": f"pretrained={name},device=cuda:0"} | changes,
        "date": date,
        "model_source": "llava_hf",
        "model_name": name,
    }
    return _write(folder / f"{date}_results.json", content)


def run(
    folder: Path, name: str, mir: float, scores: dict[str, float] | None = None, **changes: Any
) -> None:
    """Both files of a run of MIR and, by name, of benchmarks with the metric `acc`."""
    own = {key: changes.pop(key) for key in ("layers", "groups", "spread", "seed") if key in changes}
    measured = result(mir, **own)
    folder = folder / name.replace("/", "__")
    side_file(folder, name, measured, **changes)
    results: dict[str, Any] = {
        changes.get("task", "mir_demo"): {"alias": "mir_demo", "mir,none": measured.mir},
    }
    for benchmark, score in (scores or {}).items():
        results[benchmark] = {"alias": benchmark, "acc,none": score, "acc_stderr,none": 0.01}
    results_file(folder, name, results, date=changes.get("date", "20260101_000000"))


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path
