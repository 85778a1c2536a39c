"""In which precision a device computes: products of float32 in full, and where float64 is slow."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Have GPUs multiply float32 numbers in full inside; several adapters let them cut 13 bits off."""
    products = torch.backends.cuda.matmul
    # PyTorch 2.9 has a new name, and raises where both are read.
    new = hasattr(products, "fp32_precision")
    name, full = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = getattr(products, name)
    setattr(products, name, full)
    try:
        yield
    finally:
        setattr(products, name, before)


# GPUs of these compute capabilities multiply float64 at half the speed of float32 or more: P100, V100,
# A100, H100 and B200; of AMD's, MI200 and MI300. Others take up to 64 times as long.
_FAST_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (9, 4), (10, 0))


def has_fast_float64(device: torch.device) -> bool:
    """Whether a device multiplies float64 at half the speed of float32 or more."""
    if device.type == "cpu":
        return True
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in _FAST_FLOAT64


def root_dtype(device: torch.device) -> torch.dtype:
    """Dtype in which statistics on a device are multiplied and roots are taken first."""
    return torch.float64 if has_fast_float64(device) else torch.float32
