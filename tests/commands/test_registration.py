"""Commands of the harness that know the packaged tasks, also where another's plugin does not load."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.command import run

CHECKOUT = Path(__file__).parents[2]
# What the start of Python does with `mir_task.pth` where the package is installed.
INSTALLED = f"import site; site.addsitedir({str(CHECKOUT)!r})"
COMMANDS = """
import contextlib, io, json, sys
import lmms_eval.tasks
from lmms_eval.cli.dispatch import main
assert "lmms_eval.models" not in sys.modules
manager = lmms_eval.tasks.TaskManager("WARNING")

def same(self, *args, **keys):  # an index takes seconds to make
    return manager.task_index

lmms_eval.tasks.TaskManager.initialize_tasks = same

def said(*arguments):
    sys.argv = ["lmms-eval", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    return out.getvalue()

found = {"list": said("tasks", "list"), "subtasks": said("tasks", "subtasks")}
found["groups"] = said("tasks", "groups")
found["power"] = said("power", "--tasks", "mir_demo,demo_vqa")
from lmms_eval.cli import wizard
answers = iter(["search mir_", "mir_demo"])
wizard._ask = lambda *args: next(answers)
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert wizard._step_tasks() == "mir_demo"
found["wizard"] = out.getvalue()
with contextlib.suppress(ImportError):
    import asyncio
    from lmms_eval.entrypoints import http_server
    found["serve"] = "\\n".join(asyncio.run(http_server.list_available_tasks())["tasks"])
json.dump(found, open("found.json", "w"))
"""


def test_all_commands_know_the_tasks(tmp_path) -> None:
    run(sys.executable, "-c", f"{INSTALLED}\n{COMMANDS}", cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    for command, said in found.items():
        assert ("mir_robustness" if command == "groups" else "mir_demo") in said, command
    assert "demo_vqa" in found["list"]
    power = found["power"].split("TASK ANALYSIS")[1]
    assert "mir_demo:\n    Sample size:         n = 100" in power
    assert "demo_vqa:\n    Sample size:         n = 48" in power


@pytest.fixture
def broken_plugin(tmp_path) -> Path:
    """A folder with an installed package whose plugin raises."""
    package = tmp_path / "installed" / "aaa-0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa\nVersion: 0\n")
    (package / "entry_points.txt").write_text("[lmms_eval.models]\naaa = nowhere:nothing\n")
    return package.parent


KNOWS = """
import lmms_eval.evaluator
from lmms_eval.tasks import TaskManager
manager = TaskManager("WARNING")
print(manager.match_tasks(["mir_demo"]), lmms_eval.evaluator.get_task_dict.__module__)
"""


def test_a_foreign_plugin_that_raises_hides_no_task(tmp_path, broken_plugin) -> None:
    first = f"import sys; sys.path.insert(0, {str(broken_plugin)!r})"
    said = run(sys.executable, "-c", f"{INSTALLED}\n{first}\n{KNOWS}", cwd=tmp_path)
    assert "Failed to load model entry-point manifests" in said
    assert "['mir_demo'] mir_task.plugin" in said


@pytest.mark.slow
def test_the_entry_point_does_without_the_hook(tmp_path) -> None:
    said = run(sys.executable, "-S", "-c", f"{KNOWN_PATHS}\n{KNOWS}", cwd=tmp_path)
    assert "['mir_demo'] mir_task.plugin" in said


KNOWN_PATHS = f"import sys; sys.path[:] = {[path for path in sys.path if path]!r}"


def test_the_hook_does_not_fail_where_the_package_is_gone(tmp_path) -> None:
    (tmp_path / "mir_task.pth").write_text((CHECKOUT / "mir_task.pth").read_text())
    program = "import sys, site; sys.path[:] = [p for p in sys.path if 'lib' in p and 'site' not in p]"
    said = run(
        *(sys.executable, "-S", "-c", f"{program}; site.addsitedir({str(tmp_path)!r}); print('fine')"),
        cwd=tmp_path,
        PYTHONPATH="",
    )
    assert said == "fine\n"


TOGETHER = """
from lmms_eval.tasks import TaskManager
import mir_task.harness
from mir_task import MIRError
import sys
manager = TaskManager(include_path="tasks")
print("with others", len(manager.load_task_or_group(["mir_robustness", "mir_demo"])))
try:
    manager.load_task_or_group(["mir_robustness"])
except MIRError as error:
    print("raised:", error)
try:
    manager.load_task_or_group(["mir_base_of_none", "mir_key"])
except MIRError as error:
    print("raised:", error)
"""


def test_what_many_tasks_have_in_common_is_told_once(tmp_path) -> None:
    (tmp_path / "tasks").mkdir()
    start = "class: !function mir_task.harness.MIRTask\n"
    (tmp_path / "tasks" / "a.yaml").write_text(f"task: mir_base_of_none\n{start}mir_base: mir_demoo\n")
    (tmp_path / "tasks" / "b.yaml").write_text(
        f"task: mir_key\n{start}mir_base: mir_demo\ndocuments: 5\n"
    )
    script = tmp_path / "script.py"
    script.write_text(TOGETHER)
    log = run(sys.executable, str(script), cwd=tmp_path, HF_HUB_OFFLINE="1")
    logged, _, rest = log.partition("with others")
    all_of_them, _, two = rest.partition("raised: ")[2].partition("raised: ")
    for part in (logged, all_of_them):
        assert part.count("23 MIR tasks cannot be measured: task mir_") == 1
        assert part.count("A relative path starts in") == 1
        assert part.count("Likewise ") == 4
        assert all(name in part for name in ("mir_docvqa_code", "mir_textvqa_800", "mir_coco_relevant"))
    assert "mir_base is 'mir_demoo', and no MIR task has that name (did you mean mir_demo?)" in two
    assert "'documents' is no key of a task (did you mean mir_documents" in two
    assert "ChartQA" not in two
    assert "ERROR" not in two  # told by what is raised, not logged too
