"""What became of each architecture: what the tests ask for, and what the table shows."""

import re
from typing import Any

import torch

import mir_task
from mir_task import MIRError
from tests.architectures import Small, measuring

TOLERANCE = 1e-6
DTYPES = (torch.float32, torch.bfloat16)
NO_VISION = "reads no images or videos, so it has no vision tokens for MoCa to scale"

Outcome = dict[str, Any]


def outcome(row: Small) -> Outcome:
    """Of one row: measured in both dtypes and with MoCa, or refused with the message."""
    found: Outcome = {
        "name": row.name,
        "modality": row.modality,
        "model_class": row.model_class.__name__,
        "remark": row.remark,
    }
    if row.refused:
        return found | _refused(row)
    differences = {}
    for dtype in reversed(DTYPES):
        model = row.build(dtype)
        difference = abs(measuring.measured(row, model) - measuring.expected(row, model))
        differences[str(dtype).removeprefix("torch.")] = float(f"{difference:.1g}")
    checked = mir_task.check(**measuring.arguments(row, model)).documents
    moca = measuring.moca_works(row, model)
    fine = not moca or (row.modality == "audio" and (NO_VISION in moca or "no effect" in moca))
    return found | {
        "status": "measured" if max(differences.values()) < TOLERANCE and fine else "failed",
        "differences": differences,
        "vision_tokens": sorted({document.vision for document in checked}),
        "found_by": checked[0].found_by,
        "moca": moca,
    }


def _refused(row: Small) -> Outcome:
    model = row.build()
    messages = []
    for act in (measuring.measured, lambda _, model: mir_task.moca.apply(model)):
        try:
            act(row, model)
            messages.append("")
        except MIRError as error:
            messages.append(str(error).partition("; the first documents fail alike")[0])
    right = re.search(row.refused, messages[0]) and (
        messages[1] or "layers in one forward" in row.refused
    )
    return {
        "status": "refused" if right else "failed",
        "reason": messages[0],
        "moca": messages[1],
    }
