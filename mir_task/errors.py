"""The one exception of this package, and hints that its messages share."""

import difflib
from collections.abc import Iterable


class MIRError(ValueError):
    """MIR cannot be measured; the message names the cause and the way out."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A hint for a message on an unknown word, in brackets; empty where nothing is near it.

    Args:
        word: that was given.
        known: words that could be meant.

    >>> did_you_mean("mir-dmo", ["mir_demo", "mir_coco"])
    ' (did you mean mir_demo?)'
    """
    forms = {name.lower().replace("-", "_"): name for name in known}
    given = str(word).lower().replace("-", "_")
    near = difflib.get_close_matches(given, forms, n=3, cutoff=0.6)
    if near and difflib.SequenceMatcher(None, near[0], given).ratio() > 0.85:
        near = near[:1]
    return f" (did you mean {' or '.join(forms[name] for name in near)}?)" if near else ""
