"""From what processes kept of their documents to the distances of the layers, each layer on one of them.

What they exchange are norms, samples of a thousand rows, counts and sums; rows stay where they are.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.metric import check_enough
from mir_task.result import MeasuredLayer
from mir_task.statistics import medians
from mir_task.statistics.known import Known
from mir_task.statistics.layers import (
    MODALITIES,
    KnownLayer,
    LayerRows,
    LayerSums,
    exact_medians,
    measured,
)
from mir_task.statistics.sample import SAMPLE, CommonSample, SampleChoice
from mir_task.statistics.tokens import by_group

Part = TypeVar("Part")
Bar = Callable[[Iterable[int]], Iterable[int]]


class Processes(Protocol):
    """The processes that measure one model together, of which this is one."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def gather(self, part: Part) -> list[Part]:
        """All processes' parts, in the order of ranks, on all of them."""

    def add(self, tensor: Tensor) -> None:
        """Add the other processes' tensors to this one in place, on all of them."""

    def add_to(self, tensor: Tensor, rank: int) -> None:
        """Add the other processes' tensors to this one in place, on the process of that rank."""

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """Raise on every process what one raises inside, where nothing is exchanged."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def gather(self, part: Part) -> list[Part]:
        """The part."""
        return [part]

    def add(self, tensor: Tensor) -> None:
        """Nothing."""

    def add_to(self, tensor: Tensor, rank: int) -> None:
        """Nothing."""

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """Nothing."""
        return contextlib.nullcontext()


class Options(NamedTuple):
    """How distances are computed; as the arguments of `MIRMeter`."""

    outliers: str
    groups: int
    dtype: torch.dtype | None
    sample_rows: int
    extras: Collection[str]

    @property
    def sample_kept(self) -> int:
        """Rows of the sample that are needed to the end."""
        return SAMPLE if "mmd" in self.extras else self.sample_rows


class _Layout(NamedTuple):
    """Of one layer's rows."""

    size: int
    dtype: torch.dtype


def learn(
    layers: Mapping[int, LayerRows],
    choices: Sequence[SampleChoice],
    options: Options,
    processes: Processes,
) -> dict[int, KnownLayer]:
    """What all first passes tell of each layer; norms of rows that are not kept are forgotten.

    Args:
        layers: by number; the same numbers on every process.
        choices: of the samples of vision and of text tokens.
        options: of the computation.
        processes: that measure together.

    Raises:
        MIRError: on every process alike, when a layer has fewer than 2 tokens of a modality.
    """
    priorities = processes.gather([choice.priorities for choice in choices])
    places = [CommonSample.of([parts[n] for parts in priorities], processes.rank) for n in range(2)]
    known = {}
    for number, layer in layers.items():
        with processes.guard():
            own = _layout(layer), [by_group(tokens.norms, layer.groups) for tokens in layer.modalities]
            if not layer.kept:  # of no more use: the second pass has norms of its own
                layer.forget_norms()
        of_processes = processes.gather(own)
        with processes.guard():
            layouts = {layout for layout, _ in of_processes if layout is not None}
            if len(layouts) != 1:
                raise MIRError(f"layer {number}: the processes have rows of {layouts or 'no document'}")
            norms = [_joined([own_norms[n] for _, own_norms in of_processes]) for n in range(2)]
            for modality, of_modality in zip(MODALITIES, norms, strict=True):
                check_enough(number, modality, sum(map(len, of_modality.values())))
            samples = [
                _sample(layer, n, choice, place, *layouts)
                for n, (choice, place) in enumerate(zip(choices, places, strict=True))
            ]
        for sample in samples:
            processes.add(sample)
        with processes.guard():
            known[number] = KnownLayer(
                *(
                    Known.of(of_modality, sample, keep=options.sample_kept)
                    for of_modality, sample in zip(norms, samples, strict=True)
                )
            )
    return known


def _layout(layer: LayerRows) -> _Layout | None:
    like = layer.text.like
    return None if like is None else _Layout(like.shape[1], like.dtype)


def _sample(
    layer: LayerRows, modality: int, choice: SampleChoice, places: CommonSample, layout: _Layout
) -> Tensor:
    tokens = layer.modalities[modality]
    like = torch.empty(0, layout.size, dtype=layout.dtype) if tokens.like is None else tokens.like
    own = tokens.sample(choice, like)
    common = own.new_zeros(places.rows, layout.size)
    common[places.places.to(own.device)] = own[places.slots.to(own.device)]
    return common


def _joined(parts: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    groups = sorted({group for part in parts for group in part})
    return {group: torch.cat([part[group] for part in parts if group in part]) for group in groups}


def groups_to_leave_out(known: Iterable[KnownLayer], groups: int) -> list[int] | str:
    """The groups of the jackknife, or why there is no standard error: for a person to read."""
    for layer in known:
        for modality, tokens in zip(MODALITIES, layer, strict=True):
            if len(tokens.groups) < groups:
                return f"fewer documents than its {groups} groups"
            if any(tokens.without(group).tokens < 2 for group in range(groups)):
                return f"without one of its {groups} groups fewer than two {modality} tokens are left"
    return list(range(groups))


def distances(
    layers: dict[int, LayerRows | LayerSums],
    known: Mapping[int, KnownLayer],
    left_out: Sequence[int],
    options: Options,
    processes: Processes,
    bar: Bar = lambda numbers: numbers,
) -> dict[int, MeasuredLayer]:
    """Distances of layers whose rows are kept or whose sums are there, on every process.

    Args:
        layers: by number; the same on every process. Each is taken out as its turn comes, so that its
            memory is free afterwards if nothing else holds it.
        known: of each after the first pass.
        left_out: groups to leave out one at a time.
        options: of the computation.
        processes: that measure together.
        bar: wraps the numbers of the layers.

    Raises:
        MIRError: on every process alike, as `layers.measured`.
    """
    numbers = sorted(layers)
    middles = _medians_together(layers, known, options.outliers, processes) if processes.size > 1 else {}
    own: dict[int, MeasuredLayer] = {}
    mine: tuple[int, LayerSums, list[Tensor | None], list[tuple[Tensor, Tensor]]] | None = None
    for turn, number in enumerate(bar(numbers)):
        owner = turn % processes.size
        with processes.guard():
            layer = layers.pop(number)
            middle = middles.get(number, [None, None])
            if isinstance(layer, LayerRows):
                if processes.size == 1:
                    middle = exact_medians(layer, known[number], options.outliers)
                count = max(options.groups, 1)
                sums = LayerSums.of_rows(layer, known[number], options.outliers, count)
            else:
                sums = layer
            tensors = sums.tensors()
            means = [(vision.cpu(), text.cpu()) for vision, text in sums.means]
        for tensor in tensors:
            processes.add_to(tensor, owner)
        tokens = [sum(counts) for counts in zip(*processes.gather(sums.tokens), strict=True)]
        if "cka" in options.extras:
            means = [pair for of_process in processes.gather(means) for pair in of_process]
        if processes.rank == owner:
            mine = (number, sums, middle, means)
        del layer, sums, tensors
        with processes.guard():
            _check_same_tokens(number, tokens, known[number])
            if mine is not None and (owner == processes.size - 1 or number == numbers[-1]):
                of_layer, sums, middle, means = mine
                own[of_layer] = measured(
                    of_layer,
                    sums,
                    middle,
                    left_out,
                    options.dtype,
                    extras=options.extras,
                    means=means,
                    sample_rows=options.sample_rows,
                )
                mine = None
    return {number: layer for part in processes.gather(own) for number, layer in part.items()}


def _check_same_tokens(number: int, tokens: Sequence[int], known: KnownLayer) -> None:
    for modality, now, before in zip(MODALITIES, tokens, known, strict=True):
        if now != before.tokens:
            raise MIRError(
                f"layer {number}: {now} {modality} tokens in the second pass over the documents, "
                f"{before.tokens} in the first: the documents must be the same, and the model must give "
                "the same tokens of each"
            )


def _medians_together(
    layers: Mapping[int, LayerRows | LayerSums],
    known: Mapping[int, KnownLayer],
    rule: str,
    processes: Processes,
) -> dict[int, list[Tensor | None]]:
    """Exact medians of the layers whose rows the processes keep, where outliers are replaced by them."""
    searches: dict[tuple[int, int], medians.Search] = {}
    for number, layer in sorted(layers.items()):
        for n, of_modality in enumerate(known[number]):
            if isinstance(layer, LayerRows) and rule == "replace" and of_modality.outliers:
                rows = layer.modalities[n].rows or ()
                searches[number, n] = medians.Search(rows, of_modality.tokens, of_modality.thresholds[0])
    for _ in range(max((search.rounds for search in searches.values()), default=0)):
        with processes.guard():
            counts = [search.counts().cpu() for search in searches.values()]
            together = torch.cat(counts)
        processes.add(together)
        of_each = torch.split(together, [len(part) for part in counts])
        for search, part in zip(searches.values(), of_each, strict=True):
            search.narrow(part)
    found: dict[int, list[Tensor | None]] = {number: [None, None] for number in layers}
    for (number, n), search in searches.items():
        found[number][n] = search.median
    return found
