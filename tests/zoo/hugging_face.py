"""The harness's adapters for any model of transformers, on LLaVA."""

from tests.zoo import Row
from tests.zoo.llava import llava

ROWS = [
    Row(
        "huggingface",
        "chat",
        "LlavaForConditionalGeneration",
        llava,
        broken="keyword argument `audios`|'LlavaModel' object has no attribute 'generate'",
        reason="The adapter hands an argument `audios` to every processor, and loads models without "
        "their head for language, which cannot generate.",
        instead="`llava_hf`, and the adapters of the other architectures",
    ),
    Row(
        "async_hf_model",
        "chat",
        "LlavaForConditionalGeneration",
        llava,
        refused="the adapter AsyncHFModel holds no PyTorch model in this process",
        reason="The adapter keeps copies of its model in threads, out of reach of a task.",
        instead="`llava_hf`, and the adapters of the other architectures",
    ),
]
