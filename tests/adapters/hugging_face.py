"""The harness's adapters for any model of transformers, on LLaVA."""

from tests.adapters import Row
from tests.adapters.llava import llava

ROWS = [
    Row(
        adapter,
        "chat",
        "LlavaForConditionalGeneration",
        llava,
        broken="keyword argument `audios`|'LlavaModel' object has no attribute 'generate'",
        reason="The adapter hands an argument `audios` to every processor, and loads models without "
        "their head for language, which cannot generate.",
        instead="the adapter of the architecture, here `llava_hf`",
    )
    for adapter in ("huggingface", "async_hf_model")
]
