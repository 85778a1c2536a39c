"""Measures of a layer that `mir_extras` asks for, each in a module of its own.

A module has the definition of its measure, its source and its cost, and a function `compute` from what
a layer offers (`Offer`) to fields of its `LayerResult`. They never enter MIR. `docs/diagnostics.md` says
how to read them, and what they have been seen to tell.
"""

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

from mir_task.metric.extras import cka, entropy_rank, mmd, neighbours, sliced_wasserstein, token_cosine
from mir_task.metric.extras.offer import Figures, Offer

Need = Literal["covariances", "means", "sample"]


class Extra(NamedTuple):
    """A measure."""

    compute: Callable[[Offer], Figures]
    needs: Need
    """Of what a layer may offer: covariances are always there, mean rows of documents and a sample of
    tokens where a measure needs them."""


EXTRAS = {
    "cka": Extra(cka.compute, "means"),
    "neighbours": Extra(neighbours.compute, "means"),
    "token_cosine": Extra(token_cosine.compute, "sample"),
    "sliced_wasserstein": Extra(sliced_wasserstein.compute, "sample"),
    "mmd": Extra(mmd.compute, "sample"),
    "entropy_rank": Extra(entropy_rank.compute, "covariances"),
}
"""By the names in `mir_extras`."""


def need(extras: Collection[str], what: Need) -> bool:
    """Whether one of the measures of these names needs it."""
    return any(EXTRAS[name].needs == what for name in extras)


def figures(extras: Collection[str], layer: Offer) -> Figures:
    """Those of all measures of these names."""
    found: Figures = {}
    for name in extras:
        found |= EXTRAS[name].compute(layer)
    return found
