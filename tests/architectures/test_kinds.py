"""What is special about kinds of architectures, one small model of each."""

import re

import pytest
import torch
from torch import nn

import mir_task
from mir_task import MIRError, moca
from mir_task.capture.decoder import find_decoder, media_token_ids
from mir_task.capture.hooks import HiddenStateCapture
from tests.architectures import architectures, measuring, small


def built(key: str):
    row = next(row for row in architectures() if row.key == key and not row.remark.startswith("With T5"))
    if row.hindrance:
        pytest.skip(row.hindrance)
    return row, row.build()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("ovis2", "19 tokens, found by token ids and by provenance, which agree; 3 of them are markers"),
        ("chameleon", "64 tokens, found .*; 64 of them are discrete: tokens of the vocabulary"),
        ("kosmos-2", "4 tokens, found by the mask of positions that the model was given"),
        ("git", "17 tokens, found by provenance alone"),
    ],
)
def test_a_check_says_which_rule_found_what(key: str, words: str) -> None:
    row, model = built(key)
    checked = mir_task.check(**measuring.arguments(row, model))
    assert len(checked.documents) == 2
    text = str(checked)
    assert f"model    {type(model).__name__}\n" in text
    assert "3 layers of 32 dimensions, float32" in text
    assert "mir_" not in text
    assert re.search(f"vision   {words}", text)
    assert measuring.PAIRS[0][1] in checked.documents[0].span


def test_a_check_refuses_as_a_measurement_does() -> None:
    row, model = built("udop")
    for act in (mir_task.check, mir_task.measure):
        with pytest.raises(MIRError, match=row.refused):
            act(**measuring.arguments(row, model))
    with pytest.raises(MIRError, match="no pair was given"):
        mir_task.check(**{**measuring.arguments(*built("llava")), "pairs": []})


def test_markers_and_discrete_tokens_are_marked_in_what_is_captured() -> None:
    for key, name in (("ovis2", "markers"), ("chameleon", "discrete")):
        row, model = built(key)
        call = row.encode(model, *measuring.PAIRS[0])
        with HiddenStateCapture(model) as capture:
            measuring.run(model, call)
        (prefill,) = capture.take()
        assert 0 < int(getattr(prefill, name).sum()) <= int(prefill.vision.sum())
        assert prefill.vision.equal(row.vision_of(model, call))


def test_sequences_that_are_longer_than_their_mask_are_not_padded() -> None:
    row, model = built("git")
    one, two = (row.encode(model, *pair) for pair in measuring.PAIRS[:2])
    ids = nn.utils.rnn.pad_sequence([one["input_ids"][0], two["input_ids"][0]], batch_first=True)
    call = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.cat([one["pixel_values"], two["pixel_values"]]),
    }
    with HiddenStateCapture(model) as capture:
        measuring.run(model, call)
    assert capture.take() == []
    with pytest.raises(MIRError, match="leaves out some of its .* run one sequence at a time"):
        raise capture.failures[0]


def test_embeddings_for_a_layout_in_parts_tell_by_what_was_embedded() -> None:
    row, model = built("git")
    call = row.encode(model, *measuring.PAIRS[0])
    ids = call.pop("input_ids")
    with HiddenStateCapture(model) as capture:
        measuring.run(model, {**call, "inputs_embeds": model.get_input_embeddings()(ids).detach()})
    (prefill,) = capture.take()
    assert prefill.vision.nonzero().flatten().tolist() == list(range(17))
    assert prefill.text_ids == ids[0].tolist()
    with HiddenStateCapture(model) as capture:
        measuring.run(model, {**call, "inputs_embeds": torch.randn(1, ids.shape[1], 32)})
    assert capture.take() == []


def test_streams_of_a_decoder_that_embeds_by_itself_are_refused() -> None:
    for key in ("glm5_next", "hy_v4_vl"):
        _, model = built(key)
        with HiddenStateCapture(model) as capture, torch.no_grad():
            model.model.language_model(input_ids=torch.tensor([[1, 5, 6, 7]]))
        with pytest.raises(MIRError, match="pass on 4 streams of states for each token"):
            raise capture.failures[0]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("qwen2_audio, audio", "reads no images or videos, so it has no vision tokens for MoCa"),
        ("mllama", "attends to images by cross-attention, so no vision token stands"),
        ("pix2struct", "is an encoder-decoder"),
        ("qwen4_exp", "pass on 4 streams of states for each token"),
    ],
)
def test_moca_is_refused_before_it_changes_anything(key: str, message: str) -> None:
    _, model = built(key)
    keys = model.state_dict().keys()
    with pytest.raises(MIRError, match=message):
        moca.apply(model)
    assert model.state_dict().keys() == keys
    assert not hasattr(model.config, "moca")
    assert not any(module._forward_pre_hooks for module in model.modules())


class Blocks(nn.Module):
    """A decoder with two lists of as many modules."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.config = small_config()
        self.embed = nn.Embedding(50, 8)
        for name in names:
            setattr(self, name, nn.ModuleList(nn.Linear(8, 8) for _ in range(3)))


def small_config():
    from transformers import PretrainedConfig

    return PretrainedConfig(num_hidden_layers=3, vocab_size=50)


def test_of_two_lists_of_as_many_modules_the_layers_are_called_so() -> None:
    model = Blocks("cross_attention_blocks", "layers")
    decoder = find_decoder(model)
    assert decoder.layers is model.layers
    assert decoder.before == (model.cross_attention_blocks[0],)
    with pytest.raises(
        MIRError, match=r"found none \(nothing tells which of the lists first, second are"
    ):
        find_decoder(Blocks("first", "second"))


class InParts(nn.Module):
    """Embedding and layers in parts, and no word of the input embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.config = small_config()
        self.embeddings = nn.ModuleDict({"words": nn.Embedding(50, 8), "places": nn.Embedding(20, 8)})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(8, 8) for _ in range(3))})


def test_a_layout_in_parts_is_found_where_the_model_does_not_name_its_embedding() -> None:
    model = InParts()
    decoder = find_decoder(model)
    assert (decoder.module, decoder.block) == (model, model.embeddings)
    assert decoder.embedding is model.embeddings["words"]
    assert decoder.layers is model.encoder["layer"]


def test_ids_of_placeholders_are_found_in_inner_configurations() -> None:
    _, model = built("pi0")
    assert media_token_ids(model, "image") == {small.IMAGE}
