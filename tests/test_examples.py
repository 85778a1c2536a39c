"""The examples, as a reader runs them."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.command import run

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_measure_checkpoint(llava, tmp_path) -> None:
    printed = run(sys.executable, str(EXAMPLES / "measure_checkpoint.py"), str(llava), cwd=tmp_path)
    assert re.search(r"^MIR 0\.\d{4} ± 0\.\d{4}$", printed, re.MULTILINE)
    assert len(re.findall(r"^layer \d: ", printed, re.MULTILINE)) == 3


def test_write_states(llava, tmp_path) -> None:
    """The value is that of the other example."""
    script, folder = str(EXAMPLES / "write_states.py"), str(tmp_path / "states")
    printed = run(sys.executable, script, str(llava), folder, cwd=tmp_path)
    assert printed.strip().endswith("manifest.json")
    measured = run(sys.executable, str(EXAMPLES / "measure_checkpoint.py"), str(llava), cwd=tmp_path)
    value = re.search(r"^MIR (.*)$", measured, re.MULTILINE)[1]
    assert f"demo_pairs: MIR {value}, published fast" in run("mir-task", "states", folder, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--moca"]])
def test_train_connector(tmp_path, options) -> None:
    command = [sys.executable, str(EXAMPLES / "train_connector.py"), *options]
    printed = run(*command, cwd=tmp_path)
    before, after = (
        float(value) for value in re.findall(r"^MIR \w+ training +(\S+)", printed, re.MULTILINE)
    )
    assert after != before
    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", printed)]
    assert losses[-1] < losses[0]


def test_benchmarks_and_studies_import() -> None:
    """They run rarely; names that have moved are found here."""
    root = EXAMPLES.parent
    modules = [
        f"{'.'.join(path.relative_to(root).parent.parts)}.{path.stem}"
        for folder in ("benchmarks", "studies/alignment")
        for path in sorted((root / folder).glob("*.py"))
        if path.stem != "__init__"
    ]
    code = f"import importlib; [importlib.import_module(name) for name in {modules}]; print('all')"
    assert run(sys.executable, "-c", code, cwd=root).strip().endswith("all")
