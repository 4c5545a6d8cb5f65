"""Objectives that apply the reward's gradient at early steps without a product of Jacobians: srpo, drtune.

srpo      noise a finished sample by known noise, make one step, take what is left of the noise off again     Shen et al. 2025
drtune    back-propagate through the chain, the network's input held at every step                            Wu et al. 2024
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le
from typing_extensions import Doc

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Loss, TrainBatch, closed
from tilting.objectives.recompute import recomputed
from tilting.objectives.rollout import rollout
from tilting.schedule import add_noise, output_of, predict, transition
from tilting.types import Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import ValueFn


@OBJECTIVES.register
@dataclass(frozen=True)
class Srpo(BaseObjective):
    """SRPO: Direct-Align at any time, on a reward that is relative to two wordings of the prompt.

        x_0 = a chain of θ, without gradients
        for j = 1 .. n:
            t ~ Uniform of the grid (but pure noise), s the next time, ε ~ N(0, I)
            x_t = α_t x_0 + σ_t ε
            x_s = α_s x0_θ(x_t) + σ_s eps_θ(x_t)                            one step, with gradients
            x_0' = (x_s - σ_s ε) / α_s                                      the rest by the noise that is known
            loss += -mean λ_t (r(x_0', positive + prompt) - share r(x_0', negative + prompt)) / n
        θ <- AdamW(∇_θ loss)

    Were eps_θ = ε, x_0' would be x_0: an image close to a finished one is scored at every t, not a blurred estimate, and early
    steps are aligned too; its slope in the output is as small as a step. Of wordings neither of which is given, the reward
    itself is climbed. The authors' code scores FLUX.1-dev's samples after 50 steps, with words such as "Realistic photo" before
    the prompt, and penalises the negative wording at an inverted step x_t+1; here both are of the same image. Its x_s lies
    several steps on, and its λ(t) is a straight line over the steps between two given ends, one pair for the wording that is
    climbed and one for the other; here λ_t = discount^(steps left), and x_s is the next point.
    """

    name, paper, through = "srpo", "Shen et al. 2025, arXiv 2509.06942", "through 1 step"
    needs_gradient = True

    positive: Annotated[str, Doc("words set before the prompt for what is climbed, such as 'realistic photo, '")] = ""
    negative: Annotated[str, Doc("words set before the prompt for what is left; without any, nothing is subtracted")] = ""
    share: Annotated[float, Ge(0), Doc("of the negative wording's reward")] = 1.0
    injections: Annotated[int, Ge(1), Doc("n, times per finished sample")] = 1
    discount: Annotated[float, Gt(0), Le(1), Doc("λ for every step that is left after t, at 1 all count alike")] = 1.0

    @property
    def graphs_at_once(self) -> int:
        return 1

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        with torch.no_grad():
            clean = rollout(batch, closed(batch)).clean
        reward = self.reward(batch)
        first = 1 if batch.grid[0].alpha == 0 and batch.steps > 1 else 0
        for j in range(self.injections):
            draw = torch.randint(batch.steps - first, (1,), generator=batch.generator(f"inject{j}"), device="cpu")
            i = first + int(draw)
            value = reward(self.recovered(batch, clean, i, j), batch.rows)
            worth = self.discount ** (batch.steps - 1 - i) * value.mean()
            numbers = {"reward": value.mean().item(), "from_step": float(i)}
            yield Loss(-worth / self.injections, numbers, update=j == self.injections - 1)

    def recovered(self, batch: TrainBatch, clean: Tensor, i: int, repeat: int = 0) -> Tensor:
        """x_0' of finished samples (b, ...) noised to the beginning of step i."""
        t, s = batch.grid[i], batch.grid[i + 1]
        noise = batch.noise(i, f"inject{repeat}")
        x = add_noise(clean, noise, t)
        return (transition(batch.denoise(x, t, batch.rows), t, s, 0.0).mean - s.sigma * noise) / s.alpha

    def reward(self, batch: TrainBatch) -> ValueFn:
        """The relative reward."""
        if not self.positive and not self.negative:
            return batch.value
        if batch.worded is None:
            raise TiltingError("srpo.positive and srpo.negative are words of prompts, which this reward does not see")
        climbed = batch.worded(lambda prompt: self.positive + prompt)
        if not self.negative:
            return climbed
        left = batch.worded(lambda prompt: self.negative + prompt)
        return lambda x0, rows: climbed(x0, rows) - self.share * left(x0, rows)


@OBJECTIVES.register
@dataclass(frozen=True)
class DrTune(BaseObjective):
    """DRTune: the reward's gradient at steps spread over the whole chain, the network's input held at each.

        steps that learn = K, evenly spaced, from a random first;  the last step made ~ Uniform of the last m
        x ~ N(0, I)
        for t = T .. 1:
            f = f_θ(stop_grad(x), t), with gradients where t learns
            x = step(x, f), or, at the last step made, x0(x, f)              x stays in the graph, but not in the network
        θ <- AdamW(-∇_θ mean r(decode(x)))

    Without the network's Jacobians gradients neither explode nor vanish over many steps, and K graphs are held in place of T.
    Truncation to the last K steps reaches fine detail alone, and early steps are what a picture's structure is made in. With
    K = 1 on the last step and m = 1 it is DRaFT-1 on a deterministic chain.
    """

    name, paper, through = "drtune", "Wu et al. 2024, arXiv 2405.00760", "through K steps"
    needs_gradient = True

    k: Annotated[int, Ge(1), Doc("K, steps of the chain that learn")] = 5
    last: Annotated[int, Ge(1), Doc("m, the last steps among which the chain is left for x0's estimate; 1 makes them all")] = 1

    @property
    def graphs_at_once(self) -> int:
        return self.k

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        end = batch.steps - int(
            torch.randint(min(self.last, batch.steps), (1,), generator=batch.generator("stop"), device="cpu")
        )
        learn = self.learning(end, batch.generator("spread"))
        value = batch.value(self.chain(batch, learn, end), batch.rows)
        yield Loss(-value.mean(), {"reward": value.mean().item(), "open_steps": float(len(learn)), "made": float(end)})

    def learning(self, end: int, generator: torch.Generator) -> set[int]:
        """The steps of ``end`` that learn: K with the same distance, a random first one."""
        k = min(self.k, end)
        apart = end // k
        first = int(torch.randint(end - apart * (k - 1), (1,), generator=generator, device="cpu"))
        return {first + apart * n for n in range(k)}

    def chain(self, batch: TrainBatch, learn: set[int], end: int) -> Tensor:
        """The end (b, ...) of a chain of ``end`` steps, in the graph by the outputs of those that learn."""
        x, rows = batch.noise(0), batch.rows
        for i in range(end):
            t = batch.grid[i]

            def output(x: Tensor, t: Time = t) -> tuple[Tensor]:
                return (output_of(batch.kind, batch.denoise(x, t, rows), t),)

            if i in learn:
                (f,) = recomputed(output, x.detach(), batch.trained) if batch.checkpointed else output(x.detach())
            else:
                with torch.no_grad():
                    (f,) = output(x.detach())
            prediction = Prediction(*predict(batch.kind, f, x, t), torch.zeros_like(x))
            if i == end - 1 and end < batch.steps:
                return prediction.x0
            kernel = batch.kernel(prediction, i)
            x = kernel.mean + (kernel.std * batch.noise(i + 1) if kernel.std > 0 else 0.0)
        return x
