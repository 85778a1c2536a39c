"""Several passes over the documents, through the harness."""

import pytest
import torch

import mir_task.passes
from mir_task import MIRError, budget, moments
from tests import harness


@pytest.fixture(scope="module")
def adapter(llava):
    """Makes a fresh adapter: the harness deletes the model of one that has run."""
    return lambda: harness.load(llava)


@pytest.fixture
def passes(monkeypatch) -> list[tuple[int, ...]]:
    """Numbers of the layers that each pass over the documents counts."""
    seen: list[tuple[int, ...]] = []
    measure = mir_task.passes.measure

    def watched(reader, documents, meter, layers, *others, **options):
        assert tuple(layers) == meter.numbers
        seen.append(meter.numbers)
        return measure(reader, documents, meter, layers, *others, **options)

    monkeypatch.setattr("mir_task.passes.measure", watched)
    return seen


def measured(adapter, tmp_path, **changes):
    output = tmp_path / "-".join(map(str, changes)) if changes else tmp_path / "plain"
    task = harness.task(**changes)
    scores = harness.evaluate(adapter(), task, output=output)["results"]["mir_test"]
    return scores, harness.report(output)


def room_for(layers: int, groups: int) -> float:
    return budget.Shape(64, 4).gib(layers, groups)


def test_groups_of_layers_give_the_figures_of_one_pass(adapter, tmp_path, passes) -> None:
    scores, report = measured(adapter, tmp_path)
    again, in_groups = measured(adapter, tmp_path, mir_groups=3, mir_host_memory=room_for(1, 3))
    assert again == scores
    assert in_groups["layers"] == report["layers"]
    (note,) = in_groups["warnings"]
    assert "so the documents run 3 times, for up to 1 layers each" in note
    assert passes == [(1, 2, 3), (1,), (2,), (3,)]
    assert [d["id"] for d in in_groups["documents"]] == [d["id"] for d in report["documents"]]


def test_no_standard_error_where_its_groups_do_not_fit(adapter, tmp_path) -> None:
    scores, report = measured(adapter, tmp_path, mir_groups=None, mir_host_memory=room_for(3, 0))
    assert scores["mir_stderr,none"] == "N/A"
    assert any("mir_stderr is N/A: its 5 groups of documents take" in w for w in report["warnings"])


def test_no_standard_error_with_fewer_documents_than_groups(adapter, tmp_path) -> None:
    scores, report = measured(adapter, tmp_path, mir_documents=2)
    assert scores["mir_stderr,none"] == "N/A"
    assert "mir_stderr is N/A: fewer documents than its 3 groups; set mir_groups" in report["warnings"]


def test_no_room_at_all_is_one_message(adapter) -> None:
    with pytest.raises(MIRError, match=r"one decoder layer of 64 dimensions take .* raise mir_host_mem"):
        harness.evaluate(adapter(), harness.task(mir_host_memory=1e-6))


def test_late_outliers_have_their_layers_run_again(adapter, tmp_path, monkeypatch, passes) -> None:
    scores, report = measured(adapter, tmp_path, mir_documents=30)
    # Rows are folded in early, and whatever is beyond one standard deviation is taken for an outlier.
    monkeypatch.setattr(moments, "_default_capacity", lambda size, itemsize: 80)
    monkeypatch.setattr(moments, "_BANDS", ((1.0, 1.0),))
    again, folded = measured(adapter, tmp_path, mir_documents=30, mir_seed=0)
    assert passes[:2] == [(1, 2, 3)] * 2
    assert len(passes) == 3
    assert set(passes[2]) <= {1, 2, 3}
    assert folded["late_tokens"] == 0
    for layer, wanted in zip(folded["layers"], report["layers"], strict=True):
        assert layer["vision_outliers"] == wanted["vision_outliers"]
        assert layer["text_outliers"] == wanted["text_outliers"]
    assert again["mir,none"] == pytest.approx(scores["mir,none"], abs=1e-3)


def test_a_document_that_fails_in_a_later_pass_counts_in_none(adapter, tmp_path, monkeypatch) -> None:
    wanted, _ = measured(adapter, tmp_path, mir_documents=5)
    # The sixth document's rows are not finite in layer 3 alone.
    identifier = harness.task().test_docs()[5]["id"]
    update = moments_update()

    def broken(meter, document_id, vision_rows, text_rows, **kwargs):
        if document_id == identifier and meter.numbers == (3,):
            text_rows = [torch.full_like(rows, torch.nan) for rows in text_rows]
        update(meter, document_id, vision_rows, text_rows, **kwargs)

    monkeypatch.setattr("mir_task.meter.MIRMeter.update", broken)
    keys = {"mir_groups": 3, "mir_host_memory": room_for(1, 3), "mir_on_error": "skip"}
    scores, report = measured(adapter, tmp_path, **keys)
    assert list(report["skipped"]) == [identifier]
    assert scores["mir,none"] == pytest.approx(wanted["mir,none"], abs=1e-12)


def moments_update():
    from mir_task import MIRMeter

    return MIRMeter.update


def test_layers_offloaded_by_accelerate_are_measured(llava, adapter, tmp_path) -> None:
    from accelerate import disk_offload

    wanted, _ = measured(adapter, tmp_path)
    offloaded = harness.load(llava)
    disk_offload(offloaded.model, str(tmp_path / "offload"), execution_device=torch.device("cpu"))
    layer = offloaded.model.model.language_model.layers[1]
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    scores, _ = measured(lambda: offloaded, tmp_path, mir_seed=0)
    assert scores["mir,none"] == pytest.approx(wanted["mir,none"], abs=1e-9)
