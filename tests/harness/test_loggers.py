"""What reaches the loggers of the harness."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import arguments, results, run

wandb = pytest.importorskip("wandb")


def logged(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of history and summary of the one offline run under a folder, by wandb's own reader."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    history, summary = {}, {}
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        for items, values in ((record.history.item, history), (record.summary.update, summary)):
            values.update({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return history, summary


@pytest.mark.slow
@pytest.mark.parametrize("limit", [6, 3])
def test_wandb_gets_plain_numbers(llava, tmp_path, limit: int) -> None:
    command = [*arguments(llava, tmp_path, "mir_demo"), "--limit", str(limit), "--log_samples"]
    weights_and_biases = ["--wandb_args", "mode=offline,project=x", "--wandb_log_samples"]
    log = run("lmms-eval", *command, *weights_and_biases, cwd=tmp_path, WANDB_SILENT="true")
    assert "Logging to Weights and Biases failed" not in log
    history, summary = logged(tmp_path)
    scores = results(tmp_path)["results"]["mir_demo"]
    for name in ("mir", "mir_published_fast", "mir_stderr"):
        assert f"{name},none" in scores
        value = scores[f"{name},none"]
        if name == "mir_stderr" and limit == 3:  # fewer documents than groups
            assert summary["mir_demo/mir_stderr"] == value == "N/A"
            assert "mir_demo/mir_stderr" not in history
        else:
            assert isinstance(value, float)
            assert history[f"mir_demo/{name}"] == summary[f"mir_demo/{name}"] == value
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/mir_demo_eval_results*.json")
    content = json.loads(table.read_text())
    counts = [row[content["columns"].index("mir")] for row in content["data"]]
    assert len(counts) == limit
    assert all(count["vision_tokens"] == 16 and count["text_tokens"] > 0 for count in counts)
