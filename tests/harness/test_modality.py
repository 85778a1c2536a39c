"""Videos and audio in the place of images."""

import re
from typing import Any

import pytest
import scipy.io.wavfile
import yaml
from click.testing import CliRunner

from mir_task import MIRError
from mir_task.commands.cli import main
from tests.adapters.llava import llava_onevision
from tests.adapters.media import count_heard, heard_on_cpu, resampled
from tests.adapters.qwen2_audio import qwen2_audio, tones
from tests.adapters.video_llava import clips
from tests.support import evaluate


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    return qwen2_audio(tmp_path_factory.mktemp("checkpoints") / "qwen2_audio")


def test_audio_in_a_chat_message(hearing, tmp_path) -> None:
    from lmms_eval.protocol import ChatMessages

    heard = heard_on_cpu(hearing)

    class Chat(type(heard)):
        is_simple = False

        def generate_until(self, requests: list[Any]) -> list[str]:
            for request in requests:
                _, doc_to_messages, _, doc_id, task, split = request.args
                row = self.task_dict[task][split][doc_id]
                messages = ChatMessages(messages=doc_to_messages(row))
                _, _, (audio,) = messages.extract_media()
                text = self.processor.apply_chat_template(messages.to_hf_messages(), tokenize=False)
                rate = self.processor.feature_extractor.sampling_rate
                sound = resampled(audio, rate)
                self.model.generate(
                    **self.processor(text=text, audio=[sound], sampling_rate=rate, return_tensors="pt"),
                    max_new_tokens=1,
                )
            return [""] * len(requests)

    heard.__class__ = Chat
    task = evaluate.task(**tones(tmp_path))
    evaluate.evaluate(heard, task, output=tmp_path / "out")
    report = evaluate.report(tmp_path / "out")
    assert report["placement"] == "assistant_chat"
    counts = [count_heard(heard.processor, task.doc_to_visual(doc)[0]) for doc in task.dataset["test"]]
    assert [document["vision_tokens"] for document in report["documents"]] == counts


def test_messages_speak_of_audio(hearing, tmp_path) -> None:
    keys = {**tones(tmp_path), "mir_documents": 2, "mir_groups": 0}
    for path in tmp_path.glob("*.wav"):
        rate, wave = scipy.io.wavfile.read(path)
        scipy.io.wavfile.write(path, rate, wave[: rate // 2])
    evaluate.evaluate(heard_on_cpu(hearing), evaluate.task(**keys), output=tmp_path / "out")
    (warning,) = [w for w in evaluate.report(tmp_path / "out")["warnings"] if "singular" in w]
    assert re.match(r"\d+ audio tokens in 32 dimensions", warning)

    for path in tmp_path.glob("*.wav"):
        path.write_bytes(b"noise")
    with pytest.raises(MIRError, match="document 'a[0-9]': .*the audio cannot be read .Format not rec"):
        evaluate.evaluate(heard_on_cpu(hearing), evaluate.task(**keys))


def test_a_model_that_cannot_hear_has_no_audio_tokens(llava, tmp_path) -> None:
    class Deaf(type(evaluate.load(llava))):
        """Sends the text without its audio."""

        def generate_until(self, requests: list[Any]) -> list[str]:
            for request in requests:
                ids = self.tokenizer(request.args[0], return_tensors="pt")
                self.model.generate(**ids, max_new_tokens=1)
            return [""] * len(requests)

    lm = evaluate.load(llava)
    lm.__class__ = Deaf
    message = "has no audio tokens in its text decoder's sequence .*the audio was dropped"
    with pytest.raises(MIRError, match=message):
        evaluate.evaluate(lm, evaluate.task(**tones(tmp_path)))


def test_an_adapter_that_fails_on_audio_is_told_apart_from_a_bad_file(llava, tmp_path) -> None:
    message = (
        "LlavaForConditionalGeneration has no token for audio in its configuration, and the adapter "
        r"LlavaHf failed on it \(IndexError: .*\): choose a model and an adapter that take audio"
    )
    with pytest.raises(MIRError, match=message):
        evaluate.evaluate(evaluate.load(llava), evaluate.task(**tones(tmp_path)))


def test_check_names_the_tokens(tmp_path) -> None:
    checkpoint = llava_onevision(tmp_path / "onevision")
    keys = {"task": "mir_clips", "class": "MIRTask", "mir_documents": 6, **clips(tmp_path)}
    (tmp_path / "mir_clips.yaml").write_text(yaml.safe_dump(keys))
    page = tmp_path / "strip.html"
    model = f"pretrained={checkpoint},device=cpu,device_map=cpu"
    loaded = ["--model", "llava_hf", "--model_args", model, "--force_simple"]
    task = ["--task", "mir_clips", "--include_path", str(tmp_path)]
    result = CliRunner().invoke(main, ["check", *loaded, *task, "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert re.search(r"^video      \d+ tokens, found by token ids and by", result.output, re.MULTILINE)
    assert "not (before or between the video tokens)" in result.output
    assert "</i>video token</span>" in page.read_text("utf-8")
