"""Runs all benchmarks of speed and memory, each in its own process, and prints a summary.

    .venv/bin/python benchmarks/bench.py [--quick]

docs/performance.md explains the figures and their targets. The last line is `bench: {...}` with the
ratios as JSON. Run nothing else on the machine meanwhile.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = {"sana": "sana", "flux": "flux", "sd-turbo": "sdturbo"}
"""Published models and their names in the summary."""
TINY = "tiny-sprint"
Results = dict[str, dict[str, Any]]


def measure(script: str, *options: str) -> dict[str, Any]:
    """Runs a benchmark, prints its output as it comes, and returns its last line.

    Raises:
        CalledProcessError: the benchmark failed.
    """
    command = [sys.executable, str(HERE / f"{script}.py"), *options]
    print(f"\n== {script} {' '.join(options)}", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        last = ""
        for line in process.stdout:
            if last:
                print(last, end="", flush=True)
            last = line
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(last)


def measure_all(device: str, whole: bool, quick: bool) -> Results:
    """Runs every benchmark.

    Args:
        device: device of the networks, cpu or cuda.
        whole: full-size networks instead of their first blocks.
        quick: a single repeat, to check that everything runs.
    """
    on = ["--device", device]
    depth = ["--whole"] if whole else []
    full = ["--full_size"] if whole else []
    size = ["--size", "1024"] if whole else []
    trained = [TINY, "sana"] if whole else [TINY]

    def repeats(count: int) -> list[str]:
        return ["--repeats", str(1 if quick else count)]

    return {
        "passes": measure("passes", *on, *depth, *repeats(8)),
        "graph": measure("graph", *depth, *repeats(12)),
        "training": measure("training_step", "--models", *trained, *size, *on, *depth, *repeats(8)),
        "growth": measure("growth", *on, *repeats(5)),
        "scoring": measure("scoring", *on, *full, *repeats(3)),
    }


def summary(results: Results) -> dict[str, Any]:
    """The ratios for which the project has targets."""
    passes, graph, training = results["passes"], results["graph"], results["training"]
    names = {**MODELS, TINY: "tiny"}

    def of_passes(key: str) -> dict[str, float]:
        return {names[model]: passes[model][key] for model in names}

    def of_graph(model: str, batch: int) -> dict[str, float]:
        steps = (1, 2, 4)
        return {
            str(n): round(graph[f"graph {model} batch {batch} steps {n}"]["graph_over_ideal"], 4)
            for n in steps
        }

    cached = graph["cached_rerun sana batch 1 steps 1"]["cached_rerun_overhead"]
    return {
        "pass_over_bound": of_passes("pass_over_bound"),
        "pass_over_base": of_passes("pass_over_base"),
        "graph_over_ideal": of_graph("sana", 1),
        "graph_over_ideal_tiny": of_graph(TINY, 8),
        "ours_over_peft": of_passes("ours_over_peft"),
        "train_time_ratio": round(training[TINY]["train_time_ratio"], 4),
        "train_memory_ratio": round(training[TINY]["train_memory_ratio"], 4),
        "train_memory_ratio_whole": {
            short: round(training[f"memory {model}"]["train_memory_ratio"], 4)
            for model, short in MODELS.items()
        },
        "cached_rerun_overhead": round(cached, 4),
        "import_seconds": round(graph["import"]["import_seconds"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="repeat everything only once")
    options = parser.parse_args()
    results = measure_all("cpu", whole=False, quick=options.quick)
    print("\nbench:", json.dumps(summary(results)))


if __name__ == "__main__":
    main()
