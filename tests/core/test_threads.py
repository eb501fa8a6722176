"""Threads that share a network, a hypernetwork or a pipeline get the images that one alone gets."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import pytest
import torch
from torch import nn

from hypernoise.hypernoise_core.execution import turn_of
from hypernoise.hypernoise_core.generate import generate
from hypernoise.hypernoise_core.hypernetwork import predict_change, sample_noise

THREADS = 3


@pytest.fixture
def slow(tiny) -> Iterator[None]:
    """Between any two layers of the network another thread may run."""
    layers = [module for module in tiny.network.modules() if not module._modules]
    handles = [
        layer.register_forward_pre_hook(lambda *_: time.sleep(0.0005), prepend=True)
        for layer in layers
    ]
    yield
    for handle in handles:
        handle.remove()


def at_once(*calls: Callable) -> list:
    """The results of calls that run in a thread each."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(call) for call in calls]]


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    before = dict(network.named_parameters())
    values = {name: parameter.clone() for name, parameter in before.items()}
    yield
    for name, parameter in network.named_parameters():
        assert parameter is before[name], name
        assert torch.equal(parameter, values[name]), name
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.usefixtures("slow")
def test_passes_of_one_network_in_several_threads_are_those_of_one_thread(tiny):
    several = [tiny.hypernetwork(seed=seed) for seed in range(THREADS - 1)]
    several.append(several[0])
    noise = [torch.randn_like(tiny.noise) for _ in several]

    def call(f, x0):
        with torch.no_grad():
            return predict_change(f, tiny.network, x0, tiny.conditioning).delta

    expected = [call(f, x0) for f, x0 in zip(several, noise, strict=True)]
    with unchanged(tiny.network):
        calls = [lambda f=f, x0=x0: call(f, x0) for f, x0 in zip(several, noise, strict=True)]
        for got, right in zip(at_once(*calls), expected, strict=True):
            assert torch.equal(got, right)


@pytest.mark.usefixtures("slow")
def test_one_pipeline_in_several_threads_makes_the_images_of_one_thread(tiny):
    f, size = tiny.hypernetwork(), {"height": 16, "width": 16}
    shape = tiny.family.latent_shape(tiny.pipeline, 16, 16)
    given = {
        "conditioning": {name: rows[:1] for name, rows in tiny.conditioning.items()},
        "noise": sample_noise(shape, [5]),
        **size,
    }
    # With and without f, and of different lengths: the scheduler is the pipeline's, too.
    calls = [
        lambda f=f, steps=steps: (
            generate(tiny.pipeline, ["a"], f, seeds=[5], steps=steps, **given).images
        )
        for f, steps in [(f, 1), (None, 2), (f, 4)]
    ]
    expected = [call() for call in calls]
    with unchanged(tiny.network):
        for got, right in zip(at_once(*calls), expected, strict=True):
            assert torch.equal(got, right)


def test_blocks_are_recomputed_in_a_thread_while_another_thread_makes_a_pass(make_tiny):
    tiny = make_tiny("flux")
    network = tiny.network
    f = tiny.hypernetwork()
    network.enable_gradient_checkpointing()
    network.train()
    try:

        def gradient():
            f.zero_grad()
            f(network, tiny.noise, tiny.conditioning).square().mean().backward()
            return [branch.up.grad.clone() for branch in f.branches.values()]

        expected = gradient()
        loss = f(network, tiny.noise, tiny.conditioning).square().mean()
        f.zero_grad()
        other = tiny.hypernetwork(seed=1)
        with ThreadPoolExecutor(1) as pool:
            with other.attached(network):
                backward = pool.submit(loss.backward)
                time.sleep(0.05)
                assert not backward.done()  # its blocks would run with the other's branches
            backward.result(60)
        got = [branch.up.grad for branch in f.branches.values()]
        assert all(map(torch.equal, got, expected))
    finally:
        network.disable_gradient_checkpointing()
        network.eval()


def test_a_backward_pass_in_another_thread_may_be_awaited_inside_the_context(make_tiny):
    tiny = make_tiny("flux")
    network, f = tiny.network, tiny.hypernetwork()
    network.enable_gradient_checkpointing()
    network.train()
    try:
        with f.attached(network):
            loss = tiny.family.predict(network, tiny.noise, tiny.conditioning).square().mean()
            at_once(loss.backward)  # as on CUDA, where autograd has a thread of its own
        assert all(branch.up.grad is not None for branch in f.branches.values())
    finally:
        network.disable_gradient_checkpointing()
        network.eval()


def test_a_failed_pass_lets_the_next_thread_in(tiny):
    f = tiny.hypernetwork()

    def fail():
        with f.attached(tiny.network):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        at_once(fail)
    with torch.no_grad():
        at_once(lambda: f(tiny.network, tiny.noise, tiny.conditioning))


def test_a_compiled_network_waits_for_the_one_it_wraps(tiny):
    inside = Event()
    compiled = torch.compile(tiny.network, backend="eager")

    def enter():
        with turn_of(compiled):
            inside.set()

    with ThreadPoolExecutor(1) as pool:
        with turn_of(tiny.network):
            entering = pool.submit(enter)
            assert not inside.wait(0.05)
        entering.result(60)
