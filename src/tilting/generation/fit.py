"""Peak memory of a run, and the choice of switches that fit it into a limit, in a stated order.

    peak = max over moments of (weights that are there + rows · what lives beside them)

The moments are: a text is encoded, an evaluation, a decode, a look, and a gradient's round. What an allocator and a GPU's own
libraries add is `RESERVE`, an allowance: none of this has been measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from tilting.cost import Calls, calls_of, rows_of
from tilting.errors import TiltingError
from tilting.generation.size import Sizes, sizes
from tilting.models.placement import FULL, Switches, bytes_of
from tilting.rewards.metadata import informed
from tilting.rewards.spec import build

RESERVE = 1_000_000_000
"""Bytes that a device's own libraries are allowed."""
ROOMS = (8, 12, 16, 24, 48, 80)
"""GB that are planned for."""
Config = TypeVar("Config", bound=Any)


class Need(NamedTuple):
    """What a request asks of a device beside its weights.

    Attributes:
        rows: images at once, at most.
        network_grad, value_grad, values: whether gradients go through the network, and through decoder and reward; whether
            estimates are scored at all.
        graphs: rounds that wait at once for their ways back.
        trains: whether a LoRA is trained.
    """

    rows: int
    network_grad: bool
    value_grad: bool
    values: bool
    graphs: int = 1
    trains: bool = False


class Peak(NamedTuple):
    """Bytes at the worst moment: all, and of them weights and what lives beside."""

    total: int
    weights: int
    living: int


def peak(found: Sizes, need: Need, rows: int, switches: Switches) -> Peak:
    """The most bytes at once on the device.

    Args:
        found: of model and reward, with recomputation where that is on.
        need: of the request.
        rows: images at once.
        switches: how the model is run.
    """
    w, unit, offload = found.weights, found.units, switches.offload
    network, block = found.packed[switches.quantize]
    network = 2 * block if offload == "network" else network
    eyes = w["autoencoder"] + w["look decoder"] + w["reward"]
    text = w["text encoders"] if offload is None else 0
    reading = found.encoder + eyes + (0 if offload else w["text encoders"] - found.encoder + network)
    whole = network + text + eyes + (found.trained if need.trains else 0)
    moments = [
        (reading, unit["text"].peak),
        (whole - (eyes if offload in ("parts", "network") else 0), rows * unit["evaluation"].peak),
        (whole, rows * max(unit["decode"].peak, unit["reward"].peak)),
    ]
    if need.values:
        moments.append((whole, rows * max(unit["look"].peak, unit["reward"].peak)))
    if need.value_grad:
        moments.append((whole, rows * (unit["steep"].peak + unit["reward back"].peak)))
    if need.network_grad:
        parts = ("round", "reward back") if need.value_grad else ("slope",)
        waiting = (need.graphs - 1) * sum(unit[key].held for key in parts)  # whose ways back come one after the other
        moments.append((whole, rows * (waiting + sum(unit[key].peak for key in parts))))
    weights, living = max(moments, key=sum)
    return Peak(weights + living, weights, living)


class Choice(NamedTuple):
    """What was chosen: images at once, switches, the peak."""

    rows: int
    switches: Switches
    peak: Peak

    def __str__(self) -> str:
        s = self.switches
        told = ["--recompute"] if s.recompute else []
        told += [f"--offload {s.offload}"] if s.offload else []
        return f"{self.rows} at once{', ' if told else ''}{' '.join(told)}: {(self.peak.total + RESERVE) / 1e9:.2f} GB"


def choose(room: int, need: Need, switches: Switches, of: Callable[[bool], Sizes]) -> tuple[Choice, bool]:
    """What fits into some bytes, nothing of which changes a picture but by rounding. In this order: fewer images at once; text
    encoders that wait; recomputation, where there is a gradient; parts that wait; without a gradient, the network by blocks.

    Args:
        room: bytes, the device's own libraries among them.
        need: of the request.
        switches: asked for.
        of: sizes with recomputation, or without.

    Returns:
        What fits, or takes least; and whether it fits.
    """
    levels = [None, "text", *(["parts"] if not need.trains else []), *([] if need.network_grad else ["network"])]
    begin = levels.index(switches.offload) if switches.offload in levels else 0
    steps = [(False, level) for level in levels[begin:2]]
    steps += [(need.network_grad or need.value_grad, level) for level in levels[max(begin, 1) :]]
    counts = [need.rows]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    least: Choice | None = None
    for more, offload in steps:
        now = replace(switches, recompute=more or switches.recompute, offload=offload)
        for count in counts:
            made = Choice(count, now, peak(of(now.recompute), need, count, now))
            if made.peak.total + RESERVE <= room:
                return made, True
            least = made if least is None or made.peak.total < least.peak.total else least
    assert least is not None
    return least, False


HALF = {"precision": "bf16", "precision_vae": "bf16"}
BEYOND: tuple[dict[str, str], ...] = ({}, {"precision": "bf16"}, HALF, HALF | {"quantize": "8bit"}, HALF | {"quantize": "4bit"})
"""What changes a picture, and so is named and not chosen, in the order in which it is tried."""


class Fit:
    """What is planned for a config: its sizes are measured once for each precision, and with recomputation.

    Args:
        config: of `tilting generate` or `tilting finetune`.
        need: what it asks for.
        reward: loaded, or None.
    """

    def __init__(self, config: Any, need: Need, reward: Any):
        self.config, self.need, self.reward = config, need, reward
        self._found: dict[Any, Sizes] = {}

    def of(self, config: Any, recompute: bool) -> Sizes:
        """The sizes under a config's precisions."""
        key = (config.precision or FULL, config.precision_vae or FULL, recompute)
        if key not in self._found:
            back = self.need.network_grad or self.need.value_grad
            self._found[key] = sizes(config, self.reward, recompute, count=False, back=back)
        return self._found[key]

    def known(self, config: Any, recompute: bool, found: Sizes) -> None:
        """Sizes that were measured elsewhere."""
        self._found[(config.precision or FULL, config.precision_vae or FULL, recompute)] = found

    def within(self, room: int) -> tuple[str, Choice, bool]:
        """(what must be asked for beside, what is then chosen, whether it fits) for so many bytes: the first of `BEYOND` that
        fits, or what takes least."""
        least: tuple[str, Choice] | None = None
        for beyond in BEYOND:
            more: Any = {name: value for name, value in beyond.items() if getattr(self.config, name) in (None, FULL)}
            words, now = (
                " ".join(f"--{name.replace('_', '-')} {value}" for name, value in more.items()),
                replace(self.config, **more),
            )
            if beyond and not more:
                continue
            choice, fits = choose(room, self.need, Switches.of(now), lambda recompute, now=now: self.of(now, recompute))
            if fits:
                return words, choice, True
            least = (words, choice) if least is None or choice.peak.total < least[1].peak.total else least
        assert least is not None
        return *least, False


def need_of(config: Any) -> tuple[Need, Calls]:
    """What a config of `tilting generate` asks for, and what an image of it costs."""
    method, steps = config.built()
    paid = calls_of(method, steps)
    paid = paid._replace(finals=max(1, paid.finals))  # what is kept is decoded, whether or not it was chosen by its reward
    rows = min(config.batch_size, rows_of(method, steps) * config.images * len(config.prompts) * len(config.seeds))
    return Need(rows, paid.evaluation_grads > 0, paid.value_grads > 0, paid.values + paid.value_grads > 0), paid


def reward_of(config: Any) -> Any:
    """The reward that a config asks for, loaded."""
    return informed(build(config.specs()), config.prompts, config.metadata) if config.reward else None


def fitted(config: Config) -> tuple[Config, str]:
    """A config of `tilting generate` that keeps to its ``memory``, and a line about what was chosen.

    Raises:
        TiltingError: where nothing fits, with the nearest that does.
    """
    need, _ = need_of(config)
    fit = Fit(config, need, reward_of(config))
    room = bytes_of(config.memory)
    words, choice, fits = fit.within(room)
    if words or not fits:
        least, _ = choose(0, need, Switches.of(config), lambda recompute: fit.of(config, recompute))
        took = (least.peak.total + RESERVE) / 1e9
        way = f"give {words}" if fits else f"no plan fits, and the smallest is {words or 'this'}"
        what = f"{config.model!r} with {config.method} takes {took:.2f} GB as it is asked for, not {config.memory}"
        raise TiltingError(f"{what}: {way}, {choice}")
    now = {"batch_size": choice.rows, "offload": choice.switches.offload, "recompute": choice.switches.recompute}
    return replace(config, **now), f"memory {config.memory}: {choice}"
