"""What the Qwen vision-language models have in common."""

from pathlib import Path
from typing import Any

from mir_task.demo.checkpoint import CHAT_TEMPLATE, train_tokenizer
from tests.adapters import common, count_by_grid, count_by_processor

MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def checkpoint(
    folder: Path, name: str, *, patch: int, vision: dict[str, Any], text: dict[str, Any], **changes: Any
) -> Path:
    """A model with up to 48 vision tokens an image.

    Args:
        folder: to write to.
        name: of the model's classes in transformers, without their endings.
        patch: side of the image's patches in pixels; a vision token stands for 2 x 2 of them.
        vision: settings of the vision tower, beside its heads and patches.
        text: settings of the decoder, beside the common ones.
        changes: names of classes: `processor`, `video_processor`.
    """
    import transformers

    tokenizer = train_tokenizer(extra=MARKS, kind=transformers.Qwen2TokenizerFast)
    config = getattr(transformers, f"{name}Config")(
        vision_config={"num_heads": 2, "patch_size": patch, **vision},
        text_config=common.text_settings(tokenizer, **text),
        **{
            f"{kind}_token_id": tokenizer.convert_tokens_to_ids(mark)
            for kind, mark in zip(("vision_start", "vision_end", "image", "video"), MARKS, strict=True)
        },
    )
    sizes = {"patch_size": patch, **limits(patch)}
    video_processor = getattr(transformers, changes.get("video_processor", "Qwen2VLVideoProcessor"))
    processor = getattr(transformers, changes.get("processor", f"{name}Processor"))(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=video_processor(patch_size=patch),
        chat_template=common.with_videos(
            CHAT_TEMPLATE.replace("'<image>\n'", "'<|vision_start|><|image_pad|><|vision_end|>'"),
            "<|vision_start|><|video_pad|><|vision_end|>",
        ),
    )
    model_class = getattr(transformers, f"{name}ForConditionalGeneration")
    return common.save(model_class, config, processor, folder)


def limits(patch: int, tokens: int = 48) -> dict[str, int]:
    """Limits of an image's size, as processors and adapters take them.

    Adapters load the processor with limits of their own where they are given none.
    """
    pixels = (2 * patch) ** 2
    return {"min_pixels": 4 * pixels, "max_pixels": tokens * pixels}


def count_fetched(processor: Any, image: Any) -> int:
    """The processor's count where the harness has sized the image without limits before."""
    from qwen_vl_utils import fetch_image

    sized = fetch_image({"image": image}, image_patch_size=processor.image_processor.patch_size)
    return count_by_processor(processor, sized)


def count_unsized(processor: Any, image: Any) -> int:
    """The processor's count where the harness has sized the image and forbids the processor to."""
    from qwen_vl_utils import fetch_image

    sized = fetch_image({"image": image}, image_patch_size=processor.image_processor.patch_size)
    return count_by_grid(processor, sized, do_resize=False)
