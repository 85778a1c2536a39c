"""Caption gain: the loss of a text after another document's medium, less that after its own."""

import math
import statistics

import pytest
import torch
import transformers
from loguru import logger
from PIL import Image

import mir_task
from mir_task import MIRError
from mir_task.captions import TokenMean, gain_difference, gains
from mir_task.documents.others import other_row
from tests.support import evaluate


@pytest.fixture(scope="module")
def model(llava):
    return transformers.LlavaForConditionalGeneration.from_pretrained(llava)


@pytest.fixture(scope="module")
def processor(llava):
    return transformers.AutoProcessor.from_pretrained(llava)


@pytest.fixture(scope="module")
def pairs():
    return evaluate.pairs_of(evaluate.task(mir_documents=5))


def losses_of(model, processor, image, text: str) -> torch.Tensor:
    """Of a text's own tokens, by a forward of their own."""
    conversation = [
        {"role": "user", "content": [{"type": "image", "url": image}]},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]
    inputs = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    ids = inputs["input_ids"][0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    last = int((ids == model.config.image_token_id).nonzero().max())
    squashed = lambda part: "".join(processor.tokenizer.decode(part).split())  # noqa: E731
    wanted = "".join(text.split())
    start = max(n for n in range(last + 1, len(ids)) if wanted in squashed(ids[n:]))
    end = min(n for n in range(start, len(ids) + 1) if wanted in squashed(ids[start:n]))
    return losses[start - 1 : end - 1]


def test_it_is_that_of_the_models_own_logits(model, processor, pairs) -> None:
    result = mir_task.measure(model, processor, pairs, caption_gain=True, bars=False)
    own, other = [], []
    for row, (image, text) in enumerate(pairs):
        another = other_row(row, len(pairs), 0, lambda n: False)
        assert another != row
        own.append(losses_of(model, processor, image, text))
        other.append(losses_of(model, processor, pairs[another][0], text))
    wanted = float(torch.cat(other).mean() - torch.cat(own).mean())
    assert result.caption_gain == pytest.approx(wanted, abs=1e-4)
    assert result.caption_loss == pytest.approx(float(torch.cat(own).mean()), rel=1e-4)
    left_out = [
        float(torch.cat(other[:n] + other[n + 1 :]).mean() - torch.cat(own[:n] + own[n + 1 :]).mean())
        for n in range(len(own))
    ]
    spread = statistics.pvariance(left_out) * (len(own) - 1)
    assert result.caption_gain_stderr == pytest.approx(math.sqrt(spread), rel=1e-3)
    assert [tokens for _, tokens in result.caption_gains.values()] == [len(part) for part in own]
    # MIR is of the forwards with the own media alone.
    alone = mir_task.measure(model, processor, pairs, bars=False)
    assert result.mir == alone.mir
    assert alone.caption_gain is None
    assert "caption_gains" not in result.to_dict()


def test_the_other_medium_is_never_the_same_one(model, processor, pairs) -> None:
    (first, _), (second, _) = pairs[:2]
    texts = [text for _, text in pairs]
    # Three pairs share a picture, one of them as a copy.
    shared = [(first, texts[0]), (first.copy(), texts[1]), (second, texts[2]), (first, texts[3])]
    result = mir_task.measure(model, processor, shared, caption_gain=True, groups=0, bars=False)
    for row, wanted in ((0, second), (1, second), (3, second), (2, first)):
        own, other = (
            losses_of(model, processor, image, texts[row]) for image in (shared[row][0], wanted)
        )
        gain, _ = result.caption_gains[str(row)]
        assert gain == pytest.approx(float((other - own).mean()), abs=1e-4)


def test_without_another_medium_there_is_none(model, processor, pairs) -> None:
    ((image, _), *_) = pairs
    one_picture = [(image, text) for _, text in pairs[:3]]
    with pytest.raises(MIRError, match="all 3 pairs hold one medium, so no other can take its place"):
        mir_task.measure(model, processor, one_picture, caption_gain=True, bars=False)
    with pytest.raises(MIRError, match="no document has another image .* caption_gain=false measures"):
        mir_task.measure(model, processor, one_picture[:1], caption_gain=True, bars=False)


def test_a_model_without_logits_is_refused(model, processor, pairs) -> None:
    wanted = "the forwards of LlavaModel return no logits.* caption_gain=false measures MIR alone"
    with pytest.raises(MIRError, match=wanted):
        mir_task.measure(model.model, processor, pairs, caption_gain=True, bars=False)


def test_a_medium_that_fails_costs_the_gain_of_one_document(model, processor, pairs) -> None:
    """The last pair's medium cannot be read, so what it would have stood in for has no gain."""
    bad = [*pairs[:4], ("no-such-file.jpg", pairs[4][1])]
    (victim,) = [row for row in range(5) if other_row(row, 5, 0, lambda n: False) == 4]
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    result = mir_task.measure(
        model, processor, bad, caption_gain=True, on_error="skip", groups=0, bars=False
    )
    logger.remove(sink)
    assert set(result.caption_gains) == {str(n) for n in range(4) if n != victim}
    assert result.caption_gain is not None
    (said,) = [message for message in messages if "caption_gain is without 1 document(s)" in message]
    assert f"measured with the image of another: {victim}" in said


def test_every_row_has_one_other_and_is_one_other() -> None:
    others = [other_row(row, 50, 3, lambda n: False) for row in range(50)]
    assert sorted(others) == list(range(50))
    assert all(other != row for row, other in enumerate(others))
    assert others == [other_row(row, 50, 3, lambda n: False) for row in range(50)]
    assert others != [other_row(row, 50, 4, lambda n: False) for row in range(50)]
    assert other_row(0, 1, 0, lambda n: False) is None
    assert other_row(0, 9, 0, lambda n: True) is None


class TestNumbers:
    def test_intervals_cover_what_they_say(self) -> None:
        """Documents of unequal length: 500 samples of a population whose mean over tokens is known."""
        generator = torch.Generator().manual_seed(0)
        count = 100_000
        tokens = torch.randint(3, 40, (count,), generator=generator)
        population = 0.3 + torch.randn(count, generator=generator) * (0.2 + 4 / tokens)
        population += 0.01 * tokens  # longer texts gain more
        truth = float((population * tokens).sum() / tokens.sum())
        hits = 0
        for _ in range(500):
            drawn = torch.randint(0, count, (100,), generator=generator)
            mean = TokenMean.of((float(population[n]), int(tokens[n])) for n in drawn.tolist())
            hits += abs(mean.value - truth) <= 1.96 * mean.stderr
        assert 0.93 <= hits / 500 <= 0.97

    def test_the_error_of_a_difference_is_paired(self) -> None:
        generator = torch.Generator().manual_seed(1)
        base = torch.randn(40, generator=generator)
        noise = 0.01 * torch.randn(40, generator=generator)
        a = {str(n): (float(base[n]) + 0.5, 7) for n in range(40)}
        b = {str(n): (float(base[n] + noise[n]), 7) for n in range(40)}
        difference, stderr = gain_difference(a, b)
        values = [a[n][0] - b[n][0] for n in a]
        assert difference == pytest.approx(statistics.mean(values))
        assert stderr == pytest.approx(statistics.stdev(values) / math.sqrt(40))
        assert gain_difference({"x": (1.0, 2)}, {"y": (1.0, 2)}) is None

    def test_equal_tokens_give_the_error_of_a_plain_mean(self) -> None:
        values = [0.1, 0.4, 0.2, 0.9]
        mean = TokenMean.of((value, 5) for value in values)
        assert mean.value == pytest.approx(statistics.mean(values))
        assert mean.stderr == pytest.approx(statistics.stdev(values) / 2)
        assert TokenMean.of([(0.5, 3)]) == (pytest.approx(0.5), None)
        assert TokenMean.of([]) is None
        assert gains([{"id": "a"}]) == {}


def test_small_pictures_of_one_colour(model, processor) -> None:
    colours = [Image.new("RGB", (56, 56), colour) for colour in ("red", "green")]
    result = mir_task.measure(
        model,
        processor,
        list(zip(colours, ["A red one.", "A green one."], strict=True)),
        caption_gain=True,
        groups=0,
        bars=False,
    )
    assert len(result.caption_gains) == 2
