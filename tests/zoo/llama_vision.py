"""Llama 3.2 Vision, whose decoder sees images by cross-attention."""

from tests.checkpoints import make_llama_vision
from tests.zoo import Row

ROWS = [
    Row(
        "llama_vision",
        "simple",
        "MllamaForConditionalGeneration",
        make_llama_vision,
        refused="no vision tokens in its text decoder's sequence",
        reason="Images enter by cross-attention: one placeholder an image, and no vision rows.",
    ),
]
