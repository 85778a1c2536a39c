"""Adapters of the harness besides llava_hf, each on a small checkpoint of its architecture."""

import pytest
import torch

from tests import checkpoints, harness, hub, independent
from tests.test_command import results, run
from tests.zoo import qwen2_5_vl


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return qwen2_5_vl.qwen2_5_vl(tmp_path_factory.mktemp("checkpoints") / "qwen2_5_vl")


def test_batches_give_the_value_of_single_documents(qwen, tmp_path) -> None:
    pytest.importorskip("qwen_vl_utils")
    values = []
    for size in (1, 4):
        lm = harness.load(qwen, model="qwen2_5_vl", batch_size=size)
        seen = []
        run_model = lm._model.generate
        lm._model.generate = lambda **kw: (seen.append(len(kw["input_ids"])), run_model(**kw))[1]  # noqa: B023
        results = harness.evaluate(lm, harness.task(), output=tmp_path / str(size))
        values.append(results["results"]["mir_test"]["mir,none"])
        assert max(seen) == size
    assert values[1] == pytest.approx(values[0], abs=1e-4)
    one, four = (harness.report(tmp_path / str(size))["documents"] for size in (1, 4))
    assert [{**d} for d in one] == four


@pytest.fixture(scope="module")
def original_llava(tmp_path_factory):
    pytest.importorskip("llava", reason="llava-torch is not installed; it needs transformers 4")
    return checkpoints.make_original_llava(tmp_path_factory.mktemp("checkpoints") / "original")


ARGUMENTS = {"device": "cpu", "device_map": "auto", "model_name": "llava-small"}


def published_ids(tokenizer, text: str) -> list[int]:
    """The published prompt by hand: image and "\\n" in the user turn, the text as the assistant turn."""
    before = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: "
    )
    after = f"\n ASSISTANT: {text}</s>"
    return [*tokenizer(before).input_ids, -200, *tokenizer(after).input_ids[1:]]


def test_original_llava_gets_the_published_prompt(original_llava, tmp_path, monkeypatch) -> None:
    from llava.model import LlavaLlamaForCausalLM

    lm = harness.load(original_llava, model="llava", **ARGUMENTS)
    tokenizer = lm.tokenizer
    received = harness.Received(LlavaLlamaForCausalLM, monkeypatch)
    task = harness.task()
    scores = harness.evaluate(lm, task, output=tmp_path)["results"]["mir_test"]
    monkeypatch.undo()
    calls = received.documents
    for call, text in zip(calls, task.test_docs()["text"], strict=True):
        assert call["input_ids"][0].tolist() == published_ids(tokenizer, text)
    wanted = independent_mir_of_original_llava(original_llava, calls)
    assert scores["mir,none"] == pytest.approx(wanted, abs=1e-4)

    report = harness.report(tmp_path)
    assert report["placement"] == "assistant_loglikelihood"
    for document, text in zip(report["documents"], task.test_docs()["text"], strict=True):
        assert document["vision_rule"] == "provenance"
        assert document["vision_tokens"] == 16
        assert document["text_span"].endswith(f"ASSISTANT: {text}</s>")


def independent_mir_of_original_llava(checkpoint, calls) -> float:
    from llava.model.builder import load_pretrained_model

    _, model, _, _ = load_pretrained_model(str(checkpoint), None, "llava-small", device_map="auto")
    vision, text = [], []
    for call in calls:
        with torch.no_grad():
            inputs = {"input_ids": call["input_ids"], "images": call["images"]}
            states = model(**inputs, output_hidden_states=True).hidden_states[1:]
        start = call["input_ids"][0].tolist().index(-200)
        end = start + states[0].shape[1] - call["input_ids"].shape[1] + 1
        vision.append([layer[0, start:end].float() for layer in states])
        text.append([layer[0, end:].float() for layer in states])
    return independent.mir(independent.pooled(vision), independent.pooled(text))


def test_text_that_the_model_cuts_is_named_measured_and_reported(
    original_llava, tmp_path, monkeypatch
) -> None:
    lm = harness.load(original_llava, model="llava", **ARGUMENTS)
    lm._model.config.tokenizer_model_max_length = 200
    task = harness.task()
    harness.evaluate(lm, task, output=tmp_path)
    report = harness.report(tmp_path)
    cut = {d["id"]: d["characters_cut"] for d in report["documents"] if d["characters_cut"]}
    assert len(cut) >= 4
    (warning,) = [w for w in report["warnings"] if "was cut on its way to the model" in w]
    assert all(document_id in warning for document_id in cut)
    for document in report["documents"]:
        if document["characters_cut"]:
            assert document["tokens"] == 200


def test_mir_coco_with_model_llava_to_the_letter(original_llava, tmp_path) -> None:
    root = tmp_path / "hub"
    hub.coco_captions(root)
    command = ["lmms-eval", "--tasks", "mir_coco", "--model", "llava"]
    model = ",".join(f"{k}={v}" for k, v in {"pretrained": original_llava, **ARGUMENTS}.items())
    environment = {"MIR_TASK_DATA": str(root), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    output = tmp_path / "out"
    run(*command, "--model_args", model, "--output_path", str(output), cwd=tmp_path, **environment)
    assert isinstance(results(output)["results"]["mir_coco"]["mir,none"], float)
