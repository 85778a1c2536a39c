"""What the demo says at its end, and that it is never silent."""

import itertools
import subprocess
import time
from pathlib import Path

import pytest

from mir_task.demo.run import guide
from mir_task.progress import last_line, telling

ROOT = Path(__file__).parents[2]


def board(values: dict[str, tuple[float, float, float]]) -> dict:
    rows = [
        {
            "model": f"out/{name}",
            "mir": mir,
            "caption_gain": gain,
            "benchmarks": {"scenes_vqa accuracy": accuracy},
        }
        for name, (mir, gain, accuracy) in values.items()
    ]
    return {"groups": [{"rows": sorted(rows, key=lambda row: row["mir"])}]}


AS_MEASURED = {
    "untrained": (0.5500, 0.0041, 0.2350),
    "little": (0.6274, 0.1445, 0.2564),
    "much": (0.8316, 2.6562, 0.4843),
}


def test_three_lines_say_where_to_look_why_and_what_next(tmp_path) -> None:
    look, why, then = guide(board(AS_MEASURED), tmp_path / "board.html")
    assert str(tmp_path / "board.html") in look
    assert "Rank 1 is 'untrained'" in why
    assert "by accuracy it is number 3 of 3: MIR orders these models otherwise than" in why
    assert "caption gain (0.0041, 0.1445, 2.6562; higher is better) as their accuracy does." in why
    assert "mir-task check" in then
    assert "mir-task tasks" in then


def test_what_is_said_follows_the_values(tmp_path) -> None:
    turned = {name: (-mir, -gain, of) for name, (mir, gain, of) in AS_MEASURED.items()}
    why = guide(board(turned), tmp_path / "board.html")[1]
    assert "Rank 1 is 'much'" in why
    assert "number 1 of 3: MIR orders these models as their accuracy does, and caption gain" in why
    assert why.endswith("higher is better) otherwise than their accuracy.")


def test_a_long_step_is_told_every_few_seconds(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("mir_task.progress.EVERY", 0.2)
    log = tmp_path / "log"
    log.write_bytes(b"first\n\x1b[32m2026 | INFO | x:y:1 - loading\x1b[0m\n  1%|x\r  9%|xx\r\n")
    assert last_line(log) == "9%|xx"
    with telling("harness", lambda: last_line(log)):
        time.sleep(0.7)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "harness ..."
    assert len(lines) >= 3
    assert lines[1] == "harness: 0 s, 9%|xx"


@pytest.mark.parametrize(("code", "seconds"), [(0, 9), (3, 1)])
def test_make_says_what_pip_does_and_all_of_it_where_it_fails(tmp_path, code, seconds) -> None:
    work = f"for n in 1 2 3; do echo step $n of it; sleep {seconds / 3}; done; exit {code}"
    command = ["sh", ROOT / "tools" / "tell.sh", tmp_path / "log", "sh", "-c", work]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    times, lines = [started], []
    for line in process.stdout:
        times.append(time.monotonic())
        lines.append(line.strip())
    assert process.wait() == code
    if code:
        assert [f"step {n} of it" for n in (1, 2, 3)] == lines[-3:]
    else:
        assert max(b - a for a, b in itertools.pairwise(times)) < 5.5
        assert any("step 2 of it" in line for line in lines)
