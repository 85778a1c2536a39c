"""Processes that measure together, on torch.distributed; with one process all of it is a no-op."""

import atexit
import contextlib
import datetime
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mir_task.errors import MIRError
from mir_task.statistics.finish import Processes

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
def end_gloo() -> None:
    """End gloo's threads, which otherwise may abort a process: they still hold Python's tensors.

    A group of the default backend, as the harness makes it, has gloo beside what accelerators use.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() != "nccl":
        dist.destroy_process_group()
        # Modules of torch that are imported after the group was made keep it, and its threads, as a
        # default argument. Those then have this long to drop the tensors of the last exchange.
        time.sleep(0.2)


def wait_for_results() -> None:
    """Have this process, at its end, wait until the first process has come to its own.

    The first one writes the harness's results when the others are through already. A launcher ends all
    processes once one of them fails, so one that breaks while it ends would take the results along.
    """
    if world_size() > 1 and _await_first not in _waiting:
        _waiting.append(_await_first)
        atexit.register(_await_first)  # runs before `end_gloo`, as what was registered last runs first


_waiting: list[Callable[[], None]] = []
_WRITTEN = "mir_task/written"
"""Key, in the processes' common store, that the first process sets when it ends."""
_PATIENCE = datetime.timedelta(minutes=1)
"""Enough to save results in; where this process failed and the first waits for it, no more is lost."""


def _await_first() -> None:
    if not dist.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # of a store that ended with the first process
        if dist.get_rank() == 0:
            _store().set(_WRITTEN, "")
        else:
            _store().wait([_WRITTEN], _PATIENCE)


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


class _FailedElsewhere(Exception):
    """Another process has failed; its message comes with the exchange at the end of the block."""


_block_numbers = itertools.count()
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
    _running.append(f"mir_task/failed/{next(_block_numbers)}")
    size = world_size()
    try:
        yield
    except _FailedElsewhere:
        pass
    except Exception as error:  # noqa: BLE001 - raised below, after the others know
        failure = error
        tell_failure()
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


def tell_failure() -> None:
    """Have the other processes leave the `on_every_rank` block that is running at their next step."""
    if world_size() > 1 and _running:
        _store().set(_running[-1], str(rank()))


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


# Numbers that are exchanged at a time, where they have to be moved for it.
_PIECE = 2**24


class Connected(Processes):
    """The processes of torch.distributed; one where it does not run."""

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Number of this process, from 0."""
        return rank()

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of processes."""
        return world_size()

    def gather(self, part: Part) -> list[Part]:
        """As `all_gather`."""
        return all_gather(part)

    def add(self, tensor: torch.Tensor) -> None:
        """Add the other processes' tensors to this one in place, on all of them."""
        if world_size() > 1:
            _in_pieces(tensor, dist.all_reduce)

    def add_to(self, tensor: torch.Tensor, rank: int) -> None:
        """The same on one process; on the others the tensor holds nothing of use afterwards."""
        if world_size() > 1:
            _in_pieces(tensor, functools.partial(dist.reduce, dst=rank))

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """As `on_every_rank`."""
        return on_every_rank()


CONNECTED = Connected()


def _in_pieces(tensor: torch.Tensor, exchange: Callable[[torch.Tensor], Any]) -> None:
    """Exchange a contiguous tensor where the backend can."""
    backend = dist.get_backend()
    place = {"nccl": torch.device("cuda"), "gloo": torch.device("cpu")}.get(backend, tensor.device)
    for piece in torch.split(tensor.view(-1), _PIECE):
        moved = piece.to(place)
        exchange(moved)
        if moved is not piece:
            piece.copy_(moved)


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
