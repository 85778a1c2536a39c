"""Capture on a real LLaVA of transformers, run the ways that adapters run it."""

import contextlib

import pytest
import torch
from PIL import Image
from torch import nn

from mir_task import MIRError
from mir_task.capture.decoder import find_decoder, media_token_ids
from mir_task.capture.finder import PositionFinder
from mir_task.capture.hooks import HiddenStateCapture
from mir_task.capture.positions import NO_TOKEN, equal_rows
from mir_task.capture.prefill import Prefill

TEXTS = {
    "short": "A boat.",
    "long": "Three boats lie on the mud below the quay, waiting for the tide to come back.",
    "other": "Nobody bought the violin.",
}


@pytest.fixture(scope="module")
def model(llava):
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(llava):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(llava)


def inputs(processor, texts, *, padding_side="left"):
    prompts = [
        processor.apply_chat_template(
            [
                {"role": "user", "content": [{"type": "image"}]},
                {"role": "assistant", "content": [{"type": "text", "text": text}]},
            ],
            tokenize=False,
        )
        for text in texts
    ]
    images = [Image.new("RGB", (60, 40), (30 * n, 80, 200)) for n in range(len(prompts))]
    processor.tokenizer.padding_side = padding_side
    return processor(images=images, text=prompts, padding=True, return_tensors="pt")


def expected(model, encoded, row: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Vision and text rows of each layer from `output_hidden_states`."""
    with torch.no_grad():
        out = model(**encoded, output_hidden_states=True)
    ids, real = encoded["input_ids"][row], encoded["attention_mask"][row].bool()
    vision = ids == model.config.image_token_index
    after = torch.arange(len(ids)) > vision.nonzero().max()
    states = [layer[row] for layer in out.hidden_states[1:]]
    return [s[vision] for s in states], [s[real & after] for s in states]


def assert_rows(prefill: Prefill, vision, text) -> None:
    for kept, wanted in ((prefill.vision_rows, vision), (prefill.text_rows, text)):
        assert len(kept) == len(wanted)
        for rows, wanted_rows in zip(kept, wanted, strict=True):
            torch.testing.assert_close(rows, wanted_rows, rtol=1e-5, atol=1e-6)


def span_of(prefill: Prefill, processor) -> str:
    return processor.tokenizer.decode(prefill.text_ids)


def run(model, encoded, **generation) -> list[Prefill]:
    with HiddenStateCapture(model) as capture, torch.no_grad():
        model.generate(**encoded, do_sample=False, **{"max_new_tokens": 1, **generation})
    assert capture.failures == []
    return capture.take()


def test_decoder_is_found_by_structure(model) -> None:
    decoder = find_decoder(model)
    assert type(decoder.module).__name__ == "LlamaModel"
    assert len(decoder.layers) == model.config.text_config.num_hidden_layers
    assert decoder.embedding is model.get_input_embeddings()


def test_a_tower_of_as_many_layers_is_no_decoder(model, monkeypatch) -> None:
    tower = nn.Module()
    tower.positions = nn.Embedding(16, 64)
    tower.blocks = nn.ModuleList(nn.Identity() for _ in find_decoder(model).layers)
    monkeypatch.setitem(model._modules, "tower", tower)
    assert type(find_decoder(model).module).__name__ == "LlamaModel"
    tower.positions = model.get_input_embeddings()
    with pytest.raises(MIRError, match=r"found .*, tower; MIR is defined on"):
        find_decoder(model)


def test_rows_are_the_hidden_states(model, processor) -> None:
    encoded = inputs(processor, [TEXTS["long"]])
    (prefill,) = run(model, encoded)
    assert_rows(prefill, *expected(model, encoded, 0))
    assert prefill.vision_rule == "token_ids+provenance"
    assert prefill.token_ids.tolist() == encoded["input_ids"][0].tolist()
    assert int(prefill.vision.sum()) == 16
    assert not (prefill.vision & prefill.text).any()
    assert span_of(prefill, processor) == f"\n ASSISTANT: {TEXTS['long']}</s>"
    assert not any(rows.requires_grad for rows in prefill.text_rows)


def test_layer_0_is_the_decoder_s_input(model, processor) -> None:
    encoded = inputs(processor, [TEXTS["long"]])
    with torch.no_grad():
        states = model(**encoded, output_hidden_states=True).hidden_states
        with HiddenStateCapture(model, dict.fromkeys((0, 2), torch.device("cpu"))) as capture:
            model(**encoded)
    (prefill,) = capture.take()
    for kept, mask in ((prefill.vision_rows, prefill.vision), (prefill.text_rows, prefill.text)):
        for rows, wanted in zip(kept, (states[0], states[2]), strict=True):
            torch.testing.assert_close(rows, wanted[0][mask], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_several_rows_with_padding(model, processor, padding_side: str) -> None:
    encoded = inputs(processor, TEXTS.values(), padding_side=padding_side)
    assert not encoded["attention_mask"].bool().all()
    with HiddenStateCapture(model) as capture, torch.no_grad():
        model(**encoded)
    prefills = capture.take()
    assert len(prefills) == len(TEXTS)
    for row, (text, prefill) in enumerate(zip(TEXTS.values(), prefills, strict=True)):
        assert span_of(prefill, processor) == f"\n ASSISTANT: {text}</s>"
        assert_rows(prefill, *expected(model, encoded, row))
        assert int(prefill.real.sum()) == int(encoded["attention_mask"][row].sum())


def test_generated_tokens_and_beams_do_not_count(model, processor) -> None:
    encoded = inputs(processor, [TEXTS["short"]])
    wanted = expected(model, encoded, 0)
    (prefill,) = run(model, encoded, max_new_tokens=5)
    assert_rows(prefill, *wanted)
    for options in ({"num_beams": 3}, {"use_cache": False}):
        first, *_ = run(model, encoded, max_new_tokens=4, **options)
        assert_rows(first, *wanted)


def decoder_input(model, encoded) -> torch.Tensor:
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**encoded)
    handle.remove()
    return seen[0]


def embeds_with_image(model, ids, features) -> torch.Tensor:
    """Token embeddings with image features in between, as packages that expand the image do it."""
    where = (ids == model.config.image_token_index).nonzero().flatten()
    embed = model.get_input_embeddings()
    before, after = embed(ids[None, : where[0]]), embed(ids[None, where[-1] + 1 :])
    return torch.cat([before, features[:, where], after], dim=1)


def test_provenance_alone_finds_the_same_rows(model, processor) -> None:
    encoded = inputs(processor, [TEXTS["long"]])
    with torch.no_grad():
        features = decoder_input(model, encoded)
    with HiddenStateCapture(model) as capture, torch.no_grad():
        model(inputs_embeds=embeds_with_image(model, encoded["input_ids"][0], features))
    (prefill,) = capture.take()
    assert prefill.vision_rule == "provenance"
    assert_rows(prefill, *expected(model, encoded, 0))
    assert (prefill.token_ids == NO_TOKEN).equal(prefill.vision)
    assert TEXTS["long"] in span_of(prefill, processor)


def test_embeddings_overwritten_in_place_are_still_told_apart(model, processor) -> None:
    encoded = inputs(processor, [TEXTS["long"]])
    embed = model.get_input_embeddings()
    with torch.no_grad():
        wanted = decoder_input(model, encoded)
    with HiddenStateCapture(model) as capture, torch.no_grad():
        embeds = embed(encoded["input_ids"])
        embeds[:] = wanted
        model(inputs_embeds=embeds)
    (prefill,) = capture.take()
    assert_rows(prefill, *expected(model, encoded, 0))


def test_rules_that_differ_are_an_error(model, processor) -> None:
    encoded = inputs(processor, [TEXTS["long"]])
    embed = model.get_input_embeddings()

    class Shifting(nn.Module):
        """Changes one text row on its way to the decoder, as prompt tuning would."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model.model
            self.config = model.config

        def forward(self, input_ids):
            embeds = embed(input_ids)
            at = input_ids[0] == self.config.image_token_index
            embeds[0, at] = 0.5
            embeds[0, -2] += 1
            return self.model.language_model(inputs_embeds=embeds)

    with HiddenStateCapture(Shifting()) as capture, torch.no_grad():
        capture.model(encoded["input_ids"])
    assert capture.take() == []
    with pytest.raises(MIRError, match="mark 16 positions, .* are 17; they differ at 1 position"):
        raise capture.failures[0]


def test_positions_dropped_between_layers_are_an_error(model, processor) -> None:
    norm = find_decoder(model).module.norm
    handle = norm.register_forward_hook(lambda _, args, out: out[:, -1:])
    with handle, HiddenStateCapture(model) as capture, torch.no_grad():
        model(**inputs(processor, [TEXTS["short"]]))
    assert capture.take() == []
    with pytest.raises(MIRError, match="1 of the .* positions are left after decoder layer"):
        raise capture.failures[0]


def test_no_hooks_and_no_wrapper_are_left(model, processor) -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    with contextlib.suppress(RuntimeError), HiddenStateCapture(model):
        assert hooks() > before
        raise RuntimeError
    assert hooks() == before
    assert "generate" not in vars(model)


def test_hooks_that_stay_forget_what_a_forward_has_embedded(model, processor) -> None:
    finder = PositionFinder(model, lasting=True)
    finder.attach(model, find_decoder(model))
    for options in ({"do_sample": False}, {"num_beams": 2}):
        model.generate(**inputs(processor, ["A boat."]), max_new_tokens=3, **options)
        assert finder.forward is None
        assert finder.embedded_ids == []
    finder.detach()


def test_a_failure_that_the_caller_swallows_is_kept(model, processor) -> None:
    encoded = inputs(processor, [TEXTS["short"]])
    encoded["pixel_values"] = encoded["pixel_values"][:, :, :20]
    with HiddenStateCapture(model) as capture, contextlib.suppress(Exception):
        model.generate(**encoded, max_new_tokens=1)
    assert capture.take() == []
    assert len(capture.failures) == 1


def test_a_forward_that_broke_off_leaves_nothing_to_the_next(model, processor) -> None:
    first, second = (inputs(processor, [text]) for text in ("A boat.", "A boat!"))
    assert first["input_ids"].shape == second["input_ids"].shape
    layer = model.model.language_model.layers[1]

    def break_off(*_) -> None:
        raise RuntimeError("out of memory")

    with HiddenStateCapture(model) as capture, torch.no_grad():
        handle = layer.register_forward_pre_hook(break_off)
        with contextlib.suppress(RuntimeError):
            model(**first)
        handle.remove()
        model(**second)
    (prefill,) = capture.take()
    assert prefill.token_ids.tolist() == second["input_ids"][0].tolist()
    assert_rows(prefill, *expected(model, second, 0))


def test_a_decoder_that_merges_the_image_by_itself(model, processor) -> None:
    encoded = inputs(processor, [TEXTS["long"]])
    with torch.no_grad():
        features = decoder_input(model, encoded)
    inner = model.model.language_model

    class Merging(nn.Module):
        """Owns embedding and layers, and is called with ids alone."""

        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens, self.layers, self.norm = inner.embed_tokens, inner.layers, inner.norm
            self.config = model.config

        def forward(self, input_ids=None, inputs_embeds=None, past_key_values=None):
            hidden = self.embed_tokens(input_ids)
            hidden = torch.where(
                (input_ids == self.config.image_token_index)[..., None], features, hidden
            )
            positions = torch.arange(hidden.shape[1])[None]
            rotary = inner.rotary_emb(hidden, positions)
            for layer in self.layers:
                hidden = layer(hidden, position_embeddings=rotary, attention_mask=None)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            return (self.norm(hidden),)

    with HiddenStateCapture(Merging()) as capture, torch.no_grad():
        capture.model(encoded["input_ids"])
    assert capture.failures == []
    (prefill,) = capture.take()
    assert_rows(prefill, *expected(model, encoded, 0))


def test_a_wrapped_input_embedding_is_found(llava) -> None:
    import peft
    from transformers import LlavaForConditionalGeneration

    base = LlavaForConditionalGeneration.from_pretrained(llava)
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    decoder = find_decoder(peft.get_peft_model(base, config))
    assert type(decoder.module).__name__ == "LlamaModel"


def test_a_forward_without_an_image_gives_no_prefill(model, processor) -> None:
    ids = processor.tokenizer("No picture here.", return_tensors="pt")["input_ids"]
    with HiddenStateCapture(model) as capture, torch.no_grad():
        model(input_ids=ids)
        model.model.language_model(input_ids=ids)
    assert capture.forwards == 2
    assert capture.take() == []


def omni_config():
    from transformers import Qwen2_5OmniConfig

    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]},
    }
    tower = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    audio = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    return Qwen2_5OmniConfig(
        thinker_config={
            "text_config": text,
            "vision_config": {**tower, "out_hidden_size": 32},
            "audio_config": {**audio, "output_dim": 32, "num_mel_bins": 16},
            "image_token_index": 7,
            "video_token_index": 8,
            "audio_token_index": 9,
            "vision_start_token_id": 20,
        },
        talker_config={**text, "head_dim": 16, "embedding_size": 32},
    )


def test_the_thinker_of_an_omni_model_is_the_decoder() -> None:
    from transformers import Qwen2_5OmniForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5OmniForConditionalGeneration(omni_config())
    assert len(list(model.talker.model.layers)) == 3
    decoder = find_decoder(model)
    assert decoder.name.startswith("thinker.")
    assert decoder.module is model.get_submodule(decoder.name)
    assert media_token_ids(model, "image") == media_token_ids(model, "video") == {7, 8}
    assert media_token_ids(model, "audio") == {9}


@pytest.mark.parametrize(("modality", "placeholder"), [("image", 7), ("video", 7), ("audio", 9)])
def test_media_of_two_kinds_in_one_sequence_are_told_apart(modality: str, placeholder: int) -> None:
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5OmniThinkerForConditionalGeneration(omni_config().thinker_config).eval()
    ids = torch.tensor([[20, *[7] * 4, 21, 22, *[9] * 10, *range(30, 50)]])
    call = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(16, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "input_features": torch.randn(1, 16, 40),
        "feature_attention_mask": torch.ones(1, 40, dtype=torch.int64),
    }
    with HiddenStateCapture(model, modality=modality) as capture, torch.no_grad():
        states = model(**call, output_hidden_states=True).hidden_states[1:]
    assert capture.failures == []
    (prefill,) = capture.take()
    assert prefill.vision_rule == "token_ids+provenance"
    assert prefill.vision.equal(ids[0] == placeholder)
    assert prefill.text_ids == list(range(30, 50))
    wanted = [[state[0][mask] for state in states] for mask in (prefill.vision, prefill.text)]
    assert_rows(prefill, *wanted)


def test_ids_in_the_configuration_of_a_tower_are_found() -> None:
    from transformers import Phi4MultimodalConfig

    model = nn.Module()
    model.config = Phi4MultimodalConfig(vision_config={}, audio_config={})
    assert media_token_ids(model, "image") == {200010}
    assert media_token_ids(model, "audio") == {200011}


def test_a_model_without_a_decoder_is_refused() -> None:
    with pytest.raises(MIRError, match="Linear: looked for one module .*, found none"):
        HiddenStateCapture(nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_found_by_all_of_their_bits(dtype: torch.dtype) -> None:
    table = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    table[7] = table[3]
    table[9, 4] = 0.0
    rows = table[[12, 3, 9, 49, 0]].clone()
    near, zero = rows[:1].clone(), rows[2:3].clone()
    near[0, 15] = torch.nextafter(near[0, 15], near[0, 15] + 1) if dtype != torch.bfloat16 else 9.0
    zero[0, 4] = -0.0
    found = equal_rows(torch.cat([rows, near, zero]), table)
    assert found.tolist() == [12, 7, 9, 49, 0, -1, -1]
