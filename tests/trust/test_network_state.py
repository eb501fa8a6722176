"""Whatever happens in a pass: the network keeps its bits, no hook stays, no tensor leaks."""

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hypernoise.hypernoise_core.families import FAMILIES
from hypernoise.hypernoise_core.hypernetwork import modulate, predict_change
from hypernoise.tests.core.conftest import build_tiny
from hypernoise.tests.trust.generated import examples
from hypernoise.tests.trust.state import (
    Fault,
    FaultAt,
    State,
    count_hooks,
    count_tensors,
    out_of_memory,
)

NAMES = [family.name for family in FAMILIES]


def count_operations(run) -> int:
    with FaultAt(10**9, Fault) as counter:
        run()
    return counter.count


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", NAMES)
def test_memory_that_runs_out_at_any_operation_leaves_no_trace(name, grad, scale, tally):
    tiny = build_tiny(name)
    f = tiny.hypernetwork().requires_grad_(grad)

    def run() -> torch.Tensor:
        with torch.set_grad_enabled(grad):
            return f(tiny.network, tiny.noise, tiny.conditioning)

    expected = run().detach()
    state, tensors, operations = State.of(tiny.network), count_tensors(), count_operations(run)
    assert operations > 100
    for at in range(1, operations + 1, scale(9, 5, 1)):
        with FaultAt(at, out_of_memory) as fault, pytest.raises(torch.OutOfMemoryError):
            run()
        assert fault.struck
        assert count_hooks(tiny.network) == 0
        tally(f"no memory in a pass, {'training' if grad else 'inference'}").count("no trace")
    state.check(tiny.network)
    del fault
    assert count_tensors() == tensors
    assert torch.equal(run().detach(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_runs_out_in_the_backward_pass_leaves_no_trace(name, scale, tally):
    tiny = build_tiny(name)
    f = tiny.hypernetwork()

    def run() -> None:
        f.zero_grad(set_to_none=True)
        f(tiny.network, tiny.noise, tiny.conditioning).square().mean().backward()

    run()
    expected = [parameter.grad.clone() for parameter in f.parameters()]
    state, operations = State.of(tiny.network), count_operations(run)

    def fail_everywhere() -> int:
        for at in range(operations // 2, operations + 1, scale(29, 29, 3)):
            with FaultAt(at, out_of_memory), pytest.raises(torch.OutOfMemoryError):
                run()
            assert count_hooks(tiny.network) == 0
            tally("no memory in a backward pass").count("no trace")
        state.check(tiny.network)
        f.zero_grad(set_to_none=True)
        return count_tensors()

    assert fail_everywhere() == fail_everywhere()  # autograd keeps a few of its last failure
    run()
    assert all(torch.equal(p.grad, e) for p, e in zip(f.parameters(), expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_in_any_layer_leaves_no_trace(name, tally):
    tiny = build_tiny(name)
    f = tiny.hypernetwork().requires_grad_(False)
    state = State.of(tiny.network)

    def fail(*_: object) -> None:
        raise Fault

    for path in f.layer_names:
        layer = tiny.network.get_submodule(path)
        for register in (layer.register_forward_pre_hook, layer.register_forward_hook):
            handle = register(fail)
            with torch.no_grad(), pytest.raises(Fault):
                f(tiny.network, tiny.noise, tiny.conditioning)
            handle.remove()
            state.check(tiny.network)
            tally("an exception in a layer").count("no trace")


class Passes(RuleBasedStateMachine):
    """Two hypernetworks on one network, used, changed and interrupted in any order."""

    tally = None  # counts sequences of rules
    name = NAMES[0]

    @initialize()
    def build(self) -> None:
        self.tiny = build_tiny(self.name)
        self.adapters = [self.tiny.hypernetwork(seed=seed).requires_grad_(False) for seed in (1, 2)]
        with torch.no_grad():
            self.plain = self.tiny.predict()
            self.deltas = [self._delta(f, 1.0) for f in self.adapters]
        self.state, self.tensors = State.of(self.tiny.network), count_tensors()

    def _delta(self, f, strength: float) -> torch.Tensor:
        tiny = self.tiny
        return predict_change(f, tiny.network, tiny.noise, tiny.conditioning, strength).delta

    @rule(which=st.integers(0, 1), strength=st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]))
    def one_pass(self, which: int, strength: float) -> None:
        with torch.no_grad():
            delta = self._delta(self.adapters[which], strength)
        assert torch.equal(delta, strength * self.deltas[which])

    @rule(first=st.integers(0, 1))
    def both_inside_each_other(self, first: int) -> None:
        """Two contexts open at once, closed in the order of opening."""
        one, other = self.adapters[first], self.adapters[1 - first]
        with torch.no_grad(), one.attached(self.tiny.network):
            with other.attached(self.tiny.network):
                pass
            assert count_hooks(self.tiny.network) > 0

    @rule(which=st.integers(0, 1), at=st.integers(1, 400), memory=st.booleans())
    def a_pass_that_fails(self, which: int, at: int, memory: bool) -> None:
        error = out_of_memory if memory else Fault
        with torch.no_grad(), FaultAt(at, error) as fault:
            try:
                self._delta(self.adapters[which], 1.0)
            except (Fault, torch.OutOfMemoryError):
                assert fault.struck

    @rule(which=st.integers(0, 1), at=st.integers(0, 20))
    def an_interrupt_in_a_layer(self, which: int, at: int) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        names = self.adapters[which].layer_names
        handle = self.tiny.network.get_submodule(names[at % len(names)]).register_forward_hook(stop)
        try:
            with torch.no_grad(), pytest.raises(KeyboardInterrupt):
                self._delta(self.adapters[which], 1.0)
        finally:
            handle.remove()

    @rule(dtype=st.sampled_from([torch.float64, torch.bfloat16]))
    def there_and_back(self, dtype: torch.dtype) -> None:
        """The network unloaded and loaded again as something else."""
        saved = {name: t.clone() for name, t in self.tiny.network.state_dict().items()}
        torch.nn.Module.to(self.tiny.network, dtype)
        noise = self.tiny.noise.to(dtype)
        conditioning = {
            name: t.to(dtype) if t.is_floating_point() else t
            for name, t in self.tiny.conditioning.items()
        }
        with torch.no_grad():
            self.adapters[0](self.tiny.network, noise, conditioning)
        assert count_hooks(self.tiny.network) == 0
        torch.nn.Module.to(self.tiny.network, torch.float32)
        self.tiny.network.load_state_dict(saved)
        self.state = State.of(self.tiny.network)

    @rule()
    def an_image(self) -> None:
        with torch.no_grad():
            noise = modulate(self.tiny.noise, self._delta(self.adapters[0], 1.0))
            assert torch.isfinite(noise).all()
            assert torch.equal(self.tiny.predict(), self.plain)

    @invariant()
    def nothing_has_changed(self) -> None:
        self.state.check(self.tiny.network)

    def teardown(self) -> None:
        assert count_tensors() == self.tensors, "tensors leaked"
        self.tally.count("no trace")


@pytest.mark.parametrize("name", NAMES)
def test_any_sequence_of_passes_and_faults_leaves_the_network_as_it_was(name, scale, tally):
    machine = type("Machine", (Passes,), {"name": name, "tally": tally("sequences of passes")})
    machine.TestCase.settings = examples(scale(4, 6, 150), stateful_step_count=12)
    machine.TestCase().runTest()
