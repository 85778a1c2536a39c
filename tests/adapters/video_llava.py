"""Video-LLaVA, whose adapter takes videos only: their tokens count as vision."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mir_task.demo.checkpoint import PASSAGES
from tests.adapters import Row
from tests.adapters.common import named_tokenizer, text_settings


def video_llava(folder: Path) -> Path:
    """Video-LLaVA: 8 frames of 16 patches and a class token."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        VideoLlavaConfig,
        VideoLlavaForConditionalGeneration,
        VideoLlavaImageProcessor,
        VideoLlavaProcessor,
        VideoLlavaVideoProcessor,
    )

    tokenizer = named_tokenizer({"image_token": "<image>", "video_token": "<video>"})
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
        ),
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    processor = VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**size),
        video_processor=VideoLlavaVideoProcessor(**size),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    torch.manual_seed(0)
    VideoLlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def clips(folder: Path) -> dict[str, Any]:
    """Six short videos with the texts of the demo."""
    import av

    texts = [json.loads(line)["text"] for line in PASSAGES.read_text("utf-8").splitlines()[:6]]
    generator = np.random.default_rng(0)
    for number in range(6):
        with av.open(str(folder / f"{number}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=8)
            stream.width, stream.height = 64, 48
            frame = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            for step in range(16):
                picture = av.VideoFrame.from_ndarray(np.roll(frame, step, axis=1), format="rgb24")
                file.mux(stream.encode(picture))
            file.mux(stream.encode())
    rows = [{"id": f"v{n}", "video": f"{n}.mp4", "text": text} for n, text in enumerate(texts)]
    source = folder / "clips.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {
        "mir_base": None,
        "mir_modality": "video",
        "mir_media_dataset": str(source),
        "mir_media_id": "id",
    }


ROWS = [
    Row(
        "video_llava",
        "simple",
        "VideoLlavaForConditionalGeneration",
        video_llava,
        arguments={"device_map": "auto"},
        task=clips,
        broken=r"read_video\(\) takes 1 positional argument but 2 were given",
        reason="simple/video_llava.py:182 gives read_video the number of frames by position; it takes "
        "it by name only.",
    )
]
