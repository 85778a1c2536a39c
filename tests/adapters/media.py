"""Adapters that watch or hear: videos and audio in the place of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import adapters
from tests.adapters import Row, qwen
from tests.adapters.llava import llava_onevision
from tests.adapters.qwen2_5_vl import qwen2_5_vl
from tests.adapters.qwen2_audio import qwen2_audio, tones
from tests.adapters.video_llava import clips


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
        vision=adapters.placeholders("video"),
        count=count_watched,
        task=clips,
        modality="video",
    ),
    Row(
        "llava_hf",
        "simple",
        "LlavaOnevisionForConditionalGeneration",
        llava_onevision,
        vision=adapters.placeholders("video"),
        count=count_frames,
        task=clips,
        modality="video",
    ),
    Row(
        "qwen2_audio",
        "simple",
        "Qwen2AudioForConditionalGeneration",
        qwen2_audio,
        vision=adapters.placeholders("audio"),
        count=count_heard,
        task=tones,
        modality="audio",
        load=heard_on_cpu,
        reason="The adapter starts on CUDA alone; here its own start was left out.",
    ),
]
