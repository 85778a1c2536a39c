"""`mir-task leaderboard`, its page in a browser included."""

import csv
import json
import re
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from mir_task import MIRError
from mir_task.commands.cli import main
from mir_task.reports.compare import compare
from mir_task.reports.correlation import ENOUGH, correlation
from mir_task.reports.leaderboard import as_csv, board
from mir_task.reports.records import read_runs
from tests.support import runs
from tests.support.browser import seen


def command(*arguments):
    return CliRunner().invoke(main, ["leaderboard", *map(str, arguments)])


def made(*folders, **options):
    return board(read_runs(folders), **options)


def names(group) -> list[str]:
    return [row["model"] for row in group["rows"]]


def test_models_are_ranked_and_published_fast_has_its_own_column(tmp_path) -> None:
    for name, mir in (("worst", 3.3), ("best", 2.7), ("middle", 3.0)):
        runs.run(tmp_path, name, mir, {"mmbench": 60.5}, groups=0 if name == "best" else 5)
    printed = command(tmp_path).output
    table = [re.split(r" *\| *", line)[1:-1] for line in printed.splitlines() if line.startswith("|")]
    header, _, *rows = table
    assert header[:6] == ["rank", "model", "MIR ↓", "±", "published fast", "mmbench acc"]
    assert [row[:3] for row in rows] == [
        ["1", "best", "2.7000"],
        ["2", "middle", "3.0000"],
        ["3", "worst", "3.3000"],
    ]
    assert rows[0][3] == "N/A"
    assert rows[1][4:6] == ["3.0414", "60.50"]  # log10 of 1.1 above


def test_folders_that_are_links_have_their_runs_in_the_table_once(tmp_path) -> None:
    runs.run(tmp_path / "board", "here", 3.3)
    runs.run(tmp_path / "disk", "linked", 2.7)
    for name in ("results", "again"):
        (tmp_path / "board" / name).symlink_to(tmp_path / "disk")
    (tmp_path / "board" / "2_mir_mir_demo.json").symlink_to("gone.json")
    found = read_runs([tmp_path / "board"])
    assert sorted(record.model.name for record in found.records) == ["here", "linked"]
    assert [fault for fault in found.faults if "FileNotFoundError" in fault] == found.faults != []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task": "mir_coco"}, "task mir_coco, not task mir_demo"),
        ({"documents": 9}, r"9 documents \(set \w+\), not 10 documents \(set \w+\)"),
        ({"placement": "user_generate"}, "placement user_generate, not placement assistant_chat"),
        ({"outliers": "drop"}, "outliers dropped, not outliers replaced"),
        ({"settings": {"mir_modality": "video"}}, "modality video, not modality image"),
        ({"settings": {"mir_text_limit": 30}}, "first 30 words, not whole texts"),
        ({"hidden_size": 128}, "128 dimensions, not 64 dimensions"),
        ({"layers": 8}, "8 layers, not 6 layers"),
    ],
)
def test_what_does_not_compare_is_set_apart_with_the_reason(tmp_path, change, reason) -> None:
    runs.run(tmp_path, "a", 3.0)
    runs.run(tmp_path, "b", 3.1)
    runs.run(tmp_path, "other", 2.0, **change)
    first, second = made(tmp_path)["groups"]
    assert (first["apart"], names(first)) == (None, ["a", "b"])
    assert re.fullmatch(f"not ranked with group 1: {reason}", second["apart"])
    assert [row["rank"] for row in second["rows"]] == [1]


def test_the_newest_run_counts_unless_all_are_asked_for(tmp_path) -> None:
    runs.run(tmp_path, "a", 3.0, {"mmbench": 50.0}, date="20260102_000000")
    runs.run(tmp_path, "a", 3.5, {"mmbench": 40.0}, date="20260101_000000")
    (row,) = made(tmp_path)["groups"][0]["rows"]
    assert (row["mir"], row["benchmarks"]) == (pytest.approx(3.0), {"mmbench acc": 50.0})
    (group,) = made(tmp_path, all_runs=True)["groups"]
    assert [row["date"][:8] for row in group["rows"]] == ["20260102", "20260101"]


def test_scores_come_from_other_runs_of_the_same_model(tmp_path) -> None:
    runs.run(tmp_path / "mir", "org/a", 3.0)
    runs.run(tmp_path / "mir", "org/b", 3.1)
    # Another device is the same model; other arguments are the same checkpoint only.
    scores = {
        "mmbench": {"acc,none": 70.0, "acc_stderr,none": 1.0, "acc,strict": 60.0, "note,none": "x"}
    }
    runs.results_file(tmp_path / "bench", "org/a", scores)
    half = {"model_args": "pretrained=org/a,load_in_4bit=True"}
    other = {"mmbench": {"acc,none": 1.0}, "mme": {"score,none": 1500}}
    runs.results_file(tmp_path / "half", "org/a", other, date="20270101_000000", **half)
    (group,) = made(tmp_path)["groups"]
    a, b = group["rows"]
    assert a["benchmarks"] == {"mmbench acc": 70.0, "mmbench acc (strict)": 60.0, "mme score": 1500}
    assert a["other_arguments"] == {"mme score": "llava_hf load_in_4bit=True,pretrained=org/a"}
    assert b["benchmarks"] == {}
    assert "1500.00*" in command(tmp_path).output
    (group,) = made(tmp_path, benchmarks=["mme*"])["groups"]
    assert group["columns"] == ["mme score"]


def test_a_value_without_side_file_is_not_ranked(tmp_path) -> None:
    runs.run(tmp_path, "a", 3.0)
    runs.results_file(tmp_path / "b", "b", {"mir_demo": {"mir,none": 2.5, "mir_stderr,none": "N/A"}})
    first, second = made(tmp_path)["groups"]
    assert names(first) == ["a"]
    assert second["apart"].startswith("no side file")
    assert [(row["rank"], row["mir"], row["mir_stderr"]) for row in second["rows"]] == [
        (None, 2.5, None)
    ]


def test_broken_files_are_named_and_the_rest_is_right(tmp_path) -> None:
    runs.run(tmp_path, "a", 3.0, {"mmbench": 50.0})
    good = command(tmp_path).stdout
    whole = runs.side_file(tmp_path / "whole", "whole", runs.result(2.0)).read_text()
    (tmp_path / "whole").joinpath("20260101_000000_mir_mir_demo.json").unlink()
    report = json.loads(whole)
    broken = {
        "empty": "",
        "truncated": whole[: len(whole) // 2],
        "list": "[1, 2]",
        "null": "null",
        "bytes": b"\xff\xfe\x00",
        "deep": "[" * 100_000,
        "version": json.dumps({**report, "schema_version": 99}),
        "no_layers": json.dumps({**report, "layers": []}),
        "infinite": whole.replace('"frechet": ', '"frechet": 1e999, "frechet_": ', 1),
        "words": json.dumps({**report, "documents": [{"id": "d", "row": "first"}]}),
        "no_settings": json.dumps({**report, "settings": None}),
    }
    for name, content in broken.items():
        for suffix in ("mir_mir_demo", "results"):
            path = tmp_path / f"{name}_{suffix}.json"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "2026_results.json").write_text('{"results": {"x": 3}, "config": {}}')
    (tmp_path / "foreign.json").write_text("not ours, and not named so either")
    done = command(tmp_path)
    assert done.exit_code == 0
    assert done.stdout == good
    for name in broken:
        for suffix in ("mir_mir_demo", "results"):
            assert f"left out: {tmp_path / f'{name}_{suffix}.json'} is no " in done.stderr
    assert "2026_results.json is no results file of lmms-eval (config.model:" in done.stderr
    assert "foreign.json" not in done.stderr


def test_files_of_samples_are_no_side_files(tmp_path) -> None:
    runs.run(tmp_path, "a", 3.0)
    (tmp_path / "samples_mir_demo.json").write_text('{"schema_version": 1, "sizes": []}')
    (tmp_path / "20260101_000000_failed_mir_demo.json").write_text('{"why": "no media"}')
    runs.run(tmp_path, "b", 3.1, task="mir_failed_x")  # a task may be called so
    printed = command(tmp_path)
    assert "left out" not in printed.stderr
    assert "task mir_failed_x" in printed.stdout


def test_nothing_to_rank_is_one_message(tmp_path) -> None:
    done = command(tmp_path)
    assert done.exit_code == 1
    assert f"no MIR in {tmp_path}: run lmms-eval" in done.stderr
    assert command(tmp_path / "nowhere").exit_code == 2
    assert command().exit_code == 2


def rows_of(mir, scores):
    plain = {"adapter": "llava_hf", "arguments": "", "date": "20260101", "other_arguments": {}}
    pairs = enumerate(zip(mir, scores, strict=True))
    return [{"model": f"m{n}", "mir": x, "benchmarks": {"b": y}, **plain} for n, (x, y) in pairs]


def test_correlations_are_scipys_with_a_fixed_interval() -> None:
    random = np.random.default_rng(3)
    mir = random.normal(3, 0.3, 30)
    scores = np.round(80 - 10 * mir + random.normal(0, 2, 30))  # with ties
    found = correlation(rows_of(mir, scores), "b")
    for name, way in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        assert found[name]["value"] == pytest.approx(way(mir, scores).statistic)
        own = stats.bootstrap(
            (mir, scores),
            lambda x, y, way=way: way(x, y).statistic,
            paired=True,
            vectorized=False,
            method="percentile",
            n_resamples=2000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert found[name]["interval"] == pytest.approx(list(own), abs=0.03)
    assert found == correlation(rows_of(mir, scores), "b")
    assert "n = 30" in found["words"]


@pytest.mark.parametrize(
    ("n", "value", "interval"), [(2, False, False), (9, True, False), (10, True, True)]
)
def test_few_models_have_no_interval(n, value, interval) -> None:
    found = correlation(rows_of(range(n), [x * x - 5 * x for x in range(n)]), "b")
    assert (n >= ENOUGH) == interval
    for name in ("spearman", "kendall"):
        assert (found[name]["value"] is not None) == value
        assert (found[name]["interval"] is not None) == interval
    assert f"n = {n}" in found["words"]
    assert correlation(rows_of(range(12), [1.0] * 12), "b")["kendall"]["value"] is None


def test_runs_again_and_scores_of_other_arguments_count_once() -> None:
    rows = rows_of(range(12), [x * x - 5 * x for x in range(12)])
    wanted = correlation(rows, "b")
    again = [{**row, "date": "20250101", "mir": row["mir"] - 9} for row in rows]
    assert correlation(again + rows, "b") == wanted == correlation(rows + again, "b")
    starred = {**rows[3], "arguments": "load_in_4bit=True", "other_arguments": {"b": "x"}, "mir": 99}
    assert correlation([*rows, starred], "b") == wanted
    own = {**rows[3], "arguments": "revision=step100", "mir": 99}
    assert correlation([*rows, own], "b")["n"] == 13


def test_documents_of_one_id_and_other_texts_are_not_ranked_together(tmp_path) -> None:
    settings = {"mir_media_dataset": "/a/coco", "mir_media_split": "train", "mir_media_column": "image"}

    def run(name: str, text: str | None, **changes: Any) -> None:
        documents = [{"id": str(n), "row": n} for n in range(10)]
        if text:
            documents = [{**each, "text_sha256": f"{text}{each['id']}"} for each in documents]
        path = tmp_path / name
        runs.side_file(path, name, runs.result(3), settings=settings | changes.pop("settings", {}))
        content = json.loads(next(path.glob("*_mir_*")).read_text())
        next(path.glob("*_mir_*")).write_text(json.dumps(content | {"documents": documents}))

    def groups() -> list[list[str]]:
        return [[row["model"] for row in group["rows"]] for group in made(tmp_path)["groups"]]

    run("a", "x")
    run("b", "x", settings={"mir_media_dataset": "/b/coco"})  # the same folder of another machine
    run("old", None)
    assert sorted(groups()[0]) == ["a", "b", "old"]
    run("other-text", "y")
    run("other-split", "x", settings={"mir_media_split": "val"})
    found = groups()
    assert sorted(map(sorted, found)) == [["a", "b"], ["old"], ["other-split"], ["other-text"]]
    for group in made(tmp_path)["groups"][1:]:
        assert "other texts or another data set under the same ids" in group["apart"]
    records = {record.model.name: record for record in read_runs([tmp_path]).records}
    with pytest.raises(MIRError, match="other texts or another data set under the same ids"):
        compare(records["a"], records["other-text"])
    assert compare(records["a"], records["old"]).difference == 0


def test_captions_are_columns_and_are_laid_beside_benchmarks(tmp_path) -> None:
    for n in range(12):
        captions = {"caption_loss": 3.0 - n / 10, "caption_gain": n / 5, "caption_gain_stderr": 0.01}
        measured = runs.result(3.0 + (n * 7 % 12) / 100).model_copy(update=captions)
        runs.side_file(tmp_path, f"m{n}", measured, date=f"202601{n + 1:02}_000000")
        scores = {"mmbench": {"acc,none": 50.0 + n}}
        runs.results_file(tmp_path, f"m{n}", scores, date=f"202601{n + 1:02}_000000")
    runs.side_file(tmp_path, "old", runs.result(3.5), date="20251231_000000")
    content = board(read_runs([tmp_path]))
    (group,) = content["groups"]
    assert group["indicators"] == ["mir", "caption_gain", "caption_loss"]
    found = {name: of["mmbench acc"]["spearman"] for name, of in group["correlations"].items()}
    assert found["caption_gain"]["value"] == pytest.approx(1)
    assert found["caption_loss"]["value"] == pytest.approx(-1)
    assert found["caption_gain"]["interval"] == pytest.approx([1, 1])
    printed = command(tmp_path).stdout
    assert "| caption loss ↓ | caption gain ↑ | ± | mmbench acc |" in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("| mmbench acc |")]
    assert [cell.strip()[:16] for cell in row.split("|")[3:5]] == [
        "Spearman ρ +1.00",
        "Spearman ρ -1.00",
    ]
    assert "| N/A | N/A | N/A | – |" in printed  # of the file without captions
    text = as_csv(content).splitlines()
    assert "caption_loss,caption_gain,caption_gain_stderr" in text[0]


def test_csv_and_json_hold_the_same(tmp_path) -> None:
    runs.run(tmp_path, "a|b", 3.0, {"mmbench": 50.0})
    runs.run(tmp_path, "c", 2.0, layers=8)
    out = tmp_path / "new" / "board"
    done = command(tmp_path, "--csv", f"{out}.csv", "--json", f"{out}.json")
    assert "| a\\|b |" in done.output
    content = json.loads(out.with_suffix(".json").read_text())
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    flat = [(group, row) for group in content["groups"] for row in group["rows"]]
    for line, (group, row) in zip(rows, flat, strict=True):
        assert line["model"] == row["model"]
        assert float(line["mir"]) == row["mir"]
        assert int(line["layers"]) == group["ground"]["layers"] == len(row["curve"])
    assert [row["mmbench acc"] for row in rows if row["model"] == "a|b"] == ["50.0"]


HOSTILE = "org/</script><img src=x onerror=faults.push('run')>"


@pytest.fixture
def page(tmp_path):
    for number in range(12):  # crowded, so that not every name finds room
        mir = 2.5 + 0.4 * (number % 3) + 0.002 * number
        scores = {"mmbench": 200 - 50 * mir} | ({"mme": 1500.0 + number} if number % 3 else {})
        runs.run(tmp_path / "in", f"org/model-{number}", mir, scores, seed=number)
    runs.run(tmp_path / "in", "org/deep-with-a-name-of-more-than-a-few-words-to-break", 3.0, layers=8)
    runs.run(tmp_path / "in", HOSTILE, 3.9)
    path = tmp_path / "board.html"
    assert command(tmp_path / "in", "--html", path).exit_code == 0
    return path


def test_the_page_needs_nothing_else(page) -> None:
    content = page.read_text("utf-8")
    assert set(re.findall(r"https?://[^\"'\s<]+", content)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|script|img)[^>]+(src|href)=\"(?!data:)", content)
    assert HOSTILE not in content


def test_the_page_sorts_with_what_is_unknown_last(page) -> None:
    found = seen(
        page,
        """
        const table = document.querySelector("table"), column = name =>
          [...table.tHead.rows[0].cells].find(cell => cell.textContent.startsWith(name));
        const order = cell => [...table.tBodies[0].rows]
          .map(row => row.cells[cell.cellIndex].textContent.trim());
        const out = {mir: order(column("MIR"))};
        for (const name of ["MIR", "mme", "model"]) for (const click of [1, 2]) {
          column(name).querySelector("button").click();
          out[name + click] = order(column(name));
          out[name + click + "sort"] = column(name).getAttribute("aria-sort");
        }
        return out;
        """,
    )
    assert found["mir"] == found["MIR1"] == found["MIR2"][::-1] == sorted(found["mir"])
    known = [text for text in found["mme1"] if text != "–"]
    assert known == sorted(known, reverse=True)
    assert len(known) == 8
    assert found["mme1"][8:] == found["mme2"][8:] == ["–"] * 5
    assert found["mme2"][:8] == known[::-1]
    models = [name for name in found["model1"] if "model-" in name]
    assert models == [f"org/model-{number}" for number in range(12)]
    assert (found["model1sort"], found["model2sort"]) == ("ascending", "descending")
    assert (found["mme1sort"], found["mme2sort"]) == ("descending", "ascending")


def captioned(folder):
    """Runs with captions, and benchmarks whose direction the harness knows and does not know."""
    for n in range(4):
        captions = {"caption_loss": 3.0 - n / 10, "caption_gain": n / 5, "caption_gain_stderr": 0.01}
        measured = runs.result(3.0 + n / 100).model_copy(update=captions)
        runs.side_file(folder / str(n), f"m{n}", measured)
        metrics = {"acc": 0.5 + n / 10, "score": 10.0 + n, "word_perplexity": 20.0 + n, "ter": 1.0 + n}
        scores = {"bench": {f"{name},none": value for name, value in metrics.items()}}
        path = runs.results_file(folder / str(n), f"m{n}", scores)
        content = json.loads(path.read_text())
        content["higher_is_better"] = {"bench": {"acc": True, "ter": False, "score": None}}
        path.write_text(json.dumps(content))


def test_the_first_click_shows_the_best_of_any_column(tmp_path) -> None:
    captioned(tmp_path / "in")
    path = tmp_path / "board.html"
    assert command(tmp_path / "in", "--html", path).exit_code == 0
    found = seen(
        path,
        """
        const table = document.querySelector("table"), out = {};
        for (const head of table.tHead.rows[0].cells) {
          if (!head.querySelector("button")) continue;
          for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
          head.querySelector("button").click();
          out[head.textContent.trim().replace("\u00a0",
            " ")] = table.tBodies[0].rows[0].cells[head.cellIndex].textContent;
        }
        return out;
        """,
    )
    best = {
        "#": "1",
        "MIR ↓": "3.0000",
        "caption loss ↓": "2.7000",
        "caption gain ↑": "0.6000",
        "bench acc": "0.8000",
        "bench score": "13.00",
        "bench word_perplexity": "20.00",
        "bench ter": "1.0000",
    }
    assert {name: found[name] for name in best} == best


def test_caption_loss_of_the_harness_s_results_alone_has_its_column(tmp_path) -> None:
    scores = {"mir_demo": {"mir,none": 3.0, "caption_loss,none": 1.25, "caption_ppl,none": 3.49}}
    runs.results_file(tmp_path, "a", scores)
    (group,) = made(tmp_path)["groups"]
    assert group["indicators"] == ["mir", "caption_loss"]
    assert "| MIR ↓ | ± | published fast | caption loss ↓ | run |" in command(tmp_path).stdout
    assert "| 3.0000 | N/A | N/A | 1.2500 |" in command(tmp_path).stdout


STICKY = """
const box = document.querySelector(".table"), table = box.querySelector("table");
// So narrow and low that even few rows have to scroll.
box.style.maxHeight = "200px"; box.style.maxWidth = innerWidth < 600 ? "340px" : "600px";
box.scrollIntoView();
box.scrollTo(9999, 9999);
await new Promise(done => setTimeout(done, 50));
const frame = box.getBoundingClientRect(), last = [...table.tBodies[0].rows].at(-1);
const name = last.querySelector(".model").getBoundingClientRect();
const head = table.tHead.querySelector(".model").getBoundingClientRect();
const front = document.elementFromPoint(name.left + 9, name.top + 9).closest(".model");
return {scrolled: [box.scrollLeft > 50, box.scrollTop > 50], top: Math.round(head.top - frame.top),
  left: Math.round(Math.min(head.left, name.left) - frame.left),
    front: front === last.querySelector(".model"),
  room: Math.round(frame.right - name.right)};
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_heads_and_names_stay_in_sight(page, width) -> None:
    found = seen(page, STICKY, width=width)
    assert (found["scrolled"], found["top"], found["front"]) == ([True, True], 0, True)
    assert found["left"] == (0 if width == 390 else 88)  # after box and rank, or alone
    if width == 390:
        assert found["room"] > 150


@pytest.mark.parametrize("width", [1280, 390])
def test_a_name_takes_one_line_and_shows_both_ends(page, width) -> None:
    found = seen(
        page,
        """
        const out = {high: [], names: []}, tip = document.getElementById("tip");
        for (const row of document.querySelectorAll("tr[data-row]")) {
          out.high.push(row.getBoundingClientRect().height);
          const button = row.querySelector(".model button"), box = button.getBoundingClientRect();
          const end = button.lastChild.getBoundingClientRect();
          button.click();
          out.names.push([button.textContent, tip.querySelector("b").textContent,
            end.right <= box.right + 1]);
        }
        return out;
        """,
        width=width,
    )
    assert max(found["high"]) < 36
    assert len(found["names"]) == 14
    assert all(name == full and end for name, full, end in found["names"])


def test_the_filter_holds_for_the_charts(page) -> None:
    found = seen(
        page,
        """
        const box = document.getElementById("filter"), out = [];
        const type = text => { box.value = text; box.dispatchEvent(new Event("input")); };
        for (const text of ["", "model-3", "deep", "nowhere"]) {
          type(text);
          const count = what => document.querySelectorAll(what).length;
          out.push([count("path.curve"), count("circle.point"),
            document.getElementById("correlation").textContent]);
        }
        return out;
        """,
    )
    everything, some, deep, nothing = found
    assert everything[:2] == [3, 12]
    assert not everything[2].endswith("shown or not)")
    assert some[:2] == [1, 1]
    assert some[2].endswith("n = 12 (of all rows of the group, shown or not)")
    assert (deep[:2], nothing[:2]) == ([0, 0], [0, 0])


def test_charts_are_before_the_rows_and_links_lead_to_all_parts(page) -> None:
    script = """
    const charts = document.getElementById("charts"), links = [...document.querySelectorAll("nav a")];
    charts.open = true;
    await new Promise(done => setTimeout(done, 50));
    const top = charts.getBoundingClientRect().top;
    const before = document.querySelector(".group").getBoundingClientRect().top;
    return {first: top < before, open: OPEN,
      curve: document.querySelector("path.curve").getBoundingClientRect().width,
      links: links.map(a => [a.textContent, document.querySelector(a.getAttribute("href")) !== null])};
    """.replace("OPEN", "charts.dataset.opened")
    script = 'const c = document.getElementById("charts"); c.dataset.opened = c.open;' + script
    for width, is_open in ((1280, "true"), (390, "false")):
        found = seen(page, script, width=width)
        assert found["first"]
        assert found["open"] == is_open
        assert found["curve"] > 250
        assert found["links"] == [
            ["Charts", True],
            ["Group 1: mir_demo (13)", True],
            ["Group 2: mir_demo (1)", True],
        ]


def read(table: str) -> list[list[str | float]]:
    """Cells of a CSV, numbers as such."""

    def cell(text):
        try:
            return float(text)
        except ValueError:
            return text

    return [[cell(text) for text in line] for line in csv.reader(table.splitlines())]


def test_the_rows_shown_can_be_taken_away(tmp_path) -> None:
    for name, mir, acc in (("org/a_1", 3.0, 50.0), ("org/b&c|d", 2.0, 60.0), ('org/e, "f"', 1.0, 70.0)):
        runs.run(tmp_path / "in", name, mir, {"mmbench": acc}, seed=int(mir))
    runs.run(tmp_path / "in", "org/g", 1.5, layers=8)
    page, table = tmp_path / "board.html", tmp_path / "board.csv"
    assert command(tmp_path / "in", "--html", page, "--csv", table).exit_code == 0
    found = seen(
        page,
        """
        const out = {}, blobs = [];
        URL.createObjectURL = blob => { blobs.push(blob); return "about:blank"; };
        HTMLAnchorElement.prototype.click = function () { out.file = this.download; };
        const section = document.querySelector(".group");
        const press = as => section.querySelector(`.export [data-as=${as}]`).click();
        press("csv"); out.csv = await blobs[0].text();
        const said = section.querySelector(".export [role=status]"), later = () => Promise.resolve();
        const clipboard = { writeText: async text => { out.copied = text; } };
        Object.defineProperty(navigator, "clipboard", { value: clipboard });
        press("markdown"); await later(); await later(); out.said = [said.textContent];
        out.markdown = section.querySelector("textarea").value;
        clipboard.writeText = () => Promise.reject(new Error("not allowed"));
        document.execCommand = () => false;
        press("markdown"); await later(); await later(); out.said.push(said.textContent);
        out.selected = section.querySelector("textarea").selectionEnd;
        const head = [...section.querySelectorAll("thead th")].find(th =>
          th.textContent.startsWith("mmbench"));
        head.querySelector("button").click(); head.querySelector("button").click();  // worst first
        const box = document.getElementById("filter"); box.value = "org/b org/";
          box.dispatchEvent(new Event("input"));
        box.value = "b"; box.dispatchEvent(new Event("input"));
        press("latex"); out.latex = section.querySelector("textarea").value;
        press("csv"); out.some = await blobs[1].text();
        return out;
        """,
    )
    whole = read(table.read_text("utf-8"))
    assert read(found["csv"]) == whole[:4]
    assert found["file"] == "mir-group-1.csv"
    printed = command(tmp_path / "in").stdout.splitlines()
    assert found["markdown"].splitlines() == printed[:7]
    assert found["selected"] == len(found["markdown"])
    assert found["copied"] == found["markdown"]
    assert found["said"] == ["Copied.", "Selected below: copy it with Ctrl+C or ⌘C."]
    assert read(found["some"]) == [whole[0], whole[2]]
    assert found["latex"].splitlines()[0].startswith("% Group 1: task mir_demo")
    assert found["latex"].splitlines()[1:] == [
        r"\begin{tabular}{rlrrrrl}",
        r"\toprule",
        r"rank & model & MIR $\downarrow$ & $\pm$ & published fast & mmbench acc & run \\",
        r"\midrule",
        r"2 & org/b\&c|d & 2.0000 & 0.0014 & 2.0414 & 60.00 & 20260101\_000000 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_the_page_speaks_to_screen_readers_and_keyboards(page) -> None:
    found = seen(
        page,
        """
        const all = what => [...document.querySelectorAll(what)];
        const name = node => node.getAttribute("aria-label") || node.textContent.trim();
        return {scopes: all("th").map(th => th.scope),
          rows: all("tbody tr").map(tr => tr.querySelector("th").scope),
          sorted: all("table").map(table => table.querySelectorAll("[aria-sort]").length),
          nameless: all("button, input, select, textarea, a, [role]:not([role=status], [role=tooltip])")
            .filter(node => !name(node)).length,
          main: all("main").length, status: all("[role=status]").length,
          unreachable: all("th button").filter(button => button.tabIndex < 0).length};
        """,
    )
    assert set(found["scopes"]) == {"col", "row"}
    assert set(found["rows"]) == {"row"}
    assert found["sorted"] == [1, 1]
    assert (found["nameless"], found["main"], found["unreachable"]) == (0, 1, 0)
    assert found["status"] == 3


CONTRAST = """
const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const paper = light(getComputedStyle(document.body).backgroundColor);
const texts = "h1, h2, p, a, th, td, button, summary, .apart, .soft";
const nodes = [document.body, ...document.querySelectorAll(texts)];
const low = nodes.map(node => { const a = light(getComputedStyle(node).color);
  return [(Math.max(a, paper) + 0.05) / (Math.min(a, paper) + 0.05), node.outerHTML.slice(0, 60)]; });
return [paper, low.filter(([ratio]) => ratio < 4.5)];
"""


@pytest.mark.parametrize("media", [None, "(prefers-color-scheme: dark)"])
def test_light_and_dark_have_contrast(page, media) -> None:
    paper, low = seen(page, CONTRAST, media=media)
    assert (paper > 0.5) == (media is None)
    assert low == []


def test_the_page_filters_rows_and_empty_groups(page) -> None:
    found = seen(
        page,
        """
        const box = document.getElementById("filter");
        const visible = () => [...document.querySelectorAll("tr[data-row]")]
          .filter(row => row.offsetParent).map(row => row.querySelector(".model").textContent.trim());
        const out = [visible().length];
        for (const text of ["Model-1", "deep", "nowhere", ""]) {
          box.value = text; box.dispatchEvent(new Event("input"));
          out.push([visible(), document.querySelectorAll(".group:not([hidden])").length,
            document.getElementById("shown").textContent]);
        }
        return out;
        """,
    )
    total, models, deep, nothing, everything = found
    assert total == 14
    assert models == [["org/model-1", "org/model-10", "org/model-11"], 1, "3 of 14 rows"]
    assert deep[0] == ["org/deep-with-a-name-of-more-than-a-few-words-to-break"]
    assert nothing == [[], 0, "0 of 14 rows"]
    assert (len(everything[0]), everything[1]) == (14, 2)


def test_the_page_tells_details_and_draws_what_is_chosen(page) -> None:
    found = seen(
        page,
        """
        const out = {}, tip = document.getElementById("tip");
        const button = document.querySelector("tbody .model button");
        button.scrollIntoView();
        await new Promise(done => setTimeout(done, 50));
        out.before = tip.hidden;
        button.dispatchEvent(new MouseEvent("mouseenter"));
        out.tip = tip.innerText; out.shown = !tip.hidden;
        const box = tip.getBoundingClientRect();
        out.inside = box.left >= 0 && box.right <= innerWidth &&
          box.top >= 0 && box.bottom <= innerHeight;
        button.dispatchEvent(new MouseEvent("mouseleave"));
        out.after = tip.hidden;
        const curves = () => document.querySelectorAll("path.curve").length;
        out.curves = [curves()];
        out.bars = document.querySelectorAll("#curves .bar").length;
        const dot = document.querySelector("#curves circle");
        dot.dispatchEvent(new MouseEvent("mouseenter")); out.dot = tip.innerText;
        dot.dispatchEvent(new MouseEvent("mouseleave"));
        for (const pick of document.querySelectorAll(".pick input:not(:checked)")) {
          pick.click(); out.curves.push(curves());
        }
        out.strokes = new Set([...document.querySelectorAll("path.curve")].map(p =>
          p.getAttribute("stroke") + p.getAttribute("stroke-dasharray"))).size;
        out.points = document.querySelectorAll("circle.point").length;
        out.words = document.getElementById("correlation").textContent;
        const texts = [...document.querySelectorAll("#scatter text, #curves text")]
          .map(text => text.getBoundingClientRect());
        out.overlaps = texts.filter((a, i) => texts.some((b, j) => j > i && a.left < b.right - 1 &&
          b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4)).length;
        const select = document.getElementById("benchmark");
        select.selectedIndex = 1; select.dispatchEvent(new Event("change"));
        out.others = document.querySelectorAll("circle.point").length;
        return out;
        """,
    )
    assert (found["before"], found["shown"], found["after"], found["inside"]) == (True, True, True, True)
    for words in (
        "org/model-0",
        "layers\n6",
        "LlavaHf",
        "float32",
        "5760",
        "mir-task",
        "vision tokens are few",
    ):
        assert words in found["tip"]
    assert found["curves"] == list(range(3, 15))
    assert found["strokes"] == 14  # no two look the same
    assert (found["points"], found["others"]) == (12, 8)
    assert found["bars"] == 3 * 6
    assert re.fullmatch(r"org/model-0\nlayer\n1\nF\n[\d.]+ ± [\d.]+", found["dot"])
    assert found["words"].startswith("Spearman ρ -1.00 (95%")
    assert found["overlaps"] == 0


OVERFLOW = """
const root = document.documentElement, wide = [];
document.getElementById("charts").open = true;
await new Promise(done => setTimeout(done, 50));
for (const node of document.querySelectorAll("body *"))
  if (!node.closest(".table > table, [hidden]") &&
      node.getBoundingClientRect().right > root.clientWidth + 1)
    wide.push(node.outerHTML.slice(0, 80));
return {width: innerWidth, over: root.scrollWidth - root.clientWidth, wide,
  controls: getComputedStyle(document.querySelector(".controls")).display};
"""


def test_nothing_overflows_on_a_phone(page) -> None:
    found = seen(page, OVERFLOW, width=390)
    assert found == {"width": 390, "over": 0, "wide": [], "controls": "flex"}


def test_the_page_prints(page) -> None:
    # 700 px are about an A4 page between its margins.
    found = seen(page, OVERFLOW, width=700, media="print")
    assert (found["over"], found["wide"], found["controls"]) == (0, [], "none")
