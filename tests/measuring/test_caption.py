"""Loss and perplexity of the documents' own texts, from the forwards that MIR takes."""

import json
import math
from pathlib import Path

import pytest
import torch

import mir_task
from mir_task import MIRError
from mir_task.documents.others import other_row
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
        ("qwen2_5_vl", "simple"),  # whose batches take one document's function for all
        ("gemma3", "simple"),
        ("internvl_hf", "chat"),
        ("llava", "simple"),
    }
    and row.modality == "image"
]


DEMO = Path(mir_task.__file__).with_name("demo")


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


def independent_losses(
    row: adapters.Row, checkpoint, lm, task, output, monkeypatch
) -> tuple[dict, dict, list[tuple[float, int]]]:
    """Scores and side file of a task, and each document's loss and tokens by another computation."""
    received = evaluate.Received(row.found_class, monkeypatch)
    scores = evaluate.evaluate(lm, task, output=output)["results"]["mir_test"]
    monkeypatch.undo()
    report = evaluate.report(output)

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
    return scores, report, wanted_losses(row, checkpoint, received.documents, texts)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_the_loss_is_that_of_the_models_own_logits(
    row: adapters.Row, checkpoints, tmp_path, monkeypatch
) -> None:
    checkpoint = adapters.make(row, checkpoints)
    lm = adapters.load_row(row, checkpoint)
    task = evaluate.task(mir_caption_ppl=True, **row.task(checkpoint.parent))
    scores, report, wanted = independent_losses(row, checkpoint, lm, task, tmp_path, monkeypatch)

    for document, (loss, tokens) in zip(report["documents"], wanted, strict=True):
        assert document["caption_tokens"] == tokens
        assert document["caption_loss"] == pytest.approx(loss, rel=1e-4)
    mean = sum(loss * tokens for loss, tokens in wanted) / sum(tokens for _, tokens in wanted)
    assert scores["caption_loss,none"] == pytest.approx(mean, rel=1e-4)
    assert scores["caption_ppl,none"] == pytest.approx(math.exp(mean), rel=1e-3)
    assert report["caption_ppl"] == scores["caption_ppl,none"]


def own_pictures(folder: Path, others: bool) -> dict:
    """Keys of a task on pictures with texts of their own; or each with the picture of another."""
    folder.mkdir(exist_ok=True)
    images = sorted((DEMO / "images").glob("*.jpg"))[:6]
    texts = [json.loads(line)["text"][:150] for line in (DEMO / "passages.jsonl").open()]
    ids = [f"d{n}" for n in range(6)]
    rows = {i: (image, text) for i, image, text in zip(ids, images, texts, strict=False)}
    if others:
        drawn = list(evaluate.task(**own_pictures(folder, False)).test_docs()["id"])
        rows = {
            i: (rows[drawn[other_row(drawn.index(i), 6, 0, lambda n: False)]][0], text)
            for i, (_, text) in rows.items()
        }
    lines = [
        json.dumps({"id": i, "image": str(image), "text": text}) for i, (image, text) in rows.items()
    ]
    path = folder / f"{others}.jsonl"
    path.write_text("\n".join(lines))
    keys = {"mir_media_dataset": str(path), "mir_media_id": "id", "mir_media_split": "train"}
    return {"mir_base": None, "mir_documents": 6, "mir_groups": 3, **keys}


def gains_of(report: dict) -> dict[str, float]:
    return {document["id"]: document["caption_gain"] for document in report["documents"]}


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_the_gain_is_that_of_two_runs(row: adapters.Row, checkpoints, tmp_path, monkeypatch) -> None:
    """Of one with the own pictures, and one with those of the others, by the models' own logits."""
    checkpoint = adapters.make(row, checkpoints)
    losses, tokens = [], []
    for others in (False, True):
        task = evaluate.task(
            **own_pictures(tmp_path, others), mir_caption_ppl=True, mir_caption_gain=False
        )
        lm, output = adapters.load_row(row, checkpoint), tmp_path / f"out-{others}"
        scores, report, wanted = independent_losses(row, checkpoint, lm, task, output, monkeypatch)
        assert "caption_gain,none" not in scores
        ids = [document["id"] for document in report["documents"]]
        losses.append(dict(zip(ids, (loss for loss, _ in wanted), strict=True)))
        tokens.append(dict(zip(ids, (count for _, count in wanted), strict=True)))
    assert tokens[0] == tokens[1]
    total = sum(tokens[0].values())
    gain = sum((losses[1][i] - losses[0][i]) * count for i, count in tokens[0].items()) / total

    found, gains = [], []
    for size in (1, 4):
        lm = adapters.load_row(row, checkpoint)
        lm.batch_size_per_gpu = size
        task = evaluate.task(**own_pictures(tmp_path, False))
        output = tmp_path / f"gain-{size}"
        try:
            scores = evaluate.evaluate(lm, task, output=output)["results"]["mir_test"]
        except MIRError as error:
            if size == 1 or "batch_size_per_gpu > 1" not in str(error):
                raise
            continue  # it runs one document at a time, and says so
        report = evaluate.report(output)
        exact = row.dtype == torch.float32  # logits of bfloat16 are 2^-5 apart
        for name, of_document in gains_of(report).items():
            wanted = pytest.approx(losses[1][name] - losses[0][name], abs=1e-4 if exact else 2**-5)
            assert of_document == wanted
        assert scores["caption_gain,none"] == pytest.approx(gain, abs=1e-4 if exact else 2**-5)
        assert report["caption_gain"] == scores["caption_gain,none"]
        # Random weights: nothing is gained.
        assert abs(gain) < 4 * scores["caption_gain_stderr,none"]
        loss = sum(losses[0][i] * count for i, count in tokens[0].items()) / total
        assert scores["caption_loss,none"] == pytest.approx(loss, rel=1e-4 if exact else 1e-2)
        found.append(report["mir"])
        gains.append(gains_of(report))
    # Logits of bfloat16 are far from those of another code, and near those of another batch.
    assert gains[-1] == pytest.approx(gains[0], abs=5e-4)
    assert found[-1] == pytest.approx(found[0], abs=1e-4 if row.dtype == torch.float32 else 1e-2)


def test_gain_is_refused_of_texts_that_are_crossed() -> None:
    wanted = r"mir_caption_gain: true asks .* mir_text_dataset \S+passages.jsonl is crossed"
    with pytest.raises(MIRError, match=wanted):
        evaluate.task(mir_caption_gain=True)
    assert "caption_gain" not in evaluate.task().metrics


def test_a_text_that_is_read_ahead_has_no_loss(monkeypatch) -> None:
    """PaliGemma's prompts are attended to in both directions."""
    from loguru import logger
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    from tests.architectures import small

    config = PaliGemmaConfig(**small.settings(PaliGemmaConfig, {}))
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(config).eval()
    tokenizer = small.tokenizer()

    def encode(medium: int, text: str) -> dict:
        ids = [config.image_token_id] * 16 + [1] + tokenizer.encode(text, add_special_tokens=False)
        pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(medium))
        ids = torch.tensor([ids])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    pairs = [(1, "Three boats lie on the mud."), (2, "Nobody bought the violin."), (3, "A cat sleeps.")]
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING")
    options = {"encode": encode, "groups": 0, "bars": False}
    result = mir_task.measure(model, tokenizer, pairs, caption_ppl=True, **options)
    logger.remove(sink)
    assert result.caption_loss is None
    assert result.mir > 0
    why = "in PaliGemmaForConditionalGeneration tokens of the text attend to those after them"
    assert any(f"of captions are N/A: {why}" in m for m in messages)
    with pytest.raises(MIRError, match=f"{why} .*so its texts have no loss"):
        mir_task.measure(model, tokenizer, pairs, caption_gain=True, **options)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_whether_a_text_is_read_ahead_is_told_by_the_mask(attention: str, llava) -> None:
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from mir_task.capture.hooks import HiddenStateCapture

    model = LlavaForConditionalGeneration.from_pretrained(llava, attn_implementation=attention)
    processor = AutoProcessor.from_pretrained(llava)
    picture, text = Image.new("RGB", (60, 60)), "<image> Three boats lie on the mud."
    inputs = processor(text=text, images=picture, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    whole = torch.ones(1, 1, length, length, dtype=torch.bool)
    for mask, ahead in ((whole.tril(), False), (whole, True)):
        given = mask if attention == "sdpa" else torch.where(mask, 0.0, torch.finfo(torch.float32).min)

        def with_mask(module, args, kwargs, given=given):
            return args, {**kwargs, "attention_mask": given}

        handles = [
            layer.register_forward_pre_hook(with_mask, with_kwargs=True)
            for layer in model.model.language_model.layers
        ]
        with HiddenStateCapture(model, losses=True) as capture, torch.no_grad():
            model(**inputs)
        (prefill,) = capture.take()
        assert prefill.reads_ahead == ahead
        assert (prefill.text_losses is None) == ahead
        for handle in handles:
            handle.remove()


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
