"""What adapters of the harness do that a careless measurement would fall for, one stand-in each.

Each stand-in holds the same small LLaVA; only its way of calling it differs. The right value is that of
the plain stand-in, document by document.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger

from mir_task import MIRError
from tests.adapters import video_llava
from tests.support import evaluate


class StandIn(lmms):
    """A chat adapter at its plainest."""

    is_simple = False

    def __init__(self, checkpoint, batch_size: int = 1) -> None:
        super().__init__()
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        self._model = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.tokenizer = self.processor.tokenizer
        self.batch_size_per_gpu = batch_size

    def loglikelihood(self, requests: list[Instance]):
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Instance]):
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Instance) -> str:
        return self.generate(self.inputs([self.messages(request)]))

    def messages(self, request: Instance) -> list[dict]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return doc_to_messages(self.task_dict[task][split][doc_id])

    def inputs(self, conversations: list[list[dict]], **settings):
        texts = [self.prompt(messages) for messages in conversations]
        images = [
            p["url"] for c in conversations for m in c for p in m["content"] if p["type"] == "image"
        ]
        return self.processor(images=images or None, text=texts, return_tensors="pt", **settings)

    def prompt(self, messages: list[dict]) -> str:
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def generate(self, inputs, **settings) -> str:
        ids = self._model.generate(**inputs, **{"max_new_tokens": 1, "do_sample": False, **settings})
        return self.tokenizer.decode(ids[0])


class IgnoresMaxNewTokens(StandIn):
    def generate(self, inputs, **settings) -> str:
        return super().generate(inputs, max_new_tokens=12)


class Beams(StandIn):
    def generate(self, inputs, **settings) -> str:
        return super().generate(inputs, num_beams=3)


class AsksTwice(StandIn):
    """Runs a text-only prompt first, then the question, then both in one forward."""

    def answer(self, request: Instance) -> str:
        messages = self.messages(request)
        without = [{**m, "content": [p for p in m["content"] if p["type"] == "text"]} for m in messages]
        self.generate(self.inputs([without]))
        return super().answer(request) + super().answer(request)


class NoGenerate(StandIn):
    """A hand-written loop of forwards."""

    def generate(self, inputs, **settings) -> str:
        out = self._model(**inputs, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        for _ in range(3):
            out = self._model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return self.tokenizer.decode(token[0])


class Threads(StandIn):
    """A pool of workers in which the model runs, documents in no order."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        with ThreadPoolExecutor(1) as pool:
            return list(pool.map(self.answer, reversed(requests)))


class Batches(StandIn):
    """All requests of a call in one padded batch, the longest first, and answers in that order."""

    side = "left"
    multiple: int | None = None

    def generate_until(self, requests: list[Instance]) -> list[str]:
        ordered = sorted(requests, key=lambda request: -len(request.args[0]))
        self.tokenizer.padding_side = self.side
        conversations = [self.messages(request) for request in ordered]
        self.generate(self.inputs(conversations, padding=True, pad_to_multiple_of=self.multiple))
        return [""] * len(requests)


class PadsRight(Batches):
    side = "right"


class PadsToEight(Batches):
    multiple = 64


class MergesABatch(StandIn):
    """Puts the requests of a call into one conversation."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        merged = [message for request in requests for message in self.messages(request)]
        return [self.generate(self.inputs([merged]))] * len(requests)


class SwallowsErrors(StandIn):
    """Answers with what it answered before when the processing after a forward fails."""

    last = "stale"

    def answer(self, request: Instance) -> str:
        try:
            super().answer(request)
            raise ValueError("cannot parse the answer")
        except ValueError:
            return self.last


@pytest.mark.parametrize(
    ("stand_in", "trap"),
    [
        (IgnoresMaxNewTokens, "11 decode steps after it: the adapter generates more tokens than asked"),
        (Beams, "2 more sequence(s) with the same tokens (beams); one counts"),
        (AsksTwice, "3 prefill forwards; the first that holds the document's text counts"),
    ],
)
def test_check_and_a_run_name_them(llava, tmp_path, stand_in, trap: str) -> None:
    from mir_task.harness.check import check

    report = check(lambda: stand_in(llava), {"task": "mir_check", "mir_base": "mir_demo"})
    for document in report.documents:
        assert any(trap in found for found in document.traps)
    # A run counts them, and logs each once.
    logged: list[str] = []
    sink = logger.add(logged.append, level="INFO", format="{message}")
    evaluate.evaluate(stand_in(llava), evaluate.task(), output=tmp_path)
    logger.remove(sink)
    traps = evaluate.report(tmp_path)["traps"]
    assert [count for found, count in traps.items() if trap in found] == [6]
    assert sum(trap in line for line in logged) == 1


class Counts(StandIn):
    calls = 0

    def generate(self, inputs, **settings) -> str:
        self.calls += 1
        return super().generate(inputs, **settings)


def test_a_run_takes_one_forward_more_than_it_has_documents(llava) -> None:
    lm = Counts(llava)
    evaluate.evaluate(lm, evaluate.task())
    assert lm.calls == 6 + 1


@pytest.fixture(scope="module")
def wanted(llava, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("plain")
    evaluate.evaluate(StandIn(llava), evaluate.task(), output=folder)
    return evaluate.report(folder)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    "stand_in",
    [
        IgnoresMaxNewTokens,
        Beams,
        AsksTwice,
        NoGenerate,
        Threads,
        Batches,
        PadsRight,
        PadsToEight,
        MergesABatch,
        SwallowsErrors,
    ],
)
def test_the_value_is_that_of_a_plain_adapter(llava, wanted, tmp_path, stand_in, batch_size) -> None:
    evaluate.evaluate(stand_in(llava, batch_size), evaluate.task(), output=tmp_path)
    report = evaluate.report(tmp_path)
    assert report["mir"] == pytest.approx(wanted["mir"], abs=1e-5)
    for document, plain in zip(report["documents"], wanted["documents"], strict=True):
        for key in ("id", "tokens", "vision_tokens", "text_tokens", "text_span"):
            assert document[key] == plain[key]


class DropsTheImage(StandIn):
    def inputs(self, conversations, **settings):
        without = [
            [{**m, "content": [p for p in m["content"] if p["type"] == "text"]} for m in messages]
            for messages in conversations
        ]
        return super().inputs(without, **settings)


class AnswersFromACache(StandIn):
    def answer(self, request: Instance) -> str:
        return "what I said last time"


class SendsStaleInputs(StandIn):
    """Uses the inputs of the first document for all."""

    first = None

    def inputs(self, conversations, **settings):
        self.first = self.first or super().inputs(conversations, **settings)
        return self.first


class SwallowsTheCause(StandIn):
    def answer(self, request: Instance) -> str:
        try:
            raise RuntimeError("the processor has no video part")
        except RuntimeError:
            return ""


class LogsTheCause(StandIn):
    def answer(self, request: Instance) -> str:
        from loguru import logger

        try:
            raise RuntimeError("the processor has no video part")
        except RuntimeError as error:
            logger.error(f"Error {error} in generating")
            return ""


@pytest.mark.parametrize(
    ("stand_in", "message"),
    [
        (DropsTheImage, "no vision tokens in its text decoder's sequence"),
        (AnswersFromACache, "ran no forward of its model"),
        (SendsStaleInputs, "no token of the document's own text stands after the image"),
        (SwallowsTheCause, "ran no forward of its model"),
        (LogsTheCause, "ran no forward of its model .*the processor has no video part"),
    ],
)
def test_what_cannot_be_measured_is_refused(llava, stand_in, message: str) -> None:
    with pytest.raises(MIRError, match=message):
        evaluate.evaluate(stand_in(llava), evaluate.task())


class DropsAssistantTurns(StandIn):
    def messages(self, request: Instance) -> list[dict]:
        return [message for message in super().messages(request) if message["role"] == "user"]


class FlattensTurns(StandIn):
    """Joins all turns into one user turn, the text before the image."""

    def messages(self, request: Instance) -> list[dict]:
        parts = [part for message in super().messages(request) for part in message["content"]]
        if any(m["role"] == "assistant" for m in super().messages(request)):
            parts.reverse()
        return [{"role": "user", "content": parts}]

    def prompt(self, messages: list[dict]) -> str:
        (message,) = messages
        return "".join("<image>" if p["type"] == "image" else p["text"] for p in message["content"])


@pytest.mark.parametrize("stand_in", [DropsAssistantTurns, FlattensTurns])
def test_assistant_turns_that_do_not_arrive_are_found_out(llava, tmp_path, stand_in) -> None:
    evaluate.evaluate(stand_in(llava), evaluate.task(), output=tmp_path)
    report = evaluate.report(tmp_path)
    assert report["placement"] == "user_generate"
    assert any("does not do assistant_chat" in warning for warning in report["warnings"])
    with pytest.raises(MIRError, match="choose another mir_placement"):
        evaluate.evaluate(stand_in(llava), evaluate.task(mir_placement="assistant_chat"))


class TakesVideos(StandIn):
    """Shows the image as a video of 8 frames."""

    def __init__(self, checkpoint) -> None:
        lmms.__init__(self)
        from transformers import AutoProcessor, VideoLlavaForConditionalGeneration

        self._model = VideoLlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.tokenizer = self.processor.tokenizer

    def inputs(self, conversations, **settings):
        ((user, assistant),) = conversations
        (image,), (text,) = user["content"], assistant["content"]
        clip = torch.tensor(np.asarray(image["url"])).permute(2, 0, 1).expand(8, -1, -1, -1)
        prompt = f"USER: <video>\nASSISTANT: {text['text']}"
        return self.processor(text=prompt, videos=clip, return_tensors="pt")


def test_tokens_of_a_video_count_as_vision(tmp_path) -> None:
    lm = TakesVideos(video_llava.video_llava(tmp_path / "checkpoint"))
    evaluate.evaluate(lm, evaluate.task(), output=tmp_path / "out")
    for document in evaluate.report(tmp_path / "out")["documents"]:
        # 8 frames of 4 x 4 patches and a class token
        assert document["vision_tokens"] == 8 * 17
        assert document["vision_rule"] == "token_ids+provenance"
        assert document["text_span"].startswith("\nASSISTANT:")


class SimpleStub(StandIn):
    """A simple adapter whose log-likelihood is a stub."""

    is_simple = True

    def loglikelihood(self, requests: list[Instance]):
        return [(0.0, False)] * len(requests)

    def messages(self, request: Instance) -> list[dict]:
        context, _, doc_to_visual, doc_id, task, split = request.args
        (image,) = doc_to_visual(self.task_dict[task][split][doc_id])
        content = [{"type": "image", "url": image}, {"type": "text", "text": context}]
        return [{"role": "user", "content": content}]


def test_a_loglikelihood_that_is_a_stub_is_found_out(llava, tmp_path) -> None:
    evaluate.evaluate(SimpleStub(llava), evaluate.task(), output=tmp_path)
    report = evaluate.report(tmp_path)
    assert report["placement"] == "user_generate"
    assert any("does not do assistant_loglikelihood" in warning for warning in report["warnings"])
