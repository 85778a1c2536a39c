"""MIR by the number of documents from one set of forwards."""

import json

import pytest
from PIL import Image

from mir_task import MIRError
from mir_task.documents.draw import in_draw_order
from mir_task.harness.samples import Sample, samples
from mir_task.measuring import plan
from tests.support import evaluate

TASK = {"task": "mir_samples", "mir_base": "mir_demo"}
SIZES = (2, 5, 9)


@pytest.fixture
def lm(llava):
    return evaluate.load(llava)


@pytest.fixture(scope="module")
def separate(llava, tmp_path_factory):
    """MIR of the first documents of a draw, by a run of the harness on a task of just these."""
    folder = tmp_path_factory.mktemp("separate")
    rows = evaluate.task(mir_documents=12).dataset["test"]

    def run(draw: int, size: int) -> float:
        chosen = in_draw_order(rows["id"], draw, size)
        lines = [
            {"id": row["id"], "image": row["media"]["path"], "text": row["text"]}
            for row in rows
            if row["id"] in chosen
        ]
        path = folder / f"{draw}-{size}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        task = evaluate.task(
            mir_base="mir_demo",
            mir_media_dataset=str(path),
            mir_text_dataset=None,
            mir_documents=size,
            mir_groups=0,
        )
        results = evaluate.evaluate(evaluate.load(llava), task)
        return results["results"]["mir_test"]["mir,none"]

    return run


def test_samples_are_separate_runs(lm, separate) -> None:
    taken = samples(lambda: lm, TASK, sizes=SIZES, draws=2, documents=12)
    assert taken.passes == 1
    assert set(taken.values) == {Sample(draw, size) for draw in range(2) for size in SIZES}
    for size in SIZES:
        assert taken.values[Sample(1, size)].mir == pytest.approx(separate(1, size), abs=1e-6)
    assert len({result.mir for result in taken.values.values()}) == 6


@pytest.mark.slow
def test_where_not_all_rows_fit_the_documents_run_again(lm) -> None:
    wanted = samples(lambda: lm, TASK, sizes=(2, 40), draws=2, documents=60)
    tokens = next(
        layer.vision_tokens + layer.text_tokens
        for layer in samples(lambda: lm, TASK, sizes=(60,), draws=1, documents=60)
        .values[Sample(0, 60)]
        .layers
    )
    # Rows of one layer, beside the samples that are kept of the others.
    memory = (tokens * 64 * 4 + 2 * 2 * 1024 * 64 * 4 + 1000) / 2**30
    taken = samples(lambda: lm, TASK, sizes=(2, 40), draws=2, documents=60, memory=memory)
    assert taken.passes > 1
    for sample, result in taken.values.items():
        assert result.mir == pytest.approx(wanted.values[sample].mir, abs=1e-9)


def test_the_table_has_mean_and_range(lm) -> None:
    taken = samples(lambda: lm, TASK, sizes=(3, 6), draws=3, documents=6)
    rows = [line.split(" | ") for line in taken.table().splitlines()[2:]]
    assert [row[0] for row in rows] == ["| 3", "| 6"]
    values = [taken.values[Sample(draw, 3)].mir for draw in range(3)]
    assert rows[0][2:4] == [f"{min(values):.4f}", f"{max(values):.4f}"]
    assert rows[1][2] == rows[1][3]  # all six documents, whatever the draw
    written = taken.to_dict()
    assert written["sizes"][0]["mir"] == values
    json.dumps(written, allow_nan=False)


def test_what_does_not_fit_into_memory_is_refused_with_the_way(lm) -> None:
    memory = plan.Shape(64, 4).sums(0) / 2**30
    with pytest.raises(MIRError, match=r"rows of 100 documents do not fit .* raise --memory .* --sizes"):
        samples(lambda: lm, TASK, sizes=(1,), draws=4, documents=100, memory=memory)
    with pytest.raises(MIRError, match="a sample of 9 documents cannot be drawn from 6"):
        samples(lambda: lm, TASK, sizes=(9,), documents=6)


def test_sizes_follow_what_there_is_and_nothing_is_loaded_before(lm) -> None:
    def never() -> None:
        raise AssertionError("loaded")

    with pytest.raises(MIRError, match="mir_samples has 100 documents, and --documents asks for 400"):
        samples(never, TASK, documents=400)
    with pytest.raises(MIRError, match="a sample of 200 documents cannot be drawn from 100: lower the"):
        samples(never, TASK, sizes=(200,))
    with pytest.raises(MIRError, match="is not there"):
        samples(never, {**TASK, "mir_media_dataset": "./nowhere"})
    taken = samples(lambda: lm, TASK, draws=1)
    assert [size for size, _ in taken.by_size()] == [1, 5, 10, 20, 50]
    assert taken.documents == 100


def test_a_sample_is_whole_whatever_the_task_says_of_documents_that_fail(lm, tmp_path) -> None:
    lines = [{"image": f"{n}.png", "text": f"A text of {n}."} for n in range(8)]
    for n in range(8):
        Image.new("RGB", (56, 56), (n, n, n)).save(tmp_path / f"{n}.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {"mir_media_dataset": str(data), "mir_text_dataset": None, "mir_media_id": None}
    keys["mir_on_error"] = "skip"
    with pytest.raises(MIRError, match="the image cannot be read"):
        samples(lambda: lm, {**TASK, **keys}, sizes=(4,), draws=2, documents=8)
