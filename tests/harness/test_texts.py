"""Each number is of the document it says: short, nested and look-alike texts, alone and in batches."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from mir_task import MIRError
from tests import adapters
from tests.harness.test_traps import Batches, DropsAssistantTurns, StandIn
from tests.support import evaluate, hub, independent

POOL = (
    *(
        "A",
        "T",
        "ANT",
        "is",
        "assistant",
        "ASSISTANT",
        "ASSISTANT:",
        "USER:",
        "S",
        "a",
        "s",
        "an",
        "A A",
    ),
    *("a dog lies", "a dog  lies", "A dog lies", "dog", "a dog lies in the sun", "lies in the sun"),
    *(
        "\u00e9t\u00e9",
        "e\u0301te\u0301",
        "\u4f60\u597d",
        "\u4f60",
        "7",
        "7 7",
        ".",
        "...",
        "answer's questions.",
    ),
)


def of_texts(folder: Path, texts: list[str], **keys) -> object:
    """A task of pictures with these texts."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"d{n}", "image": str(hub.IMAGES[n % len(hub.IMAGES)]), "text": text}
        for n, text in enumerate(texts)
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"mir_media_dataset": str(folder / "data.jsonl"), "mir_media_id": "id"}
    counts = {
        "mir_documents": len(texts),
        "mir_groups": 0,
        "mir_caption_ppl": True,
        "mir_caption_gain": False,
    }
    return evaluate.task(
        mir_text_dataset=None, mir_media_column="image", mir_text_column="text", **data, **counts, **keys
    )


def wanted(lm: StandIn, task, changed=lambda text: text) -> tuple[float, dict[str, tuple[float, int]]]:
    """MIR, and each document's loss and number of tokens, of prompts that are built here."""
    vision, text_states, losses = [], [], {}
    for row in task.dataset["test"]:
        text = changed(row["text"])
        if not text:  # nothing of it arrives
            continue
        user = [{"type": "image", "url": task.doc_to_visual(row)[0]}]
        inputs = lm.inputs(
            [
                [
                    {"role": "user", "content": user},
                    {"role": "assistant", "content": [{"type": "text", "text": text}]},
                ]
            ]
        )
        with torch.no_grad():
            out = lm._model(**inputs, output_hidden_states=True)
        ids = inputs["input_ids"][0]
        is_image = ids == lm._model.config.image_token_index
        end = int(is_image.nonzero().max()) + 1
        vision.append([state[0][is_image] for state in out.hidden_states[1:]])
        text_states.append([state[0][end:] for state in out.hidden_states[1:]])
        # The template writes "\n ASSISTANT: TEXT</s> ASSISTANT:" after the image.
        tail = f"\n ASSISTANT: {text}</s> ASSISTANT:"
        start = len("\n ASSISTANT: ")
        encoded = lm.tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
        assert encoded["input_ids"] == ids[end:].tolist()
        own = [
            end + n
            for n, (a, b) in enumerate(encoded["offset_mapping"])
            if a < start + len(text) and b > start
        ]
        logits = out.logits[0, own[0] - 1 : own[-1]]
        loss = torch.nn.functional.cross_entropy(logits, ids[own])
        losses[row["id"]] = (float(loss), len(own))
    return independent.mir(independent.pooled(vision), independent.pooled(text_states)), losses


def check(lm: StandIn, task, folder: Path, **settings) -> dict:
    mir, losses = wanted(
        lm, task, **settings
    )  # before the run, after which the harness deletes the model
    evaluate.evaluate(lm, task, output=folder)
    report = evaluate.report(folder)
    assert report["mir"] == pytest.approx(mir, abs=1e-4)
    for document in report["documents"]:
        loss, tokens = losses[document["id"]]
        assert document["caption_tokens"] == tokens
        assert document["caption_loss"] == pytest.approx(loss, abs=1e-4)
    return report


@pytest.mark.parametrize(
    "size", [1, 3, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 5, 6, 7))]
)
def test_random_texts_in_batches(llava, tmp_path, size: int) -> None:
    chance = random.Random(size)
    texts = chance.sample(POOL, 12)
    report = check(Batches(llava, size), of_texts(tmp_path, texts), tmp_path / "out")
    assert len(report["documents"]) == 12
    assert not any(document["characters_cut"] for document in report["documents"])
    assert not any(document["text_changes"] for document in report["documents"])


@pytest.mark.parametrize(
    "texts",
    [
        ["a dog lies in the sun", "a dog  lies in the sun", "A dog lies in the sun"],
        ["A", "B", "C", "ASSISTANT: A"],
        ["an", "a", "an a", "a an"],
        ["same", "same", "same"],
    ],
)
def test_look_alikes_in_one_batch(llava, tmp_path, texts: list[str]) -> None:
    check(Batches(llava, 4), of_texts(tmp_path, texts), tmp_path / "out")


class UpperCases(StandIn):
    def prompt(self, messages: list[dict]) -> str:
        text = super().prompt(messages)
        own = messages[-1]["content"][0]["text"]
        before, _, after = text.rpartition(own)
        return f"{before}{own.upper()}{after}"


class StripsATag(Batches):
    def prompt(self, messages: list[dict]) -> str:
        return super().prompt(messages).replace("<b>", "")


@pytest.mark.parametrize(("first", "other"), [("a red dog", "The sun"), ("The sun", "a")])
def test_upper_case_is_measured_and_said(llava, tmp_path, first: str, other: str) -> None:
    task = of_texts(tmp_path, [first, other, "One more of these."])
    report = check(UpperCases(llava), task, tmp_path / "out", changed=str.upper)
    (warning,) = [w for w in report["warnings"] if "changed on its way" in w]
    assert "the text of 3 document(s) was changed" in warning
    changes = [document["text_changes"] for document in report["documents"]]
    assert "'Onemoreofthese.' became 'ONEMOREOFTHESE.'" not in changes  # "O" is as it was
    assert "'nemoreofthese' became 'NEMOREOFTHESE'" in changes


@pytest.mark.parametrize("size", [1, 4])
def test_a_tag_that_an_adapter_strips_is_named(llava, tmp_path, size: int) -> None:
    texts = ["a <b>bold dog", "<b>A start", "an end<b>", "none", "<b>"]
    task = of_texts(tmp_path, texts, mir_on_error="skip")
    lm = StripsATag(llava, size)
    report = check(lm, task, tmp_path / "out", changed=lambda text: text.replace("<b>", ""))
    changes = {d["id"]: d["text_changes"] for d in report["documents"]}
    assert changes == {
        "d0": "'<b>' became ''",
        "d1": "'<b>' became ''",
        "d2": "",  # at the end it is cut
        "d3": "",
    }
    assert report["skipped"] == {"d4": "nothing of its text arrived after the medium: it was dropped"}


def test_short_texts_that_do_not_arrive_are_found_out(llava, tmp_path) -> None:
    texts = ["A", "S", "T"]
    with pytest.raises(MIRError, match=r"no token of the document's own text stands after the image"):
        evaluate.evaluate(
            DropsAssistantTurns(llava), of_texts(tmp_path, texts, mir_placement="assistant_chat")
        )
    evaluate.evaluate(DropsAssistantTurns(llava), of_texts(tmp_path, texts), output=tmp_path / "out")
    report = evaluate.report(tmp_path / "out")
    assert report["placement"] == "user_generate"
    assert all(f"\n{text} ASSISTANT:" in d["text_span"] for text, d in spans(texts, report))


def spans(texts: list[str], report: dict):
    return [(texts[int(d["id"][1:])], d) for d in report["documents"]]


SEVERAL = [
    row
    for row in adapters.rows()
    if row.status == "measured"
    and (row.adapter, row.kind)
    in {("llava_hf", "chat"), ("llava_hf", "simple"), ("qwen2_5_vl", "chat"), ("llava", "simple")}
    and row.modality == "image"
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in SEVERAL])
def test_short_texts_by_adapters_of_the_harness(row, checkpoints, tmp_path, monkeypatch) -> None:
    texts = ["A", "T", "is", "Nice dogs", "yes", "2 x"]
    checkpoint = adapters.make(row, checkpoints)
    from mir_task.harness.adapter import find_tokenizer

    keys = {key: value for key, value in row.task(checkpoint.parent).items() if "media" not in key}
    lm = adapters.load_row(row, checkpoint)
    tokenizer = find_tokenizer(lm)
    received = evaluate.Received(row.found_class, monkeypatch)
    evaluate.evaluate(lm, of_texts(tmp_path, texts, **keys), output=tmp_path / "out")
    monkeypatch.undo()
    report = evaluate.report(tmp_path / "out")
    calls = received.documents
    assert len(calls) == len(report["documents"]) == len(texts)

    model = row.found_class.from_pretrained(checkpoint, dtype=row.dtype).eval()
    vision, text, all_ids, logits = [], [], [], []
    for call in calls:
        inputs = {name: value for name, value in call.items() if name not in ("labels", "use_cache")}
        with torch.no_grad():
            states = row.states(model, inputs)
            logits.append(model(**inputs).logits[0].float())
        is_vision = row.vision(model, inputs)
        end = int(is_vision.nonzero().max()) + 1
        vision.append([state[is_vision].float() for state in states])
        text.append([state[end:].float() for state in states])
        all_ids.append(call["input_ids"][0])
    wanted_mir = independent.mir(independent.pooled(vision), independent.pooled(text))
    assert report["mir"] == pytest.approx(wanted_mir, abs=1e-4)

    # All texts begin and end otherwise, so what all prompts share at both ends is the template.
    tails = [ids[-(len(states[0])) :] for ids, states in zip(all_ids, text, strict=True)]
    before = next(n for n in range(99) if len({int(tail[n]) for tail in tails}) > 1)
    after = next(n for n in range(99) if len({int(tail[-1 - n]) for tail in tails}) > 1)
    for document, tail, of_document in zip(report["documents"], tails, logits, strict=True):
        start = before + (not tokenizer.decode([int(tail[before])]).strip())  # white space of its own
        own = tail[start : len(tail) - after]
        first = len(of_document) - len(tail) + start
        loss = torch.nn.functional.cross_entropy(of_document[first - 1 : first - 1 + len(own)], own)
        assert document["caption_tokens"] == len(own)
        assert document["caption_loss"] == pytest.approx(float(loss), abs=1e-4)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in SEVERAL])
def test_a_placeholder_in_a_text_is_named(row, checkpoints, tmp_path) -> None:
    checkpoint = adapters.make(row, checkpoints)
    mark = "<|image_pad|>" if "qwen" in row.adapter else "<image>"
    texts = ["A dog.", f"A {mark} cat.", "A bird."]
    keys = {key: value for key, value in row.task(checkpoint.parent).items() if "media" not in key}
    task = of_texts(tmp_path, texts, **keys, mir_on_error="skip")
    evaluate.evaluate(adapters.load_row(row, checkpoint), task, output=tmp_path / "out")
    report = evaluate.report(tmp_path / "out")
    assert [d["id"] for d in sorted(report["documents"], key=lambda d: d["id"])] == ["d0", "d2"]
    assert re.search(rf"its text holds '{re.escape(mark)}'", report["skipped"]["d1"])
