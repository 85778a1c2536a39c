"""Where the vision tokens of a sequence stand.

Vision positions are those of the task's modality: images and videos, or audio. They are found twice
where the model allows it:

* by token ids: the placeholders that the processor expanded, `input_ids == image_token_id`;
* by provenance: a row of the decoder's `inputs_embeds` is text exactly when the input-embedding
  module gives that very row for a token id of this forward.

Where a sequence holds media of several kinds (a video with its sound), both rules are of all of them
together; only the ids tell the kinds apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mir_task.errors import MIRError

NO_TOKEN = -1
"""Stands among token ids where the model embedded no token."""


@dataclass(frozen=True)
class Positions:
    """Where the tokens of one sequence stand: all tensors [L], on the CPU."""

    token_ids: Tensor
    """int64; `NO_TOKEN` where the model embedded no token."""
    real: Tensor
    """bool: not padding."""
    media: Tensor
    """bool: of any medium."""
    vision: Tensor
    """bool: of the modality."""
    rule: str
    """Which rule found the media: "token_ids", "provenance", "token_ids+provenance" or "none"."""

    @property
    def text(self) -> Tensor:
        """Real positions after the last one of any medium: bool [L]; of a sequence that holds one."""
        positions = torch.arange(len(self.real))
        return self.real & (positions > positions[self.media].max())


def locate(
    *,
    real: Tensor,
    outer_ids: Tensor | None,
    embedded_ids: Tensor | None,
    vision_ids: set[int],
    media_ids: set[int],
) -> Positions:
    """Positions of all media in one sequence by each rule that applies, and those of them that count.

    Raises:
        MIRError: both rules apply and differ.
    """
    found = {}
    counts = torch.ones_like(real)  # without ids no row tells its kind, and a document holds one
    if outer_ids is not None:
        by_ids = _among(outer_ids, media_ids) & real
        if by_ids.any():
            found["token_ids"] = by_ids
            counts = _among(outer_ids, vision_ids)
    if embedded_ids is not None:
        found["provenance"] = (embedded_ids == NO_TOKEN) & real
        if not found["provenance"].any():  # placeholders embedded as any token: no vision rows at all
            found.pop("token_ids", None)
    if len(found) == 2 and not torch.equal(*found.values()):
        differing = (found["token_ids"] != found["provenance"]).nonzero().flatten()
        raise MIRError(
            f"the media-token ids mark {int(found['token_ids'].sum())} positions, the rows that "
            f"did not come from the input embedding are {int(found['provenance'].sum())}; they "
            f"differ at {len(differing)} positions, first at {int(differing[0])}: the model adds or "
            "changes rows by a rule that this package does not know, so please report the model"
        )
    media = next(iter(found.values()), torch.zeros_like(real))
    ids = embedded_ids if outer_ids is None else outer_ids
    return Positions(
        token_ids=torch.full_like(real, NO_TOKEN, dtype=torch.int64) if ids is None else ids,
        real=real,
        media=media,
        vision=media & counts,
        rule="+".join(found) or "none",
    )


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
