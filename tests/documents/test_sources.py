"""Data of one's own: folders, files, shards; paired or crossed; and what is wrong with a task."""

import io
import json
import re
import tarfile
from pathlib import Path

import datasets
import pytest

from mir_task import MIRError
from mir_task.documents.draw import documents
from mir_task.settings import Settings
from tests.support import evaluate, hub
from tests.support.command import results, run

NAMES = ("boat", "harbour", "market", "station", "violin")
PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"


def texts() -> dict[str, str]:
    return {name: f"A {name}. {passage}" for name, passage in zip(NAMES, hub.PASSAGES, strict=False)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`pictures` and `captions`, with a picture that has no caption and a caption without a picture."""
    for name, image in zip((*NAMES, "untold"), hub.IMAGES, strict=False):
        path = tmp_path / "pictures" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image.read_bytes())
    for name, text in {**texts(), "unseen": "Nobody drew this."}.items():
        path = tmp_path / "captions" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(**keys) -> dict[str, str]:
    rows = documents("mir_mine", Settings.of("task mir_mine", {"mir_documents": 5, **keys}))
    for row in rows:
        assert row["media"]["bytes"] or Path(row["media"]["path"]).is_file()
    return dict(zip(rows["id"], rows["text"], strict=True))


def test_folders_paired_by_name(folder) -> None:
    keys = {"mir_media_dataset": "pictures", "mir_text_dataset": "captions"}
    assert drawn(**keys, mir_pairing="by_id") == texts()
    crossed = drawn(**keys, mir_documents=6)
    assert {part for name in crossed for part in name.split("+")} == {*NAMES, "untold", "unseen"}
    assert sum(len(set(name.split("+"))) > 1 for name in crossed) > 2
    assert drawn(**keys, mir_documents=6, mir_seed=1).keys() != crossed.keys()


def test_stories_as_the_published_script_reads_them(folder) -> None:
    story = folder / "stories" / "one.story"
    story.parent.mkdir()
    story.write_text("It rained.\n\n@highlight\n\nRain fell")
    keys = {"mir_media_dataset": "pictures", "mir_text_dataset": "stories", "mir_documents": 1}
    assert list(drawn(**keys).values()) == ["It rained."]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files_with_columns(folder, kind) -> None:
    columns = {
        "name": list(texts()),
        "picture": [f"pictures/{name}.jpg" for name in NAMES],
        "said": list(texts().values()),
    }
    table, path = datasets.Dataset.from_dict(columns), folder / f"pairs.{kind}"
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[kind](path)
    keys = {"mir_media_column": "picture", "mir_text_column": "said", "mir_media_id": "name"}
    assert drawn(mir_media_dataset=f"pairs.{kind}", **keys) == texts()


def test_lists_of_pictures_and_of_turns_of_a_data_set(folder) -> None:
    features = datasets.Features(
        key=datasets.Value("string"),
        images=datasets.Sequence(datasets.Image()),
        turns=[{"user": datasets.Value("string"), "assistant": datasets.Value("string")}],
        row={"image": datasets.Image()},
    )
    pictures = {name: {"bytes": (folder / "pictures" / f"{name}.jpg").read_bytes()} for name in NAMES}
    rows = [
        {
            "key": name,
            "images": [pictures[other], pictures[name]],
            "turns": [{"user": "?", "assistant": text}],
            "row": {"image": pictures[name]},
        }
        for (name, text), other in zip(texts().items(), reversed(NAMES), strict=True)
    ]
    (folder / "set").mkdir()
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(folder / "set" / "train-00000-of-00001.parquet")
    keys = {"mir_media_dataset": "set", "mir_media_split": "train", "mir_media_id": "key"}
    for column in ("images.1", "row.image"):
        settings = {"mir_media_column": column, "mir_text_column": "turns.0.assistant", **keys}
        assert drawn(**settings) == texts()
        task = evaluate.task(mir_base=None, mir_documents=len(NAMES), **settings)
        assert all(row["media"]["bytes"] == pictures[row["id"]]["bytes"] for row in task.dataset["test"])


def test_a_column_of_texts_with_a_folder_of_pictures(folder) -> None:
    lines = [{"key": name, "said": text} for name, text in texts().items()]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {"mir_text_dataset": "texts.jsonl", "mir_text_column": "said", "mir_text_id": "key"}
    assert drawn(mir_media_dataset="pictures", mir_pairing="by_id", **keys) == texts()


def test_shards_of_a_webdataset(folder) -> None:
    for number, names in enumerate((NAMES[:3], NAMES[3:])):
        with tarfile.open(folder / f"shard-{number}.tar", "w") as shard:
            for name in names:
                image = (folder / "pictures" / f"{name}.jpg").read_bytes()
                for ending, content in (("jpg", image), ("txt", texts()[name].encode())):
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))
    keys = {"mir_media_column": "jpg", "mir_text_column": "txt"}
    assert drawn(mir_media_dataset="shard-*.tar", **keys) == texts()


def test_the_examples_of_the_page_by_the_command(folder, llava) -> None:
    columns = {
        "name": list(texts()),
        "picture": [f"pictures/{name}.jpg" for name in NAMES],
        "said": list(texts().values()),
    }
    datasets.Dataset.from_dict(columns).to_csv(folder / "pairs.csv")
    rows = [
        {"image": f"pictures/{name}.jpg", "caption": {"en": text, "fr": "Une image."}}
        for name, text in texts().items()
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = [(folder / path).read_bytes() for path in columns["picture"]]
    table = {"key": columns["name"], "image": pictures, "text": columns["said"]}
    datasets.Dataset.from_dict(table).to_parquet(folder / "pairs.parquet")
    with tarfile.open(folder / "shard-1.tar", "w") as shard:
        for name in NAMES:
            shard.add(folder / "pictures" / f"{name}.jpg", f"{name}.jpg")
            shard.add(folder / "captions" / f"{name}.txt", f"{name}.txt")
    (folder / "tasks").mkdir()
    names = []
    for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if "mir_modality: audio" in block:  # which this model does not hear
            continue
        names.append(re.search(r"task: (\w+)", block)[1])
        (folder / "tasks" / f"{names[-1]}.yaml").write_text(block)
    assert len(names) == 6
    (command,) = re.findall(r"```\n(lmms-eval .*?)\n```", PAGE.read_text())
    command = command.replace("CHECKPOINT", f"{llava},device=cpu,device_map=cpu")
    run(*command.replace("mir_mine", ",".join(names)).split(), cwd=folder)
    scores = results(folder / "out")["results"]
    assert all(isinstance(scores[name]["mir,none"], float) for name in names)
    # The same pairs, in the order of the same ids.
    same = {scores[name]["mir,none"] for name in ("mir_mine", "mir_csv", "mir_parquet", "mir_shards")}
    assert len(same) == 1


BAD = {
    "unknown key": ({"mir_documnts": 3}, r"mir_documnts is no key \(did you mean mir_documents\?\)"),
    "value": (
        {"mir_pairing": "shuffled"},
        r"mir_pairing is 'shuffled': it must be 'crossed' or 'by_id'",
    ),
    "column": (
        {"mir_media_column": "img"},
        r"mir_media_column is 'img', which .* it has ",
    ),
    "base": (
        {"mir_base": "mir_nowhere"},
        r"mir_base is 'mir_nowhere', and no MIR task has that name",
    ),
    "no files": (
        {"mir_media_dataset": "captions"},
        r"mir_media_dataset /.*/captions holds no image files ",
    ),
    "too few texts": (
        {"mir_documents": 6, "mir_pairing": "by_id"},
        r"mir_documents asks for 6, and mir_media_dataset /.*/pictures has 5 .* that have a text",
    ),
    "fewer texts": (
        {"mir_documents": 6, "mir_text_dataset": "few"},
        r"mir_documents asks for 6, and mir_text_dataset /.*/few has 1 different rows: lower ",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_wrong_is_one_message_and_other_tasks_run(folder, llava, fault) -> None:
    changes, message = BAD[fault]
    (folder / "few").mkdir()
    (folder / "few" / "one.txt").write_text("One.")
    (folder / "pairs.jsonl").write_text('{"image": "pictures/boat.jpg", "text": "A boat."}\n')
    if fault == "column":
        changes = {**changes, "mir_media_dataset": "pairs.jsonl"}
    own = {"mir_documents": 4, "mir_media_dataset": "pictures", "mir_text_dataset": "captions"}
    (folder / "tasks").mkdir()
    for name, keys in {"mir_good": own, "mir_bad": {**own, **changes}}.items():
        lines = [f"task: {name}", "class: !function mir_task.harness.MIRTask"]
        lines += [f"{key}: {value}" for key, value in keys.items()]
        (folder / "tasks" / f"{name}.yaml").write_text("\n".join(lines))

    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from loguru import logger

    manager = TaskManager(include_path=str(folder / "tasks"))
    said = []
    sink = logger.add(lambda line: said.append(line.record["message"]), level="ERROR")
    try:
        run_tasks = {"task_manager": manager, "bootstrap_iters": 0}
        scores = simple_evaluate(evaluate.load(llava), tasks=["mir_bad", "mir_good"], **run_tasks)
    finally:
        logger.remove(sink)
    values = {name: of["mir,none"] for name, of in scores["results"].items()}
    assert values["mir_bad"] == "N/A"
    assert isinstance(values["mir_good"], float)
    (only,) = [line for line in said if "mir_bad" in line]
    assert re.search(message, only)
    with pytest.raises(MIRError, match=message):
        simple_evaluate(evaluate.load(llava), tasks=["mir_bad"], **run_tasks)


def test_a_folder_in_the_place_of_a_bases_data_set(folder) -> None:
    keys = {"mir_media_dataset": "pictures", "mir_text_dataset": "captions", "mir_documents": 2}
    base = {"mir_media_split": "val", "mir_media_config": "default", "mir_text_split": "test"}
    with pytest.raises(MIRError, match=r"\(null, where a mir_base names them\)"):
        documents("mir_own", Settings.of("task mir_own", {**base, **keys}))
    null = dict.fromkeys([*base, "mir_text_config"])
    found = Settings.of("task mir_own", {**base, **keys, **null})
    assert (found.media_split, found.text_split) == ("train", "train")
    assert len(documents("mir_own", found)) == 2
