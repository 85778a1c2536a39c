"""From what processes kept of their documents to the distances of the layers, each layer on one of them.

What they exchange are norms, a sample of a thousand rows, counts and sums; rows stay where they are.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.metric.definition import (
    ComputedLayer,
    LeftOut,
    Modality,
    check_enough,
    layer_result,
)
from mir_task.metric.extras import figures, need
from mir_task.metric.extras.offer import Offer
from mir_task.metric.precision import root_dtype
from mir_task.statistics import medians
from mir_task.statistics.sample import SAMPLE, SampleChoice
from mir_task.statistics.sums import Known, KnownLayer, Sums
from mir_task.statistics.tokens import Tokens

MODALITIES = ("vision", "text")
Part = TypeVar("Part")
Bar = Callable[[Iterable[int]], Iterable[int]]


class Processes:
    """The processes that measure one model together: here, one. Others connect several."""

    rank, size = 0, 1

    def gather(self, part: Part) -> list[Part]:
        """All processes' parts, in the order of ranks, on all of them; tensors must be on the CPU."""
        return [part]

    def add(self, tensor: Tensor) -> None:
        """Add the other processes' tensors to this one in place, on all of them."""

    def add_to(self, tensor: Tensor, rank: int) -> None:
        """Add the other processes' tensors to this one in place, on the process of that rank."""

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """Raise on every process what one raises inside, where nothing is exchanged."""
        return contextlib.nullcontext()


ALONE = Processes()


class Options(NamedTuple):
    """How distances are computed; as the arguments of `MIRMeter`."""

    outliers: str
    groups: int
    dtype: torch.dtype | None
    sample_rows: int
    extras: Collection[str]


class Layer(NamedTuple):
    """What a process has of one layer: rows or sums of its vision and text tokens."""

    tokens: Sequence[Tokens | Sums]
    means: list[tuple[Tensor, Tensor]]
    """Mean rows [d] of each document's vision and text tokens, where a measure needs them."""


def learn(
    layers: Mapping[int, Sequence[Tokens]],
    groups: Sequence[int],
    choices: Sequence[SampleChoice],
    options: Options,
    processes: Processes = ALONE,
) -> dict[int, KnownLayer]:
    """What all first passes tell of each layer; norms of rows that are not kept are forgotten.

    Args:
        layers: vision and text tokens by number of the layer; the same numbers on every process.
        groups: of each document of this process.
        choices: of the samples of vision and of text tokens.
        options: of the computation.
        processes: that measure together.

    Raises:
        MIRError: on every process alike, when a layer has fewer than 2 tokens of a modality.
    """
    keep = SAMPLE if need(options.extras, "sample") else options.sample_rows
    orders = [_lowest(processes.gather(choice.priorities)) for choice in choices]
    known = {}
    for number, tokens in layers.items():
        pair = []
        for modality, own, choice, order in zip(MODALITIES, tokens, choices, orders, strict=True):
            with processes.guard():
                norms = _by_group(own.norms, groups)
                if own.rows is None:  # of no more use: the second pass has norms of its own
                    own.norms.clear()
                sample = own.sample(choice)
                mine = order[order // SAMPLE == processes.rank] % SAMPLE
                part = None if sample is None else sample[torch.from_numpy(mine).to(sample.device)]
                if part is not None and processes.size > 1:
                    part = part.cpu()
            parts = processes.gather((norms, part))
            with processes.guard():
                together = _joined([norms for norms, _ in parts])
                check_enough(number, modality, sum(map(len, together.values())))
                rows = torch.cat([rows for _, rows in parts if rows is not None])
                # Each process's stand together, in the order of their priorities.
                places = torch.from_numpy(np.argsort(order // SAMPLE, kind="stable"))
                rows = torch.empty_like(rows).index_copy_(0, places.to(rows.device), rows)
                place = own.like.device if own.like is not None else rows.device
                pair.append(Known.of(together, rows.to(place), keep=keep))
        known[number] = (pair[0], pair[1])
    return known


def _lowest(priorities: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
    """The tokens of the common sample, lowest priority first: numbers of slots over all processes."""
    together = np.concatenate(priorities)
    order = np.argsort(together, kind="stable")[:SAMPLE]
    return order[np.isfinite(together[order])]


def _by_group(norms: Iterable[Tensor], groups: Iterable[int]) -> dict[int, Tensor]:
    """Norms [n] of each group on the CPU, from those of each document and its group."""
    parts: dict[int, list[Tensor]] = {}
    for of_document, group in zip(norms, groups, strict=True):
        parts.setdefault(group, []).append(of_document)
    return {group: torch.cat(of_group).cpu() for group, of_group in parts.items()}


def _joined(parts: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    groups = sorted({group for part in parts for group in part})
    return {group: torch.cat([part[group] for part in parts if group in part]) for group in groups}


def groups_to_leave_out(known: Iterable[KnownLayer], groups: int, rule: str) -> list[int] | str:
    """The groups of the jackknife, or why there is no standard error: for a person to read."""
    for layer in known:
        for modality, tokens in zip(MODALITIES, layer, strict=True):
            if len(tokens.groups) < groups:
                return f"{groups - len(tokens.groups)} of its {groups} groups of documents are empty"
            left = (tokens.without(group) for group in range(groups))
            if any(of.tokens - (of.outliers if rule == "drop" else 0) < 2 for of in left):
                return f"without one of its {groups} groups fewer than two {modality} tokens are left"
    return list(range(groups))


def distances(
    layers: dict[int, Layer],
    known: Mapping[int, KnownLayer],
    groups: Sequence[int],
    left_out: Sequence[int],
    options: Options,
    processes: Processes = ALONE,
    bar: Bar = lambda numbers: numbers,
) -> dict[int, ComputedLayer]:
    """Distances of layers whose rows are kept or whose sums are there, on every process.

    Args:
        layers: by number; the same on every process. Each is taken out as its turn comes, so that its
            memory is free afterwards if nothing else holds it.
        known: of each after the first pass.
        groups: of each document of this process.
        left_out: groups to leave out one at a time.
        options: of the computation.
        processes: that measure together.
        bar: wraps the numbers of the layers.

    Raises:
        MIRError: on every process alike: text tokens that are all zero, a figure that is not finite, or
            a second pass that saw other tokens than the first.
    """
    numbers, own = sorted(layers), dict[int, ComputedLayer]()
    together = _medians_together(layers, known, options.outliers, processes)
    mine: tuple[int, list[Sums], Sequence[Tensor | None], list[tuple[Tensor, Tensor]]] | None = None
    for turn, number in enumerate(bar(numbers)):
        owner, middles = turn % processes.size, together.get(number, [None, None])
        with processes.guard():
            layer, sums = layers.pop(number), list[Sums]()
            for n, (tokens, of) in enumerate(zip(layer.tokens, known[number], strict=True)):
                if isinstance(tokens, Sums):
                    sums.append(tokens)
                    continue
                sums.append(Sums.of_rows(tokens, of, options.outliers, options.groups, groups))
                if processes.size == 1 and sums[n].replaces:
                    middles[n] = medians.of_rows(tokens.rows or ())
            tensors = [tensor for part in sums for tensor in part.tensors()]
            means = [(vision.cpu(), text.cpu()) for vision, text in layer.means]
        for tensor in tensors:
            processes.add_to(tensor, owner)
        parts = processes.gather(([part.tokens for part in sums], means))
        if processes.rank == owner:
            mine = (number, sums, middles, [pair for _, of_process in parts for pair in of_process])
        del layer, sums, tokens, tensors
        with processes.guard():
            _check_same_tokens(number, [counts for counts, _ in parts], known[number])
            if mine is not None and (owner == processes.size - 1 or number == numbers[-1]):
                own[mine[0]] = _measured(*mine, left_out, options)
                mine = None
    return {number: layer for part in processes.gather(own) for number, layer in part.items()}


def _check_same_tokens(number: int, counts: Sequence[Sequence[int]], known: KnownLayer) -> None:
    for modality, of_processes, before in zip(MODALITIES, zip(*counts, strict=True), known, strict=True):
        if sum(of_processes) != before.whole.tokens:
            raise MIRError(
                f"layer {number}: {sum(of_processes)} {modality} tokens in the second pass over the "
                f"documents, {before.whole.tokens} in the first: the documents must be the same, and "
                "the model must give the same tokens of each"
            )


def _medians_together(
    layers: Mapping[int, Layer], known: Mapping[int, KnownLayer], rule: str, processes: Processes
) -> dict[int, list[Tensor | None]]:
    """Exact medians of rows that several processes keep, where outliers are replaced by them."""
    searches: dict[tuple[int, int], medians.Search] = {}
    for number, layer in sorted(layers.items()) if processes.size > 1 and rule == "replace" else ():
        for n, (tokens, of_modality) in enumerate(zip(layer.tokens, known[number], strict=True)):
            if isinstance(tokens, Tokens) and of_modality.whole.outliers:
                count, like = of_modality.whole.tokens, of_modality.thresholds[0]
                searches[number, n] = medians.Search(tokens.rows or (), count, like)
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


def _measured(
    number: int,
    sums: Sequence[Sums],
    middles: Sequence[Tensor | None],
    means: Sequence[tuple[Tensor, Tensor]],
    left_out: Iterable[int],
    options: Options,
) -> ComputedLayer:
    """A layer's distance, and those without the documents of one group each.

    Args:
        number: of the layer.
        sums: of its vision and text tokens.
        middles: medians [d] of each, or None for those of the sums' counts.
        means: mean rows of each document's tokens, where a measure needs them.
        left_out: groups to leave out one at a time. Outliers are those among all tokens.
        options: of the computation.
    """
    for tokens, middle in zip(sums, middles, strict=True):
        tokens.replace_outliers(middle)
    dtype = options.dtype or root_dtype(sums[1].moments.centre.device)

    def modalities(group: int | None) -> tuple[Modality, Modality]:
        vision, text = (tokens.modality(group) for tokens in sums)
        return (
            vision._replace(gaussian=vision.gaussian.to(dtype)),
            text._replace(gaussian=text.gaussian.to(dtype)),
        )

    whole = modalities(None)
    result, terms = layer_result(number, *whole)
    sample = (sums[0].known.sample, sums[1].known.sample)
    offer = Offer((whole[0].gaussian, whole[1].gaussian), whole[1].norm, means, sample)
    result = result.model_copy(update=figures(options.extras, offer))
    rows = None
    if (count := options.sample_rows) and sample[0] is not None and sample[1] is not None:
        rows = (sample[0][:count], sample[1][:count])
    others = (LeftOut.of(number, *modalities(group), near=terms) for group in left_out)
    return ComputedLayer(result, tuple(others), rows)
