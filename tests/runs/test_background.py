"""Work ahead: in order, within bounds, and a failure is told; a reward that is waited for is asked amid the next group."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import tilting as tl
from support.finetuning import Bright
from tilting.errors import RewardError, TiltingError
from tilting.generation.generate import Drawn, draw
from tilting.generation.plan import identities, plan
from tilting.rewards.elsewhere import Elsewhere, elsewhere
from tilting.rewards.weighted_sum import combine
from tilting.runs.background import Background


def test_work_is_done_in_order_without_gradients_while_few_wait():
    seen, go, background = [], threading.Event(), Background(most=2)
    first = background.submit(go.wait)
    for i in range(2):
        background.submit(lambda i=i: seen.append((i, torch.is_grad_enabled())))
    late = threading.Thread(target=lambda: background.submit(lambda: seen.append("late")), daemon=True)
    late.start()
    time.sleep(0.05)
    assert seen == [] and late.is_alive() and not first.done()  # it waits, for two do
    go.set()
    late.join(5)
    background.finish()
    assert seen == [(0, False), (1, False), "late"]


def test_a_failure_is_raised_once_and_nothing_is_done_after_it():
    seen, background = [], Background()

    def fail():
        raise TiltingError("the disk is full")

    done = background.submit(fail)
    with pytest.raises(TiltingError, match="full"):
        done.result(5)
    with pytest.raises(TiltingError, match="full"):
        background.submit(lambda: seen.append(1))
    background.finish()
    assert seen == []


def test_what_is_dropped_is_not_waited_for():
    go, seen, background = threading.Event(), [], Background()
    background.submit(lambda: go.wait(5))
    background.submit(lambda: seen.append(1))
    begun = time.monotonic()
    background.cancel()
    assert time.monotonic() - begun < 1
    thread = background._thread
    go.set()
    thread.join(5)
    assert not thread.is_alive() and seen == []


class Waited(Bright):
    """A remote scorer that answers the first group when the network draws the second one; ``broken`` never does."""

    name, differentiable, waits = "waited", False, True

    def __init__(self, model, broken=False):
        self.calls, self.begun, self.broken, inner = [], threading.Event(), broken, model.denoiser

        def denoiser(*given):
            denoise = inner(*given)

            def counted(x, t, rows):
                if self.calls:
                    self.begun.set()
                return denoise(x, t, rows)

            return counted

        model.denoiser = denoiser

    def __call__(self, images, prompts):
        self.calls.append(threading.get_ident())
        if len(self.calls) == 1:
            assert self.begun.wait(20)
            if self.broken:
                raise RewardError("the server is gone", 0)
        return super().__call__(images, prompts)


@pytest.mark.parametrize("broken", [False, True])
def test_a_reward_that_is_waited_for_is_asked_amid_the_next_group(folder, broken):
    model = tl.load(str(folder))
    who = identities(["a fox", "an owl", "a cat"], 0, 1)
    plain = {"steps": 3, "batch_size": 2}
    wanted = [e for e in draw(model, plan(model, who, tl.presets.bon(particles=2), Bright(), **plain)) if isinstance(e, Drawn)]
    reward = Waited(model, broken)
    request = plan(model, who, tl.presets.bon(particles=2), reward, **plain)
    if broken:
        with pytest.raises(RewardError, match=r"the server is gone \(image 0 of 'a fox', seed 0\)"):
            list(draw(model, request))
        return
    found = [e for e in draw(model, request) if isinstance(e, Drawn)]
    assert [one.who for one in found] == [one.who for one in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.images, b.images) and a.reward == b.reward
        assert (a.counts.evaluations, a.counts.reward_calls) == (b.counts.evaluations, b.counts.reward_calls)
    assert reward.calls[0] != threading.get_ident() == reward.calls[-1]  # the last has no next


def test_a_reward_elsewhere_is_itself():
    inner = Bright()
    one = elsewhere(inner, "cpu")
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    assert isinstance(one, Elsewhere) and one.name == "bright" and one.differentiable and elsewhere(one, "cpu") is one
    assert torch.equal(one(images, ["a", "b"]), inner(images, ["a", "b"]))
    assert torch.autograd.grad(one(images, ["a", "b"]).sum(), images)[0].abs().sum() > 0
    both = elsewhere(combine([(inner, 2.0)], keys=["x"]), "cpu")
    assert both.waits and both.parts[0][0].reward is inner and both.parts[0][1] == 2.0 and elsewhere(inner, None) is inner
    with pytest.raises(TiltingError, match="there is no device 'cuda:7' here: use --reward-device auto or cpu"):
        elsewhere(inner, "cuda:7")
