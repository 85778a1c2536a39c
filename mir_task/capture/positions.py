"""Where the vision tokens of a sequence stand.

Vision positions are those of the task's modality: images and videos, or audio. What a position is, is
told by, in this order:

* token ids: the placeholders that the processor expanded, `input_ids == image_token_id`;
* where the ids hold none, a mask that the model is given (`image_embeds_position_mask`);
* provenance: a row that enters the decoder is text exactly when it is what the input embedding gives
  for the token id that stands there, or, where no ids are known, for a token id of this forward.

Provenance must bear out what ids or a mask say. Two things are more than that, and are reported:

* *markers*: rows right beside placeholders that are neither placeholders nor text, such as learned
  marks of an image's beginning, lines and end. They count as vision, as an image's newlines do.
* *discrete* tokens: placeholders in whose place the model embeds ids of its own, the codes of a
  quantised image. They are vision tokens of the sequence as any other.

Where a sequence holds media of several kinds (a video with its sound), all of this is of all of them
together; only the ids tell the kinds apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mir_task.errors import MIRError

NO_TOKEN = -1
"""Stands among token ids where the model embedded no token."""

RULES = {
    "token_ids": "token ids",
    "mask": "the mask of positions that the model was given",
    "provenance": "provenance (rows that the input embedding did not give)",
}
"""In words, as a rule's parts stand in `Positions.rule`."""


@dataclass(frozen=True)
class Positions:
    """Where the tokens of one sequence stand: all tensors [L], on the CPU."""

    token_ids: Tensor
    """int64; `NO_TOKEN` where the model embedded no token."""
    real: Tensor
    """bool: not padding."""
    media: Tensor
    """bool: of any medium, markers included."""
    vision: Tensor
    """bool: of the modality, markers included."""
    markers: Tensor
    """bool: of the media, those that are no placeholders though others beside them are."""
    discrete: Tensor
    """bool: of the media, those that are tokens of the vocabulary."""
    rule: str
    """Which rules found the media, joined by "+": "token_ids", "mask", "provenance"; or "none"."""

    @property
    def text(self) -> Tensor:
        """Real positions after the last one of any medium: bool [L]; of a sequence that holds one."""
        positions = torch.arange(len(self.real))
        return self.real & (positions > positions[self.media].max())


def locate(
    *,
    real: Tensor,
    outer_ids: Tensor | None,
    mask: Tensor | None,
    embedded_ids: Tensor | None,
    vision_ids: set[int],
    media_ids: set[int],
) -> Positions:
    """Positions of all media in one sequence by each rule that applies, and those of them that count.

    Args:
        real: bool [L], not padding.
        outer_ids: int64 [L] that the model was given, if any of that length.
        mask: bool [L] of media that the model was given, if any.
        embedded_ids: int64 [L] whose embeddings the rows are, `NO_TOKEN` where they are of none; None
            where the input embedding was not seen at work.
        vision_ids: of placeholders of the modality.
        media_ids: of placeholders of all media.

    Raises:
        MIRError: the rules differ, or no row is what the input embedding gives and no mask tells more.
    """
    told, name = _told(real, outer_ids, mask, media_ids)
    changed, discrete = _provenance(real, outer_ids, embedded_ids)
    none = torch.zeros_like(real)
    rules = [name] if told.any() else []
    markers, media = none, told
    if embedded_ids is not None and (real & ~changed).any():
        if not changed.any():  # placeholders embedded as any token: no vision rows at all
            told, rules = none, []
        markers = _markers(told, changed)
        media = changed
        rules += ["provenance"] if changed.any() else []
    elif embedded_ids is not None and real.any() and name != "mask":
        raise MIRError(
            "no row that the decoder's layers receive is what its input embedding gives for a token "
            "(they are scaled, get positions or a norm, or other rows are added to them), so nothing "
            "shows which of them are vision or audio tokens and which are text"
        )
    vision = media
    if name == "token_ids" and rules[:1] == ["token_ids"]:
        assert outer_ids is not None
        vision = _with_markers(_among(outer_ids, vision_ids) & told, markers, media)
    ids = embedded_ids if outer_ids is None else outer_ids
    return Positions(
        token_ids=torch.full_like(real, NO_TOKEN, dtype=torch.int64) if ids is None else ids,
        real=real,
        media=media,
        vision=vision,
        markers=markers,
        discrete=discrete & media,
        rule="+".join(rules) or "none",
    )


def _told(
    real: Tensor, outer_ids: Tensor | None, mask: Tensor | None, media_ids: set[int]
) -> tuple[Tensor, str]:
    """Media by what the model was given, and which rule says so; empty where none does."""
    if outer_ids is not None and (by_ids := _among(outer_ids, media_ids) & real).any():
        return by_ids, "token_ids"
    return (torch.zeros_like(real), "") if mask is None else (mask & real, "mask")


def _provenance(
    real: Tensor, outer_ids: Tensor | None, embedded_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Real positions whose rows are not of the token that stands there; and those of another token."""
    none = torch.zeros_like(real)
    if embedded_ids is None:
        return none, none
    changed, other = (embedded_ids == NO_TOKEN) & real, none
    if outer_ids is not None:
        other = (embedded_ids != outer_ids) & real & ~changed
        # One token in the place of all placeholders stands for nothing: they only have no embedding.
        if len(torch.unique(embedded_ids[other])) < 2:
            other = none
    return changed | other, other


def _markers(told: Tensor, changed: Tensor) -> Tensor:
    """Of the rows that are not text, those that are no placeholders.

    Raises:
        MIRError: they are not beside placeholders, or placeholders are text.
    """
    markers = changed & ~told
    if not told.any():
        return torch.zeros_like(told)
    # Numbers of the runs of rows that are not text, 0 outside.
    starts = changed & ~torch.cat([changed.new_zeros(1), changed[:-1]])
    runs = torch.where(changed, starts.cumsum(0), 0)
    alone = markers & ~torch.isin(runs, runs[told])
    differing = (alone | (told & ~changed)).nonzero().flatten()
    if len(differing):
        raise MIRError(
            f"the placeholders of media mark {int(told.sum())} positions, the rows that did not come "
            f"from the input embedding are {int(changed.sum())}; they differ at {len(differing)} "
            f"positions, first at {int(differing[0])}, with no placeholder beside it: the model adds or "
            "changes rows by a rule that this package does not know, so please report the model"
        )
    return markers


def _with_markers(vision: Tensor, markers: Tensor, media: Tensor) -> Tensor:
    """Placeholders of the modality with their markers: each is of the kind of what stands beside it.

    Before it first: a marker between the placeholders of two kinds ends the first.
    """
    vision, known = vision.clone(), media & ~markers
    places = markers.nonzero().flatten().tolist()
    for order, step in ((places, -1), (places[::-1], 1)):
        for place in order:
            beside = place + step
            if not known[place] and 0 <= beside < len(known) and known[beside]:
                vision[place], known[place] = vision[beside], True
    return vision


def _among(ids: Tensor, wanted: set[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(wanted), dtype=torch.int64))


def equal_rows(rows: Tensor, table: Tensor) -> Tensor:
    """Place [n] in a table [m, d] of the last row that has the same bits as each of [n, d]; or -1."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    bits, of_table = (part.contiguous().view(integers) for part in (rows, table))
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(torch.int64)
    factors = torch.randint(limits.min, limits.max, (rows.shape[1],), generator=generator).to(
        rows.device
    )
    # Sums of products that wrap around: rows that differ have equal keys about once in 2^64 pairs.
    keys, order = (of_table * factors).sum(1).sort(stable=True)
    places = torch.searchsorted(keys, (bits * factors).sum(1), right=True) - 1
    found = order[places.clamp(min=0)]
    return torch.where((of_table[found] == bits).all(1), found, -1)
