"""How far `mir` and `mir_published_fast` lie apart, by the ratio of vision norms to text norms.

Synthetic tokens: 6,000 of each modality in 256 dimensions, covariances with a spectrum from 1 to 0.01
in unrelated directions, text norm 1. Run: `python benchmarks/definitions.py`.
"""

import torch

from mir_task import modality_integration_rate


def tokens(generator: torch.Generator, count: int = 6000, size: int = 256) -> torch.Tensor:
    """Tokens [count, size] of mean norm near 1 with an off-centre mean."""
    directions, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    rows = torch.randn(count, size, generator=generator, dtype=torch.float64)
    rows = rows * torch.logspace(0, -2, size, dtype=torch.float64).sqrt() @ directions
    rows = rows + 0.3 * torch.randn(size, generator=generator, dtype=torch.float64)
    return rows / torch.linalg.vector_norm(rows, dim=1).mean()


def main() -> None:
    """Print one row a ratio."""
    generator = torch.Generator().manual_seed(0)
    vision, text = tokens(generator), tokens(generator)
    print("| vision norm / text norm | mir | mir_published_fast | difference |")
    print("|---:|---:|---:|---:|")
    for ratio in (1, 2, 5, 10, 30):
        result = modality_integration_rate([vision * ratio], [text])
        difference = result.mir_published_fast - result.mir
        print(f"| {ratio} | {result.mir:.3f} | {result.mir_published_fast:.3f} | {difference:.3f} |")


if __name__ == "__main__":
    main()
