"""Files that earlier versions wrote still read, in every command that reads files.

`tests/data/history` holds what `lmms-eval --tasks mir_demo,demo_vqa --limit 4` left of one model, by the
first version and those that added to the files: in order, the newest last.
"""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mir_task.commands.cli import main
from tests.conftest import DATA

VERSIONS = sorted(path for path in (DATA / "history").iterdir() if path.is_dir())


def printed(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "left out" not in done.output
    return done.output


def side_file(folder: Path) -> Path:
    (path,) = folder.glob("*_mir_mir_demo.json")
    return path


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_each_version_reads(folder: Path, tmp_path) -> None:
    mir = json.loads(side_file(folder).read_text())["mir"]
    board = printed("leaderboard", folder, "--json", tmp_path / "board.json")
    assert f"| {mir:.4f} |" in board
    assert "demo_vqa exact_match" in board
    (group,) = json.loads((tmp_path / "board.json").read_text())["groups"]
    assert group["ground"]["documents"] == 4
    assert group["ground"]["layers"] == 2
    if folder.name == "1":  # it did not note how many dimensions there were
        return
    assert f"{mir:.4f}" in printed("compare", folder, side_file(VERSIONS[-1]))
    printed("plot", side_file(folder), "--to", tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_all_versions_are_ranked_together(tmp_path) -> None:
    """They measured the same model on the same documents, and found the same."""
    printed("leaderboard", DATA / "history", "--all-runs", "--json", tmp_path / "board.json")
    groups = json.loads((tmp_path / "board.json").read_text())["groups"]
    rows = [row for group in groups for row in group["rows"]]
    assert len(rows) == len(VERSIONS) >= 7
    assert max(row["mir"] for row in rows) - min(row["mir"] for row in rows) < 1e-3
    assert [len(group["rows"]) for group in groups] == [len(VERSIONS) - 1, 1]
    assert groups[1]["apart"] == "not ranked with group 1: unknown dimensions, not 32 dimensions"
