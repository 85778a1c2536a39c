"""lm-evaluation-harness as a second harness, by its own command."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mir_task
from mir_task import MIRError
from tests import adapters
from tests.measuring.test_library import load
from tests.support import evaluate, states
from tests.support.command import run, torchrun

pytest.importorskip("lm_eval")

NAMES = ("llava_hf-chat-llava-image", "qwen2_5_vl-chat-qwen2_5_vl-image")
ROWS = [row for row in adapters.rows() if row.name in NAMES]
TEXTS = [
    "Milk is mostly water, and cheese is what happens when you take it away.",
    "A pair of steady workers might finish five metres of wall in a day.",
    "Hard water leaves a film on the surface, which is harmless.",
    "The film in the camera was older than the people in the picture.",
    "Bread keeps longest in a cloth, and shortest in a bag.",
    "Nobody had told the ferry that the island was closed.",
]


def write_data(folder: Path) -> dict[str, Any]:
    """Keys of a task whose documents have images of a size that no model's processor changes."""
    random, lines = np.random.default_rng(0), []
    for n, text in enumerate(TEXTS):
        pixels = random.integers(0, 256, (112, 112, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        lines.append({"id": f"d{n}", "image": f"{n}.png", "text": text})
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    return {"mir_media_dataset": str(data), "mir_media_id": "id", "mir_documents": 6, "mir_groups": 3}


def write_task(folder: Path, name: str, **keys: Any) -> None:
    lines = [f"task: {name}", "class: !function mir_task.harness.lm_eval.MIRTask"]
    lines += [f"{key}: {json.dumps(value)}" for key, value in keys.items()]
    (folder / f"{name}.yaml").write_text("\n".join(lines))


def lm_eval(checkpoint: Path, folder: Path, row: adapters.Row, tasks: str) -> list[str]:
    """Arguments of the command."""
    dtype = str(row.dtype).removeprefix("torch.")
    arguments = {"pretrained": checkpoint, "dtype": dtype, **row.arguments}
    return [
        *("--model", "hf-multimodal", "--device", "cpu", "--tasks", tasks),
        *("--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())),
        *("--include_path", str(folder / "tasks"), "--output_path", str(folder / "lm_eval")),
    ]


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.adapter)
def case(request, tmp_path_factory):
    row, folder = request.param, tmp_path_factory.mktemp("both")
    (folder / "tasks").mkdir()
    keys = write_data(folder)
    write_task(folder / "tasks", "mir_small", **keys)
    return row, adapters.make(row, folder), folder, keys


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text())


def test_one_value_by_both_harnesses_by_measure_and_of_states(case) -> None:
    row, checkpoint, folder, keys = case
    printed = run("lm_eval", *lm_eval(checkpoint, folder, row, "mir_small"), "--log_samples", cwd=folder)
    found = results(folder / "lm_eval")
    scores = found["results"]["mir_small"]
    value, error = (f"{scores[name]:.4f}" for name in ("mir,none", "mir_stderr,none"))
    assert re.search(rf"\|mir +\|↓ *\| *{value}\|± *\| *{error}\|", printed)
    assert found["higher_is_better"]["mir_small"]["caption_gain"] is True
    assert found["configs"]["mir_small"]["metadata"]["mir_documents"] == 6

    task = evaluate.task(task="mir_small", mir_base=None, **keys)
    adapter = adapters.load_row(row, checkpoint)
    output = folder / "lmms_eval"
    other = evaluate.evaluate(adapter, task, output=output)["results"]["mir_small"]
    for name in ("mir", "mir_stderr", "mir_published_fast", "caption_gain", "caption_loss"):
        assert scores[f"{name},none"] == pytest.approx(other[f"{name},none"], abs=1e-6), name

    side, wanted = (evaluate.report(folder / name) for name in ("lm_eval", "lmms_eval"))
    for own, of in zip(side["documents"], wanted["documents"], strict=True):
        same = ("id", "row", "vision_tokens", "text_tokens", "tokens", "text_span", "vision_rule")
        assert {key: own[key] for key in same} == {key: of[key] for key in same}
    assert side["adapter"] == "lm_eval.models.hf_vlms.HFMultimodalLM"
    assert (side["model"], side["model_name"]) == ("hf-multimodal", str(checkpoint))
    assert side["placement"] == wanted["placement"] == "assistant_chat"

    model, processor = load(row, checkpoint)
    pairs = evaluate.pairs_of(task)
    measured = mir_task.measure(model, processor, pairs, groups=3, bars=False)
    documents = [
        (of["id"], of["row"], *pair) for of, pair in zip(wanted["documents"], pairs, strict=True)
    ]
    stored = mir_task.from_states(
        states.write(folder / "states", model, processor, documents), groups=3, bars=False
    )
    for result in (measured, stored):
        assert result.mir == pytest.approx(scores["mir,none"], abs=1e-6)
        assert result.mir_stderr == pytest.approx(scores["mir_stderr,none"], abs=1e-6)


@pytest.mark.slow
def test_two_processes(case, tmp_path) -> None:
    row, checkpoint, _, keys = case
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "mir_small", **keys, mir_caption_gain=False)
    for processes in (1, 2):
        command = lm_eval(checkpoint, tmp_path, row, "mir_small")
        command[-1] = str(tmp_path / str(processes))
        torchrun(processes, "-m", "lm_eval", *command, cwd=tmp_path)
    alone, both = (results(tmp_path / name)["results"]["mir_small"] for name in ("1", "2"))
    for name in ("mir,none", "mir_stderr,none"):
        assert both[name] == pytest.approx(alone[name], abs=1e-6)


def evaluated(lm: Any, *tasks: Any) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate as of_the_harness

    named = {task.name: task for task in tasks}
    return of_the_harness(lm, {"tasks": named, "groups": {}}, bootstrap_iters=0)["results"]


def test_what_cannot_be_measured(case, tmp_path) -> None:
    """Beside a task that can, its scores are N/A; alone, its reason ends the run."""
    from lm_eval.models.hf_vlms import HFMultimodalLM

    from mir_task.errors import MIRError
    from mir_task.harness.lm_eval import MIRTask

    row, checkpoint, _, keys = case
    lm = HFMultimodalLM(str(checkpoint), device="cpu", dtype=str(row.dtype)[6:], **row.arguments)
    good = MIRTask({"task": "mir_good", **keys, "mir_caption_gain": False})
    bad = MIRTask({"task": "mir_bad", **keys, "mir_text_rows": 10_000, "mir_caption_gain": False})
    found = evaluated(lm, good, bad)
    assert found["mir_bad"]["mir,none"] == "N/A"
    assert isinstance(found["mir_good"]["mir,none"], float)
    assert lm.chat_applied is False
    with pytest.raises(MIRError, match="text tokens, 10000 were asked for: lower mir_text_rows"):
        evaluated(lm, bad)
    lm.processor.chat_template = None
    with pytest.raises(MIRError, match="has no chat template, so the adapter HFMultimodalLM cannot put"):
        evaluated(lm, good)


def test_keys_are_checked() -> None:
    from mir_task.errors import MIRError
    from mir_task.harness.lm_eval import MIRTask

    with pytest.raises(MIRError, match="task a: mir_modality is 'audio', and hf-multimodal of lm-eval"):
        MIRTask({"task": "a", "mir_base": "mir_demo", "mir_modality": "audio", "mir_media_column": "a"})
    with pytest.raises(MIRError, match=r"mir_dokuments is no key \(did you mean mir_documents\?\)"):
        MIRTask({"task": "a", "mir_base": "mir_demo", "mir_dokuments": 3})
    with pytest.raises(MIRError, match=r"a MIR task needs a name, `task: NAME`, which is no None"):
        MIRTask({"mir_documents": 3})
    task = MIRTask({"task": "a", "mir_base": "mir_demo", "mir_documents": 2})
    with pytest.raises(
        MIRError, match="a: process 2 has none of the 2 documents; start at most as many"
    ):
        task.build_all_requests(rank=2, world_size=3)


def test_packaged_tasks_are_those_of_the_other_harness() -> None:
    from lm_eval.tasks import TaskManager

    from mir_task.tasks import LM_EVAL_TASKS, packaged_tasks

    names = {path.stem for path in LM_EVAL_TASKS.glob("*.yaml")}
    assert names <= packaged_tasks().keys()
    assert "mir_demo" in names
    manager = TaskManager(include_path=str(LM_EVAL_TASKS), include_defaults=False)
    assert names <= set(manager.all_tasks)
    loaded = manager.load(["mir_demo"])["tasks"]["mir_demo"]
    assert loaded.keys["mir_documents"] == 100


def test_the_documents_that_samples_names_are_measured(tmp_path) -> None:
    from mir_task.harness.lm_eval import MIRTask

    task = MIRTask({"task": "mir_small", **write_data(tmp_path)})
    wanted = [task.test_docs()[row] for row in (2, 4)]
    task.build_all_requests(samples=[2, 4], rank=0, world_size=1)
    found = list(task.documents(task.instances))
    assert [(of.id, of.row, of.text) for of in found] == [
        (doc["id"], row, doc["text"]) for doc, row in zip(wanted, (2, 4), strict=True)
    ]
    with pytest.raises(MIRError, match=r"'documents' is no key of a task \(did you mean mir_documents"):
        MIRTask({"task": "mir_small", "documents": 3, "mir_base": "mir_demo"})
