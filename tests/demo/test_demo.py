"""The demo's three trained models, through the harness."""

import json

import pytest

from mir_task.demo.models import MODELS, write_models
from studies.alignment import data, run
from studies.alignment.train import Arm
from tests.support.evaluate import evaluate, load


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name != "much" else ()) for name in MODELS]
)
def test_the_harness_gives_the_values_of_the_study(tmp_path, name) -> None:
    arm = Arm(seed=0, pairs=data.CONNECTORS.get(name, 0))
    stored = json.loads((run.RUNS / f"{arm.name}.json").read_text())
    checkpoint = {path.name: path for path in write_models(tmp_path)}[name]
    results = evaluate(load(checkpoint), "mir_scenes", "scenes_vqa")["results"]
    assert results["mir_scenes"]["mir,none"] == pytest.approx(stored["mir"]["mir"], abs=1e-4)
    for kind, share in stored["accuracy"]["0"].items():
        metric = "accuracy" if kind == "all" else kind
        # Two words may be as likely as each other but for the last bit.
        assert results["scenes_vqa"][f"{metric},none"] == pytest.approx(share, abs=0.011)
