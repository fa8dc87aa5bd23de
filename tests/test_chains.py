"""Chains: their kernels against Gaussian algebra, their indices, grids and embeddings, the schedules, and refusals."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import scoresde
import solvers
from scoresde import InputError
from scoresde.paths.chain import Chain
from scoresde.paths.chain_paths import ChainSDE, SMLDChainSDE
from scoresde.paths.chains import DDPMChain, SMLDChain
from solvers import Node, Prediction, SeededNoise
from solvers.one_step.ancestral import DDPM
from solvers.time_grids import beta_schedules

pytestmark = pytest.mark.quick

PATHS = [scoresde.VP(), scoresde.SubVP(), scoresde.VE(), scoresde.Cosine()]
BETAS = np.linspace(1e-3, 0.3, 20) ** 1.5
SIGMAS = np.geomspace(0.05, 7, 20) * (1 + 0.2 * np.sin(np.arange(20)))
CHAINS = [*(path.chain(20) for path in PATHS), DDPMChain(BETAS), SMLDChain(SIGMAS)]
each_chain = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain.sde())[:30])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=solvers.generator(seed), dtype=torch.float64)


def bayes(node_t, node_s, x, x0):
    """Mean and variance of q(x_s | x_t, x0) by completing the square: precisions add."""
    alpha_ts = node_t.alpha / node_s.alpha
    var_ts = node_t.sigma**2 - (alpha_ts * node_s.sigma) ** 2
    precision = 1 / node_s.sigma**2 + alpha_ts**2 / var_ts
    return (node_s.alpha * x0 / node_s.sigma**2 + alpha_ts * x / var_ts) / precision, 1 / precision


# kernels


def test_a_chain_of_betas_is_its_recursion():
    # x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z: mean and variance, step by step
    chain, alpha, variance = DDPMChain(BETAS), 1.0, 0.0
    x0 = normal(2, 3)
    for i, beta in enumerate(BETAS):
        alpha, variance = alpha * math.sqrt(1 - beta), (1 - beta) * variance + beta
        kernel = chain.marginal(x0, i)
        assert torch.allclose(kernel.mean, alpha * x0, rtol=1e-12, atol=0)
        assert kernel.variance == pytest.approx(variance, rel=1e-11)
        assert chain.forward(i) == pytest.approx((math.sqrt(1 - beta), beta), rel=1e-10)
    assert chain.betas == pytest.approx(BETAS, rel=1e-10)  # 3e-5 at least, a difference of numbers near 1
    assert len(chain) == 20


def test_a_chain_of_sigmas_is_its_recursion():
    # x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z
    chain, before = SMLDChain(SIGMAS), 0.0
    x0 = normal(2, 3)
    for i, sigma in enumerate(SIGMAS):
        kernel = chain.marginal(x0, i)
        assert torch.equal(kernel.mean, x0)
        assert kernel.variance == pytest.approx(sigma**2, rel=1e-13)
        assert chain.forward(i) == pytest.approx((1.0, sigma**2 - before**2), rel=1e-12)
        before = sigma
    assert chain.sigmas == pytest.approx(SIGMAS, rel=1e-13)
    assert (chain.betas == 0).all()
    assert not np.signbit(chain.betas).any()


@each_chain
def test_forward_kernels_compose_to_the_marginal(chain):
    alpha, variance = 1.0, 0.0
    for i in range(20):
        step, fresh = chain.forward(i)
        alpha, variance = alpha * step, step**2 * variance + fresh
        assert (alpha, variance) == pytest.approx((chain.node(i).alpha, chain.node(i).sigma ** 2), rel=1e-12)
    assert chain.betas[3] == pytest.approx(1 - chain.forward(3)[0] ** 2, abs=1e-15)


@each_chain
def test_the_posterior_is_bayes_rule(chain):
    x, x0 = normal(4, 2), normal(4, 2, seed=1)
    for i in range(1, 20):
        kernel = chain.posterior(x, x0, i)
        mean, variance = bayes(chain.node(i), chain.node(i - 1), x, x0)
        assert torch.allclose(kernel.mean, mean, rtol=1e-9, atol=1e-11)
        assert kernel.variance == pytest.approx(variance, rel=1e-9)
    first = chain.posterior(x, x0, 0)  # one step from the data it is the data
    assert torch.allclose(first.mean, x0, rtol=0, atol=1e-14)
    assert first.variance == 0


@each_chain
def test_the_models_kernel_has_every_variance(chain):
    x, nu = normal(3, 2), torch.rand(3, 2, generator=solvers.generator(2), dtype=torch.float64)
    power = ((-20.0, 0.3), (20.0, 0.3))
    for i in (0, 1, 2, 11, 19):
        t, s = chain.node(i), chain.node(i - 1)
        eps = normal(3, 2, seed=i + 3)
        prediction = Prediction((x - t.sigma * eps) / t.alpha, eps, nu)
        # at index 0 the posterior's variance is 0, and that of index 1 stands for it
        tilde = bayes(chain.node(max(i, 1)), chain.node(max(i, 1) - 1), 0.0, 0.0)[1]
        beta = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
        mean = bayes(t, s, x, prediction.x0)[0] if i else prediction.x0
        for kernel, expected in (
            (DDPM(), tilde),
            (DDPM("beta"), beta),
            (DDPM("interpolated", 0.3), beta**0.3 * tilde**0.7),
            (DDPM("learned"), torch.exp(nu * math.log(beta) + (1 - nu) * math.log(tilde))),
        ):
            found = chain.reverse(x, prediction, i, kernel)
            assert torch.allclose(found.mean, mean, rtol=1e-9, atol=1e-11)
            assert torch.allclose(torch.as_tensor(found.variance), torch.as_tensor(expected), rtol=1e-9, atol=0)
        # Analytic-DPM: var(x_s | x_t) for a model whose Var(x0 | x_t) is ratio^2 (1 - 0.3)
        found = chain.reverse(x, prediction, i, DDPM("optimal", eps_power=power)).variance
        gain = bayes(t, s, 0.0, 1.0)[0] if i else 1.0
        own = tilde if i else 0.0
        assert found == pytest.approx(own + gain**2 * t.ratio**2 * 0.7, rel=1e-9)
    assert chain.reverse(x, prediction, 5).variance == chain.reverse(x, prediction, 5, DDPM("beta_tilde")).variance


# indices


@each_chain
def test_index_i_sits_at_i_plus_one(chain):
    path = chain.sde()
    assert [n.t for n in chain.nodes] == pytest.approx([path.t_max * (i + 1) / 20 for i in range(20)], rel=1e-15)
    assert chain.nodes == tuple(chain.node(i) for i in range(20))
    assert chain.nodes[-1].t == path.t_max
    assert path.t_min == chain.nodes[0].t
    assert chain.node(-1) == Node(path.t_min, 1.0, 0.0)
    index = torch.tensor([0, 7, 19, 7])
    at, below = chain.steps(index)
    for name in ("t", "alpha", "sigma", "dalpha", "dsigma"):
        singly = [getattr(chain.node(int(i)), name) for i in index]
        assert getattr(at, name).tolist() == pytest.approx(singly, rel=1e-12)
    assert below.sigma.tolist() == pytest.approx([chain.node(int(i) - 1).sigma for i in index], rel=1e-12)
    assert below.alpha.tolist() == pytest.approx([chain.node(int(i) - 1).alpha for i in index], rel=1e-12)
    assert chain.stacked.sigma.tolist()[1:] == pytest.approx(list(chain.sigmas), rel=1e-15)
    assert [n.lam for n in chain.nodes] == sorted((n.lam for n in chain.nodes), reverse=True)


@pytest.mark.parametrize("path", [scoresde.Cosine(), scoresde.RectifiedFlow(), scoresde.EDM()], ids=str)
def test_the_last_node_is_the_end_at_any_number(path):
    # t_max N / N misses t_max by a rounding for one N in ten, of paths that do not end at 1
    over = [n for n in range(2, 300) if path.t_max * n / n != path.t_max]
    for count in [2, 3, *over[:20]]:
        chain = path.chain(count)
        assert chain.nodes[-1].t == chain.node(count - 1).t == path.t_max
        assert float(chain.stacked.t[-1]) == path.t_max


@each_chain
def test_indices_outside(chain):
    x = normal(1, 2)
    for index in (-2, 20):
        with pytest.raises(InputError, match=rf"^index {index} is outside -1\.\.19, the nodes of this chain"):
            chain.marginal(x, index)
    for index in (-1, 20):
        for ask in (chain.forward, lambda i: chain.posterior(x, x, i), lambda i: chain.reverse(x, Prediction(x, x), i)):
            with pytest.raises(InputError, match=rf"the index of a step must be in 0\.\.19, got {index}$"):
                ask(index)
        with pytest.raises(InputError, match=rf"in 0\.\.19, got {index}$"):
            chain.steps(torch.tensor([3, index]))


def test_the_label_index_is_the_index():
    for chain, count in ((DDPMChain(BETAS), None), (SMLDChain(SIGMAS), None), (scoresde.SubVP().chain(20), 20)):
        seen = scoresde.Denoiser(lambda x, label: x, chain.sde(), time_label="index", num_train_timesteps=count)
        assert scoresde.time_labels(seen, chain.nodes) == list(range(20))


# solves through the nodes


@each_chain
def test_a_solve_on_the_grid_is_the_ancestral_loop(chain):
    target = scoresde.targets.GaussianMixture(torch.tensor([[-1.0, 0.3], [1.0, 0.5]], dtype=torch.float64), 0.04)
    options = {"dtype": torch.float64, "batch_size": 3}
    start = chain.sde().prior().std * normal(3, 2)
    found = scoresde.sample(target.denoiser(chain.sde()), (2,), range(3), "ddpm", chain.grid, x_init=start, **options)
    noise, x = SeededNoise(range(3), (2,), torch.float64), start
    for i in range(19, -1, -1):
        t = chain.node(i)
        prediction = target.predict(x, t)
        if not i:
            x = prediction.x0
            break
        mean, variance = bayes(t, chain.node(i - 1), x, prediction.x0)
        x = mean + math.sqrt(variance) * noise(t, t)
    assert (found.x - x).abs().max() < 1e-9
    assert found.nfe == 20


def test_the_chains_own_betas_in_the_papers_form():
    # Ho et al. 2020, algorithm 2, with sigma^2 = beta, in numpy
    chain, x = DDPMChain(BETAS), normal(3, 2)
    denoiser = scoresde.Denoiser(lambda x, label: torch.tanh(x) / (1 + label[:, None]), chain.sde(), "eps", "index")
    found = scoresde.sample(
        denoiser, (2,), range(3), "ddpm(variance=beta)", chain.grid, x_init=x, dtype=torch.float64
    ).x
    noise, kept = SeededNoise(range(3), (2,), torch.float64), np.cumprod(1 - BETAS)
    for i in range(19, -1, -1):
        eps = torch.tanh(x) / (1 + i)
        x = (x - BETAS[i] / math.sqrt(1 - kept[i]) * eps) / math.sqrt(1 - BETAS[i])
        if i:
            x = x + math.sqrt(BETAS[i]) * noise(chain.node(i), chain.node(i - 1))
    assert (found - x).abs().max() < 1e-10


@pytest.mark.parametrize("variance", [0.25, 2.0])
def test_sub_vp_reproduces_gaussian_data(variance):
    # q(x_s | x_t) of Gaussian data is the optimal kernel: from the exact law at t_max to that at every node
    chain = scoresde.SubVP().chain(30)

    def spread(node):
        return node.alpha**2 * variance + node.sigma**2

    power = tuple(sorted((n.lam, n.sigma**2 / spread(n)) for n in chain.nodes))
    kernel, law = DDPM("optimal", eps_power=power), spread(chain.node(29))
    one = torch.ones(1, 1, dtype=torch.float64)
    for i in range(29, -1, -1):
        t = chain.node(i)
        step = chain.reverse(one, Prediction(one * t.alpha * variance / spread(t), one), i, kernel)
        law = float(step.mean) ** 2 * law + step.variance
        assert law == pytest.approx(spread(chain.node(i - 1)), rel=1e-10)
    # the other variances do not: each misses the data's by more than a hundredth
    for other in (DDPM(), DDPM("beta")):
        law = spread(chain.node(29))
        for i in range(29, -1, -1):
            t = chain.node(i)
            step = chain.reverse(one, Prediction(one * t.alpha * variance / spread(t), one), i, other)
            law = float(step.mean) ** 2 * law + step.variance
        assert abs(law / variance - 1) > 0.01


# embeddings


def test_embeddings_by_their_formulas():
    t = np.arange(1, 101) / 100
    assert scoresde.VP().chain(100, "song").betas == pytest.approx((0.1 + 19.9 * t) / 100, rel=1e-9)
    line = np.linspace(0.1, 20, 100) / 100
    assert scoresde.VP().chain(100, "ho").betas == pytest.approx(line, rel=1e-9)
    assert scoresde.VE(0.02, 30).chain(100, "song").sigmas == pytest.approx(np.geomspace(0.02, 30, 100), rel=1e-12)
    exact = scoresde.VE(0.02, 30).chain(100).sigmas
    assert exact == pytest.approx(0.02 * 1500**t, rel=1e-12)
    for path in PATHS:
        assert type(path.chain(7)) is Chain
    # on a longer range of t, the betas are those of its length
    halved = scoresde.VP(t_max=0.5).chain(50, "song").betas
    assert halved == pytest.approx(((0.1 + 19.9 * t) / 100)[:50], rel=1e-9)


@pytest.mark.parametrize(
    ("path", "count", "embedding", "message"),
    [
        (PATHS[0], 20, "song", r"20 nodes are too few for the embedding 'song' of vp: beta_i would be 1; .* 20 nodes"),
        (PATHS[0], 10, "song", r"10 nodes are too few .* beta_i would be 2; use more than 20 nodes, or 'exact'"),
        (PATHS[0], 20, "ho", r"20 nodes are too few for the embedding 'ho' of vp: beta_i would be 1"),
        (PATHS[3], 100, "song", r"100 nodes are too few for the embedding 'song' of cosine: .* more than 398"),
        (PATHS[2], 100, "ho", r"^the embedding 'ho' needs a variance-preserving path; for ve use 'exact'$"),
        (PATHS[1], 100, "song", r"^the embedding 'song' needs a variance-preserving path; for subvp use 'exact'$"),
        (PATHS[1], 100, "ho", r"^the embedding 'ho' needs a variance-preserving path; for subvp use 'exact'$"),
        (PATHS[0], 100, "sogn", r"^no embedding 'sogn'; did you mean song\?$"),
        (PATHS[0], 100, "linear", r"^no embedding 'linear'; accepted: exact, ho, song$"),
        (PATHS[0], 1, "exact", r"^a chain has at least two nodes, got 1$"),
        (PATHS[0], 0, "exact", r"number of nodes must be a positive integer, got 0$"),
        (PATHS[0], 10.0, "exact", r"must be a positive integer, got 10\.0$"),
        (PATHS[2], 1, "song", r"at least 2 for a range of sigmas, got 1$"),
        (ChainSDE(betas=tuple(BETAS)), 30, "exact", r"^this ddpm_chain has 20 nodes, got 30$"),
    ],
)
def test_embeddings_that_are_refused(path, count, embedding, message):
    with pytest.raises(InputError, match=message):
        path.chain(count, embedding)


def test_one_node_more_is_enough():
    assert scoresde.VP().chain(21, "song").betas[-1] == pytest.approx(20 / 21, rel=1e-9)
    assert scoresde.VP().chain(21, "ho").betas[-1] == pytest.approx(20 / 21, rel=1e-9)
    assert scoresde.VP().chain(2).betas[-1] == pytest.approx(-math.expm1(-(0.05 + 0.5 * 19.9 * 0.75)), rel=1e-12)


# schedules


def test_schedules_by_their_formulas():
    def logistic(u):
        return 1 / (1 + math.exp(-u))

    start, end, n = 5e-4, 0.015, 50
    share = [i / (n - 1) for i in range(n)]
    root = [math.sqrt(start) + s * (math.sqrt(end) - math.sqrt(start)) for s in share]
    cosine = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    course = [(logistic(3) - logistic(-3 + 6 * i / n)) / (logistic(3) - logistic(-3)) for i in range(n + 1)]
    expected = {
        "linear": [start + s * (end - start) for s in share],
        "scaled_linear": [r**2 for r in root],
        "sigmoid": [start + logistic(-6 + 12 * s) * (end - start) for s in share],
        "squaredcos_cap_v2": [min(1 - b / a, 0.999) for a, b in pairwise(cosine)],
        "sigmoid_alpha": [min(1 - b / a, 0.999) for a, b in pairwise(course)],
        "exp": [1 - math.exp(-12 / n)] * n,
    }
    assert expected.keys() == beta_schedules.SCHEDULES.keys()
    for name, betas in expected.items():
        options = {"beta_start": start, "beta_end": end, "num_train_timesteps": n}
        chain = DDPMChain(name, **options)
        assert beta_schedules.betas(name, n, start, end) == pytest.approx(betas, rel=1e-12)
        assert chain.betas == pytest.approx(betas, rel=1e-9)
        assert chain.betas == pytest.approx(DDPMChain(betas).betas, rel=1e-9)
        assert str(chain.sde()) == str(ChainSDE(name, **options))
    # both that are given by alpha end without signal, but for the cap
    for name, kept in (("squaredcos_cap_v2", cosine), ("sigmoid_alpha", course)):
        chain = DDPMChain(name, num_train_timesteps=n)
        assert chain.betas[-1] == pytest.approx(0.999, rel=1e-12)
        signal = [node.alpha**2 for node in chain.nodes[:-1]]
        assert signal == pytest.approx([k / kept[0] for k in kept[1:-1]], rel=1e-9)


def test_zero_terminal_snr_shifts_and_scales_alpha():
    chain, plain = (DDPMChain(BETAS, zero_terminal_snr=zero) for zero in (True, False))
    alphas = np.array([n.alpha for n in plain.nodes])
    expected = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    found = np.array([n.alpha for n in chain.nodes])
    assert found[:-1] == pytest.approx(expected[:-1], rel=1e-10)
    assert found[-1] == pytest.approx(min(2.0**-12, expected[-2] / 2), rel=1e-10)
    assert plain.betas == pytest.approx(BETAS, rel=1e-10)
    # twice is once, but for the trace of signal that was left
    twice = DDPMChain(chain.betas, zero_terminal_snr=True)
    assert [n.alpha for n in twice.nodes[:-1]] == pytest.approx(list(found[:-1]), abs=2.0**-12)


# bad input

NUMBERS = "must be a list of at least three numbers"
BAD = {
    DDPMChain: [
        ("linea", r"^no schedule of ddpm_chain 'linea'; did you mean linear"),
        ([0.1, 1.0, 0.2], "got 1 at node 1$"),
        ([0.1, 0.2, 0.0], "betas must lie between 0 and 1, got 0 at node 2$"),
        ([-0.1, 0.2, 0.1], "got -0.1 at node 0$"),
        ([0.1, math.nan, 0.1], "got nan at node 1$"),
        ([0.1, 0.1, math.inf], "got inf at node 2$"),
        ([0.1, 0.2], "a path needs at least three nodes, got 2$"),
        ([], f"^betas {NUMBERS}$"),
        ([[0.1, 0.2, 0.3]], f"^betas {NUMBERS}$"),
        (0.1, f"^betas {NUMBERS}$"),
        (["a", "b", "c"], f"^betas {NUMBERS}$"),
    ],
    SMLDChain: [
        ([3.0, 2.0, 1.0], r"got 3 at node 0 and 2 at node 1; for networks trained with the greatest sigma first, rev"),
        ([1.0, 2.0, 2.0, 3.0], "sigmas must increase with the node, got 2 at node 1 and 2 at node 2$"),
        ([1.0, 3.0, 2.0, 4.0], "got 3 at node 1 and 2 at node 2$"),
        ([-1.0, 1.0, 2.0], "finite and above 0, got -1 at node 0$"),
        ([0.0, 1.0, 2.0], "finite and above 0, got 0 at node 0$"),
        ([0.1, math.nan, 2.0], "finite and above 0, got nan at node 1$"),
        ([0.1, 1.0, math.inf], "finite and above 0, got inf at node 2$"),
        ([1.0, 2.0], "a path needs at least three nodes, got 2$"),
        ([], f"^sigmas {NUMBERS}$"),
        ([[1.0, 2.0, 3.0]], f"^sigmas {NUMBERS}$"),
        ("geometric", f"^sigmas {NUMBERS}$"),
    ],
}


@pytest.mark.parametrize(("make", "given", "message"), [(k, *pair) for k, pairs in BAD.items() for pair in pairs])
def test_bad_chains(make, given, message):
    with pytest.raises(InputError, match=message) as error:
        make(given)
    assert "\n" not in str(error.value)


def test_bad_options_of_schedules():
    for options, message in (
        ({"beta_start": -0.1}, "betas must lie between 0 and 1, got -0.1"),
        ({"beta_end": 0.0}, "betas must lie between 0 and 1, got 0"),
        ({"beta_end": 1.5}, "betas must lie between 0 and 1, got 1.00"),
    ):
        for name in ("linear", "scaled_linear"):
            with pytest.raises(InputError, match=message):
                DDPMChain(name, **options)
    for options, message in (
        ({"sigma_min": 0.0}, "need 0 < sigma_min < sigma_max, got 0 and 50"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "got 2 and 1"),
        ({"num_train_timesteps": 2}, "at least three nodes, got 2"),
        ({"t_min": 0.5}, "t_min is 0.001 with 1000 nodes, got 0.5"),
    ):
        with pytest.raises(InputError, match=message):
            SMLDChainSDE(**options)
