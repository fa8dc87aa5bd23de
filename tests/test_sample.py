"""sample() and encode(): determinism to the last bit, budgets, conditions, accuracy and statistics."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch

import scoresde
import solvers
from scoresde import InputError, encode, sample
from scoresde.models.targets import Gaussian, GaussianMixture
from solvers import Prediction

pytestmark = pytest.mark.quick

VP = scoresde.VP()
SDES = [VP, scoresde.VE(), scoresde.EDM(), scoresde.RectifiedFlow(), scoresde.SubVP(), scoresde.Cosine()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=str)


@dataclass(frozen=True)
class Known:
    """The exact denoiser of N(shift, v) with ``shift`` a condition; elementwise, so that rows are independent."""

    sde: scoresde.SDE = VP
    v: float = 0.25
    seen: list = field(default_factory=list)

    def predict(self, x, node, shift=None):
        self.seen.append(len(x))
        mean = torch.zeros_like(x) if shift is None else shift.to(x).view(-1, *(1,) * (x.ndim - 1)).expand(x.shape)
        node = node.like(x)
        gap = (x - node.alpha * mean) / (node.alpha**2 * self.v + node.sigma**2)
        return Prediction(mean + node.alpha * self.v * gap, node.sigma * gap)


SOLVERS = ["heun", "dpmpp_2m", "ddpm", "ddim(eta=0.5)", "pc", "euler_maruyama", "reverse_diffusion"]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sde", [VP, scoresde.VE()], ids=str)
def test_a_sample_is_the_same_alone_and_in_any_batch(solver, sde):
    def run(seeds, **options):
        return sample(Known(sde), (2, 3), seeds, solver=solver, steps=6, **options)

    whole = run(range(11))
    assert whole.x.shape == (11, 2, 3)
    for size in (1, 4, 11, 50):
        assert torch.equal(run(range(11), batch_size=size).x, whole.x)
    assert torch.equal(run([8, 3, 8]).x, whole.x[[8, 3, 8]])
    assert torch.equal(run([5]).x, whole.x[[5]])
    assert len({tuple(row.flatten().tolist()) for row in whole.x}) == 11  # and every seed has its own


@pytest.mark.parametrize("solver", ["rk45", "dopri5"])
def test_adaptive_samples_are_their_own(solver):
    whole = sample(Known(), (2,), range(5), solver=solver)
    alone = [sample(Known(), (2,), [seed], solver=solver) for seed in range(5)]
    assert torch.equal(whole.x, torch.cat([result.x for result in alone]))
    assert whole.nfe_per_sample.tolist() == [result.nfe for result in alone]
    assert whole.nfe == max(result.nfe for result in alone)
    assert [node.t for node in whole.nodes] == [1.0, 0.001]


def test_the_batch_size_is_what_is_carried_at_once():
    denoiser = Known()
    sample(denoiser, (2,), range(10), solver="euler", steps=2, batch_size=4)
    assert denoiser.seen == [4, 4, 4, 4, 2, 2]


@pytest.mark.parametrize(
    ("solver", "grid", "nfe", "spent", "steps"),
    [
        ("heun", None, 20, 19, 10),
        ("heun", "uniform", 20, 20, 10),
        ("dpmpp_2m", None, 20, 20, 20),
        ("pc", "karras", 10, 9, 5),
        ("pc", "uniform", 10, 10, 5),
    ],
)
def test_a_budget_is_measured(solver, grid, nfe, spent, steps):
    denoiser = Known()
    result = sample(denoiser, (2,), range(3), solver=solver, grid=grid, nfe=nfe)
    assert result.nfe == spent == len(denoiser.seen)
    assert result.nfe_per_sample.tolist() == [spent] * 3
    assert len(result.nodes) == steps + 1
    assert (result.solver, result.grid) == (solver, grid or "karras")
    assert result.seconds > 0


@each_sde
def test_the_start_is_the_prior_of_unit_data(sde):
    node = sde(sde.t_max)
    result = sample(Known(sde), (3,), [4, 5], solver="euler", steps=1, dtype=torch.float64)
    start = math.hypot(node.alpha, node.sigma) * solvers.SeededNoise([4, 5], (3,), torch.float64).initial()
    # the one step of karras goes to the data, so the result is the prediction at the start
    assert torch.allclose(result.x, Known(sde).predict(start, node).x0, rtol=1e-13, atol=0)


@each_sde
def test_a_solve_of_a_part_starts_and_ends_there(sde):
    # two halves are the whole: the second starts from what the first made
    middle = math.sqrt(max(sde.t_min, 1e-2) * sde.t_max)
    x = torch.randn(4, 3, generator=solvers.generator(1), dtype=torch.float64)
    options = {"shape": (3,), "seeds": range(4), "solver": "heun", "grid": "uniform", "dtype": torch.float64}
    first = sample(Known(sde), **options, steps=5, t_min=middle, x_init=x)
    second = sample(Known(sde), **options, steps=5, t_max=middle, x_init=first.x)
    assert (first.nodes[0].t, first.nodes[-1].t) == (sde.t_max, middle)
    assert (second.nodes[0].t, second.nodes[-1].t) == (middle, sde.t_min)
    times = [node.t for node in (*first.nodes, *second.nodes[1:])]
    joined = sample(Known(sde), **{**options, "grid": solvers.grids.make(f"explicit(times={times})")}, x_init=x)
    assert torch.equal(joined.x, second.x)


def test_conditions_reach_their_own_rows():
    shift = torch.tensor([-3.0, 0.5, 2.0, 7.0, 11.0])
    options = {"solver": "heun", "steps": 8, "condition": {"shift": shift}}
    # point masses: whatever the noise, every step to sigma = 0 ends on the row's own shift, exactly
    for size in (None, 1, 2, 3):
        result = sample(Known(v=0.0), (2, 2), range(5), batch_size=size, **options)
        assert torch.equal(result.x, shift.view(5, 1, 1).expand(5, 2, 2))
    # each sample carries its own condition into a batch, also where samples are solved one by one
    for solver, steps in [("dpmpp_2m", 8), ("ddpm", 8), ("rk45", None)]:
        options = {"solver": solver, "steps": steps}
        whole = sample(Known(), (2,), range(5), batch_size=3, condition={"shift": shift}, **options)
        for i in range(5):
            alone = sample(Known(), (2,), [i], condition={"shift": shift[i : i + 1]}, **options)
            assert torch.equal(whole.x[i], alone.x[0])


@each_sde
def test_decoding_undoes_encoding_at_the_solvers_order(sde):
    target = GaussianMixture(torch.tensor([[-1.0], [0.8]], dtype=torch.float64), 0.2)
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).unsqueeze(1)
    gaps = []
    for steps in (64, 128):
        code = encode(target.denoiser(sde), x, solver="heun", grid="logsnr", steps=steps)
        assert (code.nodes[0].t, code.nodes[-1].t) == (sde.t_min, sde.t_max)
        options = {"solver": "heun", "grid": "logsnr", "steps": steps, "dtype": torch.float64}
        back = sample(target.denoiser(sde), (1,), range(7), x_init=code.x, **options)
        assert back.nfe == code.nfe == 2 * steps
        assert back.nodes == code.nodes[::-1]
        gaps.append(float((back.x - x).abs().max()))
    # an error of order 2 falls to a quarter; the round trip of a method cancels none or one order more
    assert gaps[0] < 0.05
    assert gaps[0] / gaps[1] > 2**1.7


@each_sde
def test_encoding_is_the_flow_of_quantiles(sde):
    # N(0, v) data: the ODE scales x_t with its standard deviation
    x, v = torch.tensor([[0.7, -0.2]], dtype=torch.float64), 0.25
    low, high = sde(sde.t_min), sde(sde.t_max)
    deviations = [math.sqrt(node.alpha**2 * v + node.sigma**2) for node in (low, high)]
    exact = x * deviations[1] / deviations[0]
    errors = []
    for steps in (100, 200):
        code = encode(Known(sde, v), x, solver="heun", grid="logsnr", steps=steps).x
        errors.append(float((code / exact - 1).abs().max()))
    assert errors[1] < 2e-3
    assert 2**1.7 < errors[0] / errors[1] < 2**2.3
    default = encode(Known(sde, v), x, steps=100)
    assert default.solver == "heun"
    assert default.nodes[0].sigma > 0  # never from sigma = 0, where there is no score
    assert default.grid == "karras(end=t_min)"


def test_a_grid_to_zero_is_encoded_from_t_min():
    x = torch.tensor([[0.5]])
    ratios = [VP(1.0).ratio, 5.0, 1.0, 0.1]
    listed = encode(Known(), x, grid=f"explicit(ratios={[*ratios, 0]})")
    same = encode(Known(), x, grid=f"explicit(ratios={ratios})")
    assert torch.equal(listed.x, same.x)
    assert listed.nodes == same.nodes


def test_encoded_rows_are_their_own():
    x = torch.linspace(-1, 1, 7).unsqueeze(1)
    shift = torch.linspace(0, 3, 7)
    whole = encode(Known(), x, steps=5, condition={"shift": shift}).x
    assert torch.equal(encode(Known(), x, steps=5, condition={"shift": shift}, batch_size=3).x, whole)
    assert torch.equal(encode(Known(), x[4:5], steps=5, condition={"shift": shift[4:5]}).x, whole[4:5])


def exact_variance(solver_eta, sde, v, nodes):
    """Variance at the last node of DDIM(eta) on N(0, v) data, from the start's, by its linear recursion."""
    variance = nodes[0].alpha ** 2 + nodes[0].sigma ** 2
    for t, s in pairwise(nodes):
        fresh = solver_eta**2 * s.sigma**2 * (1 - (s.ratio / t.ratio) ** 2)
        total = t.alpha**2 * v + t.sigma**2
        gain = (s.alpha * t.alpha * v + math.sqrt(s.sigma**2 - fresh) * t.sigma) / total
        variance = gain**2 * variance + fresh
    return variance


@pytest.mark.parametrize("sde", [VP, scoresde.VE(), scoresde.RectifiedFlow()], ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_have_the_law_that_the_solver_gives_them(sde, eta):
    v, n, d = 0.25, 500, 40
    result = sample(Known(sde, v), (d,), range(n), solver=f"ddim(eta={eta})", grid="logsnr", steps=25)
    x, variance = result.x.double(), exact_variance(eta, sde, v, result.nodes)
    # 5 standard errors of n d independent normals: sqrt(var / nd) of the mean, var sqrt(2 / nd) of the variance
    assert abs(float(x.mean())) < 5 * math.sqrt(variance / (n * d))
    assert abs(float((x**2).mean()) / variance - 1) < 5 * math.sqrt(2 / (n * d))


@each_sde
def test_samples_have_the_targets_moments(sde):
    mean, covariance = torch.tensor([1.0, -0.5]), torch.tensor([[0.5, 0.3], [0.3, 0.4]])
    target, n = Gaussian(mean, covariance), 4000
    x = sample(target.denoiser(sde), (2,), range(n), solver="dpmpp_2m", steps=60, dtype=torch.float64).x
    # 5 standard errors (sqrt(var / n), and sqrt((c_ii c_jj + c_ij^2) / n) of the covariances), and 60 steps of an
    # order-2 method: measured below 0.01 against 2000 steps. The start is that of unit data at zero mean, which
    # leaves alpha(t_max) of the difference, at most 0.02 here.
    assert ((x.mean(0) - mean).abs() < 5 * torch.sqrt(covariance.diagonal() / n) + 0.03).all()
    spread = torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance**2
    assert ((x.T.cov() - covariance).abs() < 5 * torch.sqrt(spread / n) + 0.03).all()


def test_float64_is_float32_without_its_rounding():
    narrow, wide = (sample(Known(), (3,), range(20), steps=20, dtype=d).x for d in (torch.float32, torch.float64))
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert 0 < float((narrow.double() - wide).abs().max()) < 1e-5  # 20 steps of a few half-ulps, 6e-8, of numbers to 4


def test_hooks_come_after_every_step_of_every_batch():
    seen = []
    result = sample(
        Known(), (2,), range(5), "euler", steps=3, batch_size=2, hooks=[lambda x, n: seen.append((len(x), n))]
    )
    assert seen == [(size, node) for size in (2, 2, 1) for node in result.nodes[1:]]
    zeroed = sample(Known(), (2,), range(5), "euler", steps=3, hooks=[lambda x, n: 0 * x])
    assert torch.equal(zeroed.x, torch.zeros(5, 2))


def call(**options):
    return sample(Known(), **{"shape": (2,), "seeds": [0, 1], "steps": 3, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 3}, "^pass steps or nfe, not both$"),
        ({"seeds": []}, "^there are no seeds or no data; at least one sample is needed$"),
        ({"seeds": [0, -1]}, "a seed must be an integer of at least 0, got -1"),
        ({"seeds": [0, 0.5]}, "a seed must be an integer"),
        ({"batch_size": 0}, "^batch_size must be a positive integer, got 0$"),
        ({"batch_size": 1.5}, "^batch_size must be a positive integer, got 1.5$"),
        ({"x_init": torch.zeros(3, 2)}, r"^x_init must have shape \(2, 2\), a state per seed, got \(3, 2\)$"),
        ({"x_init": torch.zeros(2, 5)}, "x_init"),
        ({"x_init": torch.tensor([[0.0, math.nan], [0.0, 0.0]])}, "finite"),
        ({"condition": {"shift": torch.zeros(5)}}, "^the condition shift has 5 rows for 2 "),
        ({"solver": "huen"}, "no solver 'huen'; did you mean heun"),
        ({"grid": "karass"}, "no grid 'karass'; did you mean karras"),
        ({"noise": 3}, "no noise 3; accepted: "),
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"steps": 2.5}, "steps must be a positive integer, got 2.5"),
        ({"steps": None, "nfe": 1, "solver": "heun", "grid": "uniform"}, "nfe=1 is too small for heun"),
        ({"steps": None, "nfe": 10, "solver": "rk45"}, "rk45 chooses its own steps"),
        ({"t_min": 0.9, "t_max": 0.1}, r"the times \[0.9, 0.1\] are not a range within"),
        ({"t_max": 3.0}, "are not a range within"),
    ],
)
def test_bad_input_is_told_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        call(**options)
    assert "\n" not in str(caught.value)


def test_a_grid_that_was_asked_for_is_not_ignored():
    # an adaptive solver needs no steps, but a list of times is one of times to stop at
    result = sample(Known(), (2,), [0], solver="rk45", grid="explicit(times=[1.0, 0.5, 0.1])")
    assert [node.t for node in result.nodes] == [1.0, 0.5, 0.1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "ddpm"}, "ddpm draws noise and cannot encode; use a deterministic solver"),
        ({"x": torch.zeros(0, 2)}, "at least one sample"),
        ({"x": torch.tensor([[math.nan, 0.0]])}, "finite"),
        ({"x": torch.tensor([[math.nan, 0.0]]), "solver": "rk45"}, "finite"),
        ({"condition": {"shift": torch.zeros(5)}}, "shift has 5 rows"),
        ({"steps": None}, "pass steps or nfe"),
        ({"batch_size": -1}, "batch_size must be a positive integer"),
    ],
)
def test_bad_encoding_is_told_in_one_line(options, message):
    with pytest.raises(InputError, match=message):
        encode(Known(), **{"x": torch.zeros(2, 2), "steps": 3, **options})
