"""Processes that measure together, on torch.distributed; with one process all of it is a no-op."""

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import torch.distributed as dist

from mir_task.errors import MIRError

Part = TypeVar("Part")


def world_size() -> int:
    """Number of processes.

    Raises:
        MIRError: the launcher started several, but they are not connected.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MIRError(
            "WORLD_SIZE is above 1 but torch.distributed is not initialised, so the processes cannot "
            "be merged; start the run with torchrun or accelerate launch"
        )
    return 1


@contextlib.contextmanager
def on_every_rank() -> Iterator[None]:
    """Raise on every process what one of them raises inside, so that none waits for the others.

    Raises:
        MIRError: on the processes that did not fail, with the message of the first that did.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised below, after the others know
        failure = error
    size = world_size()
    if size > 1:
        messages: list[str | None] = [None] * size
        dist.all_gather_object(
            messages, None if failure is None else f"{type(failure).__name__}: {failure}"
        )
        if failure is None:
            for rank, message in enumerate(messages):
                if message is not None:
                    raise MIRError(f"process {rank} failed: {message}")
    if failure is not None:
        raise failure


def gather(part: Part) -> list[Part] | None:
    """All processes' parts in the order of ranks on process 0; None on the others."""
    size = world_size()
    if size == 1:
        return [part]
    parts: list[Part | None] = [None] * size
    dist.gather_object(part, parts if dist.get_rank() == 0 else None, dst=0)
    return [p for p in parts if p is not None] if dist.get_rank() == 0 else None


def broadcast(value: Part | None) -> Part | None:
    """Process 0's value on all processes."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
