"""`mir-task leaderboard`, its page in a browser included."""

import csv
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from mir_task.commands.cli import main
from mir_task.reports.leaderboard import ENOUGH, as_csv, board, correlation
from mir_task.reports.records import read_runs
from tests.support import runs


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
    return [{"mir": x, "benchmarks": {"b": y}} for x, y in zip(mir, scores, strict=True)]


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


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --enable-logging=stderr
"""
WATCH = "<script>const faults = []; addEventListener('error', e => faults.push(e.message));</script>"
HOSTILE = "org/</script><img src=x onerror=faults.push('run')>"
# A window is at least 500 pixels wide, a frame is not.
FRAME = """
<!doctype html><iframe src="copy.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>onmessage = event => document.body.append(
  Object.assign(document.createElement("pre"), {{textContent: event.data}}))</script>
"""


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


def seen(page, script: str, *, width: int = 1200, media: str | None = None):
    """What `script`, run at the end of a copy of the page, returns; and that nothing went wrong."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    content = page.read_text("utf-8").replace("<title>", f"{WATCH}<title>")
    if media:
        content = content.replace(f"@media {media}", "@media all")
    tail = (
        f"<script>parent.postMessage(JSON.stringify([(() => {{ {script} }})(), faults]), '*')</script>"
    )
    page.with_name("copy.html").write_text(content + tail, "utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width), "utf-8")
    profile = f"--user-data-dir={page.parent / 'chromium'}"
    command = [CHROMIUM, *FLAGS.split(), profile, "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [*command, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    answer = re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert answer, done.stdout
    found, faults = json.loads(html.unescape(answer[1]))
    assert faults == []
    return found


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
        for (const name of ["MIR", "mme", "model"]) for (const way of ["up", "down"]) {
          column(name).querySelector("button").click();
          out[name + way] = order(column(name));
          out[name + way + "sort"] = column(name).getAttribute("aria-sort");
        }
        return out;
        """,
    )
    assert found["mir"] == found["MIRup"] == found["MIRdown"][::-1] == sorted(found["mir"])
    known = [text for text in found["mmeup"] if text != "–"]
    assert known == sorted(known)
    assert len(known) == 8
    assert found["mmeup"][8:] == found["mmedown"][8:] == ["–"] * 5
    assert found["mmedown"][:8] == known[::-1]
    models = [name for name in found["modelup"] if "model-" in name]
    assert models == [f"org/model-{number}" for number in range(12)]
    assert (found["modelupsort"], found["modeldownsort"]) == ("ascending", "descending")


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
        const button = document.querySelector("td.model button");
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
    assert found["words"].startswith("Spearman ρ -1.00 (95%")
    assert found["overlaps"] == 0


OVERFLOW = """
const root = document.documentElement, wide = [];
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
