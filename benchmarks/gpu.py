"""Runs bench.py with whole networks on a GPU, and prints a table for docs/performance.md.

    .venv/bin/python benchmarks/gpu.py

SANA-Sprint, FLUX-schnell and SD-Turbo have their published shapes and random weights in bfloat16;
nothing is downloaded. Without a GPU, their first blocks run on the CPU in float32.
"""

import argparse
import datetime
import json

import torch
from bench import measure_all, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="repeat everything only once")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    place = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    results = measure_all("cuda" if cuda else "cpu", whole=cuda, quick=options.quick)
    ratios = summary(results)
    size = "whole networks" if cuda else "first blocks"
    print(f"\n{datetime.date.today()}, {place}, torch {torch.__version__}, {size}\n")
    print("| figure | value |\n| --- | --- |")
    for name, value in ratios.items():
        values = value.items() if isinstance(value, dict) else [("", value)]
        print(f"| {name} | {', '.join(f'{key} {number}'.strip() for key, number in values)} |")
    print("\nbench:", json.dumps(ratios))


if __name__ == "__main__":
    main()
