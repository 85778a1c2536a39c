"""Which documents were measured, and what was seen on the way."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mir_task.errors import MIRError
from mir_task.result import MIRResult
from mir_task.settings import TOKENS


@dataclass
class DocumentLog:
    """Which documents were measured, and what was seen on the way."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per document id: token counts, decoded text span, vision-row rule, traps of the adapter."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Per document id: why it could not be measured."""
    facts: dict[str, Any] = field(default_factory=dict)
    """About the model and the prompt; the same on every process."""
    notes: list[str] = field(default_factory=list)
    """Remarks on how the text was placed."""
    seconds: float = 0.0
    """Wall time of the forwards."""

    def merge(self, other: "DocumentLog") -> None:
        """Add what another process, or another pass, measured of the same task.

        Raises:
            MIRError: they measured different models or placed the text differently.
        """
        if other.facts and self.facts and other.facts != self.facts:
            raise MIRError(
                f"the processes do not measure the same thing: {self.facts} and {other.facts}"
            )
        self.skipped |= other.skipped
        for name, seen in other.documents.items():  # a later pass measures no captions
            self.documents[name] = {**self.documents.get(name, {}), **seen}
        # What a later pass could not measure counts in none.
        for name in self.skipped:
            self.documents.pop(name, None)
        self.facts = self.facts or other.facts
        self.notes = self.notes or other.notes

    @property
    def traps(self) -> dict[str, int]:
        """What an adapter did beyond one forward a document, and with how many documents."""
        return dict(Counter(trap for each in self.documents.values() for trap in each["traps"]))

    def warnings(self, result: MIRResult, modality: str) -> list[str]:
        """What a reader of the value should know."""
        found = list(self.notes)
        layer, size = result.layers[0], self.facts["hidden_size"]
        for name, tokens in ((TOKENS[modality], layer.vision_tokens), ("text", layer.text_tokens)):
            if tokens <= size:  # n tokens have a covariance of rank n - 1
                found.append(
                    f"{tokens} {name} tokens in {size} dimensions: their covariance is singular. "
                    "The distance is exact for these tokens but biased upwards, so compare it only "
                    "at equal documents, or measure more of them"
                )
        if self.skipped:
            found.append(
                f"{len(self.skipped)} document(s) could not be measured and are left out: "
                f"{named(self.skipped)}. {reasons(self.skipped.values())}"
            )
        lost = {i: d["caption_gain_lost"] for i, d in self.documents.items() if "caption_gain_lost" in d}
        if lost:
            found.append(
                f"caption_gain is without {len(lost)} document(s), which could not be measured with the "
                f"{modality} of another: {named(lost)}. {reasons(lost.values())}"
            )
        changed = {i: document["text_changes"] for i, document in self.documents.items()}
        if changed := {i: changes for i, changes in changed.items() if changes}:
            found.append(
                f"the text of {len(changed)} document(s) was changed on its way to the model; what "
                f"arrived is measured: {named(changed)}. Of the first, {next(iter(changed.values()))}"
            )
        cut = [i for i, document in self.documents.items() if document["characters_cut"]]
        if cut:
            found.append(
                f"the text of {len(cut)} document(s) was cut on its way to the model; what arrived is "
                f"measured: {named(cut)}. Set mir_text_limit (words) to choose the length yourself"
            )
        return found


def reasons(found: Iterable[str]) -> str:
    """Reasons with how many documents have each, the commonest first."""
    counted = Counter(found).most_common()
    parts = [f"{count} of them: {reason}" for reason, count in counted[:3]]
    return "; ".join([*parts, *([f"{len(counted) - 3} more reasons"] if len(counted) > 3 else [])])


def named(ids: Iterable[str]) -> str:
    """Some ids, and how many more there are."""
    names = list(ids)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
