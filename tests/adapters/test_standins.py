"""Families of adapters whose code cannot be had here, each by a stand-in, through the harness."""

import os
from pathlib import Path

import pytest

from tests.standins.families import FAMILIES
from tests.standins.measure import measure
from tests.support import evaluate
from tests.support.command import results, run


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, tmp_path) -> None:
    measured = measure(family, tmp_path)
    documents = measured.report["documents"]
    assert len(documents) == 6
    assert sorted((d["vision_tokens"], d["text_tokens"]) for d in documents) == measured.tokens
    assert measured.report["mir"] == pytest.approx(measured.wanted, abs=1e-4)
    # Nothing had to be run a second time, one document after the other.
    assert not any("one at a time" in warning for warning in measured.report["warnings"])
    texts = evaluate.task().test_docs()["text"]
    for document, text in zip(documents, texts, strict=True):
        assert text in document["text_span"]
        assert not document["characters_cut"]


@pytest.mark.slow
def test_a_registered_stand_in_by_the_command(tmp_path) -> None:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests" / "standins" / "installed")])
    command = ["lmms-eval", "--model", "standin_chat_method", "--tasks", "mir_demo"]
    run(*command, "--output_path", str(tmp_path), cwd=tmp_path, PYTHONPATH=path)
    assert isinstance(results(tmp_path)["results"]["mir_demo"]["mir,none"], float)
