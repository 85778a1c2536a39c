"""The family's models: a decoder, a vision encoder, and LLaVAs made of them."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mir_task.demo.models import scenes_processor, word_tokenizer
from studies.alignment import connectors, language, world

TOKENS = (world.SIDE // world.PATCH) ** 2
"""Vision tokens of an image."""
MEAN, STD = 0.5, 0.5
"""Of pixel values, by which images are normalised."""

DECODER = LlamaConfig(
    vocab_size=len(language.WORDS),
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=512,
    initializer_range=0.05,
    pad_token_id=language.PAD,
    bos_token_id=language.BOS,
    eos_token_id=language.EOS,
    tie_word_embeddings=False,
)
ENCODER = CLIPVisionConfig(
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=world.SIDE,
    patch_size=world.PATCH,
    projection_dim=64,
)
LLAVA = LlavaConfig(
    vision_config=ENCODER,
    text_config=DECODER,
    image_token_index=language.IMAGE,
    image_seq_length=TOKENS,
    pad_token_id=language.PAD,
)


def pixels(images: Tensor) -> Tensor:
    """Pixel values [n, 3, side, side] of uint8 images [n, side, side, 3], as the processor has them."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def make_processor() -> Any:
    """Processor of the family's LLaVAs."""
    return scenes_processor(word_tokenizer(language.WORDS, language.CHAT_TEMPLATE))


def make_llava(
    decoder: dict[str, Tensor],
    encoder: dict[str, Tensor],
    *,
    seed: int,
    connector: connectors.Kind = "mlp",
    scale: float = 1.0,
    matched_norm: bool = False,
) -> LlavaForConditionalGeneration:
    """A LLaVA of trained parts and an untrained connector.

    Args:
        decoder: state dict of the `LlamaForCausalLM`.
        encoder: state dict of the `CLIPVisionModel`.
        seed: of the connector's weights.
        connector: its kind; "mlp" is LLaVA's own, whose checkpoints load anywhere.
        scale: of the connector's last layer at first.
        matched_norm: whether vision tokens are given the mean norm of the decoder's word embeddings.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(LLAVA)
    causal = LlamaForCausalLM(DECODER)
    causal.load_state_dict(decoder)
    model.model.language_model = causal.model
    model.lm_head = causal.lm_head
    model.model.vision_tower.load_state_dict(encoder)
    projector = model.model.multi_modal_projector
    if connector == "mlp" and not matched_norm:
        with torch.no_grad():
            projector.linear_2.weight *= scale
            projector.linear_2.bias *= scale
    else:
        words = causal.model.embed_tokens.weight[len(language.SPECIAL_TOKENS) :]
        norm = float(words.detach().norm(dim=1).mean()) if matched_norm else None
        model.model.multi_modal_projector = connectors.make(
            connector,
            ENCODER.hidden_size,
            DECODER.hidden_size,
            TOKENS,
            std=DECODER.initializer_range,
            scale=scale,
            norm=norm,
        )
    return model.eval()
