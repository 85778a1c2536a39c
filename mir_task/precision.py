"""Products of float32 matrices as precise as float32 is."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Have GPUs multiply float32 numbers in full inside; several adapters let them cut 13 bits off."""
    products = torch.backends.cuda.matmul
    # PyTorch 2.9 has a new name, and does not bear that both are read.
    new = hasattr(products, "fp32_precision")
    name, full = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = getattr(products, name)
    setattr(products, name, full)
    try:
        yield
    finally:
        setattr(products, name, before)
