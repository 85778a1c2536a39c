"""MoCa on small models of several families: what it changes, how it trains, and how it is kept."""

import copy
import functools
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from loguru import logger
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

import mir_task
from mir_task import MIRError, moca, modality_integration_rate
from mir_task.capture.decoder import find_decoder
from mir_task.capture.hooks import HiddenStateCapture
from tests.adapters.common import skip_on_transformers_4
from tests.adapters.gemma import gemma3
from tests.adapters.instructblip import instructblip
from tests.adapters.llava import llava
from tests.adapters.qwen2_5_vl import qwen2_5_vl
from tests.support import evaluate

TEXTS = ("A boat.", "Three boats lie on the mud below the quay, waiting for the tide to come back.")
FAMILIES = {
    llava: "LlavaForConditionalGeneration",
    qwen2_5_vl: "Qwen2_5_VLForConditionalGeneration",
    gemma3: "Gemma3ForConditionalGeneration",
    instructblip: "InstructBlipForConditionalGeneration",
}
CHAT = [llava, qwen2_5_vl, gemma3]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """From a family to its checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda make: make(root / make.__name__))


def read(folder, make=llava, dtype=torch.float32):
    import transformers

    model_class = getattr(transformers, FAMILIES[make])
    return model_class.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture
def load(checkpoints):
    return lambda make=llava, dtype=torch.float32: read(checkpoints(make), make, dtype)


def inputs(folder, make=llava, texts=TEXTS[1:], dtype=torch.float32):
    """Arguments of a forward: an image and a text a sequence, padded on the left."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}]
    prompts = [
        processor.apply_chat_template(
            [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", "text": text}]},
            ],
            tokenize=False,
        )
        if make in CHAT
        else text
        for text in texts
    ]
    # Gemma takes a list of images for each sequence.
    images = [[Image.new("RGB", (90, 60), (30 * n, 80, 200))] for n in range(len(texts))]
    processor.tokenizer.padding_side = "left"
    flat = images if make is gemma3 else [image for (image,) in images]
    return processor(images=flat, text=prompts, padding=True, return_tensors="pt").to(dtype)


def vision(model, ids):
    """Where the placeholders of images stand, by the name that each configuration gives them."""
    names = ("image_token_id", "image_token_index")
    (token_id, *_) = [i for name in names if (i := getattr(model.config, name, None)) is not None]
    return ids == token_id


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".moca." in name:
                parameter += torch.randn(parameter.shape, generator=generator) / 2
    return model


@torch.no_grad()
def logits(model, call):
    return model(**call).logits


def layers(model):
    return find_decoder(model).layers


def llava_call(before: int, length: int = 40, seed: int = 0, images: int = 1):
    """A sequence of the small LLaVA with `before` tokens of text before the image."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 1000, (1, length), generator=generator)
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        ids[0, before : before + 16] = 4  # <image>
        call["pixel_values"] = torch.randn(1, 3, 56, 56, generator=generator)
    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", FAMILIES)
def test_nothing_changes_at_first(load, checkpoints, make, dtype) -> None:
    model, call = load(make, dtype), inputs(checkpoints(make), make, TEXTS, dtype)
    wanted = logits(model, call)
    moca.apply(model)
    assert logits(model, call).equal(wanted)
    assert model(**call).logits.equal(wanted)  # with gradients
    parameters = {name: p for name, p in model.named_parameters() if ".moca." in name}
    assert len(parameters) == 2 * len(layers(model))
    assert parameters.keys() <= model.state_dict().keys()
    assert {(p.dtype, tuple(p.shape)) for p in parameters.values()} == {(torch.float32, (32,))}
    randomise(model)
    assert not logits(model, call).equal(wanted)
    model.to(torch.bfloat16)
    assert logits(model, call.to(torch.bfloat16)).isfinite().all()


def seen_by_layers(model, run):
    """What each layer gives to MoCa and what it gives on, in the first forward."""
    raw, changed, handles = [], [], []
    for layer in layers(model):
        for kept, first in ((raw, True), (changed, False)):

            def keep(_, args, output, kept=kept):
                kept.append((output[0] if isinstance(output, tuple) else output).clone())

            handles.append(layer.register_forward_hook(keep, prepend=first))
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    count = len(layers(model))
    return list(zip(layers(model), raw[:count], changed[:count], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", FAMILIES)
def test_vision_rows_alone_are_scaled_and_shifted(load, checkpoints, make, dtype) -> None:
    model, call = load(make, dtype), inputs(checkpoints(make), make, TEXTS, dtype)
    moca.apply(model)
    randomise(model)
    is_vision = vision(model, call["input_ids"])
    assert 0 < int(is_vision[0].sum()) < is_vision.shape[1]
    assert not call["attention_mask"].bool().all()
    for run in (
        lambda: model(**call),
        lambda: model.generate(**call, max_new_tokens=3, do_sample=False),
        lambda: model.to(dtype)(**call),  # MoCa's parameters too
    ):
        for layer, raw, changed in seen_by_layers(model, run):
            scaled = raw.float() * layer.moca.scale + layer.moca.shift
            assert changed[is_vision].equal(scaled.to(dtype)[is_vision])
            assert not changed[is_vision].equal(raw[is_vision])
            assert changed[~is_vision].equal(raw[~is_vision])


def test_embeddings_that_come_without_ids(load) -> None:
    model, call = randomised(load), llava_call(3)
    wanted = logits(model, call)
    seen = []
    decoder = find_decoder(model).module
    keep = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].clone()), with_kwargs=True
    )
    logits(model, call)
    keep.remove()
    with torch.no_grad():
        ids = call["input_ids"]
        embed = model.get_input_embeddings()
        embeds = torch.cat([embed(ids[:, :3]), seen[0][:, 3:19], embed(ids[:, 19:])], dim=1)
    assert logits(model, {"inputs_embeds": embeds}).equal(wanted)
    with pytest.raises(MIRError, match="embeddings of 40 positions, and neither their token ids nor"):
        model(inputs_embeds=embeds)
    with pytest.raises(MIRError, match=r"no row that .* received is what its input embedding gives"):
        model(inputs_embeds=embed(ids) + 0.01)


def randomised(load, make=llava):
    model = load(make)
    moca.apply(model)
    return randomise(model)


def test_ids_are_enough_where_the_embeddings_are_noisy(load) -> None:
    model, call = randomised(load), llava_call(3)
    model.get_input_embeddings().register_forward_hook(lambda _, args, out: out + 0.01)
    is_vision = vision(model, call["input_ids"])
    for _, raw, changed in seen_by_layers(model, lambda: model(**call)):
        assert (raw != changed).any(-1).equal(is_vision)


def test_hidden_states_of_transformers_are_those_after_moca(load) -> None:
    skip_on_transformers_4("it records what a layer returns before any hook")
    model, call = load(), llava_call(3)
    model(**call, output_hidden_states=True)  # registers hooks that stay
    moca.apply(model)
    randomise(model)
    states = []
    seen = seen_by_layers(
        model, lambda: states.extend(model(**call, output_hidden_states=True).hidden_states)
    )
    for state, (_, raw, changed) in zip(states[1:-1], seen[:-1], strict=True):
        assert state.equal(changed)
        assert not state.equal(raw)


@pytest.mark.parametrize("make", CHAT)
def test_generation_with_a_cache_is_that_of_whole_forwards(load, checkpoints, make) -> None:
    model, call = randomised(load, make), inputs(checkpoints(make), make)
    settings = {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    out = model.generate(**call, max_new_tokens=4, min_new_tokens=4, **settings)
    length = call["input_ids"].shape[1]
    for step, scores in enumerate(out.logits or out.scores):
        added = out.sequences[:, length : length + step]
        longer = {
            name: torch.cat([value, added if name == "input_ids" else fill(name, added)], dim=1)
            if value.shape == call["input_ids"].shape
            else value
            for name, value in call.items()
        }
        whole = logits(model, longer)[:, -1]
        torch.testing.assert_close(whole[scores.isfinite()], scores[scores.isfinite()])


def fill(name, added):
    return torch.ones_like(added) if name == "attention_mask" else torch.zeros_like(added)


def test_a_placeholder_that_is_generated_is_no_vision_token(load) -> None:
    model, call = randomised(load), llava_call(3)
    with torch.no_grad():
        past = model(**call, use_cache=True).past_key_values
    step = {"input_ids": torch.tensor([[4]]), "past_key_values": past}
    for _, raw, changed in seen_by_layers(model, lambda: model(**step)):
        assert changed.equal(raw)


def test_an_image_after_the_cache_holds_text(load) -> None:
    model, call = randomised(load), llava_call(20)
    wanted = logits(model, call)
    with torch.no_grad():
        first = model(input_ids=call["input_ids"][:, :10], use_cache=True)
        second = model(
            input_ids=call["input_ids"][:, 10:],
            pixel_values=call["pixel_values"],
            attention_mask=call["attention_mask"],
            past_key_values=first.past_key_values,
        )
    torch.testing.assert_close(second.logits, wanted[:, 10:])


def gradients(model, calls):
    """Of MoCa's parameters, after all forwards and then all backwards.

    The first forward's backward comes last, in another thread, as on an accelerator.
    """
    model.zero_grad()
    first, *others = [model(**call).logits.square().mean() for call in calls]
    for loss in others:
        loss.backward()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(first.backward).result()
    assert find_decoder(model).module._moca.finder.forward is None
    found = {name: p.grad.clone() for name, p in model.named_parameters() if ".moca." in name}
    assert all(grad.any() for grad in found.values())
    return found


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_gradient_checkpointing_changes_no_gradient(load, use_reentrant: bool, count: int) -> None:
    model = randomised(load).train()
    # The same shape, so that the wrong positions would fit.
    calls = [llava_call(3, seed=1), llava_call(12, seed=2)][:count]
    wanted = gradients(model, calls)
    settings = {"use_reentrant": use_reentrant}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    for _ in range(2):
        for name, grad in gradients(model, calls).items():
            torch.testing.assert_close(grad, wanted[name], rtol=1e-6, atol=1e-9)


class MergesByItself(nn.Module):
    """A decoder that embeds and merges, and computes whole calls of its layers once more."""

    def __init__(self, llava, features) -> None:
        super().__init__()
        inner = llava.model.language_model
        self.embed_tokens, self.layers, self.norm = inner.embed_tokens, inner.layers, inner.norm
        self.rotary, self.config, self.features = inner.rotary_emb, llava.config, features
        self.run = lambda function, *args: function(*args)

    def forward(self, input_ids=None, inputs_embeds=None, past_key_values=None):
        hidden = self.embed_tokens(input_ids)
        hidden = torch.where((input_ids == 4)[..., None], self.features, hidden)
        rotary = self.rotary(hidden, torch.arange(hidden.shape[1])[None])
        run = getattr(self, "_gradient_checkpointing_func", self.run)
        for layer in self.layers:
            keywords = {"position_embeddings": rotary, "attention_mask": None}
            hidden = run(functools.partial(layer.__call__, **keywords), hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return Output(self.norm(hidden))


class Output(tuple):
    def __new__(cls, hidden):
        return super().__new__(cls, (hidden,))

    @property
    def logits(self):
        return self[0]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputed_layer_finds_the_positions_of_its_own_forward(load, use_reentrant: bool) -> None:
    model = MergesByItself(load(), torch.randn(1, 40, 32))
    moca.apply(model)
    randomise(model)
    calls = [{"input_ids": llava_call(n, seed=n)["input_ids"]} for n in (3, 12)]
    wanted = gradients(model, calls)
    run = functools.partial(checkpoint, use_reentrant=use_reentrant)
    model._gradient_checkpointing_func = run
    for _ in range(2):
        for name, grad in gradients(model, calls).items():
            torch.testing.assert_close(grad, wanted[name], rtol=1e-6, atol=1e-9)
    copied = copy.deepcopy(model)
    assert gradients(copied, calls).keys() == wanted.keys()
    moca.remove(model)
    assert model._gradient_checkpointing_func is run


def test_checkpointing_that_moca_does_not_know_is_refused(load) -> None:
    model = MergesByItself(load(), torch.randn(1, 40, 32))
    moca.apply(model)
    model.run = functools.partial(checkpoint, use_reentrant=False)
    loss = model(**{"input_ids": llava_call(3)["input_ids"]}).logits.sum()
    with pytest.raises(MIRError, match="outside a forward of its decoder, .*gradient_checkpointing"):
        loss.backward()


def test_a_text_only_step_has_gradients_of_zero(load) -> None:
    model = randomised(load).train()
    call = llava_call(0, images=0)
    model(**call, labels=call["input_ids"]).loss.backward()
    for name, parameter in model.named_parameters():
        if ".moca." in name:
            assert parameter.grad is not None, name
            assert not parameter.grad.any()
    changed = logits(model, call)
    moca.remove(model)
    assert logits(model, call).equal(changed)


def test_data_parallel_training(load, tmp_path) -> None:
    model = load().train()
    moca.apply(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("language_model" in name or "lm_head" in name)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        # A parameter without a gradient would be an error in the step after it.
        for call in (llava_call(3), llava_call(0, images=0), llava_call(12)):
            before = [parameter.detach().clone() for parameter in model.parameters()]
            parallel(**call, labels=call["input_ids"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            moved = {
                name
                for (name, parameter), old in zip(model.named_parameters(), before, strict=True)
                if ".moca." in name and not parameter.equal(old)
            }
            assert len(moved) == (6 if "pixel_values" in call else 0)
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_of_peft(load, tmp_path) -> None:
    import peft

    model, call = randomised(load), llava_call(3)
    lora = peft.LoraConfig(target_modules=["q_proj"])
    wrapped = peft.get_peft_model(load(), lora)
    moca.load(wrapped, moca.save(model, tmp_path))
    assert logits(wrapped, call).equal(logits(model, call))
    trained = [name for name, p in wrapped.named_parameters() if ".moca." in name and p.requires_grad]
    assert len(trained) == 6


def test_a_copy_is_on_its_own(load) -> None:
    model, call = randomised(load), llava_call(3)
    wanted = logits(model, call)
    copied = copy.deepcopy(model)
    assert logits(copied, call).equal(wanted)
    randomise(copied, seed=1)
    assert logits(model, call).equal(wanted)
    assert not logits(copied, call).equal(wanted)
    moca.remove(copied)
    assert logits(copied, call).equal(logits(load(), call))
    assert logits(model, call).equal(wanted)
    randomise(model, seed=1)
    assert not logits(model, call).equal(wanted)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_is_left_after_removal(load) -> None:
    model, call = load(), llava_call(3)
    model.gradient_checkpointing_enable()  # registers a hook of its own in transformers 5
    wanted, keys, before = logits(model, call), model.state_dict().keys(), hooks(model)
    moca.apply(model)
    randomise(model)
    assert not logits(model, call).equal(wanted)
    assert hooks(model) > before
    moca.remove(model)
    assert logits(model, call).equal(wanted)
    assert model.state_dict().keys() == keys
    assert hooks(model) == before
    assert not any(hasattr(module, name) for name in ("moca", "_moca") for module in model.modules())
    assert "moca" not in model.config.to_dict()
    runs = [vars(layer)["_gradient_checkpointing_func"] for layer in layers(model)]
    assert all(run.func is checkpoint for run in runs)


def mir(model, call):
    with HiddenStateCapture(model) as capture, torch.no_grad():
        model(**call)
    assert capture.failures == []
    (prefill,) = capture.take()
    return modality_integration_rate(prefill.vision_rows, prefill.text_rows).mir


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("shards", ["5GB", "100KB"])
def test_a_saved_model_comes_back(load, checkpoints, tmp_path, make, shards: str) -> None:
    model, call = randomised(load, make), inputs(checkpoints(make), make)
    wanted, value = logits(model, call), mir(model, call)
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "100KB")
    assert json.loads((tmp_path / "config.json").read_text())["moca"] is True

    fresh = read(tmp_path, make)
    without = logits(fresh, call), mir(fresh, call)
    assert not without[0].equal(wanted)
    moca.load(fresh, tmp_path)
    assert logits(fresh, call).equal(wanted)
    assert mir(fresh, call) == value != without[1]

    messages: list[str] = []
    sink = logger.add(messages.append, level="INFO", format="{message}")
    again = read(tmp_path, make)
    moca.restore(again)
    moca.restore(again)  # once
    logger.remove(sink)
    assert [str(tmp_path) in message for message in messages] == [True]
    assert logits(again, call).equal(wanted)


@pytest.mark.parametrize("name", ["", "small.safetensors"])
def test_the_small_file(load, tmp_path, name: str) -> None:
    model, call = randomised(load), llava_call(3)
    file = moca.save(model, tmp_path / "new" / name)
    assert file == tmp_path / "new" / (name or "moca.safetensors")
    assert sum(tensor.numel() for tensor in load_file(file).values()) == 3 * 2 * 32
    fresh = load()
    moca.load(fresh, tmp_path / "new" / name)
    assert logits(fresh, call).equal(logits(model, call))
    assert fresh.config.moca is True
    moca.load(randomise(fresh, seed=1), file)  # where it is applied already
    assert logits(fresh, call).equal(logits(model, call))


def test_restoring_leaves_other_models_alone(load) -> None:
    model = load()
    moca.restore(model)
    moca.restore(nn.Linear(2, 2))
    assert not any("moca" in name for name, _ in model.named_parameters())


def test_what_does_not_fit_is_refused(load, checkpoints, tmp_path) -> None:
    model = load()
    for act in (moca.remove, functools.partial(moca.save, path=tmp_path)):
        with pytest.raises(MIRError, match=r"has no MoCa: call mir_task.moca.apply or .load first"):
            act(model)
    moca.apply(model)
    with pytest.raises(MIRError, match=r"MoCa is applied to LlavaFor.* already: .*remove first"):
        moca.apply(model)
    tensors = load_file(moca.save(model, tmp_path))
    moca.remove(model)

    wrong = {
        "missing": {key: t for key, t in tensors.items() if key != "layers.1.moca.shift"},
        "deeper": {
            **tensors,
            "layers.3.moca.scale": torch.ones(32),
            "layers.3.moca.shift": torch.ones(32),
        },
        "wider": {key: torch.ones(64) for key in tensors},
    }
    held = {"missing": "5 tensors .* 3 layers", "deeper": "8 tensors .* 4 layers", "wider": r"\(64,\)"}
    for name, kept in wrong.items():
        save_file(kept, tmp_path / f"{name}.safetensors")
        with pytest.raises(MIRError, match=f"{name}.safetensors holds .*{held[name]}.* same decoder"):
            moca.load(model, tmp_path / f"{name}.safetensors")
    (tmp_path / "other.bin").write_bytes(b"no safetensors" * 9)
    for path in (checkpoints(llava), tmp_path / "nowhere", tmp_path / "other.bin", "", "nobody/nothing"):
        named = re.escape(str(path) or "no path")
        with pytest.raises(MIRError, match=f"^{named} holds no parameters of MoCa: give the path"):
            moca.load(model, path)
    assert not hasattr(model.config, "moca")

    model.config.moca = True
    with pytest.raises(MIRError, match=r"MoCa, but .*/llava holds no .*moca.load\(model, path"):
        moca.restore(model)

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = load()

    with pytest.raises(MIRError, match="Wrapper has no configuration: apply MoCa to the Hugging Face"):
        moca.apply(Wrapper())


def test_layers_that_drop_positions_are_refused(load) -> None:
    model = load()
    moca.apply(model)
    layers(model)[1].register_forward_hook(
        lambda _, args, out: (out[0][:, -5:],) if isinstance(out, tuple) else out[:, -5:], prepend=True
    )
    with pytest.raises(MIRError, match=r"has the shape \(1, 5, 32\), not \(1, 40, 32\)"):
        logits(model, llava_call(3))


def test_the_harness_measures_a_checkpoint_with_its_moca(load, checkpoints, tmp_path) -> None:
    from transformers import AutoProcessor

    model = randomised(load)
    folder = shutil.copytree(checkpoints(llava), tmp_path / "with")
    model.save_pretrained(folder)
    task = evaluate.task(mir_documents=3, mir_groups=0)
    evaluate.evaluate(evaluate.load(folder), task, output=tmp_path / "out")
    value = evaluate.report(tmp_path / "out")["mir"]
    processor, pairs = AutoProcessor.from_pretrained(folder), evaluate.pairs_of(task)
    assert value == pytest.approx(mir_task.measure(model, processor, pairs, bars=False).mir, abs=1e-6)
    moca.remove(model)
    assert value != pytest.approx(mir_task.measure(model, processor, pairs, bars=False).mir, abs=1e-3)
