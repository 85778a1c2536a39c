"""One value by the harness, by `measure` and of stored hidden states, of two architectures."""

import json
import re

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import mir_task
from mir_task import DocumentStates, MIRError, write_states
from mir_task.capture.decoder import find_decoder
from mir_task.commands.cli import main
from mir_task.states.norm import FinalNorm, NormKind
from tests import adapters
from tests.measuring.test_library import load, sized
from tests.support import evaluate, states
from tests.support.command import torchrun

NAMES = ("llava_hf-chat-llava-image", "qwen2_5_vl-chat-qwen2_5_vl-image")
ROWS = [row for row in adapters.rows() if row.name in NAMES]


def uneven_norm(weights: dict[str, torch.Tensor]) -> None:
    """A final norm that does something: those of new models are all ones."""
    (key,) = (key for key in weights if re.search(r"(model|language_model)\.norm\.weight$", key))
    torch.manual_seed(0)
    weights[key] = (0.5 + torch.rand(weights[key].shape)).to(weights[key].dtype)


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.adapter)
def case(request, tmp_path_factory):
    """A model with its documents, and what the harness measures of them."""
    row, folder = request.param, tmp_path_factory.mktemp("equal")
    checkpoint = evaluate.variant(adapters.make(row, folder), folder / "normed", weights=uneven_norm)
    task = evaluate.task(**row.task(folder), mir_extras=["cka", "token_cosine"])
    evaluate.evaluate(adapters.load_row(row, checkpoint), task, output=folder / "harness")
    report = evaluate.report(folder / "harness")
    model, processor = load(row, checkpoint)
    pairs = sized(row, processor, evaluate.pairs_of(task))
    documents = [
        (of["id"], of["row"], *pair) for of, pair in zip(report["documents"], pairs, strict=True)
    ]
    return checkpoint, report, model, processor, pairs, documents


def test_one_value(case, tmp_path) -> None:
    _, report, model, processor, pairs, documents = case
    measured = mir_task.measure(model, processor, pairs, groups=3, bars=False)
    folder = states.write(tmp_path / "states", model, processor, documents)
    stored = mir_task.from_states(folder, groups=3, bars=False)
    for wanted in (report["mir"], measured.mir):
        assert stored.mir == pytest.approx(wanted, abs=1e-6)
    for wanted in (report["mir_stderr"], measured.mir_stderr):
        assert stored.mir_stderr == pytest.approx(wanted, abs=1e-6)
    assert stored.mir_published_fast == pytest.approx(report["mir_published_fast"], abs=1e-6)
    assert stored.input_layer.frechet == pytest.approx(report["input_layer"]["frechet"], rel=1e-5)
    extras = ["cka", "token_cosine"]
    again = mir_task.from_states(folder, groups=3, extras=extras, bars=False)
    for layer, wanted in zip(again.layers, report["layers"], strict=True):
        assert layer.cka == pytest.approx(wanted["cka"], abs=1e-5)


def test_a_folder_as_vllm_writes_it(case, tmp_path) -> None:
    """Its last layer comes before the norm, which the checkpoint has."""
    checkpoint, report, model, processor, _, documents = case
    for first, has_input in ((1, False), (0, True)):
        folder = states.write_as_vllm(tmp_path / str(first), model, processor, documents, first=first)
        stored = mir_task.from_states(folder, checkpoint=checkpoint, groups=3, bars=False)
        assert stored.mir == pytest.approx(report["mir"], abs=1e-6)
        assert (stored.input_layer is not None) == has_input


def test_layers_that_are_numbered_from_the_input_are_refused(case, tmp_path) -> None:
    """By ids 0 to K - 1 of vLLM; by all `hidden_states` of transformers from 1 on."""
    checkpoint, _, model, processor, _, documents = case
    (tmp_path / "vllm").mkdir()
    every = list(states.forwards(model, processor, documents))
    for name, _, ids, layers, _ in every:
        stacked = {"hidden_states": torch.stack(layers[:-1], 1), "token_ids": ids}
        save_file(stacked, tmp_path / "vllm" / f"{name}.safetensors")
    for on_error in ("stop", "skip"):
        with pytest.raises(MIRError, match=r"layer 1 holds what the decoder is given.* 1, not 0"):
            mir_task.from_states(
                tmp_path / "vllm", checkpoint=checkpoint, on_error=on_error, groups=0, bars=False
            )
    with pytest.raises(MIRError, match=r"document .*: layer 1 holds what the decoder is given"):
        write_states(
            tmp_path / "states",
            (
                DocumentStates(name, ids, dict(enumerate(layers, start=1)))
                for name, _, ids, layers, _ in every
            ),
            model="small",
            last_layer="after_norm",
            vision_token_ids=[model.config.image_token_id],
        )


def test_before_the_norm(case, tmp_path) -> None:
    _, report, model, processor, _, documents = case
    norm = find_decoder(model).module.norm
    write_states(
        tmp_path / "states",
        (
            DocumentStates(name, ids, {**dict(enumerate(layers[:-1])), len(layers) - 1: before})
            for name, _, ids, layers, before in states.forwards(model, processor, documents)
        ),
        model="small",
        last_layer="before_norm",
        norm=FinalNorm(NormKind(kind="rms", epsilon=norm.variance_epsilon), norm.weight),
        vision_token_ids=[model.config.image_token_id],
    )
    stored = mir_task.from_states(tmp_path / "states", bars=False)
    assert stored.mir == pytest.approx(report["mir"], abs=1e-6)


def test_processes_share_the_documents(case, tmp_path) -> None:
    """Each reads its share; two folders are as one."""
    _, report, model, processor, _, documents = case
    folders = [
        states.write(tmp_path / str(n), model, processor, documents[n::2], fingerprint="one")
        for n in range(2)
    ]
    program = (
        "import os, sys, json, mir_task; from accelerate import PartialState; PartialState(); "
        "result = mir_task.from_states(sys.argv[1:], groups=3, bars=False); "
        "found = {'mir': result.mir, 'stderr': result.mir_stderr}; "
        "name = '{WORLD_SIZE}-{RANK}.json'.format(**os.environ); "
        "json.dump(found, open(name, 'w'))"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    for processes in (1, 2, 3):
        torchrun(processes, str(script), *map(str, folders), cwd=tmp_path)
        found = [json.loads(path.read_text()) for path in tmp_path.glob(f"{processes}-*.json")]
        assert len(found) == processes
        for values in found:
            assert values["mir"] == pytest.approx(report["mir"], abs=1e-6)
            assert values["stderr"] == pytest.approx(report["mir_stderr"], abs=1e-6)


def test_the_command_writes_what_reports_read(case, tmp_path) -> None:
    checkpoint, report, model, processor, _, documents = case
    harness = checkpoint.parent / "harness"
    folder = states.write(tmp_path / "states", model, processor, documents, task="mir_test")
    out = tmp_path / "out"
    options = ["--groups", "3", "--sample_rows", "20", "--output_path", str(out)]
    printed = CliRunner().invoke(main, ["states", str(folder), *options])
    assert printed.exit_code == 0, printed.output
    assert f"mir_test: MIR {report['mir']:.4f} ± {report['mir_stderr']:.4f}" in printed.output
    assert {path.suffix for path in out.iterdir()} == {".json", ".png", ".npz"}
    written = evaluate.report(out)
    assert written["mir"] == pytest.approx(report["mir"], abs=1e-6)
    assert (written["model"], written["model_name"]) == ("states", "small")
    for own, wanted in zip(written["documents"], report["documents"], strict=True):
        for key in ("id", "row", "vision_tokens", "text_tokens", "tokens"):
            assert own[key] == wanted[key], key
    (path,) = out.glob("*_mir_*.json")
    for command in (
        ["leaderboard", str(out)],
        ["compare", str(harness), str(out)],
        ["plot", str(path), "--to", str(tmp_path / "layers.png")],
        ["plot", "--tokens", str(path.with_suffix(".npz")), "--to", str(tmp_path / "tokens.png")],
    ):
        read = CliRunner().invoke(main, command)
        assert read.exit_code == 0, (command, read.output)
        if command[0] == "leaderboard":
            assert f"| 1 | small | {report['mir']:.4f} |" in read.output
        if command[0] == "compare":
            assert re.search(r"0\.0000", read.output), read.output
