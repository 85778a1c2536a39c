"""Loss and perplexity of the documents' own texts, from the forwards that MIR takes."""

import math

import pytest
import torch

import mir_task
from tests import adapters
from tests.support import evaluate

ROWS = [
    row
    for row in adapters.rows()
    if row.status == "measured"
    and (row.adapter, row.kind)
    in {
        ("llava_hf", "chat"),
        ("llava_hf", "simple"),
        ("qwen2_5_vl", "chat"),
        ("gemma3", "simple"),
        ("internvl_hf", "chat"),
        ("llava", "simple"),
    }
    and row.modality == "image"
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def wanted_losses(row: adapters.Row, checkpoint, documents, texts) -> list[tuple[float, int]]:
    """Loss and tokens of each document's text, by the logits of a forward of its own."""
    model = row.found_class.from_pretrained(checkpoint, dtype=row.dtype).eval()
    losses = []
    for call, seen in zip(documents, texts, strict=True):
        inputs = {name: value for name, value in call.items() if name not in ("labels", "use_cache")}
        with torch.no_grad():
            row.states(model, inputs)  # the original LLaVA loads its vision tower late
            logits = model(**inputs).logits[0].float()
        ids = call["input_ids"][0]
        offset = len(logits) - len(ids)  # placeholders that the model itself unfolds
        start = seen["start"]
        targets = ids[start : start + seen["count"]]
        loss = torch.nn.functional.cross_entropy(
            logits[start + offset - 1 : start + offset - 1 + len(targets)], targets
        )
        losses.append((float(loss), len(targets)))
    return losses


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_the_loss_is_that_of_the_models_own_logits(
    row: adapters.Row, checkpoints, tmp_path, monkeypatch
) -> None:
    checkpoint = adapters.make(row, checkpoints)
    lm = adapters.load_row(row, checkpoint)
    received = evaluate.Received(row.found_class, monkeypatch)
    task = evaluate.task(mir_caption_ppl=True, **row.task(checkpoint.parent))
    scores = evaluate.evaluate(lm, task, output=tmp_path)["results"]["mir_test"]
    monkeypatch.undo()
    report = evaluate.report(tmp_path)

    from mir_task.harness.adapter import find_tokenizer

    tokenizer = find_tokenizer(lm)
    texts = []
    by_row = {row_["id"]: row_["text"] for row_ in task.test_docs()}
    for call, document in zip(received.documents, report["documents"], strict=True):
        # The text's own tokens, found from the ends of the sequence by decoding.
        ids = call["input_ids"][0].tolist()
        text = "".join(by_row[document["id"]].split())
        squashed = lambda part: "".join(tokenizer.decode([i for i in part if i >= 0]).split())  # noqa: E731
        start = max(n for n in range(len(ids)) if text in squashed(ids[n:]))
        end = min(n for n in range(start, len(ids) + 1) if text in squashed(ids[start:n]))
        texts.append({"start": start, "count": end - start})
    wanted = wanted_losses(row, checkpoint, received.documents, texts)

    for document, (loss, tokens) in zip(report["documents"], wanted, strict=True):
        assert document["caption_tokens"] == tokens
        assert document["caption_loss"] == pytest.approx(loss, rel=1e-4)
    mean = sum(loss * tokens for loss, tokens in wanted) / sum(tokens for _, tokens in wanted)
    assert scores["caption_loss,none"] == pytest.approx(mean, rel=1e-4)
    assert scores["caption_ppl,none"] == pytest.approx(math.exp(mean), rel=1e-3)
    assert report["caption_ppl"] == scores["caption_ppl,none"]


def test_a_model_without_logits_has_no_loss(llava) -> None:
    from loguru import logger
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(llava)
    processor = AutoProcessor.from_pretrained(llava)
    pairs = evaluate.pairs_of(evaluate.task(mir_documents=3))
    whole = mir_task.measure(model, processor, pairs, caption_ppl=True, bars=False)
    assert whole.caption_ppl == pytest.approx(math.exp(whole.caption_loss))
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING")
    bare = mir_task.measure(model.model, processor, pairs, caption_ppl=True, bars=False)
    logger.remove(sink)
    assert bare.caption_ppl is None
    assert any("of captions are N/A: the forwards of LlavaModel return no logits" in m for m in messages)
    assert bare.mir == pytest.approx(whole.mir, abs=1e-9)
    assert mir_task.measure(model, processor, pairs, bars=False).caption_loss is None
