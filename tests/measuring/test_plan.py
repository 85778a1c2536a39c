"""Where statistics live and which layers each pass measures, on invented devices."""

import pytest
import torch

from mir_task import MIRError, MIRMeter
from mir_task.capture.decoder import Decoder
from mir_task.measuring.plan import (
    HOST,
    Pass,
    Places,
    Room,
    Shape,
    choose_places,
    first_pass,
    later_passes,
    layer_devices,
    passes_note,
    plan,
    room_for,
)
from mir_task.statistics import memory
from mir_task.statistics.memory import GIB

SHAPE = Shape(size=1024, itemsize=2)
GPU = torch.device("cuda:0")
OTHER = torch.device("cuda:1")
PLENTY = 1000.0


def layers(*devices: torch.device) -> dict[int, torch.device]:
    return dict(enumerate(devices, start=1))


# Tokens of the 100 documents of `mir_demo` through LLaVA-1.5.
TOKENS = 57_600 + 16_287
MODELS = {  # layers, dimensions, GB of weights in bfloat16 and in 4 bits
    "7B": (32, 4096, 14.1, 4.4),
    "13B": (40, 5120, 26.1, 8.0),
}
# Card, model, weights, N: layers of each pass, and what it keeps.
CARDS = [
    (80, "7B", "bfloat16", 100, "32 rows"),
    (80, "7B", "bfloat16", 1600, "3 rows, 29 sums"),
    (80, "13B", "bfloat16", 100, "35 rows, 5 rows"),
    (80, "13B", "bfloat16", 1600, "2 rows, 21 sums, 17 sums"),
    (40, "7B", "bfloat16", 100, "20 rows, 12 rows"),
    (40, "7B", "bfloat16", 1600, "1 rows, 15 sums, 15 sums, 1 sums"),
    (40, "13B", "bfloat16", 100, "7 rows, 8 rows, 8 rows, 8 rows, 8 rows, 1 rows"),
    (40, "13B", "bfloat16", 1600, "0 rows" + 8 * ", 5 sums"),
    (24, "7B", "bfloat16", 100, "7 rows, 7 rows, 7 rows, 7 rows, 4 rows"),
    (24, "7B", "bfloat16", 1600, "0 rows" + 6 * ", 5 sums" + ", 2 sums"),
    (24, "13B", "4 bits", 100, "9 rows, 10 rows, 10 rows, 10 rows, 1 rows"),
    (24, "13B", "4 bits", 1600, "0 rows" + 6 * ", 6 sums" + ", 4 sums"),
    (16, "7B", "4 bits", 100, "8 rows, 9 rows, 9 rows, 6 rows"),
    (16, "7B", "4 bits", 1600, "0 rows" + 5 * ", 6 sums" + ", 2 sums"),
    (16, "13B", "4 bits", 100, "3 rows" + 9 * ", 4 rows" + ", 1 rows"),
    (16, "13B", "4 bits", 1600, "0 rows" + 20 * ", 2 sums"),
    # 0.65 GiB are left for statistics: without the groups of the standard error.
    (16, "7B", "bfloat16", 100, "0 rows" + 10 * ", 3 sums" + ", 2 sums"),
]


@pytest.mark.parametrize(("card", "model", "weights", "documents", "expected"), CARDS)
def test_never_the_host_on_a_card_that_holds_the_model(
    card: int, model: str, weights: str, documents: int, expected: str
) -> None:
    count, size, *sizes = MODELS[model]
    # Half of what is left beside the weights and half a gigabyte of the driver.
    room = Room(host=PLENTY, accelerator=(card - sizes[weights == "4 bits"] - 0.5) / 2 * 1e9 / GIB)
    shape, tokens = Shape(size, 2), TOKENS * documents // 100
    place, passes = plan(layers(*[GPU] * count), shape, room, None, tokens)
    assert set(place.devices.values()) == {GPU}
    assert place.groups == (0 if (card, weights) == (16, "bfloat16") else 5)
    assert ", ".join(f"{len(each.layers)} {each.keeps}" for each in passes) == expected
    assert sorted(number for each in passes for number in each.layers) == list(place.devices)
    for each in passes:
        (taken,) = each.bytes.values()
        unit = shape.rows(tokens) if each.keeps == "rows" else shape.sums(place.groups)
        samples = (count - len(each.layers)) * shape.samples() if each is passes[0] else 0
        assert taken == len(each.layers) * unit + samples
        assert taken <= room.accelerator * GIB or not each.layers


def test_a_card_of_24_gigabytes_runs_the_documents_four_times() -> None:
    _, passes = plan(layers(*[GPU] * 32), Shape(4096, 2), Room(PLENTY, 5.0), None, TOKENS)
    assert [len(each.layers) for each in passes] == [8, 8, 8, 8]


def test_models_that_run_on_the_host_have_their_statistics_there() -> None:
    place, passes = plan(layers(*[HOST] * 4), SHAPE, Room(PLENTY, 0.0), None, TOKENS)
    assert set(place.devices.values()) == {HOST}
    assert passes == [Pass((1, 2, 3, 4), "rows", {HOST: 4 * SHAPE.rows(TOKENS)})]
    assert place.notes == ()


def test_accelerators_on_which_no_layer_fits_leave_it_to_the_host_and_say_so() -> None:
    room = Room(host=PLENTY, accelerator=0.9 * SHAPE.sums(0) / GIB)
    place = choose_places(layers(*[GPU] * 4), SHAPE, room, None)
    assert set(place.devices.values()) == {HOST}
    (note,) = place.notes
    assert "on the host, which takes many times as long: on an accelerator one layer takes" in note
    assert "raise mir_accelerator_memory (GiB), or set mir_groups: 0" in note
    with_groups = Room(host=PLENTY, accelerator=0.9 * SHAPE.sums(5) / GIB)
    assert set(choose_places(layers(GPU), SHAPE, with_groups, 5).devices.values()) == {HOST}


def test_groups_go_before_the_host_unless_they_were_asked_for() -> None:
    room = Room(host=PLENTY, accelerator=0.9 * SHAPE.sums(5) / GIB)
    place = choose_places(layers(*[GPU] * 4), SHAPE, room, None)
    assert place.groups == 0
    assert set(place.devices.values()) == {GPU}
    (note,) = place.notes
    assert "mir_stderr is N/A: with its 5 groups" in note


def test_each_accelerator_has_room_of_its_own() -> None:
    devices = layers(GPU, GPU, GPU, OTHER)
    room = Room(host=PLENTY, accelerator=2.2 * SHAPE.rows(TOKENS) / GIB)
    place, passes = plan(devices, SHAPE, room, None, TOKENS)
    assert place.devices == devices
    assert [each.layers for each in passes] == [(1, 2, 4), (3,)]
    each = SHAPE.rows(TOKENS)
    assert passes[0].bytes == {GPU: 2 * each + SHAPE.samples(), OTHER: each}
    assert passes[1].bytes == {GPU: each}


def test_layers_on_accelerators_and_on_the_host() -> None:
    devices = layers(GPU, GPU, HOST)
    place, passes = plan(devices, SHAPE, Room(PLENTY, PLENTY), None, TOKENS)
    assert place.devices == devices
    assert len(passes) == 1


def test_not_even_one_layer() -> None:
    with pytest.raises(MIRError, match="one decoder layer .* raise mir_host_memory or mir_accelerator"):
        choose_places(layers(HOST), SHAPE, Room(host=0.001, accelerator=0), None)


def test_hidden_states_that_are_wider_than_the_embedding() -> None:
    room = Room(host=SHAPE.sums(5) / GIB, accelerator=0)
    place = choose_places(layers(*[HOST] * 2), SHAPE, room, 5)
    with pytest.raises(MIRError, match="one decoder layer of 1024 dimensions take .* with 5 groups"):
        later_passes(place, Shape(1024, 4), room, 10**6, {1, 2})


def test_notes_name_what_helps() -> None:
    place, passes = plan(layers(*[GPU] * 32), Shape(4096, 2), Room(PLENTY, 4.5), None, 16 * TOKENS)
    note = passes_note(place, Room(PLENTY, 4.5), passes)
    assert note == (
        "the rows of 32 layers do not fit into 4.5 GiB of cuda:0, so the documents run 8 times, keeping "
        "sums, counting medians, of up to 5 layers each; to have fewer passes, free memory, raise "
        "mir_accelerator_memory or mir_host_memory (GiB) or set mir_groups: 0, which leaves out the "
        "standard error"
    )


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_layer_holds_what_is_reckoned(groups: int, dtype: torch.dtype) -> None:
    shape = Shape(256, dtype.itemsize)
    generator = torch.Generator().manual_seed(0)
    docs = [[torch.randn(100, 256, generator=generator).to(dtype) for _ in range(2)] for _ in range(60)]
    tokens = 60 * 200
    kept = MIRMeter(groups=groups, memory=shape.rows(tokens) / GIB)
    sampled = MIRMeter(groups=groups, memory=(shape.rows(tokens) - 1) / GIB)
    for meter in (kept, sampled):
        for number, (vision, text) in enumerate(docs):
            meter.update(number, [vision], [text])
    assert sum(of.nbytes for of in kept.tokens.layer(1)) == shape.rows(tokens)
    assert sum(of.nbytes for of in sampled.tokens.layer(1)) == shape.samples()
    second, most = sampled.second_pass(), 0
    for number, (vision, text) in enumerate(docs):
        second.update(number, [vision], [text])
        held = 0
        for of in second.sums[1]:
            waiting = [rows for parts in of._waiting.values() for rows, _ in parts]
            held += sum(tensor.nbytes for tensor in (of.moments.numbers, *waiting))
        most = max(most, held)
    assert 0.5 * shape.sums(groups) < most <= shape.sums(groups)


def test_first_pass_agrees_with_what_a_meter_keeps() -> None:
    generator = torch.Generator().manual_seed(0)
    docs = [[torch.randn(60, 64, generator=generator) for _ in range(12)] for _ in range(50)]
    shape, devices = Shape(64, 4), layers(*[HOST] * 6)
    for fits in (0.0, 2.5, 4.2, 6.0):
        room = Room(host=(fits * shape.rows(6000) + 6 * shape.samples()) / GIB, accelerator=0)
        planned = first_pass(Places(devices, 0), shape, room, 6000)
        meter = MIRMeter(memory=room.host)
        for number, rows in enumerate(docs):
            meter.update(number, rows[:6], rows[6:])
        assert tuple(meter.tokens.kept()) == planned.layers
        assert (
            sum(of.nbytes for pair in meter.tokens.layers.values() for of in pair) == planned.bytes[HOST]
        )


def test_offloaded_layers_are_where_they_run(tmp_path) -> None:
    from accelerate import cpu_offload, disk_offload

    for offload in (cpu_offload, lambda m, **k: disk_offload(m, str(tmp_path), **k)):
        model = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
        offload(model, execution_device=torch.device("cuda:1"))
        decoder = Decoder("", model, model, torch.nn.Embedding(3, 4), None)
        assert layer_devices(decoder) == {0: OTHER, **layers(OTHER, OTHER)}


class TestFreeMemoryOfTheHost:
    """Of invented control groups."""

    def written(self, folder, prefix: str, names: str, *contents: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(names.split(), contents, strict=True):
            (folder / f"{prefix}{name}").write_text(f"{content}\n")

    def groups(self, root, line: str) -> list[float]:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(line)
        return list(memory.group_limits(root))

    def test_version_2_and_the_groups_around(self, tmp_path) -> None:
        top, names = tmp_path / "sys/fs/cgroup", "max current stat"
        self.written(top / "job/step", "memory.", names, "max", 10, "inactive_file 3")
        self.written(top / "job", "memory.", names, 1000, 400, "anon 7\ninactive_file 50")
        assert self.groups(tmp_path, "0::/job/step\n") == [650]

    def test_version_1(self, tmp_path) -> None:
        names = "limit_in_bytes usage_in_bytes stat"
        folder = tmp_path / "sys/fs/cgroup/memory/slurm"
        self.written(folder, "memory.", names, 800, 500, "total_inactive_file 100")
        assert self.groups(tmp_path, "5:cpu:/x\n4:memory,hugetlb:/slurm\n") == [400]

    def test_none(self, tmp_path) -> None:
        assert list(memory.group_limits(tmp_path)) == []
        assert self.groups(tmp_path, "0::/\n") == []

    def test_the_least_counts_and_is_shared(self, monkeypatch) -> None:
        monkeypatch.setattr(memory, "group_limits", lambda: [6e6, 9e6])
        assert memory.free(HOST) == 6e6
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.setenv("MIR_TASK_RUNS", "3")
        assert memory.free(HOST) == 1e6
        room = room_for([HOST], None, None)
        assert room.host == 0.5e6 / GIB
