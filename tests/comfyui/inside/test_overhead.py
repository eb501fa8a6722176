"""What the pass costs: one evaluation of the network more, whatever the number of steps."""

import statistics
import time

import pytest
import torch

REPEATS = 7
BATCH = 8


def evaluations(network, run) -> int:
    """How often `run` calls the network."""
    calls = []
    handle = network.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        run()
    finally:
        handle.remove()
    return len(calls)


@pytest.mark.slow
def test_one_evaluation_of_the_network_more_than_without(comfy, loaded, capsys):
    """Prints the ratio of the times as well, medians of interleaved runs with a new seed each."""
    latent = {"samples": torch.zeros(BATCH, 16, 8, 8)}
    plain = loaded.model
    modulated = comfy.run(
        "HyperNoise_Apply", model=plain, hypernoise=loaded.hypernoise, strength=1.0
    )[0]
    lines = ["steps  time with / without  (n + 1) / n"]
    for steps in (1, 2, 4, 8):
        seconds = {plain: [], modulated: []}
        for seed in range(REPEATS):
            for model, times in seconds.items():
                start = time.perf_counter()
                comfy.sample(model, loaded.prompt, latent, steps=steps, seed=1000 * steps + seed)
                times.append(time.perf_counter() - start)
        without, with_pass = (statistics.median(times) for times in seconds.values())
        lines.append(f"{steps:5}  {with_pass / without:19.2f}  {(steps + 1) / steps:11.2f}")
        for model, expected in ((plain, steps), (modulated, steps + 1)):
            seed = 2000 * steps  # one that is not remembered
            found = evaluations(
                loaded.network,
                lambda model=model, steps=steps, seed=seed: comfy.sample(
                    model, loaded.prompt, latent, steps=steps, seed=seed
                ),
            )
            assert found == expected
    with capsys.disabled():
        print("", *lines, sep="\n")
