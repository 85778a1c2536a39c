"""The harness's adapters on small checkpoints of their architectures: one `Row` each.

A row is run through `simple_evaluate`, and its MIR is compared with an independent computation on the
very inputs that the model received. The families' modules beside this one hold the checkpoints and rows.
"""

import importlib
import inspect
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import evaluate, independent

Call = dict[str, Tensor]
"""Arguments of one call of the model from outside, batch of one."""


def hidden_states(model: Any, call: Call) -> list[Tensor]:
    """One tensor [L, d] a decoder layer, by `output_hidden_states`."""
    return [state[0] for state in model(**call, output_hidden_states=True).hidden_states[1:]]


def layer_inputs(path: str) -> Callable[[Any, Call], list[Tensor]]:
    """As `hidden_states`, from what the layers at `path` receive and the decoder returns.

    For models that add features between the layers, or whose outer forward gives no hidden states.

    Args:
        path: of the list of decoder layers, in the model; its owner is the decoder.
    """

    def states(model: Any, call: Call) -> list[Tensor]:
        decoder = model.get_submodule(path.rpartition(".")[0])
        seen: list[Tensor] = []
        handles = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append((args or [kwargs["hidden_states"]])[0][0].clone()),
                with_kwargs=True,
            )
            for layer in list(model.get_submodule(path))[1:]
        ]
        handles.append(
            decoder.register_forward_hook(lambda _, args, out: seen.append(out.last_hidden_state[0]))
        )
        try:
            model(**call)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    return states


def placeholders(modality: str) -> Callable[[Any, Call], Tensor]:
    """Positions [L] of a modality's placeholder by its id in the configuration."""

    def positions(model: Any, call: Call) -> Tensor:
        names = (f"{modality}_token_id", f"{modality}_token_index")
        (token_id, *_) = [i for name in names if (i := getattr(model.config, name, None)) is not None]
        return call["input_ids"][0] == token_id

    return positions


image_tokens = placeholders("image")


@dataclass(frozen=True)
class Row:
    """One adapter, in one of its kinds, on one architecture."""

    adapter: str
    kind: str
    """`simple` or `chat`."""
    model_class: str
    """Its name in `package`."""
    make: Callable[[Path], Path]
    """Writes the checkpoint to a folder and returns it."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the adapter, beside `pretrained`, `device=cpu` and `device_map=cpu`; None takes one away.

    `{checkpoint}` in a text stands for the checkpoint's folder.
    """
    dtype: torch.dtype = torch.float32
    """In which the adapter loads the model."""
    states: Callable[[Any, Call], list[Tensor]] = hidden_states
    """Independent hidden states: one tensor [L, d] a decoder layer."""
    vision: Callable[[Any, Call], Tensor] = image_tokens
    """Independent vision positions: bool [L]."""
    count: Callable[[Any, Any], int] | int | None = None
    """The processor's own count of the tokens of an image (or another medium, as the task opens it);
    `count_by_processor` where None. A number where there is no processor, and each has as many."""
    folder: str = "model"
    """Name of the checkpoint's folder, which some adapters go by."""
    package: str = "transformers"
    """Where the model class is; a row without it is absent."""
    refused: str = ""
    """Regular expression of the message where MIR is not defined on the architecture."""
    broken: str = ""
    """Regular expression of the harness's own error where it cannot run the architecture."""
    reason: str = ""
    """Why it is refused or broken, in words; or a remark on a row that is measured."""
    instead: str = "none"
    """The clean way, where it is refused, broken, or not placed as well as elsewhere."""
    needs: dict[str, str] = field(default_factory=dict)
    """Arguments of the adapter whose defaults fail, each with a regular expression of the error."""
    rule: str = "token_ids+provenance"
    """The vision-row rules that apply."""
    task: Callable[[Path], dict[str, Any]] = lambda folder: {}
    """Keys of the task, whose data may be written to a folder; the demo's images and texts if none."""

    modality: str = "image"
    """Of the task."""
    load: Callable[..., Any] = evaluate.load
    """From a checkpoint, and arguments as of `evaluate.load`, to the adapter."""

    @property
    def name(self) -> str:
        """Adapter, kind, checkpoint and modality."""
        return f"{self.adapter}-{self.kind}-{self.make.__name__}-{self.modality}"

    @cached_property
    def found_class(self) -> Any:
        """The model class; None where this environment has none of that name."""
        try:
            return getattr(importlib.import_module(self.package), self.model_class, None)
        except ModuleNotFoundError:
            return None

    @property
    def status(self) -> str:
        """What is expected of it wherever its class is found."""
        return "refused" if self.refused else "broken in the harness" if self.broken else "measured"


DEVICE_MAP = {"device_map": "When passing device_map as a string, the value needs to be a device name"}
"""For `Row.needs`: an adapter whose `device_map` is empty by default."""


def count_by_processor(processor: Any, image: Any) -> int:
    """Vision tokens of a PIL image, as the processor's own function for other engines gives them."""
    sizes = [(image.height, image.width)]
    return int(processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"][0])


def count_by_grid(processor: Any, image: Any, **options: Any) -> int:
    """Vision tokens of a PIL image by the grid of patches that the image processor cuts it into.

    Args:
        processor: of a model that merges square blocks of patches into one vision token.
        image: as the processor receives it.
        options: of the image processor.
    """
    image_processor = processor.image_processor
    grid = image_processor(images=[image], return_tensors="pt", **options)["image_grid_thw"]
    return int(grid.prod()) // image_processor.merge_size**2


def rows() -> list[Row]:
    """All rows of the families' modules, in the order of their names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [row for module in modules for row in getattr(module, "ROWS", [])]


@dataclass(frozen=True)
class Measured:
    """What a row gave."""

    report: dict[str, Any]
    """The side file."""
    wanted: float
    """MIR of the independent computation."""
    counts: list[int]
    """The processor's own counts of vision tokens, a document each."""
    expected: list[int]
    """Vision positions of the independent computation, a document each."""


def load_row(row: Row, checkpoint: Path, *without: str) -> Any:
    """The row's adapter with its checkpoint.

    Args:
        row: whose adapter it is.
        checkpoint: that it made.
        without: arguments to leave to the adapter's defaults.
    """
    arguments = {
        name: value.format(checkpoint=checkpoint) if isinstance(value, str) else value
        for name, value in row.arguments.items()
    }
    arguments |= dict.fromkeys(without)
    lm = row.load(checkpoint, model=row.adapter, force_simple=row.kind == "simple", **arguments)
    assert lm.is_simple == (row.kind == "simple")
    return lm


def measure(row: Row, checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Run a row through the harness, and once more independently.

    Args:
        row: to run.
        checkpoint: that it made.
        output: folder for the side file.
        monkeypatch: undone before the independent computation.

    Raises:
        MIRError: the row cannot be measured.
        Exception: of the adapter, while it loads.
    """
    from transformers import AutoProcessor

    lm = load_row(row, checkpoint)
    received = evaluate.Received(row.found_class, monkeypatch)
    task = evaluate.task(**{"mir_caption_gain": False, **row.task(checkpoint.parent)})
    evaluate.evaluate(lm, task, output=output)
    monkeypatch.undo()

    model = row.found_class.from_pretrained(checkpoint, dtype=row.dtype).eval()
    accepted = inspect.signature(model.forward).parameters
    vision, text, expected = [], [], []
    for call in received.documents:
        inputs = {name: value for name, value in call.items() if name in accepted and name != "labels"}
        with torch.no_grad():
            states = row.states(model, inputs)
        is_vision = row.vision(model, inputs)
        after = torch.arange(len(is_vision)) > is_vision.nonzero().max()
        if "attention_mask" in inputs:
            after &= inputs["attention_mask"][0].bool()
        vision.append([state[is_vision].float() for state in states])
        text.append([state[after].float() for state in states])
        expected.append(int(is_vision.sum()))
    if isinstance(row.count, int):
        counts = [row.count] * len(expected)
    else:
        processor = AutoProcessor.from_pretrained(checkpoint)
        count = row.count or count_by_processor
        counts = [count(processor, task.doc_to_visual(doc)[0]) for doc in task.dataset["test"]]
    wanted = independent.mir(independent.pooled(vision), independent.pooled(text))
    return Measured(evaluate.report(output), wanted, counts, expected)


def make(row: Row, root: Path) -> Path:
    """The row's checkpoint, made once in a folder of its own under `root`.

    Skips where this environment does not have the model class.
    """
    if row.found_class is None:
        pytest.skip(f"{row.package} has no {row.model_class} here")
    folder = root / f"{row.make.__module__.rpartition('.')[2]}-{row.make.__name__}" / row.folder
    if not folder.exists():
        try:
            row.make(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder
