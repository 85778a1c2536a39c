"""lm-evaluation-harness's adapter `hf-multimodal` as a `Reader`."""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import nn

from mir_task import moca
from mir_task.documents.document import Document
from mir_task.errors import MIRError
from mir_task.measuring.calls import media_marks
from mir_task.measuring.reader import Reader
from mir_task.settings import MeasureSettings

IMAGE = "<image>"
"""Stands for an image in the harness's texts, whatever the model's own mark is."""


class Adapter(Reader):
    """Runs documents through a loaded adapter of lm-evaluation-harness.

    Args:
        lm: the loaded adapter.
        settings: what is measured and how.

    Raises:
        MIRError: the adapter holds no PyTorch model in this process, or no processor with a chat
            template.
    """

    def __init__(self, lm: LM, settings: MeasureSettings) -> None:
        self.lm = lm
        model, processor = getattr(lm, "model", None), getattr(lm, "processor", None)
        if not isinstance(model, nn.Module) or processor is None:
            raise MIRError(
                f"the adapter {type(lm).__name__} holds no PyTorch model with a processor in this "
                "process, so there are no hidden states to read; run it with --model hf-multimodal"
            )
        if not getattr(processor, "chat_template", None):
            raise MIRError(
                f"{type(processor).__name__} has no chat template, so the adapter {type(lm).__name__} "
                "cannot put a text behind its image; add chat_template.jinja to the checkpoint"
            )
        moca.restore(model)
        super().__init__(
            f"the adapter {type(lm).__name__}",
            [model],
            lm.tokenizer,
            settings,
            ("assistant_chat", "user_generate"),
            [IMAGE, *media_marks(processor)],
        )

    @property
    def capacity(self) -> int:
        """The adapter's batch size."""
        return max(int(self.lm.batch_size), 1)

    def send(self, documents: list[Document], placement: str) -> list[str]:
        """One call of the adapter; its answers are not used."""
        lm: Any = self.lm
        before = lm.chat_applied  # by which it treats the texts of all tasks
        try:
            requests = [_instance(lm, document, placement) for document in documents]
            lm.generate_until(requests, disable_tqdm=True)
        finally:
            lm.chat_applied = before
        return []


def _instance(lm: Any, document: Document, placement: str) -> Instance:
    turns = [{"role": "user", "content": IMAGE}, {"role": "assistant", "content": document.text}]
    if placement == "user_generate":
        turns = [{"role": "user", "content": IMAGE + document.text}]
    generation = {"max_gen_toks": 1, "do_sample": False, "until": []}
    arguments = (lm.apply_chat_template(turns), generation, {"visual": document.to_media({})})
    return Instance("generate_until", {}, arguments, 0)
