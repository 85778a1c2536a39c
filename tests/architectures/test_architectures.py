"""Every image-text architecture that transformers knows here: measured, or refused rightly."""

import json
from pathlib import Path

import pytest

from tests.architectures import Small, architectures, names
from tests.architectures.outcomes import outcome
from tests.architectures.table import NOT_TRIED, page

QUICK = {"chameleon", "git", "kosmos-2", "llava", "ovis2", "qwen2_5_vl", "qwen4_exp", "udop"}
"""One of each kind."""


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.key, marks=[] if row.name in QUICK else pytest.mark.slow)
        for row in architectures()
    ],
)
def test_measured_as_independently_or_refused_for_the_right_reason(row: Small) -> None:
    if row.hindrance:
        pytest.skip(row.hindrance)
    found = outcome(row)
    assert found["status"] == ("refused" if row.refused else "measured"), found


def test_no_architecture_goes_unnoticed() -> None:
    """A name that a newer transformers brings is to be measured, refused or listed as not tried."""
    new = names().keys() - {row.name for row in architectures()} - NOT_TRIED.keys()
    assert not new


def test_the_page_is_of_its_outcomes_and_none_failed() -> None:
    file = Path(__file__).parents[2] / "results" / "architectures.json"
    results = json.loads(file.read_text("utf-8"))
    assert file.with_suffix(".md").read_text("utf-8") == page(results)
    statuses = {found["status"] for outcomes in results.values() for found in outcomes}
    assert statuses <= {"measured", "refused", "not tried"}
