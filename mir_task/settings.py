"""What is measured and how: the keys of a task's YAML, where they begin with `mir_`."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mir_task.errors import MIRError, did_you_mean

PREFIX = "mir_"
"""Of the keys in a task's YAML."""
BASE = "mir_base"
"""Key of a task's YAML that names the MIR task which it builds on."""
DATA_ROOT = "MIR_TASK_DATA"
"""Environment variable: a folder that is read before the Hugging Face Hub."""
RUNS_VARIABLE = "MIR_TASK_RUNS"
"""Environment variable: runs that share this machine at the same time."""

Modality = Literal["image", "video", "audio"]
"""The medium of the documents, whose tokens are compared with those of the text."""
TOKENS: dict[str, str] = {"image": "vision", "video": "video", "audio": "audio"}
"""What the tokens of a modality are called where a person reads of them."""

Extra = Literal["cka", "neighbours", "token_cosine", "sliced_wasserstein", "mmd", "entropy_rank"]
"""Measures of each layer that take more than its means and covariances; see docs/diagnostics.md."""

Placement = Literal["assistant_loglikelihood", "assistant_chat", "user_generate"]
"""Where a document's text stands in the prompt.

- `assistant_loglikelihood`: text as the continuation of a log-likelihood request, which simple
  adapters put into the assistant turn; the prompt of the published code.
- `assistant_chat`: medium in the user turn, text in an assistant turn, of a chat adapter.
- `user_generate`: medium and text in the user turn.
"""
PLACEMENTS: tuple[str, ...] = get_args(Placement)


class Column(BaseModel):
    """A column of texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    column: str
    """Its name, or `name.field` of nested cells."""
    kind: Literal["text", "str"] = Field(default="text", alias="as")
    """`str` takes numbers as texts."""

    @classmethod
    def of(cls, value: "str | Column") -> "Column":
        """From the setting, which may be the name alone."""
        return value if isinstance(value, Column) else cls(column=value)


class MeasureSettings(BaseModel):
    """What is measured of a model's documents, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Modality = "image"
    """What the documents hold beside their text."""
    text_rows: int | None = Field(default=None, ge=1)
    """Text tokens of a document that count, the first after its medium; all where not given."""
    placement: Placement | None = None
    """Where the text stands; the best that the adapter supports where not given."""
    outliers: Literal["replace", "drop"] = "replace"
    """What becomes of tokens whose norm is an outlier: `replace` puts the median row in their place, as
    the published code does; `drop` leaves them out, as the paper's text says."""
    on_error: Literal["stop", "skip"] = "stop"
    """What a document that cannot be measured does: `stop` ends the run, `skip` leaves the document
    out and reports it."""
    min_documents: int | None = Field(default=None, ge=1)
    """Documents that have to be measured where others are skipped; half of them if not given."""
    groups: int | None = Field(default=None, ge=0)
    """Groups of the jackknife behind `mir_stderr`; 0 for none. 5 where a layer's sums fit with them, if
    not given."""
    sample_rows: int = Field(default=0, ge=0, le=1024)
    """Rows a layer and modality that are written beside the side file, for `mir-task plot --tokens`."""
    extras: tuple[Extra, ...] = ()
    """Further measures of each layer."""
    caption_ppl: bool = False
    """Whether the loss and perplexity of the documents' own texts are taken from the same forwards."""
    caption_gain: bool | None = None
    """Whether that loss is also taken after the medium of another document, one forward more a document:
    where a task's texts are those of its media, if not given."""
    host_memory: float | None = Field(default=None, gt=0)
    """GiB of host memory for statistics, a process; half of what is free if not given."""
    accelerator_memory: float | None = Field(default=None, ge=0)
    """GiB of each accelerator for statistics; half of what is free beside the model if not given. The
    documents run again for layers whose rows do not fit."""

    @property
    def measures_gain(self) -> bool:
        """Whether the gain by the own medium is measured."""
        return bool(self.caption_gain)

    @property
    def measures_captions(self) -> bool:
        """Whether losses of the documents' own texts are measured."""
        return self.caption_ppl or self.measures_gain

    @field_validator("groups")
    @classmethod
    def _not_one(cls, groups: int | None) -> int | None:
        if groups == 1:
            raise ValueError("must be 0 (no standard error) or at least 2")
        return groups

    @classmethod
    def of(cls, owner: str, keys: Mapping[str, Any], prefix: str = PREFIX) -> Self:
        """Settings from keys and their values.

        Args:
            owner: of the keys, for messages.
            keys: with their values.
            prefix: with which all keys begin.

        Raises:
            MIRError: an unknown key or a value that does not fit, with the keys that are known.
        """
        try:
            return cls(**{str(key).removeprefix(prefix): value for key, value in keys.items()})
        except ValidationError as error:
            known = [*(f"{prefix}{name}" for name in cls.model_fields), *([BASE] if prefix else [])]
            raise MIRError(f"{owner}: {_faults(error, keys, prefix, known)}") from None

    def keys(self) -> dict[str, Any]:
        """All keys as in a task's YAML, with plain values."""
        return {
            f"{PREFIX}{key}": value for key, value in self.model_dump(mode="json", by_alias=True).items()
        }


def _faults(error: ValidationError, keys: Mapping[str, Any], prefix: str, known: Sequence[str]) -> str:
    """What is wrong with keys and their values, with each value and what would do."""
    found: dict[str, list[str]] = {}
    for each in error.errors():
        first, *rest = each["loc"] or ("",)
        message = each["msg"].removeprefix("Value error, ")
        for technical, plain in _PLAIN.items():
            message = message.replace(technical, plain)
        if each["type"] == "extra_forbidden" and not rest:
            hint = did_you_mean(f"{prefix}{first}", known)
            message = hint or f"; the keys are {', '.join(sorted(known))}"
            found[f"{prefix}{first} is no key{message}"] = []
        elif each["type"] == "missing" and not rest:
            found[f"{prefix}{first} is missing, and has no default"] = []
        elif each["loc"]:
            value = textwrap.shorten(repr(keys.get(f"{prefix}{first}", each["input"])), 100)
            inside = f"{rest[-1]!r}: " if len(rest) > 1 else ""
            found.setdefault(f"{prefix}{first} is {value}: it ", []).append(inside + message)
        else:  # of several keys together
            found[f"{prefix}{message}"] = []
    return "; ".join(fault + " or ".join(dict.fromkeys(of)) for fault, of in found.items())


_PLAIN = {
    "Input should be a valid dictionary or instance of Column": "must be a mapping of `column`",
    "Input should be a valid tuple": "must be a list",
    "Input should be a valid ": "must be of type ",
    "Input should be ": "must be ",
    "Extra inputs are not permitted": "is not known there",
    "Field required": "is missing there",
}
"""What pydantic says, and how someone says it who writes YAML."""


_OF_A_SET = ("media_split", "media_config", "text_split", "text_config")
"""Which part of a data set is read; null takes back what a `mir_base` names, as for a folder."""


class Settings(MeasureSettings):
    """What a MIR task measures, how, and on which documents.

    A data set is named by an id on the Hugging Face Hub, by the path of a folder or file, or by
    `mir_task:PATH` inside this package; of several names the first that can be read is taken.
    """

    documents: int = Field(default=100, ge=1)
    """Documents drawn."""
    seed: int = 0
    """Of the draw of documents."""
    media_dataset: str | tuple[str, ...]
    """Source of the images, videos or audio."""
    media_config: str | None = None
    """Configuration of that data set, where it has several."""
    media_split: str = "train"
    """Split of that data set."""
    media_column: str
    """Column of the medium; the modality's name where not given."""
    media_id: str | None = None
    """Column of the row's identity (rows of one identity are one); row numbers where not given."""
    text_dataset: str | tuple[str, ...] | None = None
    """Source of unpaired texts; without it the texts are a column of the media's rows."""
    text_config: str | None = None
    """Configuration of that data set, where it has several."""
    text_split: str = "train"
    """Split of that data set."""
    text_column: str | Column = "text"
    """Column of the texts: a name, `name.field`, or `{column: NAME, as: str}` for numbers."""
    text_id: str | None = None
    """Column of the identity of a row of texts; row numbers where not given."""
    pairing: Literal["crossed", "by_id"] = "crossed"
    """How texts of a second source go with media: the i-th drawn of each, or those of one id."""
    text_limit: int | None = Field(default=None, ge=1)
    """Words of a text that are kept, from its beginning; all where not given."""

    @property
    def is_paired(self) -> bool:
        """Whether each text is that of its medium."""
        return self.text_dataset is None or self.pairing == "by_id"

    @property
    def measures_gain(self) -> bool:
        """As of the parent; of paired texts where not given."""
        return self.is_paired if self.caption_gain is None else self.caption_gain

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, keys: dict[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in keys.items() if value is not None or key not in _OF_A_SET}
        return {"media_column": keys.get("modality", "image"), **given}

    @model_validator(mode="after")
    def _gain_of_pairs(self) -> Self:
        if self.caption_gain and not self.is_paired:
            raise ValueError(
                "caption_gain: true asks what a text gains by its own medium, and mir_text_dataset "
                f"{self.text_dataset} is crossed with the media: leave it out, or set mir_pairing: by_id"
            )
        return self
