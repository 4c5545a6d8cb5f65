"""What the host waits for within a step: only what a decision needs. Counted on tensors that stand for an accelerator's.

They are tensors of the CPU that say they are elsewhere; whatever brings their numbers to the host is counted, and whatever goes
to them and is waited for.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import pytest
import torch
from torch.overrides import TorchFunctionMode

from support.chains import AIM, problem, run
from tilting import presets
from tilting.oracle.mixture import Mixture
from tilting.state import start

THERE = torch.device("cpu", 1)
DOWN = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero", "cpu")
STEPS = 8
MIXTURE = Mixture(
    torch.tensor([0.5, 0.5], dtype=torch.float64),
    torch.tensor([[-1.5, 0.5], [1.5, 1.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.5], dtype=torch.float64),
)


class Far(torch.Tensor):
    """A tensor of the accelerator."""

    seen: ClassVar[Counter] = Counter()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name, kwargs = func.__name__, kwargs or {}
        if func == torch.Tensor.device.__get__:
            return THERE
        if func == torch.Tensor.is_cuda.__get__:
            return True
        if name in DOWN:
            Far.seen["down"] += 1
        if name == "__getitem__" and any(not isinstance(i, Far) for i in parts(args[1])):
            Far.seen["up"] += 1  # an index of the host
        out = super().__torch_function__(func, types, args, kwargs)
        return out.as_subclass(torch.Tensor) if name == "cpu" else out


def parts(index):
    return [i for i in (index if isinstance(index, tuple) else (index,)) if isinstance(i, torch.Tensor)]


class Accelerator(TorchFunctionMode):
    """What is made on the device, or goes there, is there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(value is THERE or value == THERE for value in (*args, *kwargs.values()) if isinstance(value, torch.device)):
            return func(*args, **kwargs)
        args = tuple("cpu" if value == THERE else value for value in args)
        kwargs = {key: "cpu" if isinstance(value, torch.device) else value for key, value in kwargs.items()}
        if func.__name__ == "to" and not isinstance(args[0], Far) and not kwargs.get("non_blocking"):
            Far.seen["up"] += 1
        return func(*args, **kwargs).as_subclass(Far)


def counted(method, steps=STEPS, images=2) -> Counter:
    """Waits of a whole chain of a method, its last look not among them."""
    request = problem(MIXTURE, steps=steps, images=images)

    def value(x0, rows):
        rows.tolist()  # whose prompts are asked for
        return x0 @ AIM.as_subclass(Far)

    def denoise(x, t, rows, plain=request.denoise):
        rows.tolist()
        return plain(x, t, rows)

    request = request.__class__(**{**vars(request), "value": value, "denoise": denoise})
    state = start(request, method)
    state = state.__class__(**{**vars(state), "x": state.x.as_subclass(Far)})
    with Accelerator():
        Far.seen.clear()
        run(request, method, state)
        return Counter(Far.seen)


WAITS = {
    "base": (presets.base(), 0),
    "bon": (presets.bon(particles=4), 0),
    "code": (presets.code(particles=4, block=2), 3),  # the values of a selection, once each
    # the value of a gradient, the gradient twice, the value that is kept
    "dps": (presets.dps(), 4 * 8),
    "tds": (presets.tds(particles=2), 4 * 8 + 8 + 7),  # and the weights of guides and draws
    "codex": (presets.codex(particles=2, block=2), 3 * 2 + 3),  # two gradients, and three selections
    "svdd": (presets.svdd(particles=4), 7),
    "smc": (presets.smc(particles=4), 2),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_step_waits_for_what_its_decision_needs_alone(name):
    """Whatever the number of images; nothing that goes to the device is waited for."""
    preset, waits = WAITS[name]
    for images in (1, 5):
        assert counted(preset.build(STEPS), images=images) == ({"down": waits} if waits else {})


def test_the_counter_sees_what_waits():
    with Accelerator():
        Far.seen.clear()
        x = torch.zeros(3, device=THERE)
        assert isinstance(x, Far) and isinstance(x + 1, Far) and x.device == THERE
        bool(x.sum() > 0), x[0].item(), x.cpu(), torch.ones(3).to(THERE), x[torch.tensor([0])]
        torch.ones(3).to(THERE, non_blocking=True)
        assert Far.seen == {"down": 3, "up": 2} and not isinstance(x.cpu(), Far)
