"""Where the statistics of each decoder layer live, and which layers a pass over the documents measures.

Half of the memory that is free beside the loaded model is for statistics; forwards and the computation
of a layer take the other half. Statistics live on the accelerator of their layer. Where the rows of all
layers do not fit there, the documents run again for the others: for as many at a time as fit, as rows or
as sums over them, whichever takes fewer passes. The host is for layers that run on it, and for
accelerators on which not one layer's sums fit.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from mir_task.capture.decoder import Decoder
from mir_task.errors import MIRError
from mir_task.statistics.memory import GIB, free
from mir_task.statistics.sums import computing_bytes, sample_bytes, sums_bytes

DEFAULT_GROUPS = 5
"""Of the jackknife behind the standard error."""
HOST = torch.device("cpu")


class Room(NamedTuple):
    """Memory for statistics in this process."""

    host: float
    """GiB."""
    accelerator: float
    """GiB, on each."""

    def on(self, device: torch.device) -> float:
        """GiB on a device."""
        return self.host if device == HOST else self.accelerator


class Shape(NamedTuple):
    """What the memory of a layer's statistics goes by."""

    size: int
    """Dimensions of the hidden states."""
    itemsize: int
    """Bytes a number of the hidden states."""

    def rows(self, tokens: int) -> int:
        """Bytes of the rows of so many tokens in one layer."""
        return tokens * self.size * self.itemsize

    def sums(self, groups: int) -> int:
        """Bytes of one layer's sums, with so many groups of documents."""
        return sums_bytes(self.size, self.itemsize, groups)

    def computing(self, groups: int, device: torch.device) -> int:
        """Bytes that the computation of one layer on a device takes for a time, beside what is kept."""
        return self.sums(groups) + computing_bytes(self.size, host=device == HOST)

    def samples(self) -> int:
        """Bytes of what a first pass keeps of a layer without its rows, beside 8 bytes a token."""
        return sample_bytes(self.size, self.itemsize)


class Places(NamedTuple):
    """Where statistics live, and of how many groups of documents."""

    devices: dict[int, torch.device]
    """Of each layer's statistics, by its number."""
    groups: int
    notes: tuple[str, ...] = ()
    """What a reader of the value should know."""


class Pass(NamedTuple):
    """One pass over the documents."""

    layers: tuple[int, ...]
    """Numbers of the layers that it measures; those of a first pass without any are to come."""
    keeps: Literal["rows", "sums"]
    bytes: dict[torch.device, int]
    """Taken on each device."""

    def to_dict(self) -> dict[str, Any]:
        """For the side file."""
        gib = {str(device): round(taken / GIB, 3) for device, taken in self.bytes.items()}
        return {"layers": list(self.layers), "keeps": self.keeps, "gib": gib}


def layer_devices(decoder: Decoder) -> dict[int, torch.device]:
    """Device on which each decoder layer runs, by its 1-based number.

    The decoder's input counts as one more, layer 0, on the device of the first.
    """
    devices = {number: device_of(layer) for number, layer in enumerate(decoder.layers, start=1)}
    return {0: devices[1], **devices}


def shape(decoder: Decoder) -> Shape:
    """Of the decoder's hidden states, as its input embedding has them."""
    weight = next(decoder.embedding.parameters())
    return Shape(weight.shape[-1], weight.element_size())


def room_for(devices: Iterable[torch.device], host: float | None, accelerator: float | None) -> Room:
    """Memory for statistics: what was set, or half of what is free, in GiB a process."""
    if accelerator is None:
        used = {device for device in devices if device != HOST}
        accelerator = min((free(device) / 2 / GIB for device in used), default=0.0)
    return Room(free(HOST) / 2 / GIB if host is None else host, accelerator)


def choose_places(
    devices: Mapping[int, torch.device], layer: Shape, room: Room, groups: int | None
) -> Places:
    """Where the statistics live.

    Args:
        devices: on which the decoder layers run, by number.
        layer: shape of the hidden states.
        room: memory for statistics.
        groups: of the jackknife; None for five where a layer's sums fit with them, and none elsewhere.

    Raises:
        MIRError: the sums of a single layer do not fit anywhere.
    """
    choices = (DEFAULT_GROUPS, 0) if groups is None else (groups,)
    on_host = dict.fromkeys(devices, HOST)
    for place in (dict(devices), on_host):
        least = min(room.on(device) for device in place.values())
        for chosen in choices:
            if layer.sums(chosen) <= least * GIB:
                notes = []
                if place != devices:
                    notes.append(_host_note(layer, room, choices[-1]))
                if chosen != choices[0]:
                    notes.append(_groups_note(layer, least))
                return Places(place, chosen, tuple(notes))
    raise _no_room(layer, room, choices[-1])


def _no_room(layer: Shape, room: Room, groups: int) -> MIRError:
    return MIRError(
        f"the statistics of one decoder layer of {layer.size} dimensions take "
        f"{layer.sums(groups) / GIB:.3g} GiB with {groups} groups, and {room.host:.3g} GiB of the host "
        f"and {room.accelerator:.3g} GiB of each accelerator are for them: free memory, raise "
        "mir_host_memory or mir_accelerator_memory (GiB), or set mir_groups: 0"
    )


def first_pass(place: Places, layer: Shape, room: Room, tokens: int) -> Pass:
    """The lowest layers on each device whose rows fit, beside samples of the others."""
    kept, taken = [], {}
    for device, numbers in _by_device(place.devices, place.devices).items():
        left = room.on(device) * GIB - len(numbers) * layer.samples()
        fit = len(numbers)
        if layer.rows(tokens) * fit > room.on(device) * GIB:
            fit = max(int(left / max(layer.rows(tokens) - layer.samples(), 1)), 0)
        kept += numbers[:fit]
        taken[device] = fit * layer.rows(tokens) + (len(numbers) - fit) * layer.samples()
    return Pass(tuple(sorted(kept)), "rows", taken)


def later_passes(
    place: Places, layer: Shape, room: Room, tokens: int, numbers: Collection[int]
) -> list[Pass]:
    """Passes over the documents for the layers that a first pass has not measured.

    Args:
        place: where statistics live.
        layer: shape of the hidden states.
        room: memory for statistics.
        tokens: of all documents of a process.
        numbers: of the layers.

    Raises:
        MIRError: neither the rows nor the sums of a single layer fit.
    """
    left = _by_device(place.devices, numbers)
    if not left:
        return []
    ways: list[list[Pass]] = []
    for keeps, each in (("rows", layer.rows(tokens)), ("sums", layer.sums(place.groups))):
        fit = {device: int(room.on(device) * GIB / max(each, 1)) for device in left}
        if min(fit.values()):
            count = max(math.ceil(len(left[device]) / fit[device]) for device in left)
            parts = [
                {d: n[i * fit[d] : (i + 1) * fit[d]] for d, n in left.items()} for i in range(count)
            ]
            ways.append([_pass(part, keeps, each) for part in parts])
    if not ways:  # hidden states may be wider than the embedding that the place was chosen by
        raise _no_room(layer, room, place.groups)
    return min(ways, key=len)  # rows where both take as many: their medians are exact


def _pass(layers: Mapping[torch.device, Sequence[int]], keeps: Any, each: int) -> Pass:
    numbers = sorted(number for of_device in layers.values() for number in of_device)
    return Pass(tuple(numbers), keeps, {d: len(n) * each for d, n in layers.items() if n})


def plan(
    devices: Mapping[int, torch.device], layer: Shape, room: Room, groups: int | None, tokens: int
) -> tuple[Places, list[Pass]]:
    """All passes over documents of so many tokens in a process.

    Raises:
        MIRError: as `choose_places`.
    """
    place = choose_places(devices, layer, room, groups)
    first = first_pass(place, layer, room, tokens)
    left = set(devices) - set(first.layers)
    return place, [first, *later_passes(place, layer, room, tokens, left)]


def passes_note(place: Places, room: Room, passes: Sequence[Pass]) -> str:
    """Why the documents run several times, and what helps."""
    sizes = ", ".join(
        f"{room.on(d):.3g} GiB of {d}" for d in sorted(set(place.devices.values()), key=str)
    )
    way = "sums, counting medians," if any(p.keeps == "sums" for p in passes[1:]) else "rows"
    count = f"{len(place.devices)} layers" + (
        ", the decoder's input among them," if 0 in place.devices else ""
    )
    note = (
        f"the rows of {count} do not fit into {sizes}, so the documents run "
        f"{len(passes)} times, keeping {way} of up to {max(len(p.layers) for p in passes)} layers each"
    )
    helps = ["raise mir_accelerator_memory or mir_host_memory (GiB)"]
    if place.groups and any(p.keeps == "sums" for p in passes):
        helps.append("or set mir_groups: 0, which leaves out the standard error")
    return f"{note}; to have fewer passes, free memory, {' '.join(helps)}"


def _host_note(layer: Shape, room: Room, groups: int) -> str:
    return (
        "the statistics are computed on the host, which takes many times as long: on an accelerator one "
        f"layer takes {layer.sums(groups) / GIB:.3g} GiB with {groups} groups, and "
        f"{room.accelerator:.3g} GiB are for them there; free memory on it, raise "
        "mir_accelerator_memory (GiB), or set mir_groups: 0"
    )


def _groups_note(layer: Shape, space: float) -> str:
    return (
        f"mir_stderr is N/A: with its {DEFAULT_GROUPS} groups of documents one layer takes "
        f"{layer.sums(DEFAULT_GROUPS) / GIB:.3g} GiB, and {space:.3g} GiB are for statistics; free "
        "memory, or raise mir_accelerator_memory or mir_host_memory (GiB)"
    )


def _by_device(
    devices: Mapping[int, torch.device], numbers: Iterable[int]
) -> dict[torch.device, list[int]]:
    found: dict[torch.device, list[int]] = {}
    for number in sorted(numbers):
        found.setdefault(devices[number], []).append(number)
    return found


def device_of(module: nn.Module) -> torch.device:
    """Of a module's parameters, or where accelerate runs them if they are offloaded."""
    for part in module.modules():
        execution = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if execution is not None:
            return (
                torch.device("cuda", execution)
                if isinstance(execution, int)
                else torch.device(execution)
            )
    found = next((parameter.device for parameter in module.parameters()), HOST)
    return HOST if found.type == "meta" else found
