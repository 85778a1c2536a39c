"""Every adapter of `tests.adapters` through the harness."""

import json

import pytest
import transformers

from tests import adapters
from tests.adapters import starts
from tests.standins.families import FAMILIES


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in adapters.rows()])
def test_row(row: adapters.Row, checkpoints, tmp_path, monkeypatch) -> None:
    checkpoint = adapters.make(row, checkpoints)
    for argument, error in row.needs.items():
        with pytest.raises(Exception, match=error):
            adapters.load_row(row, checkpoint, argument)
    if row.refused or row.broken:
        with pytest.raises(Exception, match=row.refused or row.broken):
            adapters.measure(row, checkpoint, tmp_path, monkeypatch)
        return
    measured = adapters.measure(row, checkpoint, tmp_path, monkeypatch)
    documents = measured.report["documents"]
    assert len(documents) == 6
    found = [document["vision_tokens"] for document in documents]
    assert found == measured.expected
    assert found == measured.counts
    assert measured.report["mir"] == pytest.approx(measured.wanted, abs=1e-4)
    assert {document["vision_rule"] for document in documents} == {row.rule}
    assert not any(document["characters_cut"] for document in documents)
    assert measured.report["settings"]["mir_modality"] == row.modality


def test_the_page_is_of_these_rows_and_of_the_registered_adapters() -> None:
    from tests.adapters.__main__ import RESULTS, page

    results = json.loads(RESULTS.read_text())
    assert RESULTS.with_suffix(".md").read_text() == page(results)
    if transformers.__version__ not in results:
        pytest.skip(f"the page is of transformers {', '.join(results)}")
    found = results[transformers.__version__]
    parts = ("adapter", "kind", "checkpoint", "modality")
    status = {"-".join(row[part] for part in parts): row["status"] for row in found["adapters"]}
    rows = {row.name: row for row in adapters.rows()}
    assert status.keys() == rows.keys()
    for name, row in rows.items():
        expected = {"absent"} if row.found_class is None else {row.status, "not tried"}
        assert status[name] in expected

    standing = {family["name"]: family["status"] for family in found["standins"]}
    assert standing == dict.fromkeys(FAMILIES, "measured")

    names = [*found["starts"]["loads a checkpoint"], *found["starts"]["holds no model"]]
    names += [failure["adapter"] for failure in found["starts"]["cannot start"]]
    assert sorted(names) == sorted(starts.names())
    causes = {
        starts.cause(failure) for each in results.values() for failure in each["starts"]["cannot start"]
    }
    assert causes == set(starts.CAUSES)
