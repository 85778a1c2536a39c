"""The root term of one pair of covariances: `python -m benchmarks.kernel [D ...]`.

Against the published fast mode, the published accurate mode and the eigenvalues of the product, with the
error of each against the nuclear norm in float64.
"""

import sys

import torch
from torch import Tensor

from benchmarks.published import accurate_root, fast_root
from benchmarks.timing import in_turns, threads
from mir_task.frechet import Gaussian, _root_term, _safest_root_term


def covariance(size: int, seed: int, *, singular: bool) -> Gaussian:
    """Of 4 d tokens whose spectrum falls to a hundredth, in half of the dimensions where singular."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1, size, dtype=torch.float64)
    if singular:
        scales[size // 2 :] = 0
    directions, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    rows = torch.randn(4 * size, size, generator=generator, dtype=torch.float64) * scales @ directions
    return Gaussian.from_tokens(rows)


def eigenvalues_of_the_product(a: Tensor, b: Tensor) -> float:
    """Torchmetrics' way."""
    return float(torch.linalg.eigvals(a @ b).sqrt().real.sum())


def main() -> None:
    """Print a table a size."""
    print(f"threads: {threads()}, torch {torch.__version__}")
    for size in [int(argument) for argument in sys.argv[1:]] or [512, 1024, 2048]:
        for singular in (False, True):
            a, b = (covariance(size, seed, singular=singular) for seed in (0, 1))
            truth, traces = _safest_root_term(a, b)[0], a.trace() + b.trace()
            singles = a.to(torch.float32), b.to(torch.float32)
            assert a.covariance is not None
            assert b.covariance is not None
            doubles = a.covariance, b.covariance
            product = doubles[0].float() @ doubles[1].float()
            ways = {
                "float64": lambda a=a, b=b: _root_term(a, b)[0],
                "float32": lambda s=singles: _root_term(*s)[0],
                "published fast": lambda p=product: fast_root(p),
                "eigenvalues of the product": lambda d=doubles: eigenvalues_of_the_product(*d),
                "published accurate": lambda p=product: accurate_root(p),
            }
            if size > 2048:
                del ways["eigenvalues of the product"]
            values = {}
            for name, way in ways.items():
                try:
                    values[name] = way()
                except RuntimeError as error:  # an inversion of an exactly singular matrix
                    values[name] = float("nan")
                    print(f"{name}: {error}")
            seconds = in_turns(ways, repeats=3 if size <= 2048 else 1, again=True)
            print(f"\nd = {size}, {'singular' if singular else 'full rank'}")
            print(
                "| way | seconds | times faster than fast | than accurate | error / traces | estimate |"
            )
            print("|---|---:|---:|---:|---:|---:|")
            for name, value in values.items():
                estimate = ""
                if name in ("float64", "float32"):
                    pair = (a, b) if name == "float64" else singles
                    estimate = f"{_root_term(*pair)[2] / traces:.1e}"
                fast, accurate = (seconds[f"published {mode}"] for mode in ("fast", "accurate"))
                print(
                    f"| {name} | {seconds[name]:.3f} | {fast / seconds[name]:.1f} | "
                    f"{accurate / seconds[name]:.1f} | "
                    f"{abs(value - truth) / traces:.1e} | {estimate} |"
                )


if __name__ == "__main__":
    main()
