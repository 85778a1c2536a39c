"""`mir_task.measure` against the harness, and what it leaves of a model."""

import pytest
from PIL import Image

import mir_task
from tests import harness, zoo

CHAT = [
    row
    for row in zoo.rows()
    if row.kind == "chat" and row.status == "measured" and row.modality == "image"
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def pairs_of(task) -> list[tuple[Image.Image, str]]:
    return [(task.doc_to_visual(row)[0], row["text"]) for row in task.dataset["test"]]


def load(row: zoo.Row, checkpoint):
    from transformers import AutoProcessor

    model = row.found_class.from_pretrained(checkpoint, dtype=row.dtype)
    return model, AutoProcessor.from_pretrained(checkpoint)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in CHAT])
def test_the_value_of_the_harness(row: zoo.Row, checkpoints, tmp_path) -> None:
    checkpoint = zoo.make(row, checkpoints)
    task = harness.task(**row.task(checkpoint.parent))
    harness.evaluate(zoo.load_row(row, checkpoint), task, output=tmp_path)
    report = harness.report(tmp_path)
    result = mir_task.measure(*load(row, checkpoint), pairs_of(task), groups=3, bars=False)
    assert result.mir == pytest.approx(report["mir"], abs=1e-5)
    assert result.mir_stderr == pytest.approx(report["mir_stderr"], abs=1e-5)
