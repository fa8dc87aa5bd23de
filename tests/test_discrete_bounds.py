"""Bounds of discrete states by exact enumeration: pointwise identities, the gap of a chain, estimates, refusals."""

import math
from itertools import pairwise

import pytest
import torch
from discrete_problems import chain_terms, dirichlet, expected, integral, marginal

import scoresde
import solvers
from scoresde import discrete_bound
from scoresde.bounds.discrete_terms import noisy_law, score_entropy, step_term
from scoresde.models.discrete import DiscreteDenoiser, DiscreteEmpirical, ExactDiscrete
from scoresde.models.problem import Diffusion
from scoresde.paths.discrete import Absorbing, RankOne, Uniform, processes
from scoresde.paths.discrete.schedules import Constant, LogLinear
from solvers import InputError
from solvers.conformance.kernels import all_states, end_law, index_of
from solvers.types.process import DiscretePrediction

HEARTBEAT = DiscreteEmpirical(torch.stack([((torch.arange(20) - k) % 5 == 0).long() for k in range(5)]))


def entropy(target):
    return -float((target.weights * target.weights.log()).sum())


def mean_bound(target, process, steps):
    """The exact bound of a chain, its mean over the data, without the prior's term."""
    model, nodes = target.denoiser(process), solvers.grid("uniform", process, steps)
    return float((target.weights * sum(chain_terms(model, target.data, nodes)[1:])).sum())


def ends(target, process):
    """KL(q(x_T | x0) | p_T) of each clean state (n,), by enumeration."""
    node = process(process.t_max)
    law = marginal(target, process, node)
    own = torch.stack([marginal(DiscreteEmpirical(x0[None]), process, node) for x0 in target.data])
    return torch.where(own > 0, own * (own / law).log(), 0.0).sum(1)


@pytest.mark.parametrize(
    "process", [Absorbing(3), Absorbing(3, schedule=Constant(t_max=3.0)), Absorbing(3, schedule=LogLinear(least=0.3))]
)
def test_the_score_entropy_of_masks_is_the_log_probability_of_every_state(process):
    # also where the schedule leaves tokens unmasked: samples start from masks alone
    target = dirichlet(1.0, 3, 3)
    found = integral(target.denoiser(process), target.data)
    assert torch.allclose(found, -target.weights.log(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "process",
    [Uniform(3, schedule=Constant(t_max=2.0)), RankOne((0.2, 0.3, 0.5), schedule=Constant(t_max=2.0))],
    ids=["uniform", "rank_one"],
)
def test_score_entropy_and_the_divergence_at_the_end_are_the_log_probability_of_every_state(process):
    target = dirichlet(1.0, 3, 2)
    found = integral(target.denoiser(process), target.data) + ends(target, process)
    assert torch.allclose(found, -target.weights.log(), rtol=0, atol=1e-8)  # the quadrature's error


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("mask_replace(3, schedule=linear, substitution=constant)", 1e-11),
        ("mask_replace(3, schedule=linear, substitution=mutual_information(3))", 1e-7),  # the quadrature
        ("mask_by_state([1, 2, 0.5])", 1e-11),
        ("birth_death(3)", 1e-11),
        ("discretised_gaussian(3)", 1e-11),
        (
            "hybrid(3)",
            2e-4,
        ),  # of the quadrature: its rates have a root at t = 0; it falls eightfold with twice the points
    ],
)
def test_the_identity_holds_for_every_process_with_rates(spec, error):
    target, process = dirichlet(1.0, 3, 2), processes.make(spec)
    found = integral(target.denoiser(process), target.data) + ends(target, process)
    assert torch.allclose(found, -target.weights.log(), rtol=0, atol=error)


def test_a_process_of_steps_has_the_bound_of_its_own_steps():
    target, process = dirichlet(1.0, 3, 2), processes.make("gaussian_steps(3, steps=20, first=0.2, last=2)")
    model, x = target.denoiser(process), target.data[4].expand(400, 2)
    exact = -float(sum(chain_terms(model, x[:1], solvers.grid("uniform", process, 20))))
    found = discrete_bound(model, x, draws=8, sets=2)
    assert float(found.nats.mean()) == pytest.approx(exact, abs=4 * float(found.nats.std()) / 20)
    assert "of 20 steps" in found.kind
    with pytest.raises(InputError, match=r"has only the times i / 20"):
        discrete_bound(model, x, 7)


# measured by an independent program: 0.1220, 0.0610, ... at T = 4, 8, ... of masks; 0.334 ... 0.019 of uniform noise
def test_the_gap_of_a_chain_falls_as_one_over_its_steps():
    target = dirichlet(0.5, 3, 2, seed=5)
    gaps = [mean_bound(target, Absorbing(3), n) - entropy(target) for n in (4, 8, 16, 32, 64, 128)]
    assert gaps == pytest.approx([0.1220, 0.0610, 0.0305, 0.0152, 0.0076, 0.0038], abs=5e-5)
    assert [math.log2(a / b) for a, b in pairwise(gaps)] == pytest.approx([1.0] * 5, abs=1e-9)
    process = Uniform(3, schedule=Constant(t_max=3.0))
    end = float((target.weights * ends(target, process)).sum()) - entropy(target)
    gaps = [mean_bound(target, process, n) + end for n in (4, 8, 64, 128)]
    slopes = [math.log2(gaps[0] / gaps[1]), math.log2(gaps[2] / gaps[3])]
    assert (gaps[0], gaps[-1]) == pytest.approx((0.334, 0.019), abs=1e-3)
    assert slopes == pytest.approx([0.67, 0.93], abs=0.04)


@pytest.mark.parametrize("process", [Absorbing(3), Uniform(3, schedule=Constant(t_max=3.0))], ids=str)
def test_the_gap_is_the_dependence_of_tokens_within_a_step(process):
    target, size, steps = dirichlet(0.5, 3, 2, seed=5), 2, 4
    space = all_states(process.values, size)
    found = 0.0
    for t, s in pairwise(solvers.grid("uniform", process, steps)):
        ways = process.transition(s, t, space).rows(space)  # (N, d, S)
        ahead = ways[:, 0, space[:, 0]] * ways[:, 1, space[:, 1]]  # (N, N): from x_s to x_t
        joint = marginal(target, process, s)[:, None] * ahead
        total = joint.sum(0)
        law = (joint / torch.where(total > 0, total, 1.0)).T.reshape(-1, process.values, process.values)
        product = law.sum(2, keepdim=True) * law.sum(1, keepdim=True)
        found += float((total[:, None, None] * torch.where(law > 0, law * (law / product).log(), 0.0)).sum())
    exact = mean_bound(target, process, steps) + float((target.weights * ends(target, process)).sum()) - entropy(target)
    assert found == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    "process", [Absorbing(3), Uniform(3), RankOne((0.2, 0.5, 0.3))], ids=["mask", "uniform", "rank"]
)
def test_the_exact_model_has_the_least_loss(process):
    target = dirichlet(1.0, 3, 2)
    model, (t, s) = target.denoiser(process), process.nodes([0.6, 0.4])
    shifts = torch.randn(4, *(process.values,), dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(change, term):
        found = expected(process, target.data, t, lambda c, x: term(change(x, model.predict(x, t)), c, x))
        return float((target.weights * found).sum())

    def entropies(found, c, x):
        return score_entropy(process, found, c, x, t)

    def steps(found, c, x):
        return step_term(process, found, c, x, t, s)

    def tilted(shift):
        def change(x, found):
            law = process.possible(found.x0 * shift.exp(), x, t)
            return DiscretePrediction(law / law.sum(-1, keepdim=True))

        return change

    def scaled(shift):
        return lambda x, found: DiscretePrediction(found.x0, process.ratios(found, x, t) * shift.exp())

    for term in (entropies, steps):
        least = loss(lambda x, found: found, term)
        assert all(loss(tilted(0.1 * shift), term) > least + 1e-5 for shift in shifts)
    least = loss(lambda x, found: found, entropies)
    assert all(loss(scaled(0.1 * shift), entropies) > least + 1e-5 for shift in shifts)


# measured by an independent program with a noise of 0.04 bits; the limit is log2(5) = 2.322. A draw evaluates one of
# the steps, so that those of long chains need few draws of many samples
@pytest.mark.parametrize(
    ("steps", "bits", "draws", "samples"),
    [
        (4, 4.47, 8, 300),
        (16, 2.73, 32, 300),
        (64, 2.38, 32, 300),
        pytest.param(256, 2.32, 32, 1500, marks=pytest.mark.slow),
        pytest.param(1024, 2.36, 64, 1500, marks=pytest.mark.slow),
    ],
)
def test_the_exact_model_of_the_heartbeat_has_known_bounds(steps, bits, draws, samples):
    x = HEARTBEAT.data.repeat(samples // 5, 1)
    found = discrete_bound(HEARTBEAT.denoiser(Absorbing(2)), x, steps, draws=draws, sets=2)
    error = float(found.nats.std()) / math.sqrt(len(x)) / math.log(2)
    measured = float(-found.nats.mean()) / math.log(2)
    assert measured == pytest.approx(bits, abs=3 * math.hypot(error, 0.04))
    # the bound is the entropy plus the gap of the chain: 0.41 at 16 steps, and as 1 / steps, at 4 steps a third more
    gap = 0.41 * 16 / steps
    assert measured == pytest.approx(math.log2(5) + gap, abs=4 * error + 0.3 * gap)


def exact_parts(model, x0, steps):
    """The exact parts of the bound of a clean state (d,), with the sign of a loss."""
    process, x0 = model.process, x0[None]
    if steps is not None:
        prior, *terms = map(float, chain_terms(model, x0, solvers.grid("uniform", process, steps)))
        return {"prior": prior, "diffusion": sum(terms[:-1]), "reconstruction": terms[-1]}
    found = {"prior": float(chain_terms(model, x0, [])[0]), "diffusion": float(integral(model, x0, process.t_min))}
    last = chain_terms(model, x0, [process(process.t_min), process.clean])[1] if process.t_min else 0.0
    return found | {"reconstruction": float(last)}


LATE = Uniform(3, t_min=0.2)  # its grids end before the data


@pytest.mark.parametrize(
    ("process", "steps"),
    [(Absorbing(3), None), (Absorbing(3), 5), (Uniform(3, schedule=Constant(t_max=2.0)), None), (LATE, None)],
    ids=str,
)
def test_an_estimate_has_the_exact_mean_and_its_standard_error(process, steps):
    target, count = dirichlet(1.0, 3, 2), 400
    model, x = target.denoiser(process), target.data[4].expand(400, 2)
    found = discrete_bound(model, x, steps, draws=8, sets=2)
    for name, value in exact_parts(model, x[0], steps).items():
        part = -found.budget[name]
        assert float(part.mean()) == pytest.approx(value, abs=4 * float(part.std()) / math.sqrt(count) + 1e-12), name
    assert torch.allclose(sum(found.budget.values()), found.nats)
    # the mean of the squared standard errors is the variance of the bounds; of heavy tails
    assert float(found.stderr.square().mean()) == pytest.approx(float(found.nats.var()), rel=0.35)
    assert found.kind.startswith("lower bound")
    assert found.nfe == 8 + 2 * (process.t_min > 0)
    assert torch.allclose(found.bits_per_dim, -found.nats / (2 * math.log(2)))


def test_a_set_of_as_many_draws_as_steps_evaluates_each_step_once():
    target, seen = dirichlet(1.0, 3, 2), []

    class Watched(ExactDiscrete):
        def predict(self, x, node, **conditions):
            seen.append(node.t)
            return super().predict(x, node, **conditions)

    discrete_bound(Watched(target, Absorbing(3)), target.data, 6, draws=12, sets=2)
    for part in (seen[:6], seen[6:]):
        times = torch.stack(part).sort(0).values
        assert torch.allclose(times, (torch.arange(1, 7) / 6).double()[:, None].expand(6, 9))


def test_importance_weights_raise_the_bound_to_the_law_of_the_chain():
    target, process, steps = dirichlet(0.3, 3, 2), Absorbing(3), 3
    model, nodes = target.denoiser(process), solvers.grid("uniform", process, steps)
    start = torch.zeros(16, dtype=torch.float64)
    start[-1] = 1.0  # all masked
    law = end_law(solvers.make("tweedie"), Diffusion(model), start, 2, nodes)
    place = int((target.weights * (target.weights < 0.5)).argmax())
    x = target.data[place]
    exact = math.log(law[index_of(x[None], process.values)])
    plain = -float(sum(chain_terms(model, x[None], nodes)))
    assert plain < exact - 1e-3
    found = {k: discrete_bound(model, x.expand(1500, 2), steps, sets=2, importance=k) for k in (2, 32)}
    means = {k: float(f.nats.mean()) for k, f in found.items()}
    errors = {k: float(f.nats.std()) / math.sqrt(1500) for k, f in found.items()}
    assert plain - 4 * errors[2] < means[2] < exact
    assert means[2] < means[32] - 4 * errors[2]
    assert means[32] == pytest.approx(exact, abs=4 * errors[32] + 0.1 * (exact - plain))
    assert float(found[32].budget["importance"].min()) >= 0
    assert float(
        sum(found[2].budget[name] for name in ("prior", "diffusion", "reconstruction")).mean()
    ) == pytest.approx(plain, abs=5 * errors[2])
    assert found[32].nfe == 2 * 32 * steps


@pytest.mark.parametrize("given", [{}, {"steps": 4}, {"steps": 3, "importance": 2}], ids=str)
def test_a_bound_depends_on_the_seed_of_its_sample_alone(given):
    model, x = HEARTBEAT.denoiser(Uniform(2)), HEARTBEAT.data
    whole = discrete_bound(model, x, draws=8, **given)
    parts = discrete_bound(model, x, draws=8, batch_size=2, **given)
    alone = discrete_bound(model, x[3:4], draws=8, seeds=[3], **given)
    # sums over the tokens of a batch may round differently
    assert torch.allclose(whole.nats, parts.nats, rtol=1e-12)
    assert torch.allclose(whole.nats[3:4], alone.nats, rtol=1e-12)
    assert not torch.allclose(whole.nats[3:4], discrete_bound(model, x[3:4], draws=8, seeds=[4], **given).nats)


def test_noisy_states_of_masks_are_masked_at_the_end():
    process = Absorbing(3, schedule=LogLinear(least=0.3))
    x0 = torch.tensor([[0, 2], [1, 1]])
    law = noisy_law(process, x0, process(torch.tensor([0.5, 1.0], dtype=torch.float64)))
    alpha, last = 1 - 0.7 * 0.5, 0.3
    assert law[0, 0].tolist() == pytest.approx([(alpha - last) / (1 - last), 0, 0, (1 - alpha) / (1 - last)], abs=1e-15)
    assert law[1].tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (None, {"x": torch.zeros(2, 20)}, r"^x must be whole numbers, the tokens of uniform\(.*\), got torch.float32$"),
        (None, {"x": torch.full((2, 20), 2)}, r"^x has the value 2, but uniform\(.*\) has the values 0 to 1$"),
        (HEARTBEAT.denoiser(Absorbing(2)), {"x": torch.full((2, 20), 2)}, "^x has the value 2, the mask of absorbing"),
        (None, {"draws": 6}, "^draws must be a multiple of sets, got 6 and 4$"),
        (None, {"steps": 0}, "^steps must be a positive integer, got 0$"),
        (None, {"importance": 3}, "^importance=3 weights trajectories of a chain: give its number of steps$"),
        (
            None,
            {"steps": 4, "grid": "uniform(end=t_min)"},
            "^the grid uniform.* ends at t=0.1: the chain of a bound ends",
        ),
        (
            DiscreteDenoiser(lambda x: torch.zeros(*x.shape, 2), Uniform(2), time=False),
            {},
            r"^a network without time on uniform\(.*\), as of sundae, has no likelihood",
        ),
        (scoresde.targets.Gaussian(torch.zeros(2), 1.0).denoiser(scoresde.VP()), {}, "discrete states are needed here"),
    ],
)
def test_bad_input_is_told_in_one_line(model, given, message):
    model = HEARTBEAT.denoiser(Uniform(2, t_min=0.1)) if model is None else model
    with pytest.raises(InputError, match=message):
        discrete_bound(model, **{"x": HEARTBEAT.data, **given})


@pytest.mark.parametrize("function", [scoresde.log_prob, scoresde.continuous_bound, scoresde.chain_bound])
def test_exact_likelihoods_and_bounds_of_gaussian_states_are_refused(function):
    with pytest.raises(InputError, match=r"of discrete states there are sample and discrete_bound, and no .* exact"):
        function(HEARTBEAT.denoiser(Uniform(2)), HEARTBEAT.data)
