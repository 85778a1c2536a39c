"""Memory for statistics on the host and on accelerators: what is free, and pieces of it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from mir_task.settings import RUNS_VARIABLE

GIB = 2**30
# Bytes of a piece of memory on the host. The C library returns pieces of this size to the system when
# they are freed, and takes no more of the memory than what is written to.
_PIECE = 2**26


def free(device: torch.device) -> float:
    """Bytes that are free for this process on a device, those that its allocator holds unused included.

    Of the host, this process's share of what is available under the limits of its control groups: one of
    the processes that a launcher started here, and one of the runs that share the machine. 0 of an
    accelerator that cannot tell.
    """
    if device.type == "cpu":
        sharing = (int(os.environ.get(name) or 1) for name in ("LOCAL_WORLD_SIZE", RUNS_VARIABLE))
        available = min([float(psutil.virtual_memory().available), *group_limits()])
        for processes in sharing:
            available /= max(processes, 1)
        return available
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return 0.0
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return float(module.mem_get_info(device)[0] + unused)


def group_limits(root: Path = Path("/")) -> Iterator[float]:
    """Bytes that are left under the limit of each control group that this process is in (Linux)."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = mounts, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = mounts / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Limits of the groups around it hold too. In a container the path may be of the host's tree.
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(top):
                yield from _left(folder, *names)


def _left(folder: Path, limit: str, usage: str, reclaimable: str) -> Iterator[float]:
    try:
        most = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    if most != "max":
        yield max(int(most) - used + int(statistics.get(reclaimable, 0)), 0)


class Pieces:
    """Copies of tensors that stay, in large pieces of memory on the host.

    Among small ones that stay, memory that callers take and free for large tensors is never whole again:
    the process grows by all that ever came.
    """

    def __init__(self) -> None:
        self._unused: Tensor | None = None

    def copied(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy of a [n, ...] on a device."""
        if device.type != "cpu":
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(tensor)
        unused = self._unused
        if (
            unused is None
            or (unused.dtype, unused.shape[1:]) != (tensor.dtype, tensor.shape[1:])
            or len(unused) < len(tensor)
        ):
            most = max(len(tensor), _PIECE // max(tensor[:1].nbytes, 1))
            unused = torch.empty(most, *tensor.shape[1:], dtype=tensor.dtype)
        own, self._unused = unused[: len(tensor)], unused[len(tensor) :]
        return own.copy_(tensor)

    def together(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Copies of tensors in one piece where they are on one device; themselves where they are not."""
        if len({part.device for part in parts}) > 1:
            return parts
        copied = self.copied(torch.cat(list(parts)), parts[0].device)
        return torch.split(copied, [len(part) for part in parts])
