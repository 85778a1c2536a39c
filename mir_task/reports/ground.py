"""Which values compare with which: what two measurements must have in common."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mir_task.reports.side_file import SideFile

_OUTLIERS = {"replace": "outliers replaced", "drop": "outliers dropped"}


class Ground(NamedTuple):
    """What two measurements must have in common for their values to compare."""

    task: str
    modality: str
    documents: tuple[str, ...]
    """Their ids, sorted."""
    text: str
    """Which part of each document's text was counted."""
    placement: str
    outliers: str
    layers: int
    """K, decoder layers."""
    hidden_size: int | None
    """d, dimensions; the first version did not note them."""
    data: str | None = None
    """Digest of the documents' texts, and of their data set where ids count its rows; None where texts
    were not noted: by earlier versions, and of stored states."""

    def plain(self) -> dict[str, Any]:
        """Each part as a string or a number; of the documents their number and a digest."""
        digest = hashlib.sha256("\n".join(self.documents).encode()).hexdigest()[:8]
        return self._asdict() | {"documents": len(self.documents), "document_set": digest}

    def facts(self) -> dict[str, str]:
        """Each part in a few words, as a reader meets it."""
        plain = self.plain()
        return {
            "task": f"task {self.task}",
            "modality": f"modality {self.modality}",
            "documents": "{documents} documents (set {document_set})".format(**plain),
            "text": self.text,
            "placement": f"placement {self.placement}",
            "outliers": _OUTLIERS.get(self.outliers, f"outlier rule {self.outliers}"),
            "layers": f"{self.layers} layers",
            "hidden_size": f"{self.hidden_size or 'unknown'} dimensions",
        }

    @property
    def _alike(self) -> "Ground":
        """Without what is not always known."""
        return self._replace(data=None)


def differences(one: Ground, other: Ground) -> list[str]:
    """Why values of `one` do not compare with those of `other`, in words; empty where they do."""
    own, others = one.facts(), other.facts()
    found = [
        f"{own[field]}, not {others[field]}"
        for field in own
        if getattr(one, field) != getattr(other, field)
    ]
    if one.documents == other.documents and one.data != other.data:
        which = f"{one.data or 'unknown'}, not {other.data or 'unknown'}"
        found.append(f"other texts or another data set under the same ids ({which})")
    return found


def settled(grounds: Iterable[Ground]) -> dict[Ground, Ground]:
    """Each ground as it counts among all: where its `data` is not known, with that of those like it.

    It stays unknown where these have several.
    """
    every = list(dict.fromkeys(grounds))
    known: dict[Ground, set[str]] = {}
    for ground in every:
        known.setdefault(ground._alike, set()).update([ground.data] if ground.data else [])
    of = {each: next(iter(data)) if len(data) == 1 else None for each, data in known.items()}
    return {ground: ground._replace(data=ground.data or of[ground._alike]) for ground in every}


def ground_of(report: SideFile) -> Ground:
    """What a side file says of it."""
    limit, counted = (report.settings.get(key) for key in ("mir_text_limit", "mir_text_rows"))
    return Ground(
        task=report.task,
        modality=report.modality,
        documents=tuple(sorted(document.id for document in report.documents)),
        text=(f"first {limit} words" if limit else "whole texts")
        + (f", first {counted} tokens" if counted else ""),
        placement=report.placement,
        outliers=report.outliers,
        layers=len(report.layers),
        hidden_size=report.hidden_size,
        data=_data(report),
    )


def _data(report: SideFile) -> str | None:
    """Digest of what tells documents of the same ids apart; None where texts were not noted."""
    told = sorted((document.id, document.text_sha256) for document in report.documents)
    if not all(digest for _, digest in told):
        return None
    settings, origin = report.settings, list[str]()
    if settings.get("mir_media_id") is None:
        named = settings.get("mir_media_dataset") or ()
        # Folders stand elsewhere on each machine.
        origin = [Path(each).name for each in ([named] if isinstance(named, str) else named)]
        origin += [str(settings.get(f"mir_media_{key}")) for key in ("config", "split", "column")]
    return hashlib.sha256(json.dumps([told, origin]).encode()).hexdigest()[:8]
