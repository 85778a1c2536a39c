"""Processes that measure together, on torch.distributed; with one process all of it is a no-op."""

import atexit
import contextlib
import io
import itertools
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
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


@atexit.register
def _leave() -> None:
    """End gloo's threads, which may otherwise abort a process that leaves before the others."""
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


class _FailedElsewhere(Exception):
    """Another process has failed; its message comes with the exchange at the end of the block."""


_blocks = itertools.count()
"""Every process goes through the same blocks, so a block's number means the same on all."""
_running: list[str] = []
"""Key, in the processes' common store, of failures in the block that is running."""


@contextlib.contextmanager
def on_every_rank() -> Iterator[None]:
    """Raise on every process what one of them raises inside, so that none waits for the others.

    Raises:
        MIRError: on the processes that did not fail, with the message of the first that did.
    """
    failure: Exception | None = None
    _running.append(f"mir_task/failed/{next(_blocks)}")
    size = world_size()
    try:
        yield
    except _FailedElsewhere:
        pass
    except Exception as error:  # noqa: BLE001 - raised below, after the others know
        failure = error
        if size > 1:
            _store().set(_running[-1], str(rank()))
    finally:
        _running.pop()
    if size > 1:
        messages = all_gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is None:
            for number, message in enumerate(messages):
                if message is not None:
                    raise MIRError(f"process {number} failed: {message}")
    if failure is not None:
        raise failure


def stop_if_another_failed() -> None:
    """Leave the `on_every_rank` block that is running, if another process has failed in it.

    Long loops ask between steps, so that a failure does not wait until all others are through.
    """
    if world_size() > 1 and _running and _store().check([_running[-1]]):
        raise _FailedElsewhere


def all_gather(part: Part) -> list[Part]:
    """All processes' parts, in the order of ranks, on all of them; tensors must be on the CPU."""
    size = world_size()
    if size == 1:
        return [part]
    parts: list[Part] = [part] * size
    dist.all_gather_object(parts, part)
    return parts


def gather(part: Part, to: int = 0, device: torch.device | None = None) -> list[Part] | None:
    """All processes' parts, in the order of ranks, on one process; None on the others.

    Args:
        part: of any type; tensors may be on any device.
        to: rank of the process.
        device: there of the tensors that are not on the CPU; the CPU where None.
    """
    size = world_size()
    if size == 1:
        return [part]
    received: list[bytes] | None = [b""] * size if rank() == to else None
    dist.gather_object(_packed(part), received, dst=to)
    return None if received is None else [_unpacked(other, device) for other in received]


def _packed(part: Any) -> bytes:
    """A part as bytes."""
    written = io.BytesIO()
    torch.save(part, written)
    return written.getvalue()


def _unpacked(received: bytes, device: torch.device | None) -> Any:
    """The part, with tensors that were not on the CPU on that device; all on the CPU where None."""

    def place(storage: Any, location: str) -> Any:
        if location == "cpu" or device is None:
            return storage
        return torch.serialization.default_restore_location(storage, str(device))  # type: ignore[no-untyped-call]

    return torch.load(io.BytesIO(received), map_location=place, weights_only=False)


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
