"""GLM-4.1V and its successors, dense and with experts."""

from pathlib import Path
from typing import Any

import torch

from mir_task.demo.checkpoint import CHAT_TEMPLATE, train_tokenizer
from tests.adapters import Row, common, count_by_grid

MARKS = ("<|begin_of_image|>", "<|end_of_image|>", "<|image|>")
VIDEO_MARKS = ("<|begin_of_video|>", "<|end_of_video|>", "<|video|>")


def glm4v(folder: Path) -> Path:
    """GLM-4.1V: vision tokens by the size of the image, three-axis positions, four norms a layer."""
    return _checkpoint(folder, "Glm4v", mrope_section=[2, 3, 3])


def glm4v_moe(folder: Path) -> Path:
    """GLM-4.5V: a dense layer, then 2 of 4 experts for each token and a shared one."""
    return _checkpoint(
        folder,
        "Glm4vMoe",
        mrope_section=[2, 1, 1],
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    )


def _checkpoint(folder: Path, name: str, *, mrope_section: list[int], **text: Any) -> Path:
    import transformers

    tokenizer = train_tokenizer(extra=[*MARKS, *VIDEO_MARKS])
    config = getattr(transformers, f"{name}Config")(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "image_size": 112,
            "out_hidden_size": 32,
        },
        text_config=common.text_settings(
            tokenizer, rope_scaling={"rope_type": "default", "mrope_section": mrope_section}, **text
        ),
        **{
            f"{modality}_{part}token_id": tokenizer.convert_tokens_to_ids(mark)
            for modality, marks in (("image", MARKS), ("video", VIDEO_MARKS))
            for part, mark in zip(("start_", "end_", ""), marks, strict=True)
        },
    )
    # The limits hold for two frames, of which an image is made.
    size = {"shortest_edge": 2 * 4 * 28 * 28, "longest_edge": 2 * 48 * 28 * 28}
    processor = transformers.Glm4vProcessor(
        image_processor=transformers.Glm4vImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=transformers.Glm4vVideoProcessor(),
        chat_template=CHAT_TEMPLATE.replace("'<image>\n'", f"'{MARKS[0]}{MARKS[2]}{MARKS[1]}'"),
    )
    model_class = getattr(transformers, f"{name}ForConditionalGeneration")
    return common.save(model_class, config, processor, folder)


ROWS = [
    # Not `count_by_processor`: in transformers 4 it does not know the limits that the processor has.
    Row("glm4v", "simple", model_class, make, dtype=torch.bfloat16, count=count_by_grid, folder=folder)
    for model_class, make, folder in (
        ("Glm4vForConditionalGeneration", glm4v, "Flash"),
        ("Glm4vMoeForConditionalGeneration", glm4v_moe, "model"),
    )
]
