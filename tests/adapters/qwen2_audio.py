"""Qwen2-Audio, which hears: its audio tokens take the place of vision tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io.wavfile

from mir_task.demo.checkpoint import PASSAGES, train_tokenizer
from tests.adapters.common import save, text_settings

SECONDS = 4
MARKS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>")


def qwen2_audio(folder: Path) -> Path:
    """Qwen2-Audio: 25 audio tokens a second, of up to 4 seconds at once."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        Qwen2TokenizerFast,
        WhisperFeatureExtractor,
    )

    tokenizer = train_tokenizer(extra=MARKS, kind=Qwen2TokenizerFast)
    config = Qwen2AudioConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "max_source_positions": 50 * SECONDS,
        },
        text_config={"model_type": "qwen2", **text_settings(tokenizer)},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    processor = Qwen2AudioProcessor(
        feature_extractor=WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS),
        tokenizer=tokenizer,
    )
    return save(Qwen2AudioForConditionalGeneration, config, processor, folder)


def tones(folder: Path) -> dict[str, Any]:
    """Six tones of different length, some in stereo or of another sampling rate, with texts."""
    texts = [json.loads(line)["text"] for line in PASSAGES.read_text("utf-8").splitlines()[:6]]
    rows = []
    for number, text in enumerate(texts):
        rate, channels = ((16_000, 1), (8_000, 1), (16_000, 2))[number % 3]
        time = np.arange(int(rate * (0.5 + 0.4 * number))) / rate
        wave = np.stack([np.sin(2 * np.pi * 220 * (number + n + 1) * time) for n in range(channels)], 1)
        wave += np.random.default_rng(number).normal(scale=0.1, size=wave.shape)
        scipy.io.wavfile.write(folder / f"{number}.wav", rate, (8_000 * wave).astype(np.int16))
        rows.append({"id": f"a{number}", "audio": f"{number}.wav", "text": text})
    source = folder / "tones.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {
        "mir_base": None,
        "mir_modality": "audio",
        "mir_media_dataset": str(source),
        "mir_media_id": "id",
    }
