"""Adapters of the harness besides llava_hf, each on a small checkpoint of its architecture."""

import pytest

from tests.adapters import original_llava as original
from tests.adapters import qwen2_5_vl
from tests.support import evaluate, hub
from tests.support.command import results, run


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return qwen2_5_vl.qwen2_5_vl(tmp_path_factory.mktemp("checkpoints") / "qwen2_5_vl")


def test_batches_give_the_value_of_single_documents(qwen, tmp_path) -> None:
    pytest.importorskip("qwen_vl_utils")
    values = []
    for size in (1, 4):
        lm = evaluate.load(qwen, model="qwen2_5_vl", batch_size=size)
        seen = []
        run_model = lm._model.generate
        lm._model.generate = lambda **kw: (seen.append(len(kw["input_ids"])), run_model(**kw))[1]  # noqa: B023
        results = evaluate.evaluate(lm, evaluate.task(), output=tmp_path / str(size))
        values.append(results["results"]["mir_test"]["mir,none"])
        assert max(seen) == size
    assert values[1] == pytest.approx(values[0], abs=1e-4)
    one, four = (evaluate.report(tmp_path / str(size))["documents"] for size in (1, 4))
    assert [{**d} for d in one] == four


@pytest.fixture(scope="module")
def original_llava(tmp_path_factory):
    pytest.importorskip("llava", reason="llava-torch is not installed; it needs transformers 4")
    return original.original_llava(tmp_path_factory.mktemp("checkpoints") / "original")


def published_ids(tokenizer, text: str) -> list[int]:
    """The published prompt by hand: image and "\\n" in the user turn, the text as the assistant turn."""
    before = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: "
    )
    after = f"\n ASSISTANT: {text}</s>"
    return [*tokenizer(before).input_ids, original.IMAGE, *tokenizer(after).input_ids[1:]]


def test_original_llava_gets_the_published_prompt(original_llava, tmp_path, monkeypatch) -> None:
    from llava.model import LlavaLlamaForCausalLM

    lm = evaluate.load(original_llava, model="llava", **original.ARGUMENTS)
    tokenizer = lm.tokenizer
    received = evaluate.Received(LlavaLlamaForCausalLM, monkeypatch)
    task = evaluate.task()
    evaluate.evaluate(lm, task, output=tmp_path)
    for call, text in zip(received.documents, task.test_docs()["text"], strict=True):
        assert call["input_ids"][0].tolist() == published_ids(tokenizer, text)

    report = evaluate.report(tmp_path)
    assert report["placement"] == "assistant_loglikelihood"
    for document, text in zip(report["documents"], task.test_docs()["text"], strict=True):
        assert document["text_span"].endswith(f"ASSISTANT: {text}</s>")


def test_text_that_the_model_cuts_is_named_measured_and_reported(
    original_llava, tmp_path, monkeypatch
) -> None:
    lm = evaluate.load(original_llava, model="llava", **original.ARGUMENTS)
    lm._model.config.tokenizer_model_max_length = 200
    task = evaluate.task()
    evaluate.evaluate(lm, task, output=tmp_path)
    report = evaluate.report(tmp_path)
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
    arguments = {"pretrained": original_llava, "device": "cpu", **original.ARGUMENTS}
    model = ",".join(f"{name}={value}" for name, value in arguments.items())
    environment = {"MIR_TASK_DATA": str(root), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    output = tmp_path / "out"
    run(*command, "--model_args", model, "--output_path", str(output), cwd=tmp_path, **environment)
    assert isinstance(results(output)["results"]["mir_coco"]["mir,none"], float)
