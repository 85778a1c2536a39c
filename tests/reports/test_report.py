"""Files of a measurement, whole or not at all, each tried on its own."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from mir_task import MIRError
from mir_task.files import write_json
from mir_task.reports import report
from tests.support import runs

ROWS = {1: (np.ones((3, 2)), np.zeros((3, 2)))}


def described(folder: Path) -> dict:
    return json.loads(runs.side_file(folder, "org/a", runs.result(3.0)).read_text())


@pytest.mark.parametrize(
    ("broken", "left"), [("write_json", ["png", "npz"]), ("plot.draw_layers", ["json", "npz"])]
)
def test_a_file_that_fails_is_named_and_the_others_are_written(
    tmp_path, monkeypatch, broken, left
) -> None:
    def full(*arguments, **keywords):
        raise OSError("no space left on device")

    monkeypatch.setattr(f"mir_task.reports.report.{broken}", full)
    stem = tmp_path / "out" / "d_mir_x"
    with pytest.raises(MIRError, match=r"d_mir_x\.\w+ could not be written .OSError: no space left"):
        report.write_report(stem, runs.result(3.0), described(tmp_path / "other"), ROWS)
    assert sorted(path.name for path in stem.parent.iterdir()) == sorted(f"d_mir_x.{e}" for e in left)


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path) -> None:
    path = write_json(tmp_path / "a.json", {"n": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"n": float("nan")})
    assert json.loads(path.read_text()) == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]


def _write(path: str, number: int) -> None:
    for _ in range(50):
        write_json(Path(path), {"numbers": [number] * 5000})


def test_processes_that_write_one_file_do_not_mix(tmp_path) -> None:
    path = tmp_path / "a.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(path), n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    numbers = json.loads(path.read_text())["numbers"]
    assert len(numbers) == 5000
    assert len(set(numbers)) == 1
    assert list(tmp_path.iterdir()) == [path]
