"""Several passes over the documents, through the harness."""

from unittest.mock import ANY

import pytest
import torch

import mir_task.measuring.passes
from mir_task import MIRError, MIRMeter
from mir_task.documents.document import Document
from mir_task.measuring import plan
from mir_task.measuring.passes import measure_together
from mir_task.settings import MeasureSettings
from tests.support import evaluate


@pytest.fixture(scope="module")
def adapter(llava):
    """Makes a fresh adapter: the harness deletes the model of one that has run."""
    return lambda: evaluate.load(llava)


@pytest.fixture
def passes(monkeypatch) -> list[tuple[int, ...]]:
    """Numbers of the layers that each pass over the documents counts."""
    seen: list[tuple[int, ...]] = []
    measure = mir_task.measuring.passes.run_documents

    def watched(reader, documents, meter, layers, *others, **options):
        assert tuple(layers) == meter.numbers
        seen.append(meter.numbers)
        return measure(reader, documents, meter, layers, *others, **options)

    monkeypatch.setattr("mir_task.measuring.passes.run_documents", watched)
    return seen


def measured(adapter, tmp_path, **changes):
    output = tmp_path / ("-".join(f"{key}={value}" for key, value in changes.items()) or "plain")
    task = evaluate.task(**changes)
    scores = evaluate.evaluate(adapter(), task, output=output)["results"]["mir_test"]
    return scores, evaluate.report(output)


SHAPE = plan.Shape(64, 4)


def room_for_rows(report, kept: int) -> float:
    """GiB for the rows of some of the three layers and the decoder's input in the first pass."""
    tokens = sum(document["vision_tokens"] + document["text_tokens"] for document in report["documents"])
    return (kept * SHAPE.rows(tokens) + (4 - kept) * SHAPE.samples()) / 2**30


def test_layers_whose_rows_do_not_fit_have_theirs_in_later_passes(adapter, tmp_path, passes) -> None:
    scores, report = measured(adapter, tmp_path, mir_documents=30)
    room = room_for_rows(report, 1)
    again, in_passes = measured(adapter, tmp_path, mir_documents=30, mir_host_memory=room)
    assert again == scores
    assert in_passes["layers"] == report["layers"]
    assert in_passes["input_layer"] == report["input_layer"]
    assert report["plan"]["passes"] == [{"layers": [0, 1, 2, 3], "keeps": "rows", "gib": {"cpu": ANY}}]
    assert [(each["layers"], each["keeps"]) for each in in_passes["plan"]["passes"]] == [
        ([0], "rows"),
        ([1, 2], "rows"),
        ([3], "rows"),
    ]
    assert in_passes["plan"]["room_gib"] == {"cpu": room}
    assert in_passes["plan"]["places"] == dict.fromkeys("0123", "cpu")
    taken = [each["gib"]["cpu"] for each in in_passes["plan"]["passes"]]
    assert max(taken) <= round(room, 3) + 1e-3  # they are rounded
    (note,) = in_passes["warnings"]
    assert "the rows of 4 layers, the decoder's input among them, do not fit into" in note
    assert "so the documents run 3 times, keeping rows of up to 2 layers each" in note
    assert passes == [(0, 1, 2, 3), (0, 1, 2, 3), (1, 2), (3,)]
    assert [d["id"] for d in in_passes["documents"]] == [d["id"] for d in report["documents"]]


@pytest.mark.parametrize("outliers", ["replace", pytest.param("drop", marks=pytest.mark.slow)])
def test_where_no_layers_rows_fit_they_are_added_up(adapter, tmp_path, outliers: str) -> None:
    keys = {"mir_documents": 100, "mir_outliers": outliers}
    scores, report = measured(adapter, tmp_path, **keys)
    room = 2 * SHAPE.sums(3) / 2**30
    assert room < room_for_rows(report, 1)
    again, in_passes = measured(adapter, tmp_path, mir_host_memory=room, **keys)
    assert [(each["layers"], each["keeps"]) for each in in_passes["plan"]["passes"]] == [
        ([], "rows"),
        ([0, 1], "sums"),
        ([2, 3], "sums"),
    ]
    assert again["mir,none"] == pytest.approx(
        scores["mir,none"], abs=1e-7 if outliers == "drop" else 1e-4
    )
    assert again["mir_stderr,none"] == pytest.approx(scores["mir_stderr,none"], rel=0.02)
    pairs = zip(in_passes["layers"], report["layers"], strict=True)
    for layer, wanted in ((in_passes["input_layer"], report["input_layer"]), *pairs):
        assert layer["frechet"] == pytest.approx(wanted["frechet"], rel=1e-4)
        assert layer["vision_outliers"] == wanted["vision_outliers"]
        assert layer["text_outliers"] == wanted["text_outliers"]


def test_no_standard_error_where_its_groups_do_not_fit(adapter, tmp_path) -> None:
    room = 1.1 * SHAPE.sums(0) / 2**30
    scores, report = measured(adapter, tmp_path, mir_groups=None, mir_host_memory=room)
    assert scores["mir_stderr,none"] == "N/A"
    assert any("mir_stderr is N/A: with its 5 groups of documents" in w for w in report["warnings"])


def test_no_standard_error_with_fewer_documents_than_groups(adapter, tmp_path) -> None:
    scores, report = measured(adapter, tmp_path, mir_documents=2)
    assert scores["mir_stderr,none"] == "N/A"
    assert (
        "mir_stderr is N/A: 1 of its 3 groups of documents are empty; set mir_groups"
        in report["warnings"]
    )


def test_no_room_at_all_is_one_message(adapter) -> None:
    with pytest.raises(MIRError, match=r"one decoder layer of 64 dimensions take .* raise mir_host_mem"):
        evaluate.evaluate(adapter(), evaluate.task(mir_host_memory=1e-6))


def test_a_document_that_fails_in_a_later_pass_counts_in_none(adapter, tmp_path, monkeypatch) -> None:
    wanted, _ = measured(adapter, tmp_path, mir_documents=29)
    _, report = measured(adapter, tmp_path, mir_documents=30)
    # The last document's rows are not finite in layer 3 alone, from the second pass on.
    identifier = evaluate.task(mir_documents=30).test_docs()[29]["id"]
    update = MIRMeter.update

    def broken(meter, document_id, vision_rows, text_rows, **kwargs):
        if document_id == identifier and meter.numbers == (3,):
            text_rows = [torch.full_like(rows, torch.nan) for rows in text_rows]
        update(meter, document_id, vision_rows, text_rows, **kwargs)

    monkeypatch.setattr(MIRMeter, "update", broken)
    keys = {"mir_documents": 30, "mir_host_memory": room_for_rows(report, 1), "mir_on_error": "skip"}
    scores, report = measured(adapter, tmp_path, **keys)
    assert list(report["skipped"]) == [identifier]
    assert scores["mir,none"] == pytest.approx(wanted["mir,none"], abs=1e-12)
    # Nor in anything else that is said of the documents.
    assert len(report["documents"]) == 29
    assert identifier not in [document["id"] for document in report["documents"]]
    assert sum(d["text_tokens"] for d in report["documents"]) == report["layers"][0]["text_tokens"]


def test_a_model_that_gives_other_tokens_in_a_later_pass_is_refused(
    adapter, tmp_path, monkeypatch
) -> None:
    update = MIRMeter.update

    def fewer(meter, document_id, vision_rows, text_rows, **kwargs):
        if meter.known:
            text_rows = [rows[:-1] for rows in text_rows]
        update(meter, document_id, vision_rows, text_rows, **kwargs)

    monkeypatch.setattr(MIRMeter, "update", fewer)
    with pytest.raises(MIRError, match="text tokens in the second pass .* the same tokens of each"):
        measured(adapter, tmp_path, mir_documents=100, mir_host_memory=2 * SHAPE.sums(3) / 2**30)


def test_layers_offloaded_by_accelerate_are_measured(llava, adapter, tmp_path) -> None:
    from accelerate import disk_offload

    wanted, _ = measured(adapter, tmp_path)
    offloaded = evaluate.load(llava)
    disk_offload(offloaded.model, str(tmp_path / "offload"), execution_device=torch.device("cpu"))
    layer = offloaded.model.model.language_model.layers[1]
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    scores, _ = measured(lambda: offloaded, tmp_path, mir_seed=0)
    assert scores["mir,none"] == pytest.approx(wanted["mir,none"], abs=1e-9)


def test_a_document_counts_once(monkeypatch) -> None:
    """Also where a launcher gave all documents to every process, which would pass for more of them."""
    document = Document("a", 0, "text", lambda row: [])
    shares = [["a", "b"], ["b", "c"]]
    monkeypatch.setattr("mir_task.measuring.passes.all_gather", lambda own: shares)
    with pytest.raises(MIRError, match=r"1 document\(s\) of 3 .* first 'b' \(2 times, 2 process"):
        measure_together(lambda: pytest.fail("read"), [document], MeasureSettings(), "mir")
