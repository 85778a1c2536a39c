import os

# Before anything imports the harness or the hub client.
os.environ["HF_HUB_OFFLINE"] = "1"
# Small models are slower on several threads, and by far when something else runs beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent / "data"
# An installed package as the harness sees it: metadata with an entry point.
sys.path.append(str(Path(__file__).parent / "standins" / "installed"))


UNAVOIDABLE = (
    "^no GPU$",
    "^no chromium on the PATH$",
    "^no small disk can be mounted here$",
    "has no .* here$",  # a class that this release of transformers does not have
    "transformers 4",  # what differs between the two releases
    "^the page is of transformers",
    "^STUDY_DATA names no folder",  # real weights and pictures: hundreds of megabytes, fetched by hand
)
"""Reasons to skip that no package installed by `make` would take away."""
skipped: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-skips", action="store_true", help="fail on skips that can be avoided")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        skipped[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        skipped[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):  # its reports go to the process that started it
        return
    avoidable = [r for r in skipped if not any(re.search(u, r, re.IGNORECASE) for u in UNAVOIDABLE)]
    if avoidable and session.config.getoption("--strict-skips") and not session.exitstatus:
        sys.stderr.write(f"\nskips that can be avoided: {avoidable}\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Oracle:
    """Features of one oracle file and what float64 arithmetic and the published code make of them."""

    def __init__(self, name: str) -> None:
        arrays = np.load(DATA / "oracle" / f"{name}.npz")
        self.name = name
        self.vision = torch.from_numpy(arrays["vision"])
        self.text = torch.from_numpy(arrays["text"])
        self.expected = json.loads((DATA / "oracle" / "expected.json").read_text())[name]


@pytest.fixture(params=["full_rank", "rank_deficient", "aligned"])
def oracle(request: pytest.FixtureRequest) -> Oracle:
    return Oracle(request.param)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaVA checkpoint: 3 decoder layers of 64 dimensions, 16 vision tokens an image."""
    from mir_task.demo.checkpoint import make_llava

    folder = tmp_path_factory.mktemp("checkpoints") / "llava"
    return make_llava(folder, hidden_size=64, layers=3, image_size=56)


@pytest.fixture(scope="session")
def llama_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.adapters.llama_vision import llama_vision

    return llama_vision(tmp_path_factory.mktemp("checkpoints") / "llama_vision")
