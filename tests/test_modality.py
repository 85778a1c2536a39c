"""Videos and audio in the place of images."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
import torch
import yaml
from click.testing import CliRunner

from mir_task import MIRError
from mir_task.cli import main
from tests import harness, zoo
from tests.zoo import Row, qwen
from tests.zoo.llava import llava_onevision
from tests.zoo.qwen2_5_vl import qwen2_5_vl
from tests.zoo.qwen2_audio import qwen2_audio, tones
from tests.zoo.video_llava import clips


def resampled(audio: dict[str, Any], rate: int) -> np.ndarray:
    from librosa import resample

    return resample(audio["array"], orig_sr=audio["sampling_rate"], target_sr=rate)


def count_heard(processor: Any, audio: dict[str, Any]) -> int:
    rate = processor.feature_extractor.sampling_rate
    samples = resampled(audio, rate)
    encoded = processor(text="<|AUDIO|>", audio=[samples], sampling_rate=rate, return_tensors="pt")
    return int((encoded["input_ids"] == processor.audio_token_id).sum())


def count_watched(processor: Any, path: str) -> int:
    """Of 16 frames, which the harness has sized before; the adapter loads the processor with limits."""
    from qwen_vl_utils import fetch_video

    limits = qwen.limits(14)
    frames = fetch_video({"video": path, "nframes": 16, **limits}, image_patch_size=14)
    video_processor = processor.video_processor
    grid = video_processor(videos=[frames], return_tensors="pt", **limits)["video_grid_thw"]
    return int(grid.prod()) // video_processor.merge_size**2


def count_frames(processor: Any, path: str) -> int:
    import decord

    frames = decord.VideoReader(path)
    picked = np.linspace(0, len(frames) - 1, 32, dtype=int).tolist()
    encoded = processor(videos=[frames.get_batch(picked).asnumpy()], text="<video>", return_tensors="pt")
    video_token = processor.tokenizer.convert_tokens_to_ids("<video>")
    return int((encoded["input_ids"] == video_token).sum())


def heard_on_cpu(checkpoint: Path, **_: Any) -> Any:
    """The harness's adapter, whose own start knows no device but CUDA."""
    pytest.importorskip("librosa", reason="the adapter imports librosa: pip install 'mir-task[audio]'")
    from lmms_eval.api.model import lmms
    from lmms_eval.models.simple.qwen2_audio import Qwen2_Audio
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    class OnCPU(Qwen2_Audio):
        def __init__(self) -> None:
            lmms.__init__(self)
            self._model = Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint).eval()
            self.processor = AutoProcessor.from_pretrained(checkpoint)
            self.processor.tokenizer.padding_side = "left"
            self._tokenizer = self.processor.tokenizer
            self._config = self._model.config
            self._device = torch.device("cpu")
            self.device_map = "cpu"
            self.batch_size_per_gpu = 1
            self.use_cache = self.add_generation_prompt = self.add_system_prompt = True
            self.simple_prompt = False

    return OnCPU()


ROWS = [
    Row(
        "qwen2_5_vl",
        "chat",
        "Qwen2_5_VLForConditionalGeneration",
        qwen2_5_vl,
        arguments=qwen.limits(14),
        dtype=torch.bfloat16,
        vision=zoo.placeholders("video"),
        count=count_watched,
        task=clips,
    ),
    Row(
        "llava_hf",
        "simple",
        "LlavaOnevisionForConditionalGeneration",
        llava_onevision,
        vision=zoo.placeholders("video"),
        count=count_frames,
        task=clips,
    ),
    Row(
        "qwen2_audio",
        "simple",
        "Qwen2AudioForConditionalGeneration",
        qwen2_audio,
        vision=zoo.placeholders("audio"),
        count=count_heard,
        task=tones,
    ),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_value_and_tokens_are_those_of_an_independent_computation(row, tmp_path, monkeypatch) -> None:
    load = heard_on_cpu if row.adapter == "qwen2_audio" else harness.load
    checkpoint = zoo.make(row, tmp_path)
    measured = zoo.measure(row, checkpoint, tmp_path / "out", monkeypatch, load)
    documents = measured.report["documents"]
    assert len(documents) == 6
    found = [document["vision_tokens"] for document in documents]
    assert found == measured.expected
    assert found == measured.counts
    assert measured.report["mir"] == pytest.approx(measured.wanted, abs=1e-4)
    assert {document["vision_rule"] for document in documents} == {row.rule}
    assert not any(document["characters_cut"] for document in documents)
    assert measured.report["settings"]["mir_modality"] == row.task(checkpoint.parent)["mir_modality"]


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
    task = harness.task(**tones(tmp_path))
    harness.evaluate(heard, task, output=tmp_path / "out")
    report = harness.report(tmp_path / "out")
    assert report["placement"] == "assistant_chat"
    counts = [count_heard(heard.processor, task.doc_to_visual(doc)[0]) for doc in task.dataset["test"]]
    assert [document["vision_tokens"] for document in report["documents"]] == counts


def test_messages_speak_of_audio(hearing, tmp_path) -> None:
    keys = {**tones(tmp_path), "mir_documents": 2, "mir_groups": 0}
    for path in tmp_path.glob("*.wav"):
        rate, wave = scipy.io.wavfile.read(path)
        scipy.io.wavfile.write(path, rate, wave[: rate // 2])
    harness.evaluate(heard_on_cpu(hearing), harness.task(**keys), output=tmp_path / "out")
    (warning,) = [w for w in harness.report(tmp_path / "out")["warnings"] if "singular" in w]
    assert re.match(r"\d+ audio tokens in 32 dimensions", warning)

    for path in tmp_path.glob("*.wav"):
        path.write_bytes(b"noise")
    with pytest.raises(MIRError, match="document 'a[0-9]': .*the audio cannot be read .Format not rec"):
        harness.evaluate(heard_on_cpu(hearing), harness.task(**keys))


def test_a_model_that_cannot_hear_has_no_audio_tokens(llava, tmp_path) -> None:
    class Deaf(type(harness.load(llava))):
        """Sends the text without its audio."""

        def generate_until(self, requests: list[Any]) -> list[str]:
            for request in requests:
                ids = self.tokenizer(request.args[0], return_tensors="pt")
                self.model.generate(**ids, max_new_tokens=1)
            return [""] * len(requests)

    lm = harness.load(llava)
    lm.__class__ = Deaf
    message = "has no audio tokens in its text decoder's sequence .*the audio was dropped"
    with pytest.raises(MIRError, match=message):
        harness.evaluate(lm, harness.task(**tones(tmp_path)))


def test_check_names_the_tokens(tmp_path) -> None:
    checkpoint = llava_onevision(tmp_path / "onevision")
    keys = {"task": "mir_clips", "class": "MIRTask", **clips(tmp_path)}
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
