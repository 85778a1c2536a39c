"""The side file of a run: its result, and what was measured and how."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mir_task.errors import MIRError
from mir_task.result import MIRResult

SCHEMA_VERSION: Literal[1] = 1
Content = TypeVar("Content", bound=BaseModel)


class MeasuredDocument(BaseModel):
    """What was seen of one document."""

    model_config = ConfigDict(extra="allow")

    id: str
    row: int
    """Position in the draw, from which its group follows."""
    text_sha256: str = ""
    """Of its text as the data set has it, 16 hexadecimal digits; empty where it was not noted."""


class SideFile(MIRResult):
    """Content of `<date>_mir_<task>.json`; files of earlier versions lack what has a default.

    `vision_*` are of the tokens of the modality.
    """

    model_config = ConfigDict(protected_namespaces=())

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    model: str
    """What `--model` named."""
    model_args: str | dict[str, Any]
    model_name: str
    adapter: str
    model_class: str
    decoder: str = ""
    hidden_size: int | None = None
    hidden_dtype: str
    placement: str
    settings: dict[str, Any]
    """Keys of the task's YAML."""
    documents: list[MeasuredDocument]
    skipped: dict[str, str] = Field(default_factory=dict)
    """Why documents were left out, by their ids."""
    traps: dict[str, int] = Field(default_factory=dict)
    """What the adapter did beyond one forward a document, and with how many documents."""
    warnings: list[str] = Field(default_factory=list)
    plan: dict[str, Any] = Field(default_factory=dict)
    """Where statistics lived, in how much memory, and what each pass measured."""
    versions: dict[str, str]
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def modality(self) -> str:
        """What the documents hold beside their text."""
        return str(self.settings.get("mir_modality", "image"))


def read_side_file(path: Path) -> SideFile:
    """A side file.

    Raises:
        MIRError: it is none, or damaged, with the reason.
    """
    return parsed(SideFile, path, "side file, the <date>_mir_<task>.json of a run")


def parsed(model: type[Content], path: Path, what: str) -> Content:
    """The content of a JSON file.

    Args:
        model: of the content.
        path: of the file.
        what: the file should be, for messages.

    Raises:
        MIRError: it cannot be read, or is something else, with the reason.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        reason = ".".join(map(str, first["loc"])) + f": {first['msg']}"
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise MIRError(f"{path.absolute()} is no {what} ({reason.removeprefix(': ')})")
