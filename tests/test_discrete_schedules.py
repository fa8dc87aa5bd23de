"""Schedules and chains of discrete processes against published numbers, grids on them, and what they reject."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from discrete_problems import dirichlet

import scoresde
import solvers
from scoresde.paths.discrete import process_schedules
from scoresde.paths.discrete.schedules import ChainLinear, Constant, Linear
from solvers import InputError

TIMES = torch.arange(1, 101, dtype=torch.float64) / 100


def table(process, s, t):
    return process.transition(process(s), process(t), torch.arange(1)[None]).rows(torch.arange(process.values)[None])[0]


def test_a_linear_schedule_is_the_chain_of_2015():
    alpha = torch.exp(-Linear().clock(TIMES))
    before = torch.cat([torch.ones(1).double(), alpha[:-1]])
    steps = torch.arange(1, 101)
    assert torch.allclose(
        1 - alpha / before, 1 / (100.0 - steps + 1).double(), atol=1e-13
    )  # alpha is good to 1e-16 of 1


def test_multinomial_diffusions_cosine_has_its_betas():
    clock = process_schedules.make("cosine(power=1)").clock(TIMES)
    angle = (np.arange(101) / 100 + 0.008) / 1.008 * np.pi / 2
    squares = np.cos(angle) ** 2
    assert torch.exp(-clock)[:-1].numpy() == pytest.approx(np.sqrt(squares / squares[0])[1:-1], rel=1e-12)


def test_a_binomial_chain_has_the_betas_of_a_gaussian_one():
    process, path = scoresde.Binomial(schedule="gaussian_path(vp)"), scoresde.VP()
    times = [path.t_max * i / 50 for i in range(1, 51)]
    for (s, t), (before, after) in zip(pairwise(process.nodes(times)), pairwise(path.nodes(times)), strict=True):
        beta = 1 - (after.alpha / before.alpha) ** 2  # x_i = sqrt(1 - beta) x_{i-1} + sqrt(beta) z
        # the bit flips with half the probability of a new draw
        flips = float(process.transition(s, t, torch.zeros(1, 1, dtype=torch.long)).rows(torch.tensor([[0]]))[0, 0, 1])
        assert flips == pytest.approx(beta / 2, rel=1e-11)


@pytest.mark.parametrize(
    ("spec", "same"),
    [("gaussian_path(cosine)", "cosine"), ("gaussian_path(rectified_flow, power=1)", "linear")],
)
def test_paths_of_both_kinds_have_the_same_schedules(spec, same):
    one, other = process_schedules.make(spec), process_schedules.make(same)
    t = torch.linspace(0, one.t_max, 50, dtype=torch.float64)
    assert torch.allclose(one.clock(t), other.clock(t), rtol=1e-12, atol=1e-14)
    assert torch.allclose(one.rate(t[1:]), other.rate(t[1:]), rtol=1e-9)


@pytest.mark.parametrize("states", [2, 27])
def test_information_falls_at_a_constant_rate(states):
    process = scoresde.Uniform(states, schedule=process_schedules.make(f"mutual_information({states})"))
    for time in (0.1, 0.5, 0.9):
        row = table(process, 0.0, time)[0]
        lost = float(-(row * row.log()).sum()) / math.log(states)  # H(x_t | x_0), as a share of H(x_0)
        assert lost == pytest.approx(time, abs=1e-12)


def test_vq_diffusions_chain_is_the_one_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    try:
        scheduler = diffusers.VQDiffusionScheduler(num_vec_classes=6)
    except (AttributeError, ImportError, RuntimeError):
        pytest.skip("this version of diffusers has no VQDiffusionScheduler")
    process = scoresde.MaskReplace(5)
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0, 1, 2, 3, 4, 5, 5], [5, 5, 5, 5, 0, 0, 0]])
    law = torch.softmax(logits.double(), -1)
    for i in (99, 60, 20, 1):  # step i of theirs goes from t = (i + 1) / 100
        t, s = process.nodes([(i + 1) / 100, i / 100])
        theirs = scheduler.q_posterior(torch.log(law).mT.float(), x, i).mT.exp()
        ours = process.posterior(torch.nn.functional.pad(law, (0, 1)), x, t, s)
        # their tables of logs are in float32: 1e-7 of up to 12
        assert torch.allclose(theirs.double(), ours, rtol=2e-5, atol=2e-7)


def test_vq_diffusions_numbers_are_those_of_the_paper():
    process = scoresde.make_process("vq_diffusion(4)")
    for i in (1, 37, 100):
        row = table(process, 0.0, i / 100)[0]
        share = (i - 1) / 99
        alpha, gamma = 0.99999 + share * (9e-6 - 0.99999), 9e-6 + share * (0.99999 - 9e-6)
        assert float(row[4]) == pytest.approx(gamma, rel=1e-9)
        assert float(row[0] - row[1]) == pytest.approx(alpha, rel=1e-9)
        assert float(row[1]) == pytest.approx((1 - alpha - gamma) / 4, rel=1e-6)


def test_a_hybrid_has_its_share_of_uniform_tokens_in_the_middle():
    for gamma in (0.5, 1.0, 2.0):
        row = table(scoresde.Hybrid(4, 0.2, gamma=gamma), 0.0, 0.5)[0]
        assert float(4 * row[1]) == pytest.approx(0.2, rel=1e-12)
        assert float(row[0] - row[1]) == pytest.approx(float(row[4]), rel=1e-12)  # kept and masked tokens are as many


def test_small_probabilities_of_a_table_of_rates_have_their_digits():
    process = scoresde.BirthDeath(10, schedule=Constant())
    row = table(process, 0.0, 1e-3)[0]
    # the first term of the series of exp(t Q), t^k / k!, is right up to k t
    wanted = [1e-3**k / math.factorial(k) for k in range(10)]
    assert row.tolist() == pytest.approx(wanted, rel=0.02)
    eigenvalues, vectors = torch.linalg.eigh(process.generator)
    for time in (0.1, 1.0, 8.0):
        exact = vectors @ torch.diag(torch.exp(time * eigenvalues)) @ vectors.T
        assert torch.allclose(table(process, 0.0, time), exact, atol=1e-14)


def test_a_discretised_gaussian_keeps_its_law_by_detailed_balance():
    process = scoresde.DiscretisedGaussian(9, width=2.0, spread=2.0)
    flow = process.prior[:, None] * process.generator
    assert torch.allclose(flow, flow.T, atol=1e-16)
    assert float(process.generator[0, 1]) == 1.0
    assert float(process.generator[0, 3]) == pytest.approx(math.exp(-1))
    assert float(process.prior[5] / process.prior[3]) == pytest.approx(math.exp(-(1.5**2 - 0.5**2) / 8))


def test_steps_of_the_discretised_gaussian_keep_the_law_of_all_values_alike():
    process = scoresde.GaussianSteps(5, steps=4, first=0.2, last=0.8)
    assert torch.allclose(process.matrices.sum(1), torch.ones(4, 5).double(), atol=1e-15)
    ratio = float(process.matrices[0, 1, 3] / process.matrices[0, 1, 2])
    assert ratio == pytest.approx(math.exp(-4 * (4 - 1) / (16 * 0.2)))
    assert torch.allclose(process.prior, torch.full((5,), 0.2).double(), atol=1e-15)


CLOCKS = [
    scoresde.Absorbing(3),
    scoresde.Uniform(3),
    scoresde.Uniform(3, schedule=Constant()),
    scoresde.MaskReplace(3),
    scoresde.Hybrid(3),
    scoresde.BirthDeath(3),
]


@pytest.mark.parametrize("process", CLOCKS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_clocks_grid_has_equal_steps_between_finite_ends(process, steps):
    nodes = solvers.grid("clock(tail=0.05)", process, steps)
    assert (len(nodes), nodes[0].t, nodes[-1].t) == (steps + 1, process.t_max, 0.0)
    readings = [process.reading(node) for node in nodes]
    finite = [reading for reading in readings if math.isfinite(reading)]
    assert len(finite) >= steps
    lengths = [b - a for a, b in pairwise(finite)]
    if lengths:
        assert lengths == pytest.approx([lengths[0]] * len(lengths), rel=1e-6)
        if len(finite) == steps:  # a step to an infinite end
            assert sum(lengths) == pytest.approx(math.log(20), rel=1e-6)


def test_the_clocks_grid_on_a_gaussian_path_is_logsnr():
    assert solvers.grid("clock", scoresde.VP(), 7) == solvers.grid("logsnr", scoresde.VP(), 7)


@pytest.mark.parametrize("spec", ["uniform", "quadratic", "clock", "explicit(times=[1, 0.7, 0.2, 0])"])
@pytest.mark.parametrize("process", [scoresde.Absorbing(2), scoresde.Uniform(2)], ids=str)
def test_grids_in_t_and_in_the_clock_sample_discrete_states(spec, process):
    drawn = scoresde.sample(dirichlet(1.0, 2, 3).denoiser(process), seeds=4, grid=spec, steps=3)
    assert drawn.nfe == 3
    assert int(drawn.x.max()) < 2


def test_steps_are_solved_on_their_own_times_only():
    process = scoresde.GaussianSteps(3, steps=8, first=0.5, last=2.0)
    model = dirichlet(1.0, 3, 2).denoiser(process)
    assert scoresde.sample(model, seeds=2, steps=4).x.shape == (2, 2)
    with pytest.raises(
        InputError, match=r"^t=0.666667 is no time of gaussian_steps.*only the times i / 8: use the grid"
    ):
        scoresde.sample(model, seeds=2, steps=3)
    for given in ({"grid": "clock"}, {"solver": "tau_hold"}):
        with pytest.raises(InputError, match="has neither rates nor a clock between its times: use the solver tweedie"):
            scoresde.sample(model, seeds=2, steps=4, **given)


SPECS = [
    "absorbing(27, schedule=cosine)",
    "rank_one([0.5, 0.3, 0.2])",
    "binomial",
    "multinomial(4, schedule=cosine(power=1))",
    "mask_replace(4, schedule=linear, substitution=constant(speed=0.1))",
    "mask_replace(4, substitution=None)",
    "gidd(4, uniform=0.2)",
    "genmd4([1, 2, 3])",
    "dense_rate([[-1, 1], [2, -2]], ordinal=True)",
    "birth_death(5, schedule=geometric(low=0.1, high=30))",
    "discretised_gaussian(16, schedule=geometric(low=3, high=300))",
    "dense_steps([[[0.5, 0.5], [0, 1]], [[0.5, 0.5], [0, 1]]])",
    "d3pm_gaussian(5, steps=4)",
]


@pytest.mark.parametrize("spec", SPECS)
def test_processes_are_made_from_text(spec):
    process = scoresde.make_process(spec)
    assert process.states >= 2
    assert float(process.prior.sum()) == pytest.approx(1, abs=1e-12)
    if "dense_steps" not in spec:  # whose table is not written out
        assert scoresde.make_process(str(process)) == process


def test_tables_and_laws_may_be_tensors():
    assert scoresde.RankOne(torch.tensor([1.0, 3.0])) == scoresde.RankOne((1.0, 3.0))
    rates = torch.tensor([[-1.0, 1.0], [2.0, -2.0]])
    assert scoresde.DenseRate(rates) == scoresde.make_process("dense_rate([[-1, 1], [2, -2]])")
    assert torch.allclose(scoresde.DenseRate(rates).prior, torch.tensor([2 / 3, 1 / 3]).double(), atol=1e-15)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("uniform(1)", "^uniform: states must be an integer of at least 2, got 1"),
        ("mask_replace(1)", "^mask_replace: states must be an integer of at least 2, got 1"),
        ("rank_one([1])", "^rank_one: law must be at least two numbers of at least 0"),
        ("rank_one([1, -1, 1])", "^rank_one: law must be at least two numbers of at least 0"),
        ("rank_one([0, 0])", "^rank_one: law must be at least two numbers of at least 0, not all of them 0"),
        ("genmd4([1, 0])", "^mask_by_state: powers must be at least two positive numbers"),
        ("dense_rate([[-1, 1], [1, -1.5]])", "^dense_rate: row 1 sums to -0.5; rows of rates sum to 0"),
        ("dense_rate([[1, -1], [1, -1]])", "^dense_rate: the rate 0 -> 1 is -1; rates are at least 0"),
        ("dense_rate([[0, 0], [0, 0]])", "^dense_rate: all are 0"),
        ("dense_rate([[-1, 1]])", r"^dense_rate: the table must have the shape \(S, S\) .* got \(1, 2\)"),
        ("dense_rate([[-1, 1], [1]])", "^dense_rate: the table must be numbers in rows of equal length"),
        (
            "dense_rate([[0, 0, 0], [1, -2, 1], [0, 0, 0]])",
            "^dense_rate: the process ends in different laws from different values",
        ),
        ("dense_steps([[[0.5, 0.4], [0, 1]]])", "^dense_steps: row 0 of step 1 sums to 0.9; rows are probabilities"),
        ("dense_steps([[[1.5, -0.5], [0, 1]]])", "^dense_steps: row 0 of step 1 has -0.5; rows are probabilities"),
        ("dense_steps([[0.5, 0.5], [0, 1]])", "^option 'steps' of dense_steps takes"),
        ("absorbin(4)", "^no process 'absorbin'; did you mean absorbing"),
        ("absorbing(4, schedule=cosin)", "^no process schedule 'cosin'; did you mean cosine"),
        ("hybrid(4, uniform=1)", r"^hybrid: uniform must lie in \[0, 1\)"),
        (
            "mask_replace(4, schedule=constant(t_max=2), substitution=linear)",
            "^mask_replace: the schedule of substitution ends at t=1, before t=2",
        ),
        ("absorbing(4, schedule=chain_linear(first=0.1, last=0.2))", "^chain_linear: last must be below first=0.1"),
        ("absorbing(4, schedule=gaussian_path(ve))", "^gaussian_path: alpha of ve does not fall from 1 at t=0"),
        ("absorbing(4, schedule=quotient(whole=linear, part=cosine))", "^quotient: alpha of cosine falls faster than"),
    ],
)
def test_bad_processes_are_refused_in_one_line(made, message):
    with pytest.raises(InputError, match=message) as raised:
        scoresde.make_process(made)
    assert "\n" not in str(raised.value)


def test_a_score_is_refused_where_nothing_of_the_data_is_left():
    process = scoresde.Absorbing(2)
    model = scoresde.DiscreteDenoiser(lambda x, t: torch.zeros(*x.shape, 3), process, predicts="log_score", shape=(2,))
    with pytest.raises(InputError, match=r"^nothing of the data is left at t=1 of absorbing"):
        scoresde.sample(model, seeds=2, steps=3)
    leaves = scoresde.Absorbing(2, schedule=process_schedules.make("loglinear"))
    model = scoresde.DiscreteDenoiser(lambda x, t: torch.zeros(*x.shape, 3), leaves, predicts="log_score", shape=(2,))
    assert scoresde.sample(model, seeds=2, steps=3).x.shape == (2, 2)


def test_a_chain_that_is_linear_has_its_nodes():
    clock = ChainLinear(first=0.9, last=0.1, steps=5).clock(torch.arange(6).double() / 5)
    assert torch.exp(-clock).tolist() == pytest.approx([1, 0.9, 0.7, 0.5, 0.3, 0.1], rel=1e-14)
