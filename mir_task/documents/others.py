"""Which other document's medium stands in for a document's own one."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from mir_task.documents.draw import in_draw_order


@cache
def _following(count: int, seed: int) -> dict[int, int]:
    order = [int(row) for row in in_draw_order(map(str, range(count)), seed, count)]
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))


def other_row(row: int, count: int, seed: int, is_same: Callable[[int], bool]) -> int | None:
    """The row whose medium is taken, by an order that is the same on every machine.

    Args:
        row: of the document.
        count: of rows.
        seed: of the order.
        is_same: whether a row's medium is that of the document, or is none.

    Returns:
        None where no row has another medium.
    """
    following = _following(count, seed)
    other = following[row]
    while other != row and is_same(other):
        other = following[other]
    return None if other == row else other


def row_of_other_medium(rows: Sequence[Mapping[str, Any]], row: int, seed: int) -> int | None:
    """As `other_row`, of drawn documents, without those that cannot be read.

    Args:
        rows: as `mir_task.documents.draw.documents` gives them.
        row: of the document.
        seed: of the order.
    """
    own = rows[row]["media"]

    def is_same(number: int) -> bool:
        return rows[number]["media"] == own or rows[number]["fault"] is not None

    return other_row(row, len(rows), seed, is_same)
