"""What a folder of stored hidden states holds, and of which model: `Manifest`, `Stored`."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import quote, unquote

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.settings import Modality, Placement
from mir_task.states.norm import FinalNorm, NormKind

MANIFEST = "manifest.json"
NORM = "norm.safetensors"
DOCUMENTS = "documents"
"""Folder of the documents' files, in that of the manifest."""
SUFFIX = ".safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Of hidden states, by the name in the manifest."""
HEADER_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Their names, by those in the headers of safetensors."""

Layout = Literal["mir-task", "vllm"]
"""Of a document's file: this package's own, or that of vLLM's connector."""
NUMBERING = (
    "layer 1 holds what the decoder is given, as tokens of one id have one state in it wherever they "
    "stand. Layer 1 is what the first layer gives: of the hidden_states of transformers the second"
)


class Manifest(BaseModel):
    """`manifest.json`: the model whose hidden states a folder holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["mir-task hidden states"] = "mir-task hidden states"
    version: Literal[1] = 1
    model: str = Field(min_length=1)
    """Path or id of the checkpoint, as in reports."""
    model_class: str = "unknown"
    engine: str = "states"
    """What ran the model; in the place of the harness's `--model`."""
    fingerprint: str | None = None
    """Of the checkpoint: what tells two of one shape apart, such as a commit or a digest. If there is
    one, each file has it in its metadata."""
    layers: int = Field(ge=1)
    """K, decoder layers."""
    input_layer: bool = False
    """Whether there are states of layer 0, the decoder's input."""
    hidden_size: int = Field(ge=1)
    """d, dimensions."""
    dtype: Literal["float32", "float16", "bfloat16"]
    last_layer: Literal["after_norm", "before_norm"]
    """Whether the states of layer K are those after the decoder's final norm, as MIR takes them."""
    norm: NormKind | None = None
    """The final norm, where it has to be applied; its weights are in `norm.safetensors`."""
    modality: Modality = "image"
    vision_token_ids: tuple[int, ...] = ()
    """Placeholders of the modality, where files have no `vision_mask`."""
    media_token_ids: tuple[int, ...] = ()
    """Placeholders of media of other kinds; text starts after the last of any."""
    placement: Placement | Literal["unknown"] = "unknown"
    """Where a document's text stands in the prompt."""
    task: str | None = Field(default=None, min_length=1)
    """Name of the set of documents."""
    documents: tuple[str, ...] | None = None
    """Their ids, where all are to be there."""

    @model_validator(mode="after")
    def _norm_where_it_is_needed(self) -> Self:
        if self.last_layer == "before_norm" and self.norm is None:
            raise ValueError("last_layer is before_norm, so norm must say which: its kind and epsilon")
        return self

    @property
    def numbers(self) -> range:
        """Of the layers whose states are there."""
        return range(0 if self.input_layer else 1, self.layers + 1)

    def digest(self, norm: FinalNorm | None) -> str:
        """Of what is said of the model, and of its final norm's weights."""
        content = self.model_dump(mode="json", exclude={"fingerprint", "documents"})
        sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        if norm is not None:
            sha.update(norm.weight.detach().float().cpu().numpy().tobytes())
        return sha.hexdigest()[:16]


class Stored(NamedTuple):
    """Hidden states of one model on disk."""

    manifest: Manifest
    norm: Callable[[Tensor], Tensor] | None
    """From rows [n, d] of the last layer to those after the final norm, where it has to be applied."""
    files: dict[str, Path]
    """By document id, sorted."""
    layout: Layout = "mir-task"


def encoded(name: str) -> str:
    """A name, percent-encoded where it holds what file names do not, such as a slash."""
    return quote(name, safe=" +,;=@()[]")


def file_name(document_id: str) -> str:
    """Of a document, by its id."""
    name = encoded(document_id)
    hidden = name.startswith(".")  # such files are left out
    return ("%2E" + name[1:] if hidden else name) + SUFFIX


def document_files(folder: Path) -> dict[str, Path]:
    """Files of documents in a folder, by the documents' ids.

    Raises:
        MIRError: two are of one id.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if not path.name.startswith("."):
            add_documents(files, {unquote(path.name.removesuffix(SUFFIX)): path})
    return files


def find(folders: Sequence[Path]) -> Stored:
    """What some folders hold of one model: one folder, or one of each machine that ran the engine.

    Raises:
        MIRError: a folder without a manifest or documents, manifests of different models, or a document
            that is missing, or there twice.
    """
    if not folders:
        raise MIRError("no folder of hidden states was given")
    manifests = [_manifest(folder / MANIFEST) for folder in folders]
    files: dict[str, Path] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        _check_same(folders[0], manifests[0], folder, manifest)
        own = document_files(folder / DOCUMENTS)
        _check_listed(folder, manifest, own)
        add_documents(files, own)
    manifest = manifests[0].model_copy(update={"documents": None})
    norm = _norm(folders[0] / NORM, manifest) if manifest.last_layer == "before_norm" else None
    return Stored(manifest, norm, files)


def add_documents(files: dict[str, Path], more: Mapping[str, Path]) -> None:
    """Add documents, such as those of another folder.

    Raises:
        MIRError: one is there already.
    """
    for name in more.keys() & files.keys():
        raise MIRError(f"document {name!r} is stored twice: {files[name]} and {more[name]}")
    files.update(more)


def _manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MIRError(
            f"{path} is missing: write_states writes it last, so the folder is not whole, or holds no "
            "hidden states; docs/states.md has the layout, and --checkpoint (checkpoint=) reads what "
            "vLLM wrote"
        ) from None
    except (OSError, ValidationError) as error:
        raise MIRError(f"{path} is no manifest of hidden states: {faults(error)}") from None


def faults(error: OSError | ValidationError) -> str:
    """What is wrong with a manifest, with the values that were given."""
    if isinstance(error, OSError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'its content'}: {each['msg']}"
        + (f", got {each['input']!r}" if each["loc"] and each["type"] != "missing" else "")
        for each in error.errors(include_url=False)
    )


def _check_same(first: Path, own: Manifest, folder: Path, other: Manifest) -> None:
    for name in Manifest.model_fields:
        mine, theirs = getattr(own, name), getattr(other, name)
        if name != "documents" and mine != theirs:
            raise MIRError(
                f"{folder / MANIFEST} has {name} {theirs!r}, and {first / MANIFEST} has {mine!r}: "
                "hidden states of different models or settings are not measured together"
            )


def _check_listed(folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> None:
    listed = manifest.documents
    if listed is not None:
        if missing := [name for name in listed if name not in files]:
            raise MIRError(
                f"{folder / DOCUMENTS} lacks {len(missing)} of the {len(listed)} documents of its "
                f"manifest, first {file_name(missing[0])}"
            )
        if more := sorted(files.keys() - set(listed)):
            raise MIRError(
                f"{folder / DOCUMENTS} has {len(more)} file(s) that its manifest does not list, first "
                f"{files[more[0]].name}: they may be of another model"
            )
    if not files:
        raise MIRError(f"{folder / DOCUMENTS} holds no document: one file ID{SUFFIX} each")


def _norm(path: Path, manifest: Manifest) -> FinalNorm:
    assert manifest.norm is not None
    with opened(path, "the weights of the final norm") as file:
        found = set(file.keys())
        wanted = {"weight", "bias"} if manifest.norm.kind == "layer" else {"weight"}
        if missing := {"weight"} - found:
            raise MIRError(f"{path} has no tensor {missing.pop()!r}, but {', '.join(sorted(found))}")
        tensors = {key: file.get_tensor(key) for key in wanted & found}
    norm = FinalNorm(manifest.norm, tensors["weight"], tensors.get("bias"))
    check_norm(norm, manifest.hidden_size, path)
    return norm


def check_norm(norm: FinalNorm, size: int, where: object) -> None:
    """Raise MIRError unless a norm's weights are of [d] and finite."""
    for name, tensor in (("weight", norm.weight), ("bias", norm.bias)):
        if tensor is None:
            continue
        if list(tensor.shape) != [size]:
            raise MIRError(
                f"{where}: the final norm's {name} has shape {list(tensor.shape)}, not [{size}] as the "
                "hidden states"
            )
        if not tensor.isfinite().all():
            raise MIRError(f"{where}: the final norm's {name} holds NaN or infinity")


@contextlib.contextmanager
def opened(path: Path, what: str) -> Iterator[Any]:
    """A safetensors file, to be read tensor by tensor.

    Raises:
        MIRError: it is missing, truncated or of another kind, with its size.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise MIRError(f"{path}, {what}, is missing") from None
    except (OSError, SafetensorError) as error:
        size = f"{path.stat().st_size} bytes, " if path.is_file() else ""
        raise MIRError(f"{path}, {what}, cannot be read ({size}{error}); write it anew") from None


def is_input(states: Tensor, token_ids: Tensor) -> bool:
    """Whether states [L, d] are a decoder's input, by the ids [L] that stand at several places.

    After a layer no two positions have the same state, but those of padding. So they are the input if
    two ids or more have the same state at all of their places. An input to which learned positions
    were added is not recognised.
    """
    order = token_ids.argsort(stable=True)
    ids, rows = token_ids[order], states[order]
    again = ids[1:] == ids[:-1]
    changes = again & (rows[1:] != rows[:-1]).any(1)
    return len(set(ids[1:][again].tolist()) - set(ids[1:][changes].tolist())) > 1
