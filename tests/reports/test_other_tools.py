"""Scores of VLMEvalKit and lm-evaluation-harness in the leaderboard.

Files as their code writes them: VLMEvalKit's `vlmeval/smp/file.py` and `vlmeval/dataset` at 00fff54, and
`lm_eval/loggers/evaluation_tracker.py` of lm-eval 0.4.13.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mir_task import MIRError
from mir_task.commands.cli import main
from mir_task.reports.leaderboard import board
from mir_task.reports.records import read_runs
from mir_task.reports.vlmevalkit import higher_is_better, read
from tests.support import runs

RUN = "T20260101_G0123abcd"
Rows = Sequence[Sequence[Any]]


def written(path: Path, content: Any) -> Path:
    """A table as its rows, header first, or a mapping, as VLMEvalKit writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(content)
    elif path.suffix == ".xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        for row in content:
            book.active.append(row)
        book.save(path)
    else:
        path.write_text(json.dumps(content, indent=4))
    return path


def of_lm_eval(folder: Path, name: str, results: dict[str, Any], date: str = "2026-01-01") -> None:
    content = {
        "results": {task: {"alias": task, **scores} for task, scores in results.items()},
        "group_subtasks": {task: [] for task in results},
        "configs": {},
        "versions": dict.fromkeys(results, 0.0),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {task: {"acc": True, "perplexity": False} for task in results},
        "n-samples": {task: {"original": 900, "effective": 900} for task in results},
        "config": {"model": "hf-multimodal", "model_args": f"pretrained={name}", "batch_size": 1},
        "git_hash": None,
        "date": 1767225600.0,
        "task_hashes": {},
        "model_source": "hf-multimodal",
        "model_name": name,
        "model_name_sanitized": name.replace("/", "__"),
        "total_evaluation_time_seconds": "12.5",
    }
    path = folder / name.replace("/", "__") / f"results_{date}T12-00-00.123456.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


VIDEO_MME = {
    length: {
        "overall": score,
        "domain": {"Knowledge": "0.61"},
        "task_type": {"Counting Problem": "nan"},
    }
    for length, score in (("short", "0.70"), ("long", "0.50"), ("overall", "0.60"))
}


@pytest.mark.parametrize(
    ("name", "content", "values"),
    [
        (
            "MMBench_DEV_EN_acc.csv",  # report_acc: rows by split, the overall column first
            [["split", "Overall", "AR", "CP"], ["dev", 0.643, 0.6, 0.7]],
            {"MMBench_DEV_EN dev Overall": 0.643},
        ),
        (
            "MMStar_acc.csv",  # without splits
            [["split", "Overall", "math"], ["none", 0.4, 0.3]],
            {"MMStar Overall": 0.4},
        ),
        (
            "MMT-Bench_ALL_MI_acc.csv",
            [["split", "Overall", "VR"], ["val", 0.5, 0.4], ["test", 0.52, 0.4], ["ALL", 0.51, 0.4]],
            {"MMT-Bench_ALL_MI Overall": 0.51},
        ),
        (
            "POPE_score.csv",
            [
                ["split", "Overall", "acc", "precision", "recall"],
                ["Overall", 85.9, 86.8, 91.0, 81.3],
                ["adversarial", 84.2, 84.9, 88.3, 80.5],
            ],
            {"POPE Overall": 85.9},
        ),
        (
            "HallusionBench_score.csv",
            [["split", "aAcc", "fAcc", "qAcc"], ["Overall", 46.0, 18.2, 13.4], ["VS", 40.0, 15, 10]],
            {
                "HallusionBench aAcc": 46.0,
                "HallusionBench fAcc": 18.2,
                "HallusionBench qAcc": 13.4,
            },
        ),
        (
            "MME_score.csv",  # no overall figure: all
            [["perception", "reasoning", "OCR"], [1506.2, 302.1, 140.0]],
            {"MME perception": 1506.2, "MME reasoning": 302.1, "MME OCR": 140.0},
        ),
        (
            "MathVista_MINI_gpt-4-turbo_score.csv",  # the judge is part of the name
            [
                ["Task&Skill", "tot", "prefetch", "hit", "prefetch_rate", "acc"],
                ["Overall", 1000, 400, 256, 40.0, 25.6],
                ["geometry reasoning", 239, 100, 50, 41.8, 20.9],
            ],
            {"MathVista_MINI_gpt-4-turbo acc": 25.6},
        ),
        (
            "TwoSplits_acc.csv",
            [
                ["split", "category", "acc"],
                ["dev", "Overall", 60],
                ["test", "Overall", 20],
                ["dev", "a", 1],
            ],
            {"TwoSplits dev acc": 60.0, "TwoSplits test acc": 20.0},
        ),
        (
            "TempCompass_acc.csv",  # `overall` counts questions here
            [
                ["dim.task_type", "success", "overall", "acc"],
                ["action. multi-choice", 10, 20, 50.0],
                ["overall", 30, 40, 75.0],
            ],
            {"TempCompass acc": 75.0},
        ),
        (
            "OCRBench_score.json",
            {
                "Text Recognition": 160,
                "Doc-oriented VQA": 30,
                "Final Score": 318,
                "Final Score Norm": 31.8,
            },
            {"OCRBench Final Score": 318.0},
        ),
        ("Video-MME_rating.json", VIDEO_MME, {"Video-MME overall": 0.6}),
        (
            "MVBench_rating.json",
            {"Action Count": [5, 10, "50.00%"], "overall": [27, 40, "67.50%"]},
            {"MVBench overall": 67.5},
        ),
        (
            "AI2D_TEST_acc.json",  # EVAL_FORMAT=json
            [{"split": "none", "Overall": 0.55, "atomStructure": 0.5}],
            {"AI2D_TEST Overall": 0.55},
        ),
        (
            "ChartQA_TEST_acc.xlsx",
            [["test_human", "test_augmented", "Overall"], [30.0, 70.0, 50.0]],
            {"ChartQA_TEST Overall": 50.0},
        ),
        (
            "LongVideoBench_score.xlsx",  # answers, not scores
            [["index", "question", "prediction", "score"], [0, "What?", "A", 1], [1, "Who?", "B", 0]],
            {},
        ),
        (
            "UCF_score.csv",
            [["Category", "Num", "Score"], ["a", 3, 1.5], ["b", 4, 2.5]],
            {"UCF a Score": 1.5, "UCF b Score": 2.5},
        ),
    ],
)
def test_files_of_vlmevalkit(tmp_path, name, content, values) -> None:
    found = read(written(tmp_path / "some_model" / RUN / f"some_model_{name}", content))
    assert found == ("some_model", "20260101", values)


@pytest.mark.parametrize("parts", [("llava",), ("llava", RUN), ("llava", "T20260101-120000")])
def test_a_model_is_told_by_its_folder_alone(tmp_path, parts) -> None:
    table = [["Overall"], [0.5]]
    path = written(tmp_path.joinpath(*parts) / "llava_next_POPE_acc.csv", table)
    # Also of a model llava_next there may be: the folder says which.
    assert read(path, ["llava_next"])[::2] == ("llava", {"next_POPE Overall": 0.5})
    path = written(tmp_path / "flat" / "llava_next_POPE_acc.csv", table)
    with pytest.raises(MIRError, match="is in no folder of that MODEL: move it there, or name"):
        read(path)
    assert read(path, ["llava", "llava_next"])[::2] == ("llava_next", {"POPE Overall": 0.5})


def test_a_model_named_after_mir_is_one_like_others(tmp_path) -> None:
    runs.run(tmp_path / "lmms", "llava_mir_7b", 3.0)
    written(tmp_path / "llava_mir_7b" / "llava_mir_7b_POPE_acc.csv", [["Overall"], [0.5]])
    found = read_runs([tmp_path])
    assert found.faults == []
    assert {"POPE Overall (VLMEvalKit)": 0.5} in [of.values for of in found.scores]


def test_which_way_a_metric_goes_is_known_or_said_not_to_be() -> None:
    names = ("MMStar Overall", "H aAcc", "O Final Score", "D edit distance", "V CER", "X elo")
    ways = [higher_is_better(name) for name in names]
    assert ways == [True, True, True, False, False, None]


@pytest.fixture
def three_tools(tmp_path) -> Path:
    """Two models with MIR and scores of all three tools, one under another name."""
    for name, mir, score in (("org/a", 3.0, 60.0), ("org/b", 3.2, 50.0)):
        runs.run(tmp_path / "lmms", name, mir, {"mmstar": score})
    of_lm_eval(tmp_path / "lm", "org/a", {"mmstar": {"acc,none": 0.3}}, "2025-01-01")
    scores = {"acc,none": 0.41, "acc_stderr,none": 0.01, "perplexity,none": 9.5}
    of_lm_eval(tmp_path / "lm", "org/a", {"mmstar": scores})
    for name, score in (("a-7b", 0.45), ("c-7b", 0.2)):
        path = tmp_path / "kit" / name / RUN / f"{name}_MMStar_acc.csv"
        written(path, [["split", "Overall"], ["none", score]])
        path.with_name(f"{name}_MMStar.xlsx").write_text("answers")  # of no interest
        (tmp_path / "kit" / name / path.name).symlink_to(path)  # as the tool leaves them
    return tmp_path


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["leaderboard", *map(str, arguments)])


def test_scores_of_three_tools_stand_in_columns_of_their_own(three_tools) -> None:
    printed = command(three_tools, "--same_model", "a-7b=org/a")
    assert printed.exit_code == 0
    header = next(line for line in printed.stdout.splitlines() if line.startswith("| rank"))
    names = ["MMStar Overall (VLMEvalKit)", "mmstar acc", "mmstar acc (lm-eval)"]
    names.append("mmstar perplexity (lm-eval)")
    assert f"| {' | '.join(names)} |" in header
    assert "| 0.4500* | 60.00 | 0.4100* | 9.5000* |" in printed.stdout  # the newest of lm-eval
    assert "| – | 50.00 | – | – |" in printed.stdout
    assert printed.stdout.splitlines()[-3:] == [
        "Measured by VLMEvalKit: MMStar Overall ↑.",
        "",
        "Measured by lm-eval: mmstar acc ↑, mmstar perplexity ↓.",
    ]
    assert printed.stderr.splitlines() == [
        "no MIR of c-7b (VLMEvalKit): if it has another name there, --same_model NAME=MODEL"
    ]
    content = board(read_runs([three_tools], {"a-7b": "org/a"}))
    assert [(of["name"], of["tool"]) for of in content["benchmarks"]] == list(
        zip(names, ["VLMEvalKit", "lmms-eval", "lm-eval", "lm-eval"], strict=True)
    )


def test_the_newest_scores_of_a_model_count_wherever_they_lie(tmp_path) -> None:
    runs.run(tmp_path / "mir", "a-7b", 3.0)
    for folder, date, score in (("a-new", "20260301", 70), ("z-old", "20250101", 50)):
        rows = [["split", "Overall"], ["none", score]]
        written(tmp_path / folder / "a-7b" / f"T{date}_G0123abcd" / "a-7b_POPE_acc.csv", rows)
        of_lm_eval(tmp_path / folder / "lm", "a-7b", {"arc": {"acc,none": score}}, f"{date[:4]}-03-01")
    (group,) = board(read_runs([tmp_path]))["groups"]
    assert list(group["rows"][0]["benchmarks"].values()) == [70.0, 70.0]


def test_a_model_of_another_name_is_never_guessed(three_tools) -> None:
    printed = command(three_tools)
    assert "VLMEvalKit" not in printed.stdout
    named = [line.partition(":")[0] for line in printed.stderr.splitlines()]
    assert named == ["no MIR of a-7b (VLMEvalKit)", "no MIR of c-7b (VLMEvalKit)"]


@pytest.mark.parametrize(
    ("pair", "code", "message"),
    [
        ("a-7b=org/d", 1, "--same_model: org/d is no model with MIR; there are org/a, org/b"),
        ("d=org/a", 1, "--same_model: d is no model with scores; there are a-7b, c-7b, org/a, org/b"),
        ("a-7b", 2, "'a-7b' is not of the form NAME=MODEL"),
        ("=org/a", 2, "'=org/a' is not of the form NAME=MODEL"),
    ],
)
def test_a_name_that_is_nowhere_is_told(three_tools, pair, code, message) -> None:
    printed = command(three_tools, "--same_model", pair)
    assert printed.exit_code == code
    assert message in printed.stderr


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a_POPE_score.csv", b"", "neither rows nor a mapping"),
        ("a_POPE_score.csv", b"\xff\xfe\x00", "UnicodeDecodeError"),
        ("a_POPE_score.json", b'{"Overall": ', "JSONDecodeError"),
        ("a_POPE_score.json", b"3", "neither rows nor a mapping"),
        ("a_POPE_score.xlsx", b"PK\x03\x04", "BadZipFile"),
        ("results_2026-01-01T00-00-00.json", b'{"results": {}}', "config: Field required"),
    ],
)
def test_broken_files_of_other_tools_are_named(tmp_path, name, content, reason) -> None:
    runs.run(tmp_path, "a", 3.0, {"mmstar": 60.0})
    good = command(tmp_path).stdout
    path = tmp_path / "kit" / "a" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    printed = command(tmp_path)
    assert printed.stdout == good
    assert printed.stderr.startswith(f"left out: {path} is no ")
    assert reason in printed.stderr


def test_xlsx_without_openpyxl_says_what_to_install(tmp_path, monkeypatch) -> None:
    path = written(tmp_path / "a" / "a_POPE_acc.xlsx", [["Overall"], [0.5]])
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(MIRError, match=r"needs openpyxl: pip install 'mir-task\[xlsx\]'"):
        read(path)


def test_mir_of_a_second_harness_is_listed_once(tmp_path) -> None:
    """lm-eval's own file has the value of the side file, and another date."""
    measured = runs.result(3.0)
    runs.side_file(tmp_path, "org/a", measured, model="hf-multimodal", model_args="pretrained=org/a")
    of_lm_eval(tmp_path, "org/a", {"mir_demo": {"mir,none": measured.mir}}, "2026-02-02")
    (record,) = read_runs([tmp_path]).records
    assert record.ground is not None
