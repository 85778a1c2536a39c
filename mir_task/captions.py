"""Losses of captions, document by document: means over their tokens, standard errors by documents."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mir_task.result import jackknife_stderr


class TokenMean(NamedTuple):
    """A mean over the tokens of documents."""

    value: float
    stderr: float | None
    """By the jackknife that leaves out one document at a time; None of a single document."""

    @classmethod
    def of(cls, means: Iterable[tuple[float, int]]) -> "TokenMean | None":
        """From each document's own mean and its number of tokens; None where there is no token."""
        documents = [(mean * tokens, tokens) for mean, tokens in means if tokens]
        if not documents:
            return None
        total, tokens = sum(of for of, _ in documents), sum(count for _, count in documents)
        without = [(total - of) / (tokens - count) for of, count in documents if tokens > count]
        return cls(total / tokens, jackknife_stderr(without) if len(without) > 1 else None)


def caption_loss(documents: Iterable[Mapping[str, Any]]) -> TokenMean | None:
    """Loss of the caption tokens after their own media, in nats; None unless every document has one."""
    entries = list(documents)
    if not all("caption_loss" in document for document in entries):
        return None
    return TokenMean.of((document["caption_loss"], document["caption_tokens"]) for document in entries)


def caption_gain(documents: Iterable[Mapping[str, Any]]) -> TokenMean | None:
    """Loss after another document's medium minus that after the own one, of the documents with both."""
    return TokenMean.of(gains(documents).values())


def gains(documents: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """By id, the gain of each document that has one, a token, and its tokens."""
    return {
        document["id"]: (document["caption_gain"], document["caption_gain_tokens"])
        for document in documents
        if "caption_gain" in document
    }


def gain_difference(
    a: Mapping[str, tuple[float, int]], b: Mapping[str, tuple[float, int]]
) -> tuple[float, float | None] | None:
    """Gain of one model minus that of another over the documents that both have, and its standard error.

    Each model's gain is a mean over the tokens that it has of these documents, which differ with the
    tokenizer; the jackknife leaves the same document out of both.
    """
    common = [name for name in a if name in b]
    if not common:
        return None
    sums = [sum(of[n][0] * of[n][1] for n in common) for of in (a, b)]
    tokens = [sum(of[n][1] for n in common) for of in (a, b)]

    def without(name: str, place: int, of: Mapping[str, tuple[float, int]]) -> float:
        gain, count = of[name]
        return (sums[place] - gain * count) / (tokens[place] - count)

    left_out = [without(n, 0, a) - without(n, 1, b) for n in common] if len(common) > 1 else []
    value = sums[0] / tokens[0] - sums[1] / tokens[1]
    return value, jackknife_stderr(left_out) if left_out else None
