"""How long `mir-task leaderboard` takes over 1,000 runs: `python -m benchmarks.leaderboard [runs]`.

Each run is a file of the harness with three benchmarks and a side file of 100 documents with texts of
800 characters and 32 layers; the command writes all of its outputs, in a process of its own.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import runs


def main() -> None:
    """Print the sizes and the seconds of three rounds."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    noise = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(count):
            mir = 3 + noise.gauss(0, 0.3)
            scores = {f"benchmark_{n}": 1 - mir / 5 + noise.gauss(0, 0.05) for n in range(3)}
            settings = {"documents": 100, "layers": 32, "seed": number}
            runs.run(folder / "in", f"org/model-{number}", mir, scores, **settings)
        size = sum(path.stat().st_size for path in folder.rglob("*.json"))
        print(f"{count} runs, {size / 1e6:.0f} MB")
        command = [sys.executable, "-m", "mir_task", "leaderboard", str(folder / "in")]
        for kind in ("csv", "json", "html"):
            command += [f"--{kind}", str(folder / f"board.{kind}")]
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
