"""Losses of discrete states: their means against exact bounds, equalities between them, precision, draws, refusals."""

import math

import pytest
import torch
from discrete_problems import chain_terms, dirichlet, integral
from torch import nn

import scoresde
import solvers
from scoresde.models.discrete import DiscreteDenoiser
from scoresde.paths.discrete import Absorbing, Uniform, process_schedules, processes
from scoresde.paths.discrete.schedules import Constant, Cosine, LogLinear
from scoresde.training.discrete_losses import (
    DiscreteBound,
    FlowKL,
    Masked,
    Reweighted,
    ScoreEntropy,
    Sundae,
    TokenCrossEntropy,
)
from scoresde.training.losses import losses
from scoresde.training.objective import Objective
from solvers import InputError
from solvers.noise.draws import Draws

ROWS = 4000
SHORT = Uniform(3, schedule=Constant(t_max=2.0))


class Table(nn.Module):
    """A network with logits for every token, place and noisy token of two, that depend on both tokens and the time."""

    def __init__(self, states, outputs, scale=1.0, time=True, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.time = time
        table = torch.randn(states, states, 2, outputs, generator=generator, dtype=torch.float64)
        self.logits = nn.Parameter((scale * table).to(dtype))

    def forward(self, x, t=None):
        out = self.logits[x[:, 0], x[:, 1]]
        return out * (1 + t.to(out)[:, None, None]) if self.time else out


def denoiser(process, predicts="x0_logits", **options):
    return DiscreteDenoiser(Table(process.values, process.states, **options), process, predicts)


def losses_of(loss, model, x0, seed=0, step=0):
    return loss(model, x0, Draws.of(seed, step, len(x0)))


def the_mean_is(values, exact):
    values = values.double()
    assert float(values.mean()) == pytest.approx(exact, abs=4 * float(values.std()) / math.sqrt(len(values)))


@pytest.mark.parametrize("process", [Absorbing(3), SHORT, Absorbing(3, schedule=LogLinear(least=0.2))], ids=str)
def test_losses_of_bounds_have_the_exact_bound_as_their_mean(process):
    target = dirichlet(1.0, 3, 2)
    model, x0 = target.denoiser(process), target.data[4].expand(ROWS, 2)
    prior, *terms = map(float, chain_terms(model, x0[:1], solvers.grid("uniform", process, 6)))
    the_mean_is(losses_of(DiscreteBound(steps=6), model, x0), (prior + sum(terms)) / 2)
    exact = (prior + float(integral(model, x0[:1]))) / 2
    the_mean_is(losses_of(ScoreEntropy(), model, x0), exact)
    if process.mask is not None:
        the_mean_is(losses_of(Masked(), model, x0), exact)
        the_mean_is(losses_of(FlowKL(), model, x0), exact)


@pytest.mark.parametrize(
    "spec", ["gaussian_steps(3, steps=20, first=0.2, last=2)", "mask_replace(3)", "birth_death(3)", "hybrid(3)"]
)
def test_every_process_has_the_loss_of_its_chain(spec):
    process, target = processes.make(spec), dirichlet(1.0, 3, 2)
    model, x0 = target.denoiser(process), target.data[4].expand(ROWS, 2)
    loss = DiscreteBound(steps=None if spec.startswith("gaussian") else 20)
    exact = float(sum(chain_terms(model, x0[:1], solvers.grid("uniform", process, 20)))) / 2
    the_mean_is(losses_of(loss, model, x0), exact)


@pytest.mark.parametrize("schedule", sorted({*process_schedules.names()} - {"quotient"}))  # which masks almost nothing
def test_of_masks_the_losses_of_masks_score_entropy_and_flow_matching_are_equal(schedule):
    process = Absorbing(3, schedule=process_schedules.make(schedule))
    for predicts in ("x0_logits", "x0_loo_logits"):
        model, x0 = denoiser(process, predicts), dirichlet(1.0, 3, 2).data.repeat(20, 1)
        found = losses_of(Masked(), model, x0).detach()
        assert float(found.std()) > 0.1
        assert torch.allclose(losses_of(ScoreEntropy(), model, x0), found, rtol=1e-5, atol=1e-7)
        assert torch.allclose(losses_of(FlowKL(), model, x0), found, rtol=1e-5, atol=1e-7)
        if schedule == "linear":
            assert torch.allclose(losses_of(Reweighted("inverse"), model, x0), found, rtol=1e-5, atol=1e-7)


def test_of_uniform_noise_the_form_without_the_own_token_is_the_score_entropy():
    process, x0 = Uniform(3, schedule=Cosine()), dirichlet(1.0, 3, 2).data.repeat(20, 1)
    model, draws = denoiser(process, "x0_loo_logits"), Draws.of(0, 0, 180)
    seen = {}

    class Watched(nn.Module):
        def forward(self, x, t):
            seen.update(x=x, t=t)
            return model.network(x, t)

    loss = ScoreEntropy()
    found = loss(DiscreteDenoiser(Watched(), process, "x0_loo_logits"), x0, draws)
    # written out for uniform noise: with b = S alpha law + 1 - alpha, ratios are b(y) / b(x)
    t, _ = loss.drawn_times(process, draws, None)
    alpha = torch.exp(-process(t).clock)[:, None, None]
    law = torch.softmax(model.network(seen["x"], seen["t"]).double(), -1)
    ours, exact = (3 * alpha * each + 1 - alpha for each in (law, nn.functional.one_hot(x0, 3).double()))
    own = seen["x"][..., None]
    s, r = ours / ours.gather(-1, own), exact / exact.gather(-1, own)
    terms = ((s - r + r * torch.log(r / s)) / 3).scatter(-1, own, 0.0)
    rate = process.schedule.rate(t)
    prior = chain_terms(model, x0, [])[0]
    assert torch.allclose(found.double(), (rate * terms.sum((1, 2)) + prior) / 2, rtol=1e-6)


def test_flow_matching_of_uniform_noise_is_another_bound():
    target = dirichlet(1.0, 3, 2)
    model, x0 = target.denoiser(Uniform(3)), target.data[4].expand(ROWS, 2)
    found = losses_of(FlowKL(), model, x0).double()
    exact = -float(target.weights[4].log()) / 2
    assert float(found.mean()) > exact + 4 * float(found.std()) / math.sqrt(ROWS)
    # the exact model has the least loss
    x0 = target.data[torch.multinomial(target.weights, ROWS, True, generator=torch.Generator().manual_seed(0))]
    least = losses_of(FlowKL(), model, x0).double()
    other = losses_of(FlowKL(), dirichlet(1.0, 3, 2, seed=2).denoiser(Uniform(3)), x0).double()
    gain = other - least
    assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(ROWS)


# (1 - t), 1 / t and 1, of tokens that have changed
@pytest.mark.parametrize(
    ("weight", "factor"), [("linear", lambda t: 1 - t), ("inverse", lambda t: 1 / t), ("constant", torch.ones_like)]
)
def test_reweighted_losses_are_weighted_cross_entropies_of_changed_tokens(weight, factor):
    process, x0 = Uniform(3, schedule=Constant(t_max=2.0)), dirichlet(1.0, 3, 2).data.repeat(5, 1)
    seen, table = [], Table(3, 3)

    def network(x, t):
        seen.append((x, t))
        return table(x, t)

    found = losses_of(Reweighted(weight), DiscreteDenoiser(network, process), x0)
    plain = losses_of(TokenCrossEntropy(), DiscreteDenoiser(network, process), x0)
    (x, t), _ = seen
    entropy = nn.functional.cross_entropy(table(x, t).movedim(-1, 1), x0, reduction="none")
    wanted = factor(t / 2) * torch.where(x == x0, 0.0, entropy).mean(1)
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert torch.allclose(plain, entropy.mean(1), rtol=1e-5)
    assert 0.1 < float((x != x0).double().mean()) < 0.7


def test_the_hybrid_loss_adds_the_cross_entropy_to_each_term():
    process, x0 = Uniform(3), dirichlet(1.0, 3, 2).data.repeat(5, 1)
    model = denoiser(process, "x0_loo_logits")
    plain, more, most = (losses_of(DiscreteBound(10, cross_entropy=c), model, x0) for c in (0.0, 0.01, 0.02))
    assert torch.allclose(most - plain, 2 * (more - plain), rtol=1e-3)
    # at the same draws it is N times the factor times the cross entropy of the law that sees its own token
    seen = []
    steps = DiscreteBound(10).drawn_times(process, Draws.of(0, 0, len(x0)), None)[0]
    ends = ((steps * 10).floor() + 1) / 10
    spy = DiscreteDenoiser(lambda x, t: seen.append(x) or model.network(x, t), process, "x0_loo_logits")
    losses_of(DiscreteBound(10), spy, x0)
    law = model.predict(seen[0], process(ends)).x0
    entropy = -law.gather(-1, x0[..., None]).log().mean((1, 2))
    assert torch.allclose((more - plain).double(), 0.1 * entropy, atol=1e-5)


@pytest.mark.parametrize(
    "loss", ["masked", "score_entropy", "discrete_bound(steps=1000)", "flow_kl", "cross_entropy", "reweighted"]
)
@pytest.mark.parametrize("process", [Absorbing(3), Uniform(3)], ids=["mask", "uniform"])
def test_losses_in_float32_are_those_in_float64(loss, process):
    if loss == "masked" and process.mask is None:
        return
    made, x0 = losses.make(loss), dirichlet(1.0, 3, 2).data.repeat(20, 1)
    for scale in (1.0, 40.0):  # logits apart by hundreds: in float32 the smaller probability is 0
        found = []
        for dtype in (torch.float32, torch.float64):
            model = denoiser(process, scale=scale, dtype=dtype)
            with torch.no_grad():  # the same numbers in both
                model.network.logits.copy_(model.network.logits.float())
            values = losses_of(made, model, x0)
            (gradient,) = torch.autograd.grad(values.sum(), model.network.logits)
            assert bool(torch.isfinite(values).all() and torch.isfinite(gradient).all())
            found.append((values, gradient.double()))
        (one, slope), (two, other) = found
        assert torch.allclose(one, two, rtol=2e-5, atol=1e-6)
        assert torch.allclose(slope, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_sundae_unrolls_samples_of_the_network_without_a_gradient():
    process, x0 = Uniform(3), dirichlet(1.0, 3, 2).data.repeat(400, 1)
    seen, table = [], Table(3, 3, time=False)

    def network(x):
        seen.append(x)
        return table(x)

    model = DiscreteDenoiser(network, process, time=False)
    found = losses_of(Sundae(unrolled=3), model, x0)
    entropies = [nn.functional.cross_entropy(table(x).movedim(-1, 1), x0, reduction="none").mean(1) for x in seen]
    wanted = torch.stack(entropies).mean(0)
    assert torch.allclose(found, wanted, rtol=1e-5)
    # the gradient is that of the cross entropies at fixed states
    assert torch.allclose(
        *(torch.autograd.grad(v.sum(), table.logits)[0] for v in (found, wanted)), rtol=1e-4, atol=1e-4
    )
    # a share of the tokens that is uniform in (0, 1) is drawn again, of which a third keeps its value
    assert float((seen[0] != x0).double().mean()) == pytest.approx(0.5 * 2 / 3, abs=4 * math.sqrt(0.25 / (2 * len(x0))))
    both = (seen[0] != x0).all(1).double().mean()  # the share is the same for the tokens of a sample: E r^2 = 1/3
    assert float(both) == pytest.approx(4 / 27, abs=4 * math.sqrt(0.15 / len(x0)))
    # the next states follow the network's laws
    for before, after in ((seen[0], seen[1]), (seen[1], seen[2])):
        law = torch.softmax(table(before).double(), -1).detach()
        wanted, count = law.mean(0), len(before)
        got = torch.stack([(after == y).double().mean(0) for y in range(3)], -1)
        assert torch.allclose(got, wanted, atol=4 * math.sqrt(0.25 / count))
        assert (
            float((torch.log(law.gather(-1, after[..., None])).mean() - (law * law.log()).sum(-1).mean()).abs()) < 0.1
        )


@pytest.mark.parametrize("spec", sorted(n for n in losses.names() if losses.info(n).cls.space == "discrete"))
def test_the_loss_of_a_row_depends_on_its_place_alone(spec):
    process = Absorbing(3) if spec == "masked" else Uniform(3)
    loss, x0 = losses.make(spec), dirichlet(1.0, 3, 2).data.repeat(2, 1)
    model = DiscreteDenoiser(Table(process.values, 3, time=spec != "sundae"), process, time=spec != "sundae")
    draws = Draws.of(3, 7, len(x0))
    whole = loss(model, x0, draws)
    parts = torch.cat([loss(model, x0[rows].to(torch.uint8), draws.part(rows)) for rows in (slice(0, 5), slice(5, 18))])
    assert torch.allclose(whole, parts, rtol=1e-6)
    assert not torch.allclose(whole, loss(model, x0, Draws.of(3, 8, len(x0))))
    assert whole.dtype == torch.float32
    nodes = loss.nodes(process, draws)
    assert nodes.t.shape == (len(x0),)


def test_steps_in_proportion_to_their_losses_keep_the_bound():
    target, process = dirichlet(1.0, 3, 2), SHORT
    model, x0 = target.denoiser(process), target.data[4].expand(ROWS, 2)
    loss = losses.make("discrete_bound(steps=10, times=adaptive(bins=10, history=2))")
    state = loss.state(process)
    draws = Draws.of(0, 0, ROWS)
    first = loss(model, x0, draws, state)
    loss.remember(state, draws, first)
    found = loss(model, x0, Draws.of(0, 1, ROWS), state)
    exact = float(sum(chain_terms(model, x0[:1], solvers.grid("uniform", process, 10)))) / 2
    the_mean_is(first, exact)
    the_mean_is(found, exact)
    _, factor = loss.drawn_times(process, Draws.of(0, 1, ROWS), state)
    assert float(factor.std()) > 0.1


@pytest.mark.parametrize(
    ("loss", "model", "message"),
    [
        (
            "masked",
            denoiser(Uniform(3)),
            r"^masked trains on masks alone, got uniform\(.*\): use absorbing, or .* score_",
        ),
        (
            "discrete_bound",
            denoiser(Uniform(3), "log_score"),
            "^discrete_bound trains laws of clean tokens; of log_score",
        ),
        ("cross_entropy", denoiser(Uniform(3), "log_score"), "^the network predicts log_score, of which score_entropy"),
        ("sundae", denoiser(Uniform(3)), "^sundae trains a network without time"),
    ],
)
def test_models_that_do_not_suit_a_loss_are_told_in_one_line(loss, model, message):
    with pytest.raises(InputError, match=message):
        losses_of(losses.make(loss), model, torch.zeros(4, 2, dtype=torch.long))


def test_losses_and_models_of_two_spaces_are_told_in_one_line():
    model, gaussian = denoiser(Uniform(3)), scoresde.Denoiser(nn.Linear(2, 2), scoresde.VP())
    with pytest.raises(
        InputError, match=r"^the loss dsm is for gaussian states, but .* discrete states; use one of cross"
    ):
        Objective(model, model.network, losses.make("dsm"))
    with pytest.raises(
        InputError, match=r"^the loss masked is for discrete states, but .* gaussian states; use one of ch"
    ):
        Objective(gaussian, gaussian.network, losses.make("masked"))
    with pytest.raises(InputError, match=r"^masked trains on tokens, which are whole numbers, got torch.float32$"):
        losses_of(losses.make("masked"), denoiser(Absorbing(3)), torch.zeros(4, 2))
    for times in ("lognormal", "logsnr"):
        with pytest.raises(InputError, match=r"^discrete states have no noise level sigma / alpha"):
            losses_of(losses.make(f"score_entropy(times={times})"), model, torch.zeros(4, 2, dtype=torch.long))
