"""Every image-text architecture that transformers knows here: measured, or refused rightly."""

import pytest

from tests.architectures import Small, architectures, names
from tests.architectures.outcomes import outcome
from tests.architectures.table import NOT_TRIED

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
    if row.model_class is None:
        pytest.skip(f"transformers has no {row.name} here")
    found = outcome(row)
    assert found["status"] == ("refused" if row.refused else "measured"), found


def test_no_architecture_goes_unnoticed() -> None:
    """A name that a newer transformers brings is to be measured, refused or listed as not tried."""
    new = names().keys() - {row.name for row in architectures()} - NOT_TRIED.keys()
    assert not new
