"""CTRL's baselines against mathematics: on the plane's mixture p(y | x_t, t), p(x | y) and the tilted posterior are known."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from support.control import independent_log_prob, normaliser
from tilting.conditioning.cfree import ClassifierFree, Triplets, draw_rows, drop_labels, training_error
from tilting.conditioning.fit_label import fit_label
from tilting.conditioning.guided import classifier_guided
from tilting.conditioning.noisy import NoisyClassifier, NoisyNet, OfPictures, load_noisy, noised
from tilting.conditioning.pictures import Encoded
from tilting.conditioning.table import Column
from tilting.conditioning.triplets import TripletBatches
from tilting.config.condition_fit import FitConfig
from tilting.errors import TiltingError
from tilting.features.fitted import save_classifier
from tilting.features.schema import Schema
from tilting.models.guided_network import Outputs
from tilting.models.labels import Augmented, LabelEmbedding, Term, guided
from tilting.oracle.control import Chain, lemma, log_classifier
from tilting.oracle.mixture import ZERO_SNR
from tilting.oracle.plane import BASE, energy_distance
from tilting.presets.guided import reconstruction_guidance
from tilting.rng import Identity
from tilting.schedule import Schedule, predict
from tilting.training.loop import TrainState, train
from tilting.types import Prediction
from tilting_papers.ctrl import learned
from tilting_papers.ctrl.learned import Falling, Plane, Push, pushed

YES = Schema("side", classes=("no", "yes"))


def given(y: float, count: int, seed: int) -> torch.Tensor:
    """Draws (count, 2) of p(x | y), by rejection from the mixture itself."""
    gen = torch.Generator().manual_seed(seed)
    x = BASE.draw(40 * count, gen)
    return x[torch.rand(len(x), generator=gen, dtype=torch.float64) < log_classifier(x, y).exp()][:count]


@pytest.mark.slow
def test_classifier_guidance_with_the_true_noisy_classifier_draws_p_of_x_given_y():
    """γ = 1: the distance to p(x | y) falls with T, to that of two exact samples; reconstruction guidance stays far."""
    y, target, again = 0.0, given(0.0, 3000, 1), given(0.0, 2000, 2)
    null, far = abs(energy_distance(again, target)), {}
    for steps in (8, 64):
        chain = Chain(steps)

        def log_p(x, t, rows):
            return independent_log_prob(BASE, x, t, 1.0, y)

        x = chain.draw(2000, 3, denoise=classifier_guided(chain.denoise, log_p, 1.0)).end
        far[steps] = energy_distance(x, target)
    dps = learned.guided(Chain(64), reconstruction_guidance(1.0).build(64), lambda x0: log_classifier(x0, y), 1000, 0)
    print(f"D² to p(x | y): T 8 {far[8]:.4f}, T 64 {far[64]:.4f}, dps {energy_distance(dps, target):.4f}, exact {null:.4f}")
    assert far[64] < 0.005
    assert far[64] < 0.4 * far[8]
    assert energy_distance(dps, target) > 3 * max(far[64], 0.003)


def test_guidance_adds_the_score_of_the_classifier_and_nothing_at_pure_noise():
    """eps' and x0' are those of p_γ's own denoiser, which is found without any gradient."""
    chain, x = Chain(6), BASE.draw(64, torch.Generator().manual_seed(0))
    for i, t in enumerate(chain.grid[:-1]):

        def log_p(x, t, rows):
            return independent_log_prob(BASE, x, t, 3.0, 1.0)

        mine = classifier_guided(chain.denoise, log_p, 1.0)(x, t, torch.arange(64))
        theirs = (lemma(chain, 3.0, 1.0) if i else chain.denoise)(x, t, torch.arange(64))
        assert torch.allclose(mine.eps, theirs.eps, atol=1e-6)
        assert torch.allclose(mine.x0, theirs.x0, atol=1e-5)


def test_the_fitted_noisy_classifier_is_the_true_one_at_every_noise_level():
    """Maximum likelihood on labelled draws, against quadrature of p(y | x_t): nats lost, and where it starts from."""
    gen = torch.Generator().manual_seed(0)
    x = BASE.draw(6000, gen)
    y = (torch.rand(len(x), generator=gen) < log_classifier(x, 1.0).exp()).float()
    config = FitConfig(kind="noisy", widths=(32,), epochs=12, batch_size=128, lr=3e-3, patience=5)
    latents = Encoded(x.float(), ZERO_SNR, {})
    fitted = fit_label(config, Column("side", "classes", ("no", "yes")), y, range(1200, 6000), range(1200), latents).classifier
    rate = y.mean().item()
    for t in (ZERO_SNR.grid(10)[i] for i in (1, 4, 7, 9)):
        fresh = BASE.draw(3000, gen)
        xt = t.alpha * fresh + t.sigma * torch.randn(3000, 2, generator=gen, dtype=torch.float64)
        p = independent_log_prob(BASE, xt, t, 1.0, 1.0).exp()
        q = fitted.log_prob(xt.float(), t, torch.ones(3000)).double().exp()
        lost = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean().item()
        known = (p * (p / rate).log() + (1 - p) * ((1 - p) / (1 - rate)).log()).mean().item()
        print(f"σ/α {t.sigma / t.alpha:.2f}: KL to the true classifier {lost:.4f} nats of {known:.4f}")
        assert lost < 0.01 + 0.05 * known


@pytest.mark.parametrize("shape", [(5,), (4, 8, 8)])
def test_a_noisy_classifier_is_saved_with_its_schema(tmp_path, shape):
    torch.manual_seed(0)
    schema = Schema("size", "gaussian", shift=3.0, scale=2.0, std=0.5, temperature=1.5)
    made = NoisyClassifier(NoisyNet(1, shape, 16), schema).eval()
    save_classifier(made, tmp_path / "c")
    again = load_noisy(tmp_path / "c")
    x, t, y = torch.randn(3, *shape), ZERO_SNR.grid(4)[2], torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(made.log_prob(x, t, y), again.log_prob(x, t, y))
    assert again.schema == schema
    far = made.log_prob(x, ZERO_SNR.grid(4)[1], y)
    assert not torch.allclose(far, made.log_prob(x, t, y))  # it is told the noise level
    with pytest.raises(TiltingError, match="there is no classifier"):
        load_noisy(tmp_path)


def test_noised_latents_have_the_levels_asked_for():
    x = torch.full((4000, 2), 3.0)
    levels = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    out = noised(x, levels, torch.Generator().manual_seed(0))
    for alpha, sigma in levels.tolist():
        rows = out.alpha == alpha
        assert 1800 < rows.sum() < 2200
        assert out.x[rows].mean().item() == pytest.approx(3 * alpha, abs=0.05)
        assert out.x[rows].std().item() == pytest.approx(sigma, abs=0.05)


@pytest.mark.parametrize("schedule", [ZERO_SNR, Schedule("flow")])
def test_pictures_are_judged_at_the_least_noise(schedule):
    seen = []

    class Net(nn.Linear):
        def forward(self, noised):
            seen.append(noised)
            return noised.x

    judge = OfPictures(NoisyClassifier(Net(2, 2), YES), lambda images: images.mean((2, 3))[:, :2], schedule)
    judge(torch.ones(1, 3, 4, 4))
    assert seen[0].alpha.item() > 0.99
    assert seen[0].sigma.item() < 0.1
    assert seen[0].x == pytest.approx(seen[0].alpha.item())


# classifier-free fine-tuning


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow", "sample"])
def test_the_training_error_is_that_of_the_networks_own_output(kind):
    gen = torch.Generator().manual_seed(0)
    output, clean, noise = (torch.randn(4, 3, generator=gen, dtype=torch.float64) for _ in range(3))
    t = Schedule("flow").grid(4)[1] if kind == "flow" else ZERO_SNR.grid(4)[1]
    x = t.alpha * clean + t.sigma * noise
    target = {"epsilon": noise, "v_prediction": t.alpha * noise - t.sigma * clean, "flow": noise - clean, "sample": clean}[kind]
    eps, x0 = predict(kind, output, x, t)
    mine = training_error(Prediction(eps, x0, output), clean, noise, t, kind)
    assert torch.allclose(mine, (output - target).square().mean(1))


@pytest.mark.slow
def test_classifier_free_fine_tuning_learns_p_of_x_given_y():
    """Labelled draws of the mixture: the control's law is p(x | y) for both labels, nearer than half a per cent of base's."""
    chain, gen = Chain(16), torch.Generator().manual_seed(0)
    x = BASE.draw(8000, gen)
    y = (torch.rand(len(x), generator=gen) < log_classifier(x, 1.0).exp()).double()
    push, steps, size = Push(48), 350, 256
    optimiser = Falling(rate=5e-3, weight_decay=0.0, clip=10.0, steps=steps)
    training = TrainState(dict(push.named_parameters()), optimiser.build(list(push.parameters())))
    grid = ZERO_SNR.grid(200)

    def batch(k, memory):
        rows = draw_rows(len(x), size, 0, k)
        denoise = pushed(chain.denoise, push, y[rows])
        who = [Identity(0, "cfree", k)] * size
        return Plane(denoise, chain.denoise, denoise, chain.denoise, None, grid, who, (2,), 1.0, k, 0, dtype=torch.float64)

    objective = ClassifierFree(lambda world: x[draw_rows(len(x), size, 0, world.step)])
    for _ in train(training, objective, batch, optimiser, steps):
        pass
    for label in (0.0, 1.0):
        target = given(label, 3000, 5)
        with torch.no_grad():
            mine = energy_distance(chain.draw(2000, 6, denoise=pushed(chain.denoise, push, label)).end, target)
        base = energy_distance(chain.draw(2000, 6).end, target)
        print(f"classifier-free, y {label:.0f}: D² {mine:.4f}, base {base:.4f}")
        assert mine < 0.05 * base


@pytest.mark.parametrize("size", [1, 3, 12])
def test_every_time_counts_alike_whatever_the_batch_and_however_many_processes(size):
    """Images whose error is their time: the mean over many batches is that of the uniform law; parts of a batch sum to it."""
    grid, count = ZERO_SNR.grid(100), 600

    def loss(step, first=0, here=size):
        who = [Identity(0, "", i) for i in range(size)]

        def plain(x, t, rows):
            eps = noise[rows] + (2 * (100 - grid.index(t)) / 100) ** 0.5 / t.alpha if t.alpha else noise[rows]
            return Prediction(eps, clean[rows], x)  # v's error is α² (eps - noise)²: twice the time

        world = Plane(
            plain,
            plain,
            plain,
            plain,
            None,
            grid,
            who[first : first + here],
            (2,),
            1.0,
            step,
            0,
            everyone=who,
            first=first,
            dtype=torch.float64,
        )
        noise, clean = world.noise(0, "fit"), torch.zeros(here, 2, dtype=torch.float64)
        return next(iter(ClassifierFree(lambda w: clean)(world))).value.item()

    found = torch.tensor([loss(k) for k in range(count)])
    assert abs(found.mean() - 1.0) < 4 * found.std() / count**0.5 + 0.02  # a hundredth of the grid is pure noise
    if size > 1:
        parts = [loss(7, first, here) * here / size for first, here in ((0, size // 3), (size // 3, size - size // 3))]
        assert sum(parts) == pytest.approx(loss(7))


def test_rows_of_a_step_are_epochs_of_permutations():
    seen = torch.cat([draw_rows(10, 4, 3, k) for k in range(5)])
    assert seen[:10].sort().values.tolist() == list(range(10))
    assert seen[10:].sort().values.tolist() == list(range(10))
    assert torch.equal(draw_rows(10, 4, 3, 2), seen[8:12])


def test_dropped_labels():
    labels = {"a": torch.ones(4000), "b": torch.zeros(4000)}
    out = drop_labels(labels, 0.25, 0, 7)
    assert torch.equal(out["a"].isnan(), out["b"].isnan())
    assert out["a"].isnan().float().mean().item() == pytest.approx(0.25, abs=0.03)
    with pytest.raises(TiltingError, match="dropout"):
        drop_labels(labels, 1.1, 0, 0)


class Little(nn.Module):
    """A v-network of vectors with the interface of a pipeline."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.schedule = ZERO_SNR
        self.inner = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))

    def encode_prompts(self, prompts):
        return torch.zeros(len(prompts), 1, 1)

    def guided_network(self, prompts, cfg, negative="", **how):
        text = self.encode_prompts(prompts)

        def free(x, t, rows):
            out = self.network(x, t, text[rows])
            return Outputs(out, torch.zeros_like(out), out, x)

        free.conditional = text
        return free

    def predict(self, output, x, t):
        return predict(self.schedule.kind, output, x, t)

    def network(self, x, t, context):
        return self.inner(torch.cat([x, x.new_full((len(x), 1), t.alpha)], 1))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow", "sample"])
def test_a_shift_of_the_score_is_one_whatever_the_network_predicts(kind):
    """eps' = eps - σ E, and x0' = x0 + σ²/α E to match; at pure noise nothing that is not finite."""
    model = Little()
    model.schedule = Schedule("flow") if kind == "flow" else replace(ZERO_SNR, kind=kind)
    embedding = LabelEmbedding({"y": 2}, 2)
    with torch.no_grad():
        embedding.tables["y"].copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    augmented, grid = Augmented(model, embedding, "score"), model.schedule.grid(4)
    x, y = torch.randn(2, 2), {"y": torch.tensor([1.0, 0.0])}
    for t in grid[1:-1]:
        eps, x0 = predict(kind, model.network(x, t, x), x, t)
        mine, there = predict(kind, augmented.conditioned(x, t, x, y), x, t)
        assert torch.allclose(mine - eps, -t.sigma * embedding(y), atol=1e-5)
        assert torch.allclose(there - x0, t.sigma**2 / t.alpha * embedding(y), atol=1e-5)
    assert augmented.conditioned(x, grid[0], x, y).isfinite().all()


@pytest.mark.parametrize("unlabelled", [True, False])
def test_strength_leads_away_from_no_label_where_that_was_learnt_and_from_the_model_where_not(unlabelled):
    """Ho & Salimans: n + γ2 (e - n), n by the control itself. At 1 it is e alone, at 0 n alone: nothing else is evaluated."""
    embedding = LabelEmbedding({"y": 2}, 2)
    with torch.no_grad():
        embedding.tables["y"].copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    model, calls, lora = Little(), [], []

    @contextmanager
    def on():
        lora.append(True)
        yield
        lora.pop()

    inner = model.network
    model.network = lambda x, t, text: (calls.append(bool(lora)), inner(x, t, text) * (1.5 if lora else 1.0))[1]
    augmented = Augmented(model, embedding, "latent", own=on, unlabelled=unlabelled)
    x, t, y, text = torch.randn(2, 2), ZERO_SNR.grid(4)[2], {"y": torch.tensor([1.0, 0.0])}, torch.zeros(2, 1, 1)
    for strength in (0.0, 1.0, 3.0):
        calls.clear()
        mine = guided([Term(augmented, y, strength)], ["a", "b"], 1.0)[0](x, t, torch.arange(2))
        trained = {0.0: 1, 1.0: 1, 3.0: 2}[strength] if unlabelled else int(strength != 0)
        assert calls == [False] + [True] * trained
        e, base = 1.5 * inner(x + embedding(y), t, text), inner(x, t, text)
        n = 1.5 * base if unlabelled else base
        assert torch.allclose(mine.eps, predict("v_prediction", n + strength * (e - n), x, t)[0], atol=1e-5)


ODD = {"a.b": 2, "type": 3, "values": 2, "copy": None, "training": None, "items": None, "half": 2, "0": 2, "strength": None}


def test_any_word_can_be_a_label_and_files_call_it_by_its_name():
    embedding = LabelEmbedding(ODD, 4)
    state = embedding.state_dict()
    inside = ["0.weight", "0.bias", "2.weight", "2.bias"]
    tables = [f"tables.{name}" for name, k in ODD.items() if k]
    assert list(state) == [*tables, *(f"networks.{name}.{part}" for name, k in ODD.items() if not k for part in inside)]
    torch.manual_seed(0)
    state = {name: torch.randn_like(value) for name, value in state.items()}
    embedding.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in embedding.state_dict().items())
    assert torch.equal(embedding({"type": torch.tensor([2.0])})[0], state["tables.type"][2])
    assert embedding({"copy": torch.tensor([0.3])}).abs().max() > 0
    with pytest.raises(TiltingError, match="knows no label 'clear'"):
        embedding({"clear": torch.tensor([0.0])})
    with pytest.raises(RuntimeError):
        LabelEmbedding({"type": 3}, 4).load_state_dict(state)


def test_the_augmented_model_is_trained_and_no_label_stays_no_label():
    torch.manual_seed(0)
    model, embedding = Little(), LabelEmbedding({"y": 2}, 2)
    augmented = Augmented(model, embedding, "latent")
    x = torch.cat([torch.randn(60, 2) * 0.1 + 2, torch.randn(60, 2) * 0.1 - 2])
    data = Triplets(x, {"y": (torch.arange(120) >= 60).float()}, [""] * 120)
    parameters = {**{f"e.{k}": p for k, p in embedding.named_parameters()}, **dict(model.inner.named_parameters())}
    from tilting.training.loop import Optimiser

    settings = Optimiser(rate=1e-2, weight_decay=0.0)
    batches = TripletBatches(augmented, data, (), {}, 64, 0.1)
    training = TrainState(parameters, settings.build(parameters))
    steps = train(training, ClassifierFree(batches.of), batches, settings, 150)
    errors = [report.numbers["error"] for report in steps]
    assert sum(errors[-20:]) < 0.4 * sum(errors[:20])
    rows = embedding.tables["y"].detach()
    assert (rows[0] - rows[1]).norm() > 0.3
    assert embedding({"y": torch.tensor([float("nan")])}).abs().max() == 0
    with pytest.raises(TiltingError, match="as many latents"):
        Triplets(x, {"y": torch.zeros(3)}, [""] * 120)


def test_the_normaliser_of_the_oracle_agrees_with_draws():
    """E[p(y | x)] by quadrature over the posterior and by a hundred thousand draws of the mixture."""
    x = BASE.draw(100_000, torch.Generator().manual_seed(1))
    for gamma in (1.0, 5.0):
        drawn = (gamma * log_classifier(x, 1.0)).exp()
        assert abs(normaliser(BASE, gamma, 1.0) - drawn.mean().item()) < 4 * drawn.std().item() / 100_000**0.5
