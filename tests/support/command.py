"""Commands in processes of their own, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path, code: int = 0, **environment: str) -> str:
    """Output of a command, which is to exit with that code."""
    finished = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == code, finished.stdout
    return finished.stdout


def arguments(checkpoint: Path, output: Path, tasks: str) -> list[str]:
    model = f"pretrained={checkpoint},device=cpu,device_map=cpu"
    return [
        *("--tasks", tasks, "--model", "llava_hf", "--model_args", model),
        *("--output_path", str(output)),
    ]


def results(output: Path) -> dict[str, Any]:
    (path,) = output.rglob("*_results.json")
    return json.loads(path.read_text())


def torchrun(processes: int, *command: str, cwd: Path, code: int = 0, **environment: str) -> str:
    """Output of a command in several processes, one thread each."""
    launch = ["torchrun", "--standalone", "--nproc_per_node", str(processes)]
    return run(*launch, *command, cwd=cwd, code=code, OMP_NUM_THREADS="1", **environment)
