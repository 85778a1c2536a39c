"""Where the statistics of each decoder layer live, and how many layers one pass can count.

Half of the memory that is free beside the loaded model is for statistics; forwards and all else take
the other half. What does not fit on the model's accelerator lives on the host; what does not fit there
is counted in groups of layers, one pass over the documents each.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

import psutil
import torch
from torch import nn

from mir_task.decoder import Decoder
from mir_task.errors import MIRError
from mir_task.moments import bytes_at_most

DEFAULT_GROUPS = 5
"""Of the jackknife behind the standard error."""
HOST = torch.device("cpu")
_GIB = 2**30
# Memory of this many layers is for copies: while rows are folded in, and when a layer is computed.
_COPIES = 2


class Room(NamedTuple):
    """Memory for statistics in this process."""

    host: float
    """GiB."""
    accelerator: float
    """GiB, on each."""


class Shape(NamedTuple):
    """What the memory of a layer's statistics goes by."""

    size: int
    """Dimensions of the hidden states."""
    itemsize: int
    """Bytes a number of the hidden states."""

    def gib(self, layers: int, groups: int) -> float:
        """Memory that the statistics of some layers take at most, beside 8 bytes a token."""
        return (layers + _COPIES) * bytes_at_most(self.size, self.itemsize, groups) / _GIB


class Plan(NamedTuple):
    """How the layers are counted."""

    groups: int
    passes: tuple[tuple[int, ...], ...]
    """Numbers of the layers that each pass over the documents counts."""
    devices: dict[int, torch.device]
    """Where the statistics of each layer live."""
    notes: tuple[str, ...] = ()
    """What a reader of the value should know."""


def layer_devices(decoder: Decoder) -> dict[int, torch.device]:
    """Device of each decoder layer by its 1-based number; the host for those that are offloaded."""
    return {number: _device(layer) for number, layer in enumerate(decoder.layers, start=1)}


def shape(decoder: Decoder) -> Shape:
    """Of the decoder's hidden states, as its input embedding has them."""
    weight = next(decoder.embedding.parameters())
    return Shape(weight.shape[-1], weight.element_size())


def room(devices: Mapping[int, torch.device], host: float | None, accelerator: float | None) -> Room:
    """Memory for statistics: what was set, or half of what is free, in GiB a process."""
    if host is None:
        share = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        host = psutil.virtual_memory().available / 2 / share / _GIB
    if accelerator is None:
        used = {device for device in devices.values() if device.type != "cpu"}
        accelerator = min((_free(device) / 2 / _GIB for device in used), default=0.0)
    return Room(host, accelerator)


def plan(devices: Mapping[int, torch.device], layer: Shape, room: Room, groups: int | None) -> Plan:
    """The best way to count all layers that the room allows.

    Args:
        devices: of the decoder layers, by number.
        layer: shape of the hidden states.
        room: memory for statistics.
        groups: of the jackknife; None for five where memory allows and none elsewhere.

    Raises:
        MIRError: the statistics of a single layer do not fit.
    """
    choices = (DEFAULT_GROUPS, 0) if groups is None else (groups,)
    for chosen in choices:
        places = _places(devices, layer, room, chosen)
        on_host = sum(place == HOST for place in places.values())
        if not on_host or layer.gib(on_host, chosen) <= room.host:
            notes = () if chosen or groups == 0 else (_no_groups(devices, layer, room),)
            return Plan(chosen, (tuple(sorted(devices)),), places, notes)
    return _in_passes(devices, layer, room, groups)


def _places(
    devices: Mapping[int, torch.device], layer: Shape, room: Room, groups: int
) -> dict[int, torch.device]:
    """Each layer's own accelerator where the statistics of its layers fit, else the host."""
    count = {device: list(devices.values()).count(device) for device in devices.values()}
    fits = {d: d != HOST and layer.gib(n, groups) <= room.accelerator for d, n in count.items()}
    return {number: device if fits[device] else HOST for number, device in devices.items()}


def _in_passes(
    devices: Mapping[int, torch.device], layer: Shape, room: Room, groups: int | None
) -> Plan:
    kept = groups or 0
    one_accelerator = len(set(devices.values())) == 1 and devices[1] != HOST
    place = devices[1] if one_accelerator and room.accelerator > room.host else HOST
    space = room.host if place == HOST else room.accelerator
    each = layer.gib(1, kept) - layer.gib(0, kept)
    at_once = int(space / each) - _COPIES
    if at_once < 1:
        raise MIRError(
            f"the statistics of one decoder layer of {layer.size} dimensions take "
            f"{layer.gib(1, kept):.2f} GiB with {kept} groups, and {space:.2f} GiB are for them: free "
            "memory, or raise mir_host_memory (GiB), or set mir_groups: 0"
        )
    numbers = sorted(devices)
    passes = tuple(tuple(numbers[i : i + at_once]) for i in range(0, len(numbers), at_once))
    notes = [
        f"the statistics of {len(numbers)} layers do not fit into {space:.2f} GiB, so the documents run "
        f"{len(passes)} times, for up to {at_once} layers each"
    ]
    if groups is None:
        notes.append(_no_groups(devices, layer, room))
    return Plan(kept, passes, dict.fromkeys(numbers, place), tuple(notes))


def _no_groups(devices: Mapping[int, torch.device], layer: Shape, room: Room) -> str:
    return (
        f"mir_stderr is N/A: its {DEFAULT_GROUPS} groups of documents take "
        f"{layer.gib(len(devices), DEFAULT_GROUPS):.2f} GiB, and {max(room):.2f} GiB are for them; "
        "set mir_groups to count them all the same, or raise mir_host_memory (GiB)"
    )


def _device(layer: nn.Module) -> torch.device:
    devices = {parameter.device for parameter in layer.parameters()}
    found = next(iter(devices), HOST)
    return HOST if found.type == "meta" else found


def _free(device: torch.device) -> float:
    """Free bytes of an accelerator, its allocator's unused ones included; 0 where it cannot tell."""
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return 0.0
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return float(module.mem_get_info(device)[0] + unused)
