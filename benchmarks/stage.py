"""The metric stage of one layer: `python -m benchmarks.stage`.

57,600 vision and 80,000 text tokens of 1,024 dimensions in float16 (100 images of 576 tokens, 100
articles), through `MIRMeter` document by document and through the published procedure. With
`python -m benchmarks.stage one`, on one thread in processor time, which other work on the machine
disturbs less. With `--size 4096 --device cuda`, on a GPU, in bfloat16.
"""

import argparse
import time

import torch

from benchmarks.published import layer_distance
from benchmarks.timing import in_turns, threads
from mir_task import MIRMeter

DOCUMENTS, VISION, TEXT = 100, 576, 800


def features(seed: int, tokens: int, size: int, device: str) -> list[torch.Tensor]:
    """Tokens [tokens, d] of each document, one in two hundred of them an outlier."""
    generator = torch.Generator(device).manual_seed(seed)
    mixing, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, device=device))
    scales = torch.logspace(0, -1, size, device=device)
    centre = 0.1 * torch.randn(size, generator=generator, device=device)
    documents = []
    for _ in range(DOCUMENTS):
        rows = torch.randn(tokens, size, generator=generator, device=device) * scales @ mixing + centre
        rows[::200] *= 6
        documents.append(rows.half() if device == "cpu" else rows.bfloat16())
    return documents


def main() -> None:
    """Print the times and the values."""
    parser = argparse.ArgumentParser()
    parser.add_argument("threads", nargs="?", choices=["one", "all"], default="all")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    clock = time.perf_counter
    if options.threads == "one":
        torch.set_num_threads(1)
        clock = time.process_time
    else:
        threads()
    print(f"threads: {torch.get_num_threads()}, torch {torch.__version__}")
    vision, text = (
        features(seed, tokens, options.size, options.device) for seed, tokens in ((0, VISION), (1, TEXT))
    )

    def ours(groups: int) -> float:
        meter = MIRMeter(groups=groups)
        for number, (v, t) in enumerate(zip(vision, text, strict=True)):
            meter.update(number, [v], [t])
        return meter.compute().layers[0].frechet

    def published(accurate: bool) -> float:
        return layer_distance(torch.cat(vision), torch.cat(text), accurate=accurate)

    ways = {
        "ours": lambda: ours(0),
        "ours, with standard error (5 groups)": lambda: ours(5),
        "published fast": lambda: published(False),
        "published accurate": lambda: published(True),
    }
    if options.size > 2048:  # minutes
        del ways["published accurate"]
    seconds = in_turns(ways, repeats=3, clock=clock)
    print("| way | seconds | times faster than fast | F |")
    print("|---|---:|---:|---:|")
    for name, way in ways.items():
        ratio = seconds["published fast"] / seconds[name]
        print(f"| {name} | {seconds[name]:.3f} | {ratio:.1f} | {way():.6f} |")


if __name__ == "__main__":
    main()
