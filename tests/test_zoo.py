"""Every adapter of `tests.zoo` through the harness."""

import json

import pytest
import transformers

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


def test_the_table_of_adapters_is_of_these_rows() -> None:
    from tests.zoo.__main__ import RESULTS, table

    results = json.loads(RESULTS.read_text())
    assert RESULTS.with_suffix(".md").read_text() == table(results)
    if (rows := results.get(transformers.__version__)) is None:
        pytest.skip(f"results/adapters.json has no rows of transformers {transformers.__version__}")
    status = {f"{row['adapter']}-{row['kind']}-{row['checkpoint']}": row["status"] for row in rows}
    expected = {
        row.name: ("refused" if row.refused else "broken in the harness" if row.broken else "measured")
        for row in zoo.rows()
        if hasattr(transformers, row.model_class)
    }
    assert {key: value for key, value in status.items() if value != "absent"} == expected
