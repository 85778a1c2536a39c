import os

# Before anything imports the harness or the hub client.
os.environ["HF_HUB_OFFLINE"] = "1"
# Small models are slower on several threads, and by far when something else runs beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent / "data"
# An installed package as the harness sees it: metadata with an entry point.
sys.path.append(str(Path(__file__).parent / "standins" / "installed"))


class Oracle:
    """Features of one oracle file and what float64 arithmetic and the published code make of them."""

    def __init__(self, name: str) -> None:
        arrays = np.load(DATA / "oracle" / f"{name}.npz")
        self.name = name
        self.vision = torch.from_numpy(arrays["vision"])
        self.text = torch.from_numpy(arrays["text"])
        self.expected = json.loads((DATA / "oracle" / "expected.json").read_text())[name]


@pytest.fixture(params=["full_rank", "rank_deficient", "aligned"])
def oracle(request: pytest.FixtureRequest) -> Oracle:
    return Oracle(request.param)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaVA checkpoint: 3 decoder layers of 64 dimensions, 16 vision tokens an image."""
    from mir_task.demo.checkpoint import make_llava

    folder = tmp_path_factory.mktemp("checkpoints") / "llava"
    return make_llava(folder, hidden_size=64, layers=3, image_size=56)


@pytest.fixture(scope="session")
def llama_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.zoo.llama_vision import llama_vision

    return llama_vision(tmp_path_factory.mktemp("checkpoints") / "llama_vision")
