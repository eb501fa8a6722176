"""Many prompts in a row on one server: nothing piles up, nothing changes."""

import random
import threading
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from hypernoise.tests.comfyui.conftest import Models, comfyui, models
from hypernoise.tests.comfyui.graphs import text_to_image
from hypernoise.tests.comfyui.server import ComfyServer
from hypernoise.tests.comfyui.stand_ins import FILE, OTHER

WARM_UP = 60  # prompts
GROWTH = 0.02  # of the resident memory, after the warm-up
INTERRUPT_EVERY = 25
LARGE_BATCH = 96  # so that an interrupt finds the pass running
AT_ONCE = {  # glibc gives back what is freed, else an interrupt's moment decides what it keeps
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}

__all__ = ["comfyui", "models"]


@pytest.fixture(scope="module")
def own_server(comfyui: Path, models: Models):
    """A server whose memory no other test has touched."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in AT_ONCE.items():
            environment.setenv(name, value)
        with ComfyServer(comfyui, models.base) as running:
            yield running


def random_graph(rng: random.Random, models: Models) -> dict:
    names = rng.sample((FILE, OTHER), rng.randint(0, 2))
    return text_to_image(
        models.folder,
        prompt=rng.choice(("three green triangles", "a red circle", "a circle and a square")),
        seed=rng.randrange(2**32),
        batch_size=rng.choice((1, 2, 4)),
        steps=rng.choice((1, 2, 4)),
        denoise=rng.choice((1.0, 1.0, 0.5)),
        hypernetworks=tuple((name, rng.uniform(-1, 1.5)) for name in names),
    )


def interrupted_run(server: ComfyServer, graph: dict, after: float) -> None:
    """Queue a graph and press the interrupt button some seconds later."""

    def press() -> None:
        time.sleep(after)
        server.post("/interrupt", {})

    button = threading.Thread(target=press)
    button.start()
    server.run(graph)
    button.join()


@pytest.mark.slow
@pytest.mark.comfyui
def test_prompts_in_a_row_leave_memory_and_weights_as_they_were(own_server, models, scale, tally):
    prompts, line = scale(90, 200, 3000), tally("prompts in a row on one server")
    rng = random.Random(0)
    probe = text_to_image(models.folder, seed=1, hypernetworks=((FILE, 1.0),))
    plain = text_to_image(models.folder, seed=1)
    memory = psutil.Process(own_server.process.pid)

    def latents() -> list:
        """Of the fixed graphs, made anew: other prompts have replaced what was remembered."""
        return [
            load_file(own_server.file(own_server.run(graph), "saved_latent", "latents"))
            for graph in (probe, plain)
        ]

    before = latents()
    both = ((FILE, 1.0), (OTHER, 1.0))
    for seed in range(2):  # the largest run there is, in full: what it takes is no growth
        graph = text_to_image(
            models.folder, seed=seed, batch_size=LARGE_BATCH, steps=4, hypernetworks=both
        )
        assert own_server.run(graph).error is None
    settled = 0
    for number in range(1, prompts + 1):
        own_server.post("/history", {"clear": True})  # else ComfyUI keeps 10,000 prompts, by 20 kB
        graph = random_graph(rng, models)
        if number % INTERRUPT_EVERY == 0:
            graph["latent"]["inputs"]["batch_size"] = LARGE_BATCH
            interrupted_run(own_server, graph, rng.uniform(0.05, 1.0))
            own_server.run(random_graph(rng, models))  # the next one runs as if nothing happened
            line.count("interrupted")
            continue
        assert own_server.run(graph).error is None
        line.count("ran")
        if number == WARM_UP:
            settled = memory.memory_info().rss
    grown = memory.memory_info().rss / settled - 1
    print(f"resident memory after {prompts} prompts: {grown:+.2%} of {settled / 2**20:.0f} MiB")
    for first, last in zip(before, latents(), strict=True):
        assert first["latent_tensor"].equal(last["latent_tensor"])
    assert grown < GROWTH
