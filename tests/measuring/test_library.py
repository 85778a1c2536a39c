"""`mir_task.measure` against the harness, and what it leaves of a model."""

import copy
import math
import os
import random
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mir_task
from mir_task import LayerResult
from mir_task.errors import MIRError
from mir_task.measuring.processes import end_gloo
from tests import adapters
from tests.support import evaluate

CHAT = [
    row
    for row in adapters.rows()
    if row.kind == "chat"
    and row.status == "measured"
    and row.modality == "image"
    and not row.adapter.startswith("qwen3")  # its adapters put a system prompt of their own before all
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def load(row: adapters.Row, checkpoint):
    from transformers import AutoProcessor

    model = row.found_class.from_pretrained(checkpoint, dtype=row.dtype)
    return model, AutoProcessor.from_pretrained(checkpoint)


def sized(row: adapters.Row, processor, pairs):
    """Pairs with images as the harness hands them to the processor: Qwen's adapter sizes them before."""
    if row.adapter != "qwen2_5_vl":
        return pairs
    from qwen_vl_utils import fetch_image

    patch = processor.image_processor.patch_size
    return [(fetch_image({"image": image}, image_patch_size=patch), text) for image, text in pairs]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in CHAT])
def test_the_value_of_the_harness(row: adapters.Row, checkpoints, tmp_path) -> None:
    checkpoint = adapters.make(row, checkpoints)
    task = evaluate.task(**row.task(checkpoint.parent))
    evaluate.evaluate(adapters.load_row(row, checkpoint), task, output=tmp_path)
    report = evaluate.report(tmp_path)
    model, processor = load(row, checkpoint)
    pairs = sized(row, processor, evaluate.pairs_of(task))
    result = mir_task.measure(model, processor, pairs, groups=3, bars=False)
    assert result.mir == pytest.approx(report["mir"], abs=1e-5)
    assert result.mir_stderr == pytest.approx(report["mir_stderr"], abs=1e-5)


@pytest.fixture(scope="module")
def llava_model(llava):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(llava), AutoProcessor.from_pretrained(llava)


@pytest.fixture(scope="module")
def pairs():
    return evaluate.pairs_of(evaluate.task(mir_documents=4))


def independent(model, calls) -> list[LayerResult]:
    """Of the decoder's input and all layers in a model's calls, each with one image."""
    vision, text = [], []
    for call in calls:
        with torch.no_grad():
            states = model(**call, output_hidden_states=True).hidden_states
        is_vision = call["input_ids"][0] == model.config.image_token_id
        after = torch.arange(len(is_vision)) > is_vision.nonzero().max()
        vision.append([state[0][is_vision] for state in states])
        text.append([state[0][after] for state in states])
    pooled = [[torch.cat(layer) for layer in zip(*of, strict=True)] for of in (vision, text)]
    return list(mir_task.modality_integration_rate(*pooled).layers)


def test_a_prompt_of_ones_own(llava_model, pairs) -> None:
    model, processor = llava_model

    def encode(image, text):
        return processor(images=image, text=f"<image>\n{text}</s>", return_tensors="pt")

    result = mir_task.measure(model, processor.tokenizer, pairs, encode=encode, groups=0, bars=False)
    first, *others = independent(model.eval(), [encode(*pair) for pair in pairs])
    assert result.mir == pytest.approx(math.log10(sum(layer.frechet for layer in others)), abs=1e-6)
    assert result.input_layer is not None
    assert result.input_layer.layer == 0
    for name, value in first.to_dict().items():
        if value is not None and name not in ("layer", "frechet_error"):
            assert getattr(result.input_layer, name) == pytest.approx(value, rel=1e-5), name
    assert result.mir != pytest.approx(mir_task.measure(*llava_model, pairs, bars=False).mir, abs=1e-3)


def test_pairs_may_be_a_generator_or_read_one_by_one(llava_model, pairs) -> None:
    class Rows:
        def __len__(self):
            return len(pairs)

        def __getitem__(self, number):
            return pairs[number]

    values = [mir_task.measure(*llava_model, p, bars=False).mir for p in (pairs, iter(pairs), Rows())]
    assert values[0] == values[1] == values[2]


def test_pictures_are_seen_as_tasks_see_them(llava_model, pairs) -> None:
    """Turned as EXIF says, and of any depth."""
    model, processor = llava_model
    turned, deep, plain = [], [], []
    for image, text in pairs[:3]:
        lying = image.transpose(Image.Transpose.ROTATE_90)
        lying.getexif()[0x0112] = 6
        turned.append((lying, text))
        grey = np.asarray(image.convert("L"))
        plain.append((Image.fromarray(grey).convert("RGB"), text))
        deep.append((Image.fromarray((grey.astype(np.uint16) << 8) + 255), text))
    upright, from_exif, of_plain, of_deep = (
        mir_task.measure(model, processor, some, bars=False, groups=0).mir
        for some in (pairs[:3], turned, plain, deep)
    )
    assert from_exif == pytest.approx(upright, abs=1e-9)
    assert of_deep == pytest.approx(of_plain, abs=1e-2)


def test_messages_are_in_the_names_of_the_arguments(llava_model, pairs) -> None:
    model, processor = llava_model
    bad = [(pairs[0][0], ""), *pairs[1:]]
    with pytest.raises(MIRError, match=r"\(`on_error=skip` leaves such documents out") as raised:
        mir_task.measure(model, processor, bad, bars=False)
    assert "mir_" not in str(raised.value)
    with pytest.raises(MIRError, match="lower text_rows"):
        mir_task.measure(model, processor, pairs, bars=False, text_rows=5000)


def test_a_model_that_accelerate_offloads(llava_model, pairs, tmp_path) -> None:
    from accelerate import cpu_offload, disk_offload

    model, processor = llava_model
    wanted = mir_task.measure(model, processor, pairs[:3], bars=False, groups=0).mir
    for offload in (cpu_offload, lambda m, **k: disk_offload(m, str(tmp_path), **k)):
        away = copy.deepcopy(model)
        offload(away, execution_device=torch.device("cpu"))
        found = mir_task.measure(away, processor, pairs[:3], bars=False, groups=0).mir
        assert found == pytest.approx(wanted, abs=1e-6)


def test_buffers_that_grow_are_put_back(llava_model, pairs) -> None:
    model, processor = llava_model
    rotary = model.model.language_model.rotary_emb
    before = rotary.inv_freq
    content = before.clone()

    def grown(module, *_) -> None:
        module.inv_freq.mul_(0.5)
        module.register_buffer("inv_freq", content / 2)

    grow = rotary.register_forward_pre_hook(grown)
    mir_task.measure(model, processor, pairs[:3], bars=False, groups=0)
    grow.remove()
    assert rotary.inv_freq is before
    assert torch.equal(rotary.inv_freq, content)


def test_a_wrapped_model(llava_model, pairs) -> None:
    model, processor = llava_model
    wrapped = torch.nn.DataParallel(model)
    wanted = mir_task.measure(model, processor, pairs, bars=False).mir
    assert mir_task.measure(wrapped, processor, pairs, bars=False).mir == wanted
    assert mir_task.measure(torch.compile(model), processor, pairs, bars=False).mir == wanted


def public(module) -> dict[str, object]:
    return {key: value for key, value in vars(module).items() if not key.startswith("_")}


def hooks_of(module) -> list[object]:
    """All but those that the first forward of a model in transformers leaves."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [hook for hook in hooks if not hook.__qualname__.startswith("install_output")]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_model_and_the_generators_are_left_as_they_were(name, checkpoints, pairs) -> None:
    row = next(row for row in CHAT if row.make.__name__ == name)
    model, processor = load(row, adapters.make(row, checkpoints))
    model.train()
    frozen = next(module for key, module in model.named_modules() if key.endswith("layers.0"))
    frozen.eval()
    model.gradient_checkpointing_enable()
    model.config.use_cache = True
    modes = {key: module.training for key, module in model.named_modules()}
    noted = {key: public(module) for key, module in model.named_modules()}
    hooks = {key: hooks_of(module) for key, module in model.named_modules()}
    weights = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    mir_task.measure(model, processor, pairs, bars=False)
    assert {key: module.training for key, module in model.named_modules()} == modes
    for key, module in model.named_modules():
        assert public(module).keys() == noted[key].keys()
        assert all(public(module)[k] is v for k, v in noted[key].items())
        assert hooks_of(module) == hooks[key]
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert model.is_gradient_checkpointing
    assert model.config.use_cache
    assert torch.is_grad_enabled()


def test_a_failing_measurement_leaves_the_model_too(llava_model, pairs) -> None:
    model, processor = llava_model
    model.train()
    with pytest.raises(MIRError, match="document '2': the text is empty"):
        mir_task.measure(model, processor, [*pairs[:2], (pairs[2][0], " ")], bars=False)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    broken = [*pairs[:3], (pairs[3][0], " ")]
    kept = mir_task.measure(model, processor, broken, on_error="skip", groups=0, bars=False)
    assert kept.mir == mir_task.measure(model, processor, pairs[:3], groups=0, bars=False).mir


def test_what_is_refused(llava_model, pairs) -> None:
    model, processor = llava_model
    bare = copy.copy(processor)
    bare.chat_template = None
    rows = [{"image": image, "text": text} for image, text in pairs]
    for arguments, settings, message in (
        ((model, bare, pairs), {}, "has no chat template: .* or pass encode"),
        ((model, object(), pairs), {}, "object has no tokenizer"),
        ((model, processor, rows), {}, r"pairs\[0\] is dict, not \(medium, text\)"),
        ((model, processor, []), {}, "no document could be measured"),
        (
            (model, processor, pairs),
            {"outlier": "drop"},
            r"mir: outlier is no key \(did you mean outliers\?\)",
        ),
        (
            (model, processor, pairs),
            {"placement": "assistant_loglikelihood"},
            "has no placement 'assistant_loglikelihood'; it has assistant_chat, user_generate",
        ),
        ((torch.nn.Linear(2, 2), processor, pairs), {}, "looked for one module with an input embedding"),
    ):
        with pytest.raises(MIRError, match=message):
            mir_task.measure(*arguments, bars=False, **settings)


def test_the_original_llava_by_its_own_functions(checkpoints, tmp_path) -> None:
    pytest.importorskip("llava", reason="llava-torch runs beside transformers 4 only")
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token

    row = next(row for row in adapters.rows() if row.adapter == "llava")
    lm = adapters.load_row(row, adapters.make(row, checkpoints))
    model, tokenizer, image_processor = lm.model, lm.tokenizer, lm._image_processor
    task = evaluate.task()
    evaluate.evaluate(lm, task, output=tmp_path)

    def encode(image, text):
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], "<image>\n")
        conversation.append_message(conversation.roles[1], text)
        prompt = conversation.get_prompt()
        ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        images = process_images([image], image_processor, model.config)
        return {"input_ids": ids[None], "images": images, "image_sizes": [image.size]}

    pairs = evaluate.pairs_of(task)
    result = mir_task.measure(model, tokenizer, pairs, encode=encode, groups=3, bars=False)
    assert result.mir == pytest.approx(evaluate.report(tmp_path)["mir"], abs=1e-5)


def test_a_text_before_the_medium_is_told_in_the_words_of_the_library(llava_model, pairs) -> None:
    model, processor = llava_model

    def encode(image, text):
        return processor(images=image, text=f"{text}\n<image>\nyes", return_tensors="pt")

    for act in (mir_task.measure, mir_task.check):
        with pytest.raises(
            MIRError, match="let `encode`, or the processor's chat template, put it behind"
        ):
            act(model, processor.tokenizer, pairs, encode=encode)


def test_a_check_says_what_a_measurement_would_count(llava_model, pairs) -> None:
    model, processor = llava_model
    first, _ = mir_task.check(model, processor, iter(pairs)).documents
    assert (first.vision, first.found_by) == (16, "by token ids and by provenance, which agree")
    assert pairs[0][1] in first.span
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_arrays_and_paths_are_pictures_too(llava_model, pairs, tmp_path) -> None:
    some = pairs[:3]
    wanted = mir_task.measure(*llava_model, some, groups=0, bars=False).mir
    files = []
    for number, (picture, text) in enumerate(some):
        as_array = np.asarray(picture.convert("RGB"))
        picture.convert("RGB").save(tmp_path / f"{number}.png")
        path = tmp_path / f"{number}.png"
        files.append(((as_array, text), (str(path), text), (path, text)))
    for changed in zip(*files, strict=True):
        assert mir_task.measure(*llava_model, list(changed), groups=0, bars=False).mir == wanted


@pytest.mark.parametrize(
    ("medium", "message"),
    [
        (np.zeros((8, 8, 3)), r"an image is an array of float64 \[8, 8, 3\]: pass uint8, 0 to 255"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"an image is an array of uint8 \[3, 8, 8\]"),
        (np.zeros(8, dtype=np.uint8), r"an image is an array of uint8 \[8\]"),
        (torch.zeros(3, 8, 8), "an image is of type Tensor: pass a PIL image"),
        (b"abc", "an image is of type bytes"),
        (None, "an image is of type NoneType"),
        ("nowhere.png", "an image is 'nowhere.png', and there is no file /.*nowhere.png"),
    ],
)
def test_what_is_no_picture_is_named(llava_model, medium, message: str) -> None:
    with pytest.raises(MIRError, match=message):
        mir_task.measure(*llava_model, [(medium, "A text that is long enough.")] * 2, bars=False)


def _measure_a_share(rank: int, port: int, folder: Path) -> None:
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group(rank=rank, world_size=2)
    pairs = [(Image.new("RGB", (56, 56)), f"Text {n}.") for n in range(6)]
    (row,) = (row for row in CHAT if row.name == "llava_hf-chat-llava-image")
    model, processor = load(row, folder / "llava")
    said = []
    for shares in (pairs[rank::2], pairs[: 5 + rank], pairs[:: 1 - 2 * rank]):
        try:
            mir_task.measure(model, processor, shares, bars=False)
        except MIRError as error:
            said.append(str(error))
    (folder / f"{rank}.txt").write_text("\n".join(said))
    end_gloo()


def test_processes_with_pairs_of_their_own_are_refused(checkpoints, tmp_path) -> None:
    (row,) = (row for row in CHAT if row.name == "llava_hf-chat-llava-image")
    shutil.copytree(adapters.make(row, checkpoints), tmp_path / "llava")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_measure_a_share, (port, tmp_path), nprocs=2)
    for rank in range(2):
        said = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert len(said) == 3
        assert all("pairs differ from process to process" in line for line in said)
        assert "5, 6 pairs" in said[1]
