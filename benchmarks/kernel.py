"""The root term of one pair of covariances: `python -m benchmarks.kernel [D ...] [--device cuda]`.

Against the published fast mode, the published accurate mode (SciPy's, on the CPU) and the eigenvalues of
the product, with the error of each against the nuclear norm in float64. On a GPU also against the same
factors with eigenvalues or the polar factor in the place of log-determinants.
"""

import argparse
import math
import time
from unittest import mock

import torch
from torch import Tensor

from benchmarks.published import accurate_root, fast_root
from benchmarks.timing import in_turns, threads
from mir_task.metric.frechet import Gaussian, _root_term, _safest_root_term


def covariance(size: int, seed: int, *, singular: bool) -> Gaussian:
    """Of 4 d tokens whose spectrum falls to a hundredth, in half of the dimensions where singular."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1, size, dtype=torch.float64)
    if singular:
        scales[size // 2 :] = 0
    directions, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    rows = torch.randn(4 * size, size, generator=generator, dtype=torch.float64) * scales @ directions
    return Gaussian.from_tokens(rows)


def by_eigenvalues(a: Gaussian, b: Gaussian) -> float:
    """Our factors, and eigenvalues."""
    with mock.patch("mir_task.metric.spectrum.is_supported", return_value=False):
        return _root_term(a, b).root


def eigenvalues_of_the_product(a: Tensor, b: Tensor) -> float:
    """Torchmetrics' way."""
    return float(torch.linalg.eigvals(a @ b).sqrt().real.sum())


def polar(a: Gaussian, b: Gaussian) -> float:
    """Nuclear norm of the product of both factors, by its polar factor.

    Products of matrices alone: odd polynomials of degree five that lift small singular values to one
    (first by 3.44 a step), until all above 1e-9 of the largest have come there.
    """
    cross = a.root() @ b.root().T
    factor, identity = cross / cross.norm(), torch.eye(len(cross)).to(cross)
    for step in range(40):
        gram = factor.T @ factor
        lift = step < 14 + math.log(len(cross)) / 2.5
        one, three, five = (3.4445, -4.7750, 2.0315) if lift else (1.875, -1.25, 0.375)
        if not lift and float((gram - identity).norm()) < 1e-7 * math.sqrt(len(cross)):
            break
        factor = one * factor + factor @ (three * gram + five * gram @ gram)
    return float((factor * cross).sum())


def main() -> None:
    """Print a table a size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", type=int, nargs="*", default=[512, 1024, 2048])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"threads: {threads()}, torch {torch.__version__}")
    if options.device != "cpu":
        print(torch.cuda.get_device_name(options.device))
    for size in options.sizes:
        for singular in (False, True):
            a, b = (
                Gaussian(gaussian.mean.to(options.device), gaussian.covariance.to(options.device), None)
                for gaussian in (covariance(size, seed, singular=singular) for seed in (0, 1))
                if gaussian.covariance is not None
            )
            truth, traces = _safest_root_term(a, b).root, a.trace() + b.trace()
            singles = a.to(torch.float32), b.to(torch.float32)
            assert a.covariance is not None
            assert b.covariance is not None
            doubles = a.covariance, b.covariance
            product = doubles[0].float() @ doubles[1].float()
            ways = {
                "float64": lambda a=a, b=b: _root_term(a, b).root,
                "float32": lambda s=singles: _root_term(*s).root,
                "published fast": lambda p=product: fast_root(p),
                "eigenvalues of the product": lambda d=doubles: eigenvalues_of_the_product(*d),
                "published accurate": lambda p=product: accurate_root(p),
            }
            if options.device != "cpu":
                ways["float64, eigenvalues"] = lambda a=a, b=b: by_eigenvalues(a, b)
                if not singular:
                    ways["float64, polar factor"] = lambda a=a, b=b: polar(a, b)
            if size > 2048:
                del ways["eigenvalues of the product"]
                if options.device != "cpu":  # minutes
                    del ways["published accurate"]
            slow = size > 2048 or options.device != "cpu"
            values, once = {}, {}
            for name, way in ways.items():
                started = time.perf_counter()
                try:
                    values[name] = way()
                except RuntimeError as error:  # an inversion of an exactly singular matrix
                    values[name] = float("nan")
                    print(f"{name}: {error}")
                if name == "published accurate" and slow:
                    once[name] = time.perf_counter() - started
            turns = {name: way for name, way in ways.items() if name not in once}
            seconds = once | in_turns(turns, repeats=3, again=True)
            print(f"\nd = {size}, {'singular' if singular else 'full rank'}")
            print(
                "| way | seconds | times faster than fast | than accurate | error / traces | estimate |"
            )
            print("|---|---:|---:|---:|---:|---:|")
            for name, value in values.items():
                estimate = ""
                if name in ("float64", "float32"):
                    pair = (a, b) if name == "float64" else singles
                    estimate = f"{_root_term(*pair).error / traces:.1e}"
                fast = seconds["published fast"]
                accurate = seconds.get("published accurate", math.nan)
                print(
                    f"| {name} | {seconds[name]:.4f} | {fast / seconds[name]:.1f} | "
                    f"{accurate / seconds[name]:.1f} | "
                    f"{abs(value - truth) / traces:.1e} | {estimate} |"
                )


if __name__ == "__main__":
    main()
