"""LLaVA and its successors in transformers."""

from pathlib import Path

from mir_task.demo.checkpoint import make_llava
from tests.zoo import Row


def llava(folder: Path) -> Path:
    """LLaVA: 16 vision tokens an image."""
    return make_llava(folder, hidden_size=32, layers=3, image_size=56)


ROWS = [
    Row("llava_hf", "chat", "LlavaForConditionalGeneration", llava),
    Row("llava_hf", "simple", "LlavaForConditionalGeneration", llava),
]
