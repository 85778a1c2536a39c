"""Every option of `lmms-eval --help`: what it may change of MIR and of a benchmark beside it.

One process an adapter runs the command's own code again and again, which saves importing the harness.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.qwen2_5_vl import qwen2_5_vl
from tests.support.evaluate import BENCHMARKS

SAME = "same"
OTHER = "other"
"""Another value, as it is meant to be."""
ANY = "any"


@dataclass(frozen=True)
class Option:
    """One way to use an option."""

    arguments: str = ""
    """`{folder}` is a folder of the run's own."""
    mir: str = SAME
    bench: str = SAME
    documents: int = 4
    """Of MIR."""
    files: bool = True
    """Whether there are results."""
    near: float = 0.0
    """By how much the same value of MIR may differ."""
    breaks: tuple[str, ...] = ()
    """Adapters with which it ends the run without MIR too."""


BOTH = ("llava_hf", "qwen2_5_vl")
PLAN = "of the planning of sample sizes, without a run"
OPTIONS: dict[str, list[Option] | str] = {
    "config": [Option("--config {folder}/config.yaml")],
    "model": "given in each run",
    "tasks": "given in each run",
    "model_args": "given in each run",
    "output_path": "given in each run",
    "include_path": "given in each run",
    "launcher_args": "starts a server that judges answers",
    "num_fewshot": [Option("--num_fewshot 0"), Option("--num_fewshot 2", breaks=BOTH)],
    "batch_size": [Option("--batch_size 3", bench=ANY, near=1e-4, breaks=("llava_hf",))],
    "max_batch_size": [Option("--max_batch_size 2", breaks=BOTH)],
    "device": "given in each run",
    "limit": [
        Option("--limit 2", OTHER, OTHER, documents=2),
        Option("--limit 0.5", OTHER, OTHER, documents=2),
        Option("--limit -1"),
    ],
    "offset": [Option("--offset 1", OTHER, OTHER, documents=3)],
    "use_cache": [Option("--use_cache {folder}/cache"), Option("--use_cache {folder}/../cache")],
    "cache_requests": [  # requests of chat adapters lose their functions
        Option("--cache_requests true", breaks=BOTH),
        Option("--cache_requests delete"),
    ],
    "check_integrity": "runs tests of the harness that its package does not hold",
    "write_out": [Option("--write_out")],
    "log_samples": [Option("--log_samples")],
    "wandb_log_samples": [Option("--wandb_log_samples")],
    "swanlab_log_samples": [Option("--swanlab_log_samples")],
    "log_samples_suffix": [Option("--log_samples --log_samples_suffix x")],
    "system_instruction": [Option("--system_instruction Answer.", bench=ANY)],
    "apply_chat_template": [Option("--apply_chat_template", breaks=BOTH)],
    "fewshot_as_multiturn": [
        Option("--fewshot_as_multiturn --apply_chat_template --num_fewshot 1", breaks=BOTH)
    ],
    "show_config": [Option("--show_config")],
    "gen_kwargs": [Option("--gen_kwargs max_new_tokens=2,temperature=0.7,num_beams=2", bench=ANY)],
    "reasoning_tags": [
        Option("--reasoning_tags none"),
        Option('--reasoning_tags [["{{","}}"]]'),
        Option('--reasoning_tags [["<",">"],[":","}}"]]', bench=ANY),
    ],
    "verbosity": [Option("--verbosity DEBUG"), Option("--verbosity ERROR")],
    "wandb_args": "in tests/harness/test_loggers.py",
    "swanlab_args": "as wandb_args, with a package that is not among the harness's own",
    "timezone": [Option("--timezone Europe/Berlin")],
    "hf_hub_log_args": [Option("--hf_hub_log_args hub_results_org=x,hub_repo_name=y")],
    "predict_only": [Option("--predict_only", bench=ANY)],
    "seed": [Option("--seed 42"), Option("--seed 1,None,2,3")],
    "trust_remote_code": [Option("--trust_remote_code")],
    "process_with_media": [Option("--process_with_media")],
    "process_docs_parallel": [Option("--process_docs_parallel 1"), Option("--process-docs-parallel 9")],
    "agentic_trace_mode": [Option("--agentic_trace_mode full")],
    "force_simple": [Option("--force_simple", mir=ANY, bench=ANY)],
    "tui": "starts a user interface",
    "repeats": [Option("--repeats 3"), Option("--num_samples 2")],
    "baseline": [Option("--log_samples --baseline {folder}/nowhere.jsonl")],
    "max_tokens": [Option("--max_tokens 1000000")],
    "power_analysis": [Option("--power-analysis", files=False)],
    "effect_size": PLAN,
    "alpha": PLAN,
    "power": PLAN,
    "correlation": PLAN,
    "std_a": PLAN,
    "std_b": PLAN,
}
TOGETHER = Option(
    "--config {folder}/config.yaml --num_fewshot 0 --use_cache {folder}/cache --write_out "
    "--log_samples --log_samples_suffix x --show_config --verbosity DEBUG "
    "--timezone Europe/Berlin --seed 42 --trust_remote_code --process_with_media --repeats 2 "
    '--process_docs_parallel 1 --max_tokens 1000000 --reasoning_tags [["{{","}}"]]'
)
WORKER = """
import os, sys, traceback
import lmms_eval.__main__ as command
from lmms_eval.tasks import TaskManager

indexed = TaskManager.initialize_tasks

def quick(self, include_path=None, include_defaults=True):
    # Of the harness's own tasks none is asked for, and their index takes seconds to make.
    return indexed(self, [os.environ["PACKAGED"], include_path], False)

TaskManager.initialize_tasks = quick
pipe = os.fdopen(int(os.environ["PIPE"]), "w")
for line in sys.stdin:
    sys.argv = ["lmms-eval", *line.rstrip("\\n").split(" ")]
    try:
        command.cli_evaluate()
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    pipe.write("done\\n")
    pipe.flush()
"""


class Worker:
    """Runs the command with an adapter, mostly on a small index of tasks."""

    def __init__(self, adapter: str, checkpoint: Path, folder: Path) -> None:
        from mir_task.tasks import TASK_CONFIGS

        self.adapter, self.folder, self.count = adapter, folder, 0
        self.model = ["--model", adapter, "--model_args"]
        self.model += [f"pretrained={checkpoint},device_map=cpu", "--device", "cpu"]
        tasks = folder / "tasks"
        tasks.mkdir()
        for path in BENCHMARKS.iterdir():
            if path.suffix in (".yaml", ".py"):
                (tasks / path.name).write_text(path.read_text())
        bench = (BENCHMARKS / "bench.yaml").read_text()
        questions = (TASK_CONFIGS / "demo_vqa" / "questions.jsonl").read_text().splitlines()[:4]
        (tasks / "questions.jsonl").write_text("\n".join(questions) + "\n")
        (tasks / "bench.yaml").write_text(
            bench.replace("../../../task_configs/demo_vqa/questions.jsonl", "questions.jsonl")
        )
        (tasks / "mir_four.yaml").write_text(
            "task: mir_four\nclass: !function mir_task.harness.MIRTask\nmir_base: mir_demo\n"
            "mir_documents: 4\nmir_groups: 2\n"
        )
        self.own = ["--include_path", str(tasks), "--tasks"]
        read, write = os.pipe()
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[write],
            env={
                **os.environ,
                "PIPE": str(write),
                "PACKAGED": str(TASK_CONFIGS),
                "LM_HARNESS_CACHE_PATH": str(folder / "requests"),
            },
        )
        os.close(write)
        self.done = os.fdopen(read)
        self.plain = self.run(Option())

    def run(self, option: Option, tasks: str = "mir_four,bench") -> dict[str, Any]:
        """Scores of both tasks, side file, and what was said."""
        self.count += 1
        out = self.folder / str(self.count)
        out.mkdir()
        (out / "config.yaml").write_text("batch_size: 1\nnum_fewshot: 0\n")
        arguments = option.arguments.format(folder=out).split()
        begin = self.log.seek(0, 2)
        self.process.stdin.write(
            " ".join([*self.model, *self.own, tasks, "--output_path", str(out), *arguments]) + "\n"
        )
        self.process.stdin.flush()
        assert self.done.readline() == "done\n", (self.folder / "log").read_text()[-3000:]
        said = (self.folder / "log").read_bytes()[begin:].decode()
        found: dict[str, Any] = {"said": said, "results": None, "side file": None}
        for path in out.rglob("*.json"):
            if path.name.endswith("_results.json"):
                found["results"] = json.loads(path.read_text())["results"]
            elif "_mir_mir_four" in path.name:
                found["side file"] = json.loads(path.read_text())
        return found


@pytest.fixture(scope="module")
def workers(llava, tmp_path_factory):
    """A worker for each adapter, made when it is asked for."""
    made: dict[str, Worker] = {}

    def worker(adapter: str) -> Worker:
        if adapter not in made:
            folder = tmp_path_factory.mktemp(adapter)
            if adapter == "qwen2_5_vl":
                pytest.importorskip("qwen_vl_utils")
            checkpoint = llava if adapter == "llava_hf" else qwen2_5_vl(folder / "checkpoint")
            made[adapter] = Worker(adapter, checkpoint, folder)
        return made[adapter]

    yield worker
    for each in made.values():
        each.process.stdin.close()
        each.process.wait(60)
        each.log.close()
        each.done.close()


def check(worker: Worker, option: Option) -> None:
    found, plain = worker.run(option), worker.plain
    if worker.adapter in option.breaks:
        assert found["results"] is None
        assert "Error during evaluation" in found["said"]
        assert found["side file"] is None or found["side file"]["mir"] == plain["side file"]["mir"]
        assert worker.run(option, "bench")["results"] is None
        return
    if not option.files:
        assert (found["results"], found["side file"]) == (None, None)
        return
    assert found["results"] is not None, found["said"][-3000:]
    mir, bench = found["results"]["mir_four"], found["results"]["bench"]
    value, of_plain = mir["mir,none"], plain["results"]["mir_four"]["mir,none"]
    if option.mir == SAME:
        assert value == pytest.approx(of_plain, abs=option.near, rel=0)
    elif option.mir == OTHER:
        assert value != of_plain
    if option.bench == SAME:
        assert bench["hash,none"] == plain["results"]["bench"]["hash,none"]
    elif option.bench == OTHER:
        assert bench["hash,none"] != plain["results"]["bench"]["hash,none"]
    assert isinstance(value, float)
    assert len(found["side file"]["documents"]) == option.documents
    assert found["side file"]["mir"] == value


CASES = [(name, option) for name, of in OPTIONS.items() if isinstance(of, list) for option in of]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", BOTH)
@pytest.mark.parametrize(("name", "option"), CASES, ids=[f"{n}:{o.arguments}" for n, o in CASES])
def test_an_option_changes_what_it_may(workers, adapter: str, name: str, option: Option) -> None:
    check(workers(adapter), option)


@pytest.mark.parametrize("adapter", BOTH)
def test_options_together(workers, adapter: str) -> None:
    check(workers(adapter), TOGETHER)


def test_the_table_knows_every_option(monkeypatch) -> None:
    from lmms_eval.__main__ import parse_eval_args

    monkeypatch.setattr(sys, "argv", ["lmms-eval"])
    parser, _ = parse_eval_args()
    known = {action.dest for action in parser._actions} - {"help"}
    assert known - OPTIONS.keys() == set(), "options that this table does not know"
    assert OPTIONS.keys() - known == set(), "options that the harness does not have any more"
