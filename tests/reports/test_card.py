"""`mir-task card`: read back by huggingface_hub."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from mir_task.commands.cli import main
from tests.support import runs

TEXTVQA = {
    "mir_modality": "image",
    "mir_media_dataset": ["lmms-lab-encoder/textvqa", "lmms-lab/textvqa"],
    "mir_media_split": "validation",
    "mir_text_dataset": "abisee/cnn_dailymail",
}


def card(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["card", *map(str, arguments)])


def measured(folder: Path, mir: float, task: str = "mir_textvqa", **changes: Any) -> Path:
    gain = {"caption_loss": 2.5, "caption_gain": 1.25, "caption_gain_stderr": 0.05}
    result = runs.result(mir).model_copy(update=changes.pop("gain", gain))
    settings = changes.pop("settings", TEXTVQA)
    return runs.side_file(folder, "org/a-7b", result, task=task, settings=settings, **changes)


def test_a_new_card_is_read_back_by_huggingface_hub(tmp_path) -> None:
    side_file = measured(tmp_path / "out", 3.0)
    readme = tmp_path / "README.md"
    printed = card(side_file, "--to", readme)
    assert printed.output == f"{readme}: 4 results of mir_textvqa\n"
    read = ModelCard.load(readme)
    assert read.data.model_name == "a-7b"
    assert read.text.strip() == "# a-7b"
    mir, fast, gain, loss = read.data.eval_results
    assert [of.metric_type for of in (mir, fast, gain, loss)] == [
        *("mir", "mir_published_fast", "caption_gain", "caption_loss")
    ]
    assert mir.metric_value == pytest.approx(3.0, abs=1e-6)
    assert (gain.metric_value, gain.metric_args["stderr"]) == (1.25, 0.05)
    assert mir.metric_args["stderr"] == pytest.approx(runs.result(3.0).mir_stderr, abs=1e-6)
    assert "stderr" not in fast.metric_args
    assert (mir.task_type, mir.dataset_type) == ("image-text-to-text", "lmms-lab-encoder/textvqa")
    assert (mir.dataset_config, mir.dataset_split) == ("mir_textvqa", "validation")
    assert mir.dataset_args["documents"] == 10
    assert mir.dataset_args["text_dataset"] == "abisee/cnn_dailymail"
    assert mir.metric_args["placement"] == "assistant_chat"
    assert mir.metric_args["lmms_eval"] == "0.7.3"


def test_a_card_keeps_what_it_says_and_has_a_metric_once(tmp_path) -> None:
    readme = tmp_path / "README.md"
    index = [
        {
            "name": "A 7B",
            "results": [
                {
                    "task": {"type": "image-text-to-text"},
                    "dataset": {
                        "type": "lmms-lab-encoder/textvqa",
                        "name": "TextVQA",
                        "split": "validation",
                    },
                    "metrics": [{"type": "accuracy", "value": 58.2}],
                }
            ],
        }
    ]
    readme.write_text("---\nlicense: mit\ntags:\n- vlm\n---\n\n# A model\n\nSaid by hand.\n")
    before = ModelCard.load(readme)
    before.data.model_name, before.data.eval_results = model_index_to_eval_results(index)
    before.save(readme)
    measured(tmp_path / "out", 3.0)
    measured(tmp_path / "out", 2.5, "mir_textvqa_50", gain={})
    assert card(tmp_path / "out", "--to", readme).exit_code == 0
    first = readme.read_text()
    assert card(tmp_path / "out", "--to", readme).exit_code == 0
    assert readme.read_text() == first
    measured(tmp_path / "out", 3.5, date="20270101_000000")
    assert card(tmp_path / "out", "--to", readme).exit_code == 0
    assert readme.read_text().endswith("---\n\n# A model\n\nSaid by hand.\n")
    metadata = metadata_load(readme)
    assert (metadata["license"], metadata["tags"]) == ("mit", ["vlm"])
    name, found = model_index_to_eval_results(metadata["model-index"])
    assert name == "A 7B"
    values = {(of.dataset_config, of.metric_type): of.metric_value for of in found}
    assert len(values) == len(found) == 7
    assert values[None, "accuracy"] == 58.2
    assert values["mir_textvqa", "mir"] == pytest.approx(3.5, abs=1e-6)
    assert values["mir_textvqa_50", "mir"] == pytest.approx(2.5, abs=1e-6)


def test_paths_of_this_machine_reach_no_card(tmp_path) -> None:
    settings = {
        "mir_modality": "video",
        "mir_media_dataset": "/data/private",
        "mir_media_split": "train",
    }
    name = "/home/me/checkpoints/a-7b"
    runs.side_file(tmp_path, name, runs.result(3.0), settings=settings)
    printed = card(tmp_path).output
    assert "/data" not in printed
    assert "/home" not in printed
    assert "- name: a-7b\n" in printed
    assert "type: video-text-to-text" in printed
    assert "type: mir_demo\n" in printed


def test_a_card_tells_of_one_way_of_loading_and_of_data_on_the_hub(tmp_path, monkeypatch) -> None:
    measured(tmp_path / "out", 2.0, "mir_two")
    arguments = "pretrained=org/a-7b,load_in_4bit=True"
    measured(tmp_path / "out", 3.9, model_args=arguments, date="20270101_000000")
    printed = card(tmp_path / "out")
    assert printed.exit_code == 1
    assert "org/a-7b was loaded in 2 ways for its tasks: llava_hf load_in_4bit=True" in printed.output
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    measured(tmp_path / "own", 2.0, settings={**TEXTVQA, "mir_media_dataset": "data/pictures"})
    assert "data/pictures" not in card(tmp_path / "own").output


def test_what_is_not_there_is_told(tmp_path) -> None:
    readme = tmp_path / "README.md"
    assert "no side file, <date>_mir_<task>.json, is there" in card(tmp_path).output
    measured(tmp_path / "out", 3.0)
    runs.side_file(tmp_path / "out" / "b", "org/b", runs.result(2.0))
    several = card(tmp_path / "out")
    assert several.exit_code == 1
    assert "there are several models; name one by --model: org/a-7b, org/b" in several.output
    assert (
        "no model 'org/c' is there; there are org/a-7b, org/b"
        in card(tmp_path / "out", "--model", "org/c").output
    )
    readme.write_text("---\nlicense: [mit\n---\n")
    broken = card(tmp_path / "out", "--model", "org/b", "--to", readme)
    assert broken.exit_code == 1
    assert f"{readme} is no model card: " in broken.output
    assert readme.read_text() == "---\nlicense: [mit\n---\n"
