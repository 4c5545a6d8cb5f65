"""What every method and every selection rule holds to, ours and others': declared, checked, counted, told everywhere alike."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from dataclasses import MISSING, dataclass, field, replace
from typing import Annotated

import pytest
import torch
import yaml
from annotated_types import Ge
from typing_extensions import Doc

from support.chains import Counter, linear, problem, run
from support.outside import write_package
from support.tilt import chain, plane, reward
from tilting import presets, rng, weights
from tilting.cli import main
from tilting.config.about import about_method
from tilting.config.generate import GenerateConfig
from tilting.cost import cost
from tilting.declare import declared, paragraphs
from tilting.generation.coerce import preset_of
from tilting.method import Every, Method
from tilting.oracle.mixture import MixtureModel
from tilting.presets import METHODS, Preset
from tilting.sample import Problem, finish, sample
from tilting.select import Greedy, Memory, Multinomial, Resampling, Select, SelectionInput, Smc

# Methods


def hold_to_the_contract(kind: type[Preset], mixture) -> None:
    """Assert of a method what listings, checks, costs and the loop take for granted."""
    preset = kind()
    assert kind.__dataclass_params__.frozen and hash(preset) == hash(kind()) and kind.paper  # type: ignore[attr-defined]
    head, *more = paragraphs(kind)
    assert head.endswith(".") and any(part.startswith("    ") for part in more), "a sentence, and a pseudo-code"
    fields = declared(kind)
    for name, one in fields.items():
        assert one.about, f"{kind.name}.{name} is not explained"
        assert one.default is not MISSING and one.check(one.default) == one.default
    for published in (kind.published, *kind.published_for.values()):
        assert all(name in (*fields, "steps", "cfg", "strength") for name in published)
        for name in published.keys() & fields:
            fields[name].check(published[name])
    method = preset.build(12)
    assert method.name == kind.name
    assert preset.needs_reward_gradient == method.needs_reward_gradient
    engine = method.engine
    assert preset.selects == (method.select is not None or (engine is not None and engine.stochastic))
    weighable = method.select is None or method.importance_weighted
    assert preset.density == (method.repeat == 1 and method.correct is None and engine is None and weighable)
    denoise, value = Counter(problem(mixture).denoise), Counter(linear)
    p = problem(mixture, 12, 1, denoise=denoise, value=value)
    finish(p, method, run(p, method)[0])
    told = cost(method, 12)
    if engine is not None and engine.may_cost_less:
        assert denoise.rows <= told.evaluations and value.rows <= told.values
    else:
        assert (denoise.rows, value.rows) == told
    asked = {"prompts": ["a fox"], "method": kind.name, "reward": ["clip"]}
    if not kind.needs_picture:
        config = GenerateConfig.resolve(asked)
        assert config.preset() == preset and config.eta == kind.default_eta
        assert GenerateConfig.resolve(config.mapping()).preset() == preset


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_holds_to_the_contract(mixture, name):
    hold_to_the_contract(METHODS[name], mixture)


@pytest.mark.parametrize("fault", ["undocumented", "untold", "ungraded", "unchecked"])
def test_a_broken_method_does_not(mixture, fault):
    particles = Annotated[int, Ge(1)] if fault == "undocumented" else Annotated[int, Ge(1), Doc("N.")]

    @dataclass(frozen=True)
    class Broken(Preset):
        """The best of N.

            for i = 1 ... particles:  x_0^i <- the base model

        Nobody's.
        """

        particles: particles = 0 if fault == "unchecked" else 2  # type: ignore[valid-type]
        name, paper, selects, density = "broken", "none", fault == "ungraded", True

        def build(self, steps: int) -> Method:
            return Method("broken", self.particles, final="reward")

    Broken.__annotations__["particles"] = particles
    if fault == "untold":
        Broken.__doc__ = "The best of N."
    METHODS.register(Broken)
    try:
        with pytest.raises((AssertionError, ValueError)):
            hold_to_the_contract(Broken, mixture)
    finally:
        del METHODS._parts["broken"]  # type: ignore[attr-defined]


MINE = '''"""A package of someone's own: a selection rule and a method."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge

from tilting.declare import Alias, Doc
from tilting.method import Every, Method
from tilting.presets import METHODS, Preset
from tilting.select import Resampling, Select, SelectionInput


@dataclass(frozen=True)
class Second(Select):
    """Copy the best but one."""

    def __call__(self, seen: SelectionInput) -> Resampling:
        index = seen.value.sort(dim=1, descending=True).indices[:, min(1, seen.value.shape[1] - 1)]
        return Resampling(index[:, None].expand_as(seen.uniforms), torch.zeros_like(seen.uniforms), seen.memory)


@METHODS.register
@dataclass(frozen=True)
class Mine(Preset):
    """The second best of N is copied.

        every so many draws:  x_t^i <- the second best of x_t

    A note.
    """

    particles: Annotated[int, Ge(1), Doc("N.")] = 3
    every: Annotated[int, Ge(1), Alias("block"), Doc("draws between selections.")] = 2
    name, paper, selects, density = "mine", "a note of mine", True, False
    published = {"every": 4, "steps": 30}

    def build(self, steps: int) -> Method:
        return Method("mine", self.particles, select=Second(), select_when=Every(self.every), final="reward")
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A method and a selection rule from outside: one file, one line."""
    (tmp_path / "a_method_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("a_method_of_mine").Mine
    del METHODS._parts["mine"], sys.modules["a_method_of_mine"]  # type: ignore[attr-defined]


def test_a_method_and_a_selector_from_outside_are_known_everywhere(mine, mixture, tmp_path, capsys):
    hold_to_the_contract(mine, mixture)
    assert METHODS["mine"] is mine is presets.mine
    assert preset_of("mine") == mine()
    assert main(["methods", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["mine"]
    assert row == json.loads(json.dumps(about_method("mine") | {"measured": []}))
    assert row["evaluations"] == 3 * 50 and row["published_run"] == {"steps": 30}
    assert row["settings"]["every"] == {"default": 2, "about": "draws between selections", "choices": [], "published": 4}
    assert main(["methods"]) == 0 and "a note of mine" in capsys.readouterr().out
    assert main(["methods", "mine"]) == 0
    told = capsys.readouterr().out
    assert "mine.every" in told and "\n    every so many draws:  x_t^i <- the second best of x_t\n" in told

    def config(*words: str) -> dict:
        assert main(["generate", "a fox", "--method", "mine", "--print-config", *words]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    plain = config()
    assert (plain["particles"], plain["set"], plain["eta"]) == (3, {"mine.every": 2}, 1.0)
    assert config("--set", "mine.every=5", "--particles", "7")["set"] == {"mine.every": 5}
    assert config("--published")["set"] == {"mine.every": 4} and config("--published")["steps"] == 30
    (tmp_path / "c.yaml").write_text("method: mine\nset:\n  mine:\n    every: 3\n")
    assert config("--config", str(tmp_path / "c.yaml"))["set"] == {"mine.every": 3}
    for words, said in (("mine.every=0", "mine.every must be at least 1, not 0"), ("mine.evry=2", "did you mean 'mine.every'")):
        assert main(["generate", "a fox", "--method", "mine", "--set", words, "--out", str(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err


def test_a_method_of_an_entry_point_is_listed(tmp_path):
    """As an installed package of someone's own has it, whose file nobody imports."""
    write_package(tmp_path, "a_method_of_mine", MINE, METHODS.group, "a_method_of_mine:Mine")
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom tilting.cli import main\n"
        "assert main(['generate', 'a fox', '--method', 'mine', '--set', 'mine.every=9', '--print-config']) == 0\n"
        "assert main(['methods', 'mine', '--json']) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mine.every: 9" in done.stdout and '"evaluations": 150' in done.stdout


# Former names


@pytest.mark.parametrize(
    ("method", "former", "now", "value"),
    [
        ("codex", "share", "gradient_on", "medoid"),
        ("smc", "share", "ess_threshold", 0.25),
        ("fk", "share", "ess_threshold", 0.25),
        ("tds", "share", "ess_threshold", 0.25),
        ("das", "share", "ess_threshold", 0.25),
    ],
)
def test_a_former_name_is_taken_and_said(capsys, tmp_path, method, former, now, value):
    line = f"tilting: warning: {method}.{former} is now {method}.{now}\n"
    command = ["generate", "a fox", "--method", method, "--print-config"]
    (tmp_path / "c.yaml").write_text(f"set:\n  {method}:\n    {former}: {value}\n")
    for words in (["--set", f"{method}.{former}={value}"], ["--config", str(tmp_path / "c.yaml")]):
        assert main([*command, *words]) == 0
        out = capsys.readouterr()
        assert yaml.safe_load(out.out)["set"][f"{method}.{now}"] == value and out.err == line
    assert main([*command, "--set", f"{method}.{now}={value}"]) == 0
    assert capsys.readouterr().err == ""
    assert METHODS.current_key(f"{method}.{former}") == METHODS.current_key(f"{method}.{now}") == f"{method}.{now}"
    assert METHODS.current_key("particles") == "particles" and METHODS.current_key("other.share") == "other.share"


def test_a_run_of_a_former_name_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["generate", "a fox", "--method", "smc", "--steps", "2", "--particles", "2", "--out", str(out), "--json"]
    assert main([*words, "--set", "smc.ess_threshold=0.25"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["config"]["set"]["smc.share"] = manifest["config"]["set"].pop("smc.ess_threshold")
    (out / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main([*words, "--set", "smc.ess_threshold=0.5"]) == 2
    assert "smc.ess_threshold (0.25 there, 0.5 now)" in capsys.readouterr().err
    for key in ("share", "ess_threshold"):
        assert main([*words, "--set", f"smc.{key}=0.25"]) == 0


# Selection rules

BETA, STEPS = 0.4, 20


@dataclass(frozen=True)
class Delegate(Select):
    """Someone's own rule, which leaves everything to `Smc`."""

    inner: Smc = field(default=Smc(BETA))
    importance_weighted = True

    def __call__(self, seen: SelectionInput) -> Resampling:
        return self.inner(seen)

    def weigh(self, seen: SelectionInput) -> tuple[torch.Tensor, Memory]:
        return self.inner.weigh(seen)

    def twist_scale(self, memory: Memory, draws: int) -> torch.Tensor | None:
        return self.inner.twist_scale(memory, draws)


@dataclass(frozen=True)
class Forgetful(Delegate):
    """It resamples, and lets the survivors keep the weights that they were drawn by."""

    def __call__(self, seen: SelectionInput) -> Resampling:
        parents, _, memory, *_ = self.inner(seen)
        log_w = self.inner.weigh(seen)[0]
        return Resampling(parents, log_w if parents is None else log_w.gather(1, parents), memory)


RULES: dict[str, Select] = {
    "greedy": Greedy(),
    "beams": Greedy(2),
    "multinomial": Multinomial(0.5),
    "svdd": Multinomial(0.5, shared=True),
    "smc": Smc(BETA),
    "smc-max": Smc(BETA, potential="max"),
    "smc-sum": Smc(BETA, potential="sum"),
    "smc-tempered": Smc(BETA, temper=0.05),
    "smc-adaptive": Smc(BETA, adaptive=True),
    "smc-ssp": Smc(BETA, 1.0, scheme="ssp"),
    "smc-multinomial": Smc(BETA, 1.0, scheme="multinomial"),
    "delegate": Delegate(),
}


def log_z(select: Select, repeats: int = 250, guided: bool = False) -> torch.Tensor:
    """(repeats,) log of the mean final weight of 32 particles on the mixture, T = 20."""
    model, who = MixtureModel(plane()), [rng.Identity(5, "rule", i) for i in range(repeats)]
    problem = Problem(model.denoiser(), model.schedule.grid(STEPS), who, (2,), reward, 1.0, 1.0, 10**6, dtype=torch.float64)
    method = Method("rule", 32, select=select, select_when=Every(7), final="all")
    if guided:
        method = replace(presets.das(16, BETA).build(STEPS), select=select, final="all")
    *_, (state, _) = sample(problem, method)
    return weights.log_mean(finish(problem, method, state).log_w)


def hold_to_its_claim(select: Select) -> None:
    """Assert that weights are importance weights, whose mean is Z, or that there are none."""
    found = log_z(select)
    if not select.importance_weighted:
        assert (found == 0).all()
        return
    z = (found - weights.log_mean(reward(chain(STEPS), None) / BETA)).exp()
    assert abs(z.mean().item() - 1) < 5 * z.std().item() / math.sqrt(len(z))
    assert z.std().item() / math.sqrt(len(z)) < 0.1


def test_every_rule_is_here():
    assert {type(rule) for rule in RULES.values()} >= {k for k in Select.__subclasses__() if k.__module__ == "tilting.select"}


@pytest.mark.parametrize("name", RULES)
def test_a_selector_that_claims_weights_recovers_the_constant(name):
    hold_to_its_claim(RULES[name])


def test_a_broken_selector_does_not():
    with pytest.raises(AssertionError):
        hold_to_its_claim(Forgetful(Smc(BETA, 1.0, scheme="multinomial")))


@pytest.mark.parametrize("guided", [False, True])
def test_a_rule_that_delegates_to_smc_is_smc(guided):
    """The loop asks what a rule declares, not what it is: log Z is the same bits, base kernel or tempered gradients."""
    inner = Smc(BETA, temper=0.05)
    assert torch.equal(log_z(Delegate(inner), 20, guided), log_z(inner, 20, guided))
