"""`mir-task reproduce`: values of the zoo beside published ones."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mir_task.commands.cli import main
from mir_task.commands.reproduce import packaged
from mir_task.commands.zoo_list import run_of
from mir_task.demo.checkpoint import make_llava
from mir_task.reports.records import read_runs
from mir_task.reports.reproduce import Entry, markdown, rows_of
from mir_task.tasks import TASK_CONFIGS, groups_in, packaged_tasks
from tests.support import runs
from tests.support.command import BIN


def published(mir: float, **changes: Any) -> dict[str, Any]:
    return {"table": "Table 1", "mir": mir, "tolerance": 0.01, "reason": "it is so", **changes}


def listed(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(list(entries)))
    return path


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["reproduce", *map(str, arguments)])


@pytest.mark.slow
def test_a_match_a_mismatch_a_failure_and_what_cannot_be_had(tmp_path) -> None:
    def entry(name: str, **keys: Any) -> dict[str, Any]:
        arguments = f"pretrained={{weights}}/{name},device=cpu,device_map=cpu"
        run = {"model": "llava_hf", "model_args": arguments, "tasks": "mir_demo", "limit": 4}
        return {"name": name, **run, **keys}

    weights = tmp_path / "weights"
    for seed, name in enumerate(("one", "two")):
        make_llava(weights / name, hidden_size=32, layers=2, image_size=56, seed=seed)
    (weights / "broken").mkdir()
    entries = [
        entry("one", published=published(3)),
        entry("two", published=published(3, placement="assistant_chat", documents=4)),
        entry("one", published=published(3)) | {"name": "again"},  # one run of two entries
        entry("broken", published=published(3)),
        entry("absent", made_from=["org/projector", "org/model"], published=published(2.667)),
        {"name": "secret", "missing": "no weights were published", "published": published(2.514)},
    ]
    output = ["--output_path", tmp_path / "out", "--weights", weights, "--json", tmp_path / "rows.json"]

    def reproduce() -> tuple[int, str, dict[str, dict[str, Any]]]:
        words = ("reproduce", listed(tmp_path, *entries), *output)
        done = subprocess.run(
            [str(BIN / "mir-task"), *map(str, words)], capture_output=True, text=True, cwd=tmp_path
        )
        rows = json.loads((tmp_path / "rows.json").read_text())
        return done.returncode, done.stdout, {row["name"]: row for row in rows}

    code, printed, rows = reproduce()
    assert code == 1
    assert {rows[name]["verdict"] for name in ("one", "two", "again")} == {"no match"}
    assert "[3/3] " in printed
    assert rows["one"]["file"] == rows["again"]["file"]
    assert rows["one"]["difference"] == rows["one"]["mir_published_fast"] - 3
    # What was published is no part of a run, so nothing runs again.
    entries[0]["published"] = published(round(rows["one"]["mir_published_fast"], 3))
    code, printed, rows = reproduce()
    assert [row["verdict"] for row in rows.values()] == [
        *("match", "no match", "no match"),
        *["not measured"] * 3,
    ]
    assert "finished before" in printed
    assert " done" not in printed
    side_file = json.loads(Path(rows["one"]["file"]).read_text())
    assert rows["one"]["mir"] == side_file["mir"]
    assert rows["one"]["mir_published_fast"] == side_file["mir_published_fast"]
    table = [re.split(r" *\| *", line)[1:-1] for line in printed.splitlines() if line[:1] == "|"]
    assert [cells[0] for cells in table[2:]] == ["one", "two", "again"]
    assert [cells[6] for cells in table[2:]] == ["match", "no match", "no match"]
    assert table[2][7] == f"{side_file['mir']:.4f}"
    last = printed.splitlines()[-3:]
    assert re.match(r"- broken \(Table 1: 3\.000\): it failed: it wrote no results \(", last[0])
    where = weights / "absent"
    assert last[1] == (
        f"- absent (Table 1: 2.667): there is no {where}, made from org/projector, org/model"
    )
    assert last[2] == "- secret (Table 1: 2.514): no weights were published"


def record(folder: Path, **changes: Any) -> Any:
    runs.side_file(folder, "a", runs.result(2.0), **changes)
    return read_runs([folder]).records


@pytest.mark.parametrize(
    ("wanted", "verdict", "obstacle"),
    [
        ({}, "match", ""),
        ({"mir": 2.035}, "match", ""),  # the fast mode's 2.0414, not the exact 2.0
        ({"mir": 2.0}, "no match", ""),
        ({"placement": "assistant_chat", "documents": 10}, "match", ""),
        (
            {"placement": "user_generate", "documents": 100},
            "does not compare",
            "placement assistant_chat, not user_generate, 10 documents, not 100",
        ),
    ],
)
def test_a_verdict_is_of_like_with_like(tmp_path, wanted, verdict, obstacle) -> None:
    entry = Entry.model_validate({"name": "a", "published": published(2.0414) | wanted})
    (row,) = rows_of(entry, record(tmp_path))
    assert (row.verdict, row.obstacle) == (verdict, obstacle)
    assert f"| {verdict} |" in markdown([row])
    assert (f"a does not compare: {obstacle}." in markdown([row])) == bool(obstacle)


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"outliers": "drop"}, "outliers by the rule drop, not replace"),
        (
            {"settings": {"mir_text_rows": 5}},
            "whole texts, first 5 tokens, not all tokens of the text",
        ),
    ],
)
def test_a_run_by_another_rule_matches_nothing(tmp_path, changes, obstacle) -> None:
    entry = Entry.model_validate({"name": "a", "published": published(2.0414)})
    (row,) = rows_of(entry, record(tmp_path, **changes))
    assert (row.verdict, row.obstacle) == ("does not compare", obstacle)


def test_a_value_that_nobody_published_stands_alone(tmp_path) -> None:
    (row,) = rows_of(Entry(name="a"), record(tmp_path))
    assert (row.verdict, row.plain()["mir"]) == ("nothing published", pytest.approx(2.0))
    assert "Difference" not in markdown([row])


def test_several_tasks_of_a_run_are_told_apart_by_name(tmp_path) -> None:
    record(tmp_path, task="mir_one")
    records = record(tmp_path, task="mir_two")
    of_each = [published(2.0414, task="mir_two"), published(2.0414), published(2, task="mir_three")]
    rows = rows_of(Entry.model_validate({"name": "a", "published": of_each}), records)
    assert [row.record and row.record.task for row in rows] == ["mir_two", None, None]
    assert rows[1].absent == "its run measured mir_one, mir_two: name the `task` of `published`"
    assert rows[2].absent.endswith("mir_one, mir_two, not mir_three, the `task` of `published`")


@pytest.mark.parametrize("name", ["paper", "presft"])
def test_the_packaged_lists_are_whole(name, tmp_path) -> None:
    from mir_task.commands.reproduce import _read

    known = {*packaged_tasks(), *groups_in(TASK_CONFIGS)}
    for entry in _read(packaged()[name]):
        assert entry.missing is None or entry.published
        if entry.missing is None:
            run = run_of(entry.config, name)
            assert set(run.tasks) <= known
            assert all(of.task is None or of.task in known for of in entry.published)
            assert ("{weights}" in run.config["model_args"]) == bool(entry.made_from)
    printed = command(name, "--output_path", tmp_path, "--dry-run")
    assert printed.exit_code == 0
    assert len(printed.output.splitlines()) == len(_read(packaged()[name]))


def test_the_values_of_the_paper_are_those_of_its_documentation() -> None:
    """`docs/published.md` and the packaged list state the same figures."""
    from mir_task.commands.reproduce import _read

    of_tables = {(of.table, of.mir) for each in _read(packaged()["paper"]) for of in each.published}
    figures = {mir for _, mir in of_tables}
    text = Path("docs/published.md").read_text()
    stated = {
        float(value)
        for line in re.findall(r"^\| Table .*", text, re.M)
        for value in re.findall(r"\d\.\d{3}", line)
    }
    assert stated <= figures
    assert {mir for table, mir in of_tables if table == "Table 6"} == {
        *(3.380, 3.358, 3.377, 3.379, 3.374, 3.375, 3.376)
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model": "llava_hf"}, "entry 1 cannot be used: name: Field required"),
        ({"name": "a", "published": {"mir": 3.0}}, "published.0.table: Field required"),
        ({"name": "a", "published": published(3, mode="fast")}, "mode: Extra inputs"),
        ({"name": "a", "published": published(3, tolerance=-1)}, "tolerance: Input should be"),
        ({"name": "a", "tasks": "mir_demo"}, "a is no mapping with a `model` of lmms-eval"),
        ({"name": "a", "model": "b"}, "a has no `tasks`"),
    ],
)
def test_a_bad_entry_is_one_message(tmp_path, entry, message) -> None:
    printed = command(listed(tmp_path, entry), "--output_path", tmp_path / "out")
    assert printed.exit_code == 1
    assert message in printed.output


def test_names_that_are_none_are_told(tmp_path) -> None:
    printed = command("papers", "--output_path", tmp_path)
    assert printed.exit_code == 2
    assert "'papers' is neither a file nor one of paper, presft" in printed.output
    printed = command("paper", "--output_path", tmp_path, "--only", "llava")
    assert printed.exit_code == 2
    assert "paper has no entry llava; it has llava-v1.5-7b, " in printed.output
    path = listed(tmp_path, {"name": "a", "missing": "b"}, {"name": "a", "missing": "c"})
    printed = command(path, "--output_path", tmp_path / "out")
    assert "entry 2 has the name of one before it, 'a'" in printed.output


def test_one_entry_alone_and_where_its_weights_go(tmp_path) -> None:
    only = ["--only", "llava-v1.5-13b", "--output_path", tmp_path / "out", "--dry-run"]
    assert command("paper", *only).output == (
        "llava-v1.5-13b: needs {weights}/llava-v1.5-13b-pretrain, made from "
        "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-13b-v1.5, lmsys/vicuna-13b-v1.5, "
        "openai/clip-vit-large-patch14-336: name the folder by --weights\n"
    )
    (tmp_path / "llava-v1.5-13b-pretrain").mkdir()
    printed = command("paper", *only, "--weights", tmp_path).output
    assert printed == "llava-v1.5-13b: would run\n"
