"""Hidden states for `mir-task states`: `python examples/write_states.py CHECKPOINT FOLDER`.

The forwards are transformers' own here; an engine of another kind gives the same three things of each
document: the token ids as the decoder had them, the hidden states of every layer, and where the vision
tokens stand. The pairs are those of measure_checkpoint.py.
"""

import sys
from collections.abc import Iterator

import torch
from measure_checkpoint import Pairs
from transformers import AutoModelForImageTextToText, AutoProcessor

from mir_task import DocumentStates, write_states


def documents(model, processor, pairs: Pairs) -> Iterator[DocumentStates]:
    for number in range(len(pairs)):
        image, text = pairs[number]
        conversation = [
            {"role": "user", "content": [{"type": "image", "image": image}]},
            {"role": "assistant", "content": [{"type": "text", "text": text}]},
        ]
        inputs = processor.apply_chat_template(
            conversation,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True)
        yield DocumentStates(
            id=str(number),
            row=number,
            token_ids=inputs["input_ids"][0],
            # 0 is the decoder's input; the last is the decoder's output, after its norm.
            layers={layer: states[0] for layer, states in enumerate(output.hidden_states)},
        )


def main() -> None:
    checkpoint, folder = sys.argv[1:]
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    manifest = write_states(
        folder,
        documents(model, processor, Pairs()),
        model=checkpoint,
        last_layer="after_norm",
        vision_token_ids=[model.config.image_token_id],
        placement="assistant_chat",
        task="demo_pairs",
    )
    print(manifest)


if __name__ == "__main__":
    main()
