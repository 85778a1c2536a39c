"""The documentation: its links, its code, its notebook, and the pages that are written by a command."""

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs import PAGES, ROOT, Block, blocks, in_shell, make_demo

WRITTEN = [
    *PAGES,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")),
]
WRITTEN += [*ROOT.glob("examples/**/*.md"), *ROOT.glob("studies/**/*.md"), *ROOT.glob("results/*.md")]
LANGUAGES = {"command", "python", "yaml", "bibtex"}
CODE = [block for page in PAGES for block in blocks(page)]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?")


def assert_same(printed: str, shown: str) -> None:
    """But for dates, times and the last digits."""
    now, then = (re.sub(r"\d{8}_\d{6}|\b\d+ s\b", "", text.strip()) for text in (printed, shown))
    assert NUMBER.sub("", now) == NUMBER.sub("", then)
    figures = (list(map(float, NUMBER.findall(text))) for text in (now, then))
    assert next(figures) == pytest.approx(next(figures), rel=0.02, abs=0.005)


def those(language: str) -> list[Block]:
    """The blocks that run."""
    return [block for block in CODE if block.language == language and not block.not_run]


def pages_with(language: str) -> list[Path]:
    return sorted({block.page for block in those(language)})


def test_the_page_of_keys_is_todays() -> None:
    from tools.task_keys import PAGE, page

    assert PAGE.read_text("utf-8") == page(), "write it anew with `python -m tools.task_keys`"


def test_every_block_is_of_a_kind_that_is_tried_or_says_why_not() -> None:
    assert {block.language for block in CODE} <= LANGUAGES
    assert all(len(block.not_run) > 10 for block in CODE if block.not_run is not None)
    for language in ("command", "python"):
        assert len(those(language)) >= 7


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    text = without_code(page.read_text("utf-8"))
    for target, anchor in re.findall(r"\]\(([^)\s#]*)#?([^)\s]*)\)", text):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def test_the_readme_is_short_and_names_what_works() -> None:
    readme = re.sub(r"<!--.*-->\n", "", (ROOT / "README.md").read_text("utf-8"))
    assert len(readme.split()) <= 900
    assert len(readme.splitlines()) <= 115
    first = re.search(r"^lmms-eval .*$", readme, re.MULTILINE)
    assert first is not None
    assert "--model llava_hf " in first[0]
    assert readme.index("pip install") < first.start()


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the names and forms that the pages on own data speak of."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet
    import soundfile
    from PIL import Image

    folder = tmp_path_factory.mktemp("own")
    names = ("boat", "harbour", "gull", "mast")
    (folder / "pictures").mkdir()
    (folder / "captions").mkdir()
    lines = ["name,picture,said"]
    for number, each in enumerate(names):
        Image.new("RGB", (40, 40), (60 * number, 90, 120)).save(folder / "pictures" / f"{each}.jpg")
        (folder / "captions" / f"{each}.txt").write_text(f"A {each} by the sea.")
        lines.append(f'00{number},pictures/{each}.jpg,"A {each}, by the sea."')
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    rows = [
        {"image": f"pictures/{each}.jpg", "caption": {"en": f"A {each}.", "fr": "Un."}} for each in names
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = [(folder / "pictures" / f"{each}.jpg").read_bytes() for each in names]
    table = pyarrow.table(
        {"key": list(names), "image": images, "text": [f"A {each}." for each in names]}
    )
    pyarrow.parquet.write_table(table, folder / "pairs.parquet")
    shards = folder / "shards"
    shards.mkdir()
    for each, image in zip(names, images, strict=True):
        (shards / f"{each}.jpg").write_bytes(image)
        (shards / f"{each}.txt").write_text(f"A {each}.")
    shutil.make_archive(str(folder / "shard-0"), "tar", shards)
    soundfile.write(folder / "t1.wav", np.sin(np.arange(8000) / 20), 16000)
    talks = [{"id": f"t{number}", "audio": "t1.wav", "text": "Good evening."} for number in range(100)]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    return folder


@pytest.mark.parametrize("page", pages_with("yaml"), ids=lambda page: page.stem)
def test_yaml_files(page: Path, own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks draw their documents; other files are lists of models."""
    from mir_task.documents.draw import documents
    from mir_task.settings import Settings
    from mir_task.tasks import mir_keys, packaged_tasks, read_task, tasks_in

    monkeypatch.chdir(own_data)
    of_page = [block.text for block in blocks(page) if block.language == "yaml"]
    lists = [text for text in of_page if "task: " not in text]
    for number, text in enumerate(text for text in of_page if text not in lists):
        (tmp_path / f"{number}.yaml").write_text(text)
    found = tasks_in(tmp_path)
    assert len(found) == len(of_page) - len(lists)
    for task, path in found.items():
        settings = Settings.of(task, mir_keys(read_task(path, packaged_tasks() | found)))
        drawn = documents(task, settings)
        assert len(drawn) == settings.documents
        assert not any(drawn["fault"])
    for text in lists:
        entries = [entry for entry in yaml.safe_load(text) if "missing" not in entry]
        assert all({"model", "model_args", "tasks"} <= entry.keys() for entry in entries)


@pytest.fixture(scope="module")
def context(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the pages take to be there already."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments

    example = runpy.run_path(str(ROOT / "examples" / "train_connector.py"))
    torch.manual_seed(0)
    pairs, processor = example["world"]()[:12], AutoProcessor.from_pretrained(llava)
    rows = [[torch.randn(20, 16) for _ in range(3)] for _ in range(20)]
    arguments = TrainingArguments(
        str(tmp_path_factory.mktemp("trained")),
        max_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
    )
    return {
        "model": AutoModelForImageTextToText.from_pretrained(llava),
        "processor": processor,
        "held_out": pairs,
        "dataset": pairs,
        "collator": example["Collator"](processor, with_images=True),
        "arguments": arguments,
        "checkpoint": llava,
        "folder": tmp_path_factory.mktemp("kept") / "model",
        "vision": rows[0],
        "text": rows[1],
        "documents": [(str(n), a, b) for n, (a, b) in enumerate(zip(rows[:10], rows[10:], strict=True))],
    }


@pytest.mark.parametrize("page", pages_with("python"), ids=lambda page: page.stem)
def test_python(page: Path, context: dict[str, Any]) -> None:
    """The blocks of a page run one after the other."""
    names = dict(context)
    for block in those("python"):
        if block.page == page:
            exec(compile(block.text, f"{page.name}: {block.text[:60]!r}", "exec"), names)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_demo(folder)
    return folder


@pytest.mark.slow
def test_commands(demo: Path) -> None:
    """They run, and print what the page shows, but for dates, times and the last digits."""
    for block in those("command"):
        printed = in_shell(block.command, demo)
        if block.shows_output:
            assert_same(printed, block.output)


@pytest.mark.slow
def test_the_notebook_gives_what_it_shows(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    stored = nbformat.read(ROOT / "examples" / "small_models.ipynb", as_version=4)
    notebook = nbformat.read(ROOT / "examples" / "small_models.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))

    def printed(of: Any) -> str:
        return "".join(
            out["text"]
            for cell in of.cells
            for out in cell.get("outputs", [])
            if out["output_type"] == "stream" and out["name"] == "stdout"
        )

    assert_same(printed(notebook), printed(stored))
    shown = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in shown)
