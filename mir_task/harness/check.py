"""What MIR would measure of a model, on two documents, for a person to read: `mir-task check`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from lmms_eval.api.model import lmms

from mir_task.capture.prefill import Prefill
from mir_task.documents.document import Document
from mir_task.errors import MIRError, did_you_mean
from mir_task.files import written_whole
from mir_task.harness.adapter import Adapter
from mir_task.harness.requests import documents_of
from mir_task.harness.task import MIRTask
from mir_task.measuring import plan
from mir_task.measuring.found import found_by
from mir_task.measuring.seen import Caption, Seen, why_no_losses
from mir_task.settings import TOKENS, Settings
from mir_task.statistics.memory import GIB

DOCUMENTS = 2

_PLACEMENTS = {
    "assistant_loglikelihood": "the text is the assistant's turn of a log-likelihood request",
    "assistant_chat": "the text stands in an assistant turn after the {modality}",
    "user_generate": "{modality} and text stand in the user turn",
}


class Position(NamedTuple):
    """One position of the decoder's sequence."""

    kind: str
    """`vision`, `text` (counted), `other` (not counted) or `padding`."""
    token: str


class Checked(NamedTuple):
    """One document as the model saw it."""

    id: str
    rule: str
    span: str
    forwards: tuple[int, int]
    """Prefill forwards and decode steps."""
    traps: list[str]
    caption: str
    """Loss of the text, and with the medium of the other document, where they are measured."""
    positions: list[Position]

    def count(self, kind: str) -> int:
        """Positions of one kind."""
        return sum(position.kind == kind for position in self.positions)


class Report(NamedTuple):
    """What was found out about an adapter and its model."""

    adapter: str
    model: str
    decoder: str
    tokens: str
    """What the tokens that are compared with text are called."""
    placement: str
    plan: list[str]
    """Where the statistics of the task's documents would live, and the passes over them."""
    traps: list[str]
    documents: list[Checked]


def load(model: str, model_args: str, *, force_simple: bool, batch_size: int = 1) -> lmms:
    """The harness's adapter with its model.

    Raises:
        MIRError: the adapter or its model cannot be loaded, with the cause.
    """
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model

    known = MODEL_REGISTRY_V2.list_model_names()
    if model not in known:
        hint = did_you_mean(model, known) or "; `lmms-eval models` lists them"
        raise MIRError(f"the harness has no adapter {model!r}{hint}")
    try:
        return get_model(model, force_simple).create_from_arg_string(
            model_args, {"batch_size": batch_size}
        )
    except Exception as error:
        package = getattr(error, "name", None) or "lmms_eval"
        if isinstance(error, ModuleNotFoundError) and not package.startswith("lmms_eval"):
            raise MIRError(
                f"the adapter {model} imports {package}, which is not installed: pip install {package}"
            ) from error
        raise MIRError(
            f"the adapter {model} could not load its model: {type(error).__name__}: {error}"
            f"{_missing_path(model_args)}"
        ) from error


def _missing_path(model_args: str) -> str:
    """A hint where the checkpoint could be a path that is not there."""
    for name, _, value in (part.partition("=") for part in model_args.split(",")):
        if name.strip() in ("pretrained", "model", "model_path") and not Path(value).exists():
            return f" (as a path, {name.strip()}={value} would be {Path(value).absolute()}: not there)"
    return ""


def check(load: Callable[[], lmms], config: dict[str, Any]) -> Report:
    """Run two documents of a task through an adapter.

    Args:
        load: gives the loaded adapter; called once the task's data is known to be there.
        config: of the task; all its documents count for the plan, as long as the two on average.

    Raises:
        MIRError: MIR cannot be measured, with the reason.
    """
    MIRTask(config)  # draws all documents, so that a run of the task finds as many as it asks for
    task = MIRTask({**config, "mir_documents": DOCUMENTS})
    lm = load()
    documents = documents_of(lm, task)
    modality = task.settings.modality
    adapter = Adapter(lm, task.settings)
    with adapter.capturing(losses=task.settings.measures_captions):
        seen = [adapter.see(*pair) for pair in zip(documents, reversed(documents), strict=True)]
        captions = [
            _caption(adapter, *both, gain=task.settings.measures_gain)
            for both in zip(documents, seen, strict=True)
        ]
    facts, rows = adapter.facts(seen[0].prefill), seen[0].prefill.text_rows
    devices = sorted({str(p.device) for p in adapter.decoder.module.parameters()})
    placement = facts["placement"]
    return Report(
        adapter=f"{type(lm).__module__}.{type(lm).__name__} ({'simple' if lm.is_simple else 'chat'})",
        model=facts["model_class"],
        decoder=(
            f"{facts['decoder'] or 'the model itself'}: {len(rows)} layers of {facts['hidden_size']} "
            f"dimensions, {facts['hidden_dtype']}, on {', '.join(devices)}"
        ),
        tokens=TOKENS[modality],
        placement=f"{placement}: {_PLACEMENTS[placement].format(modality=modality)}",
        plan=_plan(adapter, config, task.settings, seen),
        traps=adapter.notes,
        documents=[
            _checked(document, of_document, adapter.tokenizer, caption)
            for document, of_document, caption in zip(documents, seen, captions, strict=True)
        ],
    )


def _caption(adapter: Adapter, document: Document, seen: Seen, *, gain: bool) -> str:
    """What is measured of a document's text as a caption, in words; empty where nothing is."""
    own = Caption.of(seen, adapter.tokenizer)
    if own is None:
        why = why_no_losses(seen, adapter.model_class)
        return f"{why}, so there is no caption loss or gain" if gain else ""
    found = f"loss {own.losses.mean():.4f} of {len(own.ids)} tokens"
    if gain and document.to_other_media is not None:
        other = Caption.of(
            adapter.see(document._replace(to_media=document.to_other_media), None), adapter.tokenizer
        )
        if other is not None:
            found += f", {other.losses.mean():.4f} with the {adapter.modality} of the other document"
    return found


def _plan(adapter: Adapter, config: dict[str, Any], settings: Settings, seen: list[Seen]) -> list[str]:
    """The passes over all documents of a task, by the tokens of some, in words."""
    count = int(config.get("mir_documents", Settings.model_fields["documents"].default))
    rows = seen[0].prefill.text_rows[0]
    tokens = [int(one.prefill.vision.sum() + one.prefill.text.sum()) for one in seen]
    devices = plan.layer_devices(adapter.decoder)
    room = plan.room_for(devices.values(), settings.host_memory, settings.accelerator_memory)
    shape = plan.Shape(rows.shape[1], rows.element_size())
    place, passes = plan.plan(devices, shape, room, settings.groups, sum(tokens) * count // len(tokens))
    lines = [*place.notes, *([plan.passes_note(place, room, passes)] if len(passes) > 1 else [])]
    for number, each in enumerate(passes, start=1):
        kept = f"{each.keeps} of {len(each.layers)} layers" if each.layers else "norms and samples"
        kept += ", one of them the decoder's input" if 0 in each.layers else ""
        taken = " and ".join(f"{size / GIB:.3g} GiB on {device}" for device, size in each.bytes.items())
        lines.append(f"pass {number} of {count} documents: {kept}, {taken}")
    computing = max(shape.computing(place.groups, device) for device in place.devices.values()) / GIB
    lines.append(f"a layer's computation takes {computing:.3g} GiB more for a time")
    return lines


def _checked(document: Document, seen: Seen, tokenizer: Any, caption: str) -> Checked:
    traps = list(seen.traps)
    if seen.arrival.cut:
        traps.append(f"the last {seen.arrival.cut} characters of the text did not arrive")
    if seen.arrival.changes:
        traps.append(f"the text was changed on its way: {seen.arrival.changes}")
    return Checked(
        id=document.id,
        rule=found_by(seen.prefill),
        span=seen.span,
        forwards=seen.forwards,
        traps=traps,
        caption=caption,
        positions=list(_positions(seen.prefill, tokenizer)),
    )


def _positions(prefill: Prefill, tokenizer: Any) -> Iterator[Position]:
    for token_id, real, vision, text in zip(
        prefill.token_ids.tolist(),
        prefill.real.tolist(),
        prefill.vision.tolist(),
        prefill.text.tolist(),
        strict=True,
    ):
        kind = "vision" if vision else "text" if text else "other" if real else "padding"
        token = "no token" if token_id < 0 else tokenizer.decode([token_id])
        yield Position(kind, token)


def report_text(report: Report) -> str:
    """The report as text."""
    lines = [
        f"adapter    {report.adapter}",
        f"model      {report.model}",
        f"decoder    {report.decoder}",
        f"placement  {report.placement}",
        *(f"plan       {line}" for line in report.plan),
        *(f"trap       {trap}" for trap in report.traps),
    ]
    for document in report.documents:
        lines += [
            "",
            f"document   {document.id}",
            f"{report.tokens:10} {document.count('vision')} tokens, found {document.rule}",
            f"text       {document.count('text')} tokens counted, {document.count('other')} not "
            f"(before or between the {report.tokens} tokens), {document.count('padding')} padding",
            f"span       {_shortened(document.span)!r}",
            f"forwards   {document.forwards[0]} prefill, {document.forwards[1]} decode steps",
            *([f"caption    {document.caption}"] if document.caption else []),
            *(f"trap       {trap}" for trap in document.traps),
        ]
    return "\n".join(lines)


def _shortened(span: str, length: int = 200) -> str:
    half = length // 2
    return span if len(span) <= length else f"{span[:half]} … {span[-half:]}"


def write_html(report: Report, path: Path) -> None:
    """Draw the token strip of each document into one page that needs nothing else."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mir_task", "harness"), autoescape=True)
    page = environment.get_template("check.html").render(report=report)
    with written_whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
