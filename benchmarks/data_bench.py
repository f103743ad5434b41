"""How fast pairs of mannequins are made: ``python benchmarks/data_bench.py [--json]``."""

from __future__ import annotations

import argparse
import json
import time

import torch

from posemodel.data.mannequins import Mannequins


def measure(size: int, batch: int, seconds: float, background: str, device: str) -> float:
    """Pairs per second of ``Mannequins.pairs`` in batches of ``batch`` at ``size`` x ``size``."""
    data = Mannequins(size=(size, size), background=background, device=device)
    data.pairs(range(batch))  # the first batch also pays for warming up
    made, start = 0, time.perf_counter()
    while True:
        data.pairs(range(made, made + batch))
        if device != "cpu":
            torch.cuda.synchronize()
        made += batch
        spent = time.perf_counter() - start
        if spent >= seconds:
            return made / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each size")
    parser.add_argument("--background", choices=("white", "cluttered"), default="white")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of lines"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rates = {
        n: measure(n, args.batch, args.seconds, args.background, args.device) for n in args.sizes
    }
    if args.json:
        rates_by_name = {f"pairs_per_second_{n}": round(rate, 1) for n, rate in rates.items()}
        settings = {
            "batch": args.batch,
            "background": args.background,
            "device": args.device,
            "threads": args.threads,
        }
        print(json.dumps({**rates_by_name, **settings}))
    else:
        for n, rate in rates.items():
            print(f"{n} x {n}: {rate:.1f} pairs/s")


if __name__ == "__main__":
    main()
