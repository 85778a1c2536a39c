"""What a position is, by ids, masks and provenance: on short sequences written out."""

import re

import pytest
import torch

from mir_task import MIRError
from mir_task.capture.positions import NO_TOKEN, Positions, locate

IMAGE, AUDIO = 90, 91
NONE = NO_TOKEN


def told(ids=None, origin=None, *, mask=None, padding=0, vision=(IMAGE,)) -> Positions:
    """Positions of a sequence whose rows are the embeddings of `origin`."""
    length = len(origin if ids is None else ids)
    tensors = [None if part is None else torch.tensor(part) for part in (ids, mask, origin)]
    return locate(
        real=torch.arange(length) >= padding,
        outer_ids=tensors[0],
        mask=None if mask is None else tensors[1].bool(),
        embedded_ids=tensors[2],
        vision_ids=set(vision),
        media_ids={IMAGE, AUDIO},
    )


def at(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def test_ids_and_provenance_agree() -> None:
    found = told([1, IMAGE, IMAGE, 5, 6], [1, NONE, NONE, 5, 6])
    assert (at(found.vision), at(found.text)) == ([1, 2], [3, 4])
    assert found.rule == "token_ids+provenance"
    assert not found.markers.any()
    assert not found.discrete.any()


def test_markers_beside_placeholders_are_vision_and_reported() -> None:
    ids = [1, 80, IMAGE, IMAGE, 81, IMAGE, 82, 5, 6]
    found = told(ids, [1, NONE, NONE, NONE, NONE, NONE, NONE, 5, 6])
    assert at(found.vision) == [1, 2, 3, 4, 5, 6]
    assert at(found.markers) == [1, 4, 6]
    assert at(found.text) == [7, 8]


def test_markers_are_of_the_kind_of_what_they_stand_beside() -> None:
    ids = [80, IMAGE, IMAGE, 81, 82, AUDIO, AUDIO, 83, 5, 6]
    origin = [NONE] * 8 + [5, 6]
    images, sounds = told(ids, origin), told(ids, origin, vision=[AUDIO])
    assert at(images.vision) == [0, 1, 2, 3, 4]  # what stands between two kinds ends the first
    assert at(sounds.vision) == [5, 6, 7]
    assert at(images.media) == at(sounds.media) == list(range(8))
    assert at(images.text) == [8, 9]


@pytest.mark.parametrize(
    ("origin", "fault"),
    [
        ([NONE, 4, NONE, NONE, 5, 6], r"are 3; they differ at 1 positions, first at 0"),
        ([1, 4, NONE, NONE, 5, NONE], r"are 3; they differ at 1 positions, first at 5"),
        ([1, 4, IMAGE, NONE, 5, 6], r"are 1; they differ at 1 positions, first at 2"),
        ([NONE, 4, IMAGE, IMAGE, 5, 6], r"are 1; they differ at 3 positions, first at 0"),
    ],
)
def test_rows_that_no_placeholder_explains_are_an_error(origin, fault: str) -> None:
    with pytest.raises(MIRError, match=f"mark 2 positions, .* {fault}, with no placeholder beside it"):
        told([1, 4, IMAGE, IMAGE, 5, 6], origin)


def test_codes_in_the_place_of_placeholders_are_discrete_vision_tokens() -> None:
    for ids in ([1, IMAGE, IMAGE, IMAGE, 5, 6], [1, 70, 70, 70, 5, 6]):  # an id that no one names
        found = told(ids, [1, 40, 41, 40, 5, 6])
        assert at(found.vision) == at(found.discrete) == [1, 2, 3]
        assert at(found.text) == [4, 5]


@pytest.mark.parametrize("stand_in", [IMAGE, 0])
def test_placeholders_embedded_as_one_token_are_no_vision_tokens(stand_in: int) -> None:
    """Cross-attention, or an image that was dropped, whichever token has its place."""
    found = told([1, IMAGE, IMAGE, 5, 6], [1, stand_in, stand_in, 5, 6])
    assert found.rule == "none"
    assert not found.media.any()


def test_rows_that_are_all_changed_are_told_by_a_mask_alone() -> None:
    ids, changed = [1, 70, 70, 5, 6], [NONE] * 5
    found = told(ids, changed, mask=[0, 1, 1, 0, 0])
    assert (at(found.vision), found.rule) == ([1, 2], "mask")
    assert told(ids, changed, mask=[0] * 5).rule == "none"  # a sequence of text
    refusal = re.escape("no row that the decoder's layers receive is what its input embedding gives")
    for given in (ids, [1, IMAGE, IMAGE, 5, 6], None):
        with pytest.raises(MIRError, match=refusal):
            told(given, changed)


def test_ids_go_before_a_mask_and_provenance_bears_a_mask_out() -> None:
    mask = [0, 1, 1, 0, 0]
    assert told([1, 70, 70, 5, 6], [1, NONE, NONE, 5, 6], mask=mask).rule == "mask+provenance"
    with_ids = told([1, IMAGE, IMAGE, 5, 6], [1, NONE, NONE, 5, 6], mask=[1] * 5)
    assert (with_ids.rule, at(with_ids.vision)) == ("token_ids+provenance", [1, 2])
    with pytest.raises(MIRError, match="mark 1 positions, .* are 2; they differ at 1 positions"):
        told([1, 70, 5, 71, 6], [1, NONE, 5, NONE, 6], mask=[0, 1, 0, 0, 0])


def test_padding_is_nothing() -> None:
    found = told([0, 0, 1, IMAGE, 5], [NONE, 7, 1, NONE, 5], padding=2)
    assert (at(found.media), at(found.text)) == ([3], [4])
