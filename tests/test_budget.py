import pytest
import torch

from mir_task import MIRError, MIRMeter
from mir_task.budget import HOST, Room, Shape, plan
from mir_task.moments import bytes_at_most

SHAPE = Shape(size=1024, itemsize=2)
GPU = torch.device("cuda:0")
OTHER = torch.device("cuda:1")
PLENTY = 1000.0


def layers(*devices: torch.device) -> dict[int, torch.device]:
    return dict(enumerate(devices, start=1))


def test_statistics_live_beside_the_model_while_they_fit() -> None:
    chosen = plan(layers(*[GPU] * 4), SHAPE, Room(host=PLENTY, accelerator=PLENTY), None)
    assert chosen.groups == 5
    assert chosen.passes == ((1, 2, 3, 4),)
    assert set(chosen.devices.values()) == {GPU}
    assert chosen.notes == ()


def test_then_on_the_host() -> None:
    room = Room(host=PLENTY, accelerator=0.9 * SHAPE.gib(4, 5))
    assert set(plan(layers(*[GPU] * 4), SHAPE, room, None).devices.values()) == {HOST}


def test_each_accelerator_has_room_of_its_own() -> None:
    devices = layers(GPU, GPU, GPU, OTHER)
    room = Room(host=PLENTY, accelerator=1.1 * SHAPE.gib(1, 5))
    assert plan(devices, SHAPE, room, None).devices == layers(HOST, HOST, HOST, OTHER)
    room = Room(host=PLENTY, accelerator=1.1 * SHAPE.gib(3, 5))
    assert plan(devices, SHAPE, room, None).devices == devices


def test_groups_go_before_a_second_run_of_the_documents() -> None:
    room = Room(host=1.1 * SHAPE.gib(8, 0), accelerator=0)
    chosen = plan(layers(*[HOST] * 8), SHAPE, room, None)
    assert chosen.groups == 0
    assert len(chosen.passes) == 1
    (note,) = chosen.notes
    assert "mir_stderr is N/A" in note


def test_groups_that_were_asked_for_stay() -> None:
    room = Room(host=SHAPE.gib(3, 5), accelerator=0)
    chosen = plan(layers(*[HOST] * 8), SHAPE, room, 5)
    assert chosen.groups == 5
    assert chosen.passes == ((1, 2, 3), (4, 5, 6), (7, 8))
    (note,) = chosen.notes
    assert "the documents run 3 times, for up to 3 layers each" in note


def test_passes_take_the_larger_room() -> None:
    room = Room(host=SHAPE.gib(2, 0), accelerator=SHAPE.gib(4, 0))
    chosen = plan(layers(*[GPU] * 8), SHAPE, room, None)
    assert chosen.passes == ((1, 2, 3, 4), (5, 6, 7, 8))
    assert set(chosen.devices.values()) == {GPU}
    chosen = plan(layers(*[GPU] * 4, *[OTHER] * 8), SHAPE, room, None)
    assert len(chosen.passes) == 6
    assert set(chosen.devices.values()) == {HOST}


def test_not_even_one_layer() -> None:
    with pytest.raises(MIRError, match="one decoder layer .* raise mir_host_memory"):
        plan(layers(HOST), SHAPE, Room(host=0.001, accelerator=0), None)


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_layer_holds_no_more_than_is_reckoned(groups: int, dtype: torch.dtype) -> None:
    size, most = 256, 0
    meter = MIRMeter(groups=groups)
    generator = torch.Generator().manual_seed(0)
    for number in range(60):
        rows = [torch.randn(100, size, generator=generator).to(dtype) for _ in range(2)]
        meter.update(number, rows[:1], rows[1:], group=number)
        layer = meter.layers[1]
        held = 0
        for tokens in (layer.vision, layer.text):
            waiting = [part.rows for part in tokens._waiting]
            sample = [tokens._sample._rows]
            moments = [block for m in tokens.moments.values() for block in m.scatter]
            held += sum(tensor.nbytes for tensor in [*waiting, *sample, *moments])
        most = max(most, held)
    assert meter.layers[1].vision.moments
    reckoned = bytes_at_most(size, dtype.itemsize, groups)
    assert 0.5 * reckoned < most < reckoned
