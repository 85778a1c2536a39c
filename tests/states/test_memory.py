"""Stored hidden states within the memory that is planned for them."""

import json
import sys
from pathlib import Path

import pytest
import torch

from mir_task import DocumentStates, write_states
from mir_task.measuring.plan import Shape
from mir_task.states.measure import measure_states
from tests.support.command import run

SHAPE = Shape(64, 4)
TOKENS = 20 * 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """20 documents of 2000 tokens, 3 layers and the input: 41 MB."""
    torch.manual_seed(0)
    ids = torch.arange(100, 2100)
    ids[:1200] = 7
    documents = (
        DocumentStates(f"d{n}", ids, {k: torch.randn(2000, 64) for k in range(4)}) for n in range(20)
    )
    path = tmp_path_factory.mktemp("memory") / "states"
    return write_states(path, documents, model="m", last_layer="after_norm", vision_token_ids=[7]).parent


def plan_and_result(folder: Path, **settings):
    measurement = measure_states(folder, bars=False, **settings).measurement
    passes = measurement.plan["passes"]
    return passes, [(each["layers"], each["keeps"]) for each in passes], measurement.result


def test_layers_that_do_not_fit_come_in_later_passes(folder) -> None:
    _, plan, whole = plan_and_result(folder)
    assert plan == [([0, 1, 2, 3], "rows")]
    room = (2 * SHAPE.rows(TOKENS) + 2 * SHAPE.samples()) / 2**30
    passes, plan, parts = plan_and_result(folder, host_memory=room)
    assert plan == [([0, 1], "rows"), ([2, 3], "rows")]
    assert all(each["gib"]["cpu"] <= round(room, 3) + 1e-3 for each in passes)
    assert parts == whole


def test_where_no_layers_rows_fit_they_are_added_up(folder) -> None:
    whole = plan_and_result(folder)[2]
    room = 2 * SHAPE.sums(5) / 2**30
    assert room < SHAPE.rows(TOKENS) / 2**30
    _, plan, parts = plan_and_result(folder, host_memory=room)
    assert plan == [([], "rows"), ([0, 1], "sums"), ([2, 3], "sums")]
    assert parts.mir == pytest.approx(whole.mir, abs=1e-4)


PROGRAM = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from mir_task.states.measure import measure_states
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
measure_states(sys.argv[1], bars=False)  # imports, and what the first computation takes
before = peak()
kept = measure_states(sys.argv[2], host_memory=float(sys.argv[3]), groups=0, bars=False)
print(json.dumps({"grown": peak() - before, "passes": len(kept.measurement.plan["passes"])}))
"""


@pytest.mark.slow
def test_the_process_stays_within_it(folder, tmp_path) -> None:
    """Of 524 MB of hidden states, where 130 MB are planned for."""
    torch.manual_seed(0)
    ids = torch.arange(100, 1124)
    ids[:600] = 7
    documents = (
        DocumentStates(f"d{n}", ids, {k: torch.randn(1024, 256) for k in range(1, 11)})
        for n in range(50)
    )
    path = write_states(
        tmp_path / "w", documents, model="m", last_layer="after_norm", vision_token_ids=[7]
    )
    room = 0.125
    printed = run(sys.executable, "-c", PROGRAM, str(folder), str(path.parent), str(room), cwd=tmp_path)
    found = json.loads(printed.splitlines()[-1])
    assert found["passes"] > 1
    # Beside what is planned: a document's file, the computation of a layer, the norms of all tokens.
    assert found["grown"] < room * 2**30 + 60e6, found
