"""Every adapter of `tests.zoo` through the harness."""

import pytest

from tests import zoo


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in zoo.rows()])
def test_row(row: zoo.Row, checkpoints, tmp_path, monkeypatch) -> None:
    if row.refused or row.broken:
        with pytest.raises(Exception, match=row.refused or row.broken):
            zoo.measure(row, zoo.make(row, checkpoints), tmp_path, monkeypatch)
        return
    measured = zoo.measure(row, zoo.make(row, checkpoints), tmp_path, monkeypatch)
    documents = measured.report["documents"]
    assert len(documents) == 6
    found = [document["vision_tokens"] for document in documents]
    assert found == measured.expected
    assert found == measured.counts
    assert measured.report["mir"] == pytest.approx(measured.wanted, abs=1e-4)
    assert {document["vision_rule"] for document in documents} == {row.rule}
    assert not any(document["characters_cut"] for document in documents)
