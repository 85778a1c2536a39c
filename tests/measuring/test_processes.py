"""Statistics of several processes, exchanged by torch.distributed, without a model."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mir_task import MIRError, MIRMeter, MIRResult
from mir_task.measuring import processes as connected
from mir_task.measuring.processes import CONNECTED
from mir_task.metric.definition import result_of_layers
from mir_task.metric.extras import EXTRAS
from mir_task.statistics.finish import distances, groups_to_leave_out, learn
from mir_task.statistics.sums import Sums
from tests.metric.test_extras import FIELDS
from tests.statistics.test_meter import stream

Documents = list[tuple[int, tuple[str, list[torch.Tensor], list[torch.Tensor]]]]


def documents(kind: str, dtype: torch.dtype) -> Documents:
    """Of the decoder's input and two layers, which differ."""
    docs = stream(kind, 0, 120, dtype)
    return [
        (n, (i, [v[0], v[0] * 2, v[0] + 1], [t[0], t[0] / 2, t[0].abs()]))
        for n, (i, v, t) in enumerate(docs)
    ]


def fill(meter: MIRMeter, docs: Documents) -> MIRMeter:
    for position, (document_id, vision, text) in docs:
        meter.update(document_id, vision, text, group=position)
    for number in (0, 1, 2):
        meter.layer(number)
    return meter


def together(docs: Documents, *, kept: bool, outliers: str) -> MIRResult:
    """The result of all processes' documents, on each of them."""
    settings = {"groups": 5, "outliers": outliers, "numbers": (0, 1, 2), "extras": tuple(EXTRAS)}
    first = fill(MIRMeter(memory=None if kept else 0.0, **settings), docs)
    of_first = first.tokens
    groups = list(first.documents.values())
    known = learn(of_first.layers, groups, of_first.choices, first.options, CONNECTED)
    second = first if kept else fill(MIRMeter(known=known, **settings), docs)
    left_out = groups_to_leave_out(known.values(), 5, outliers)
    layers = {number: second.layer(number) for number in (0, 1, 2)}
    measured = distances(layers, known, groups, left_out, first.options, CONNECTED)
    assert not layers
    return result_of_layers(measured.values(), outliers)


def process(rank: int, size: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group(rank=rank, world_size=size)  # of the default backend, as the harness has it
    results = {}
    for kind, dtype in (("sparse_outliers", torch.bfloat16), ("drift", torch.float32)):
        # Of the last process of three there are no documents.
        own = documents(kind, dtype)[rank :: min(size, 2)] if rank < 2 else []
        for kept in (True, False):
            for outliers in ("replace", "drop"):
                results[kind, kept, outliers] = together(own, kept=kept, outliers=outliers)
    message = ""
    of_rows = Sums.of_rows
    if rank == size - 1:
        Sums.of_rows = classmethod(lambda *arguments: torch.empty(-1))
    try:
        together(documents("plain", torch.float32)[rank::size], kept=True, outliers="drop")
    except (MIRError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    Sums.of_rows = of_rows
    torch.save((results, message), folder / f"{rank}.pt")
    connected.end_gloo()
    assert not dist.is_initialized()


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_several_processes_find_what_one_finds_and_fail_together(tmp_path: Path, size: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, (size, port, tmp_path), nprocs=size)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(size)]
    for kind, dtype in (("sparse_outliers", torch.bfloat16), ("drift", torch.float32)):
        docs = documents(kind, dtype)
        for kept in (True, False):
            for outliers in ("replace", "drop"):
                alone = together(docs, kept=kept, outliers=outliers)
                for found, _ in results:
                    result = found[kind, kept, outliers]
                    assert result.mir == pytest.approx(alone.mir, abs=1e-9)
                    assert result.mir_stderr == pytest.approx(alone.mir_stderr, rel=1e-6)
                    wanted = alone.mir_thirds_stderr[1:]
                    assert result.mir_thirds_stderr[1:] == pytest.approx(wanted, rel=1e-6)
                    scale_free = alone.scale_free_mir_stderr
                    assert result.scale_free_mir_stderr == pytest.approx(scale_free, rel=1e-6)
                    assert len(result.layers) == 2
                    pairs = zip(result.layers, alone.layers, strict=True)
                    for layer, wanted in ((result.input_layer, alone.input_layer), *pairs):
                        assert layer.vision_outliers == wanted.vision_outliers
                        assert layer.text_outliers == wanted.text_outliers
                        assert layer.scale_free_distance == pytest.approx(
                            wanted.scale_free_distance, abs=1e-9
                        )
                        for name, tolerance in FIELDS.items():
                            value = getattr(wanted, name)
                            assert getattr(layer, name) == pytest.approx(value, rel=10 * tolerance), name
    *others, (_, own) = results
    assert own.startswith("RuntimeError: Trying to create tensor with negative dimension")
    for _, message in others:
        assert message.startswith(f"MIRError: process {size - 1} failed: RuntimeError: Trying to create")
