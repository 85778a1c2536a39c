"""The `mir_*` keys of a task's YAML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mir_task.errors import MIRError

_INSTALLED = Path(__file__).parent / "task_configs"
TASK_CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "task_configs"
"""Folder of the packaged tasks' YAML files: in the wheel, or beside the package in a checkout."""

Modality = Literal["image", "video", "audio"]
"""The medium of the documents, whose tokens are compared with those of the text."""
TOKENS: dict[str, str] = {"image": "vision", "video": "video", "audio": "audio"}
"""What the tokens of a modality are called where a person reads of them."""

Placement = Literal["assistant_loglikelihood", "assistant_chat", "user_generate"]
"""Where a document's text stands in the prompt.

- `assistant_loglikelihood`: text as the continuation of a log-likelihood request, which simple
  adapters put into the assistant turn; the prompt of the published code.
- `assistant_chat`: medium in the user turn, text in an assistant turn, of a chat adapter.
- `user_generate`: medium and text in the user turn.
"""
PLACEMENTS: tuple[str, ...] = get_args(Placement)


class Measuring(BaseModel):
    """What is measured of a model's documents, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mir_modality: Modality = "image"
    """What the documents hold beside their text."""
    mir_text_rows: int | None = Field(default=None, ge=1)
    """Text tokens of a document that count, the first after its medium; all where not given."""
    mir_placement: Placement | None = None
    """Where the text stands; the best that the adapter supports where not given."""
    mir_outliers: Literal["replace", "drop"] = "replace"
    mir_on_error: Literal["stop", "skip"] = "stop"
    """What a document that cannot be measured does to the run."""
    mir_groups: int | None = Field(default=None, ge=0)
    """Groups of the jackknife behind `mir_stderr`; 0 for none. 5 where a layer's sums fit with them, if
    not given."""
    mir_sample_rows: int = Field(default=0, ge=0, le=1024)
    """Rows a layer and modality that are written beside the side file, for `mir-task plot --tokens`."""
    mir_extras: tuple[Literal["cka", "mmd", "entropy_rank"], ...] = ()
    """Figures of each layer that take more than its means and covariances; see docs/diagnostics.md."""
    mir_caption_ppl: bool = False
    """Whether the loss and perplexity of the documents' own texts are taken from the same forwards."""
    mir_host_memory: float | None = Field(default=None, gt=0)
    """GiB of host memory for statistics, a process; half of what is free if not given."""
    mir_accelerator_memory: float | None = Field(default=None, ge=0)
    """GiB of each accelerator for statistics; half of what is free beside the model if not given. The
    documents run again for layers whose rows do not fit."""

    @field_validator("mir_groups")
    @classmethod
    def _not_one(cls, groups: int | None) -> int | None:
        if groups == 1:
            raise ValueError("must be 0 (no standard error) or at least 2")
        return groups

    @classmethod
    def of(cls, owner: str, keys: Mapping[str, Any]) -> Self:
        """Settings from `mir_*` keys.

        Args:
            owner: of the keys, for messages.
            keys: with their values.

        Raises:
            MIRError: an unknown key or a value that does not fit, with the keys that are known.
        """
        try:
            return cls(**keys)
        except ValidationError as error:
            faults = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
            known = ", ".join(sorted(cls.model_fields))
            raise MIRError(f"{owner}: {faults}. Known keys: {known}") from None


class Settings(Measuring):
    """What a MIR task measures, how, and on which documents.

    A data set is named by an id on the Hugging Face Hub, by the path of a folder or file, or by
    `mir_task:PATH` inside this package; of several names the first that can be read is taken.
    """

    mir_documents: int = Field(default=100, ge=1)
    """Documents drawn."""
    mir_seed: int = 0
    """Of the draw."""
    mir_media_dataset: str | tuple[str, ...]
    """Source of the images, videos or audio."""
    mir_media_config: str | None = None
    mir_media_split: str = "train"
    mir_media_column: str
    """The modality's name where not given."""
    mir_media_id: str | None = None
    """Column of the row's identity (rows of one identity are one); row numbers where not given."""
    mir_text_dataset: str | tuple[str, ...] | None = None
    """Source of unpaired texts; without it the texts are a column of the media's rows."""
    mir_text_config: str | None = None
    mir_text_split: str = "train"
    mir_text_column: str = "text"
    mir_text_id: str | None = None
    mir_pairing: Literal["crossed", "by_id"] = "crossed"
    """How texts of a second source go with media: the i-th drawn of each, or those of one id."""
    mir_text_limit: int | None = Field(default=None, ge=1)
    """Words of a text that are kept, from its beginning; all where not given."""

    @model_validator(mode="before")
    @classmethod
    def _column_of_the_modality(cls, keys: dict[str, Any]) -> dict[str, Any]:
        return {"mir_media_column": keys.get("mir_modality", "image"), **keys}


class _Loader(yaml.SafeLoader):
    """YAML whose `!function` tags of the harness are left as their text."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def packaged_tasks() -> dict[str, Path]:
    """YAML file of each MIR task of this package, by the task's name."""
    return tasks_in(TASK_CONFIGS)


def tasks_in(folder: Path) -> dict[str, Path]:
    """YAML file of each MIR task in a folder and below, by the task's name."""
    configs = {path: _read(path) for path in sorted(folder.rglob("*.yaml"))}
    return {config["task"]: path for path, config in configs.items() if mir_keys(config)}


def groups_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """Names of the tasks, or of groups, in each group of a folder's YAML files."""
    configs = [_read(path) for path in sorted(folder.rglob("*.yaml"))]
    return {config["group"]: tuple(config["task"]) for config in configs if "group" in config}


def with_base(
    config: Mapping[str, Any], paths: Mapping[str, Path], within: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A task's configuration on top of the MIR task that its `mir_base` names.

    Args:
        config: of the task.
        paths: YAML files of tasks by name. A base of the task's own name is the packaged task.
        within: bases on the way to this one.

    Raises:
        MIRError: `mir_base` names no task, or bases name each other.
    """
    own = dict(config)
    base = own.pop("mir_base", None)
    if base is None:
        return own
    if base in within:
        raise MIRError(f"mir_base goes round in a circle: {' -> '.join([*within, base])}")
    if base == own.get("task"):
        paths = {**paths, **packaged_tasks()}
    if base not in paths:
        raise MIRError(
            f"task {own.get('task')}: mir_base names {base!r}, which is none of {', '.join(paths)}"
        )
    return {**with_base(_read(paths[base]), paths, (*within, base)), **own}


def read_task(path: Path, paths: Mapping[str, Path]) -> dict[str, Any]:
    """A task's configuration from its YAML file, with its base's."""
    return with_base(_read(path), paths)


def _read(path: Path) -> dict[str, Any]:
    config = yaml.load(path.read_text("utf-8"), _Loader)
    return config if isinstance(config, dict) else {}


def mir_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `mir_*` keys of a configuration."""
    return {key: value for key, value in config.items() if key.startswith("mir_")}
