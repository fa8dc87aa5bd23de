"""The chain and the SDE are one thing: the equalities between them, each with its number."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import scoresde
import solvers
from scoresde.bounds.chain import prior_term, step_terms
from scoresde.bounds.decoders import Gaussian
from scoresde.models.targets import Gaussian as GaussianTarget
from scoresde.paths.chain import Chain
from scoresde.paths.chains import DDPMChain, SMLDChain
from scoresde.paths.time_samplers import Discrete
from scoresde.training.losses import DSM
from solvers import InputError, Node, Prediction, SeededNoise
from solvers.noise.draws import Draws
from solvers.one_step.ancestral import DDPM, forward_kernel, posterior

VP = scoresde.VP()
PATHS = [scoresde.VP(), scoresde.SubVP(), scoresde.VE(), scoresde.Cosine()]
each_path = pytest.mark.parametrize("path", PATHS, ids=str)
CHAINS = [path.chain(40) for path in PATHS] + [
    DDPMChain("squaredcos_cap_v2", num_train_timesteps=40),
    SMLDChain(np.linspace(0.1, 5, 40)),
]
each_chain = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain.sde())[:60])


def scaled_betas(count):
    """Ho et al.'s betas for N nodes: 1e-4 to 0.02 at 1000."""
    return np.linspace(0.1 / count, 20 / count, count)


def gaussian(variance, d=1):
    return GaussianTarget(torch.zeros(d, dtype=torch.float64), variance)


def power(chain, variance):
    """E|eps|^2 / d of the exact model for N(0, variance) at a chain's nodes, as ``eps_power`` takes it."""
    pairs = [(n.lam, n.sigma**2 / (n.alpha**2 * variance + n.sigma**2)) for n in chain.nodes]
    return tuple(sorted(pairs))


def linear(program, variance):
    """The variance of what a program makes of exact predictions for N(0, variance), and the exact one at its start."""
    return float(solvers.terminal_covariance(program, variance))


def expected_terms(chain, variance, kernel):
    """E L_0 .. E L_{N-1} (N,) for data N(0, variance) and the exact model, in nats.

    A term is quadratic in (x0, eps), so that its mean over the four points (+-std, +-1) is its expectation.
    """
    index = torch.arange(chain.count)
    target, total = gaussian(variance), torch.zeros(chain.count, dtype=torch.float64)
    at, _ = chain.steps(index)
    for sign in (-1.0, 1.0):  # a term is even in (x0, eps) together
        x0 = torch.full((chain.count, 1), math.sqrt(variance), dtype=torch.float64)
        eps = torch.full_like(x0, sign)
        wide = at.like(x0)
        prediction = target.predict(wide.alpha * x0 + wide.sigma * eps, at)
        total += step_terms(chain, index, x0, eps, prediction, kernel, Gaussian()) / 2
    return total


# 1


@pytest.mark.parametrize("count", [2, 25, 1000])
@pytest.mark.parametrize("path", PATHS[:2], ids=str)
def test_the_exact_embedding_is_the_path(path, count):
    chain = path.chain(count)
    t = np.arange(1, count + 1) / count
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    assert np.cumprod(1 - chain.betas) == pytest.approx(np.exp(-integral), rel=1e-12)
    expected = 1 - np.exp(-integral) if path == VP else (1 - np.exp(-integral)) ** 2
    assert chain.sigmas**2 == pytest.approx(expected, rel=1e-12)
    before = np.concatenate([[0], integral[:-1]])
    # beta is 1e-4 at least, a difference of numbers near 1
    assert chain.betas == pytest.approx(1 - np.exp(before - integral), rel=1e-11)
    if path == VP and count > 2:  # and as betas of its own, it is the same chain
        again = DDPMChain(chain.betas)
        assert [n.alpha for n in again.nodes] == pytest.approx([n.alpha for n in chain.nodes], rel=1e-12)


# 2


@pytest.mark.parametrize("embedding", ["song", "ho"])
def test_linear_betas_differ_from_the_path_to_first_order(embedding):
    gaps, first = [], []
    for count in (1000, 2000, 4000):
        chain = VP.chain(count, embedding)
        own = VP.chain(count)
        gaps.append(np.abs([a.alpha - b.alpha for a, b in zip(chain.nodes, own.nodes, strict=True)]).max())
        first.append(own.node(1).sigma / chain.node(1).sigma - 1)
    assert [gaps[0] / gaps[1], gaps[1] / gaps[2]] == pytest.approx([2, 2], rel=0.01)
    if embedding == "ho":
        assert gaps[0] == pytest.approx(9.9e-4, rel=0.01)
        # the second node's sigma, 4.4 % off at N = 1000, tends to the path's too
        assert first[0] == pytest.approx(0.044, rel=0.01)
        assert first[0] / first[1] == pytest.approx(2, rel=0.1)


def test_the_other_convention_never_agrees_at_the_second_node():
    # index i at t = i / (N - 1): sigma(0) = 0, where the chain has sqrt(beta_1) already
    for count in (1000, 10000):
        chain = VP.chain(count, "ho")
        t = 1 / (count - 1)
        sigma = math.sqrt(-math.expm1(-(0.1 * t + 0.5 * 19.9 * t**2)))
        assert abs(sigma / chain.node(1).sigma - 1) == pytest.approx(0.291, abs=0.003)


def test_hos_chain_is_the_linear_schedule():
    assert VP.chain(1000, "ho").betas == pytest.approx(DDPMChain("linear").betas, rel=1e-12)


# 3


@each_chain
def test_four_forms_of_the_posterior_are_one_program(chain):
    nodes = chain.grid.nodes(chain.sde(), None)
    programs = [solvers.trace(name, nodes) for name in ("ddpm", "ddim(eta=1)", "smld", "euler_ancestral")]
    assert all(solvers.equal(programs[0], other) for other in programs[1:])
    # VDM's sampler, Kingma et al. 2021, eq. 34-36: c = -expm1(gamma_s - gamma_t), gamma = -2 lam
    for t, s in pairwise(nodes[:-1]):
        c = -math.expm1(-2 * s.lam + 2 * t.lam)
        q = posterior(t, s)
        # mean alpha_s / alpha_t (x - sigma_t c eps) with eps = (x - alpha_t x0) / sigma_t
        assert q.on_x == pytest.approx(s.alpha / t.alpha * (1 - c), rel=1e-10)
        assert q.on_x0 == pytest.approx(s.alpha * c, rel=1e-10)
        assert q.variance == pytest.approx(s.sigma**2 * c, rel=1e-10)


# 4


@each_chain
def test_kernels_compose(chain):
    for r, s, t in ((0, 5, 20), (-1, 3, 39), (20, 21, 22)):
        first, second, both = (forward_kernel(chain.node(b), chain.node(a)) for a, b in ((r, s), (s, t), (r, t)))
        assert both[0] == pytest.approx(first[0] * second[0], rel=1e-13)
        assert both[1] == pytest.approx(second[0] ** 2 * first[1] + second[1], rel=1e-12)
    # and the posterior undoes the kernel: q(x_s | x_t, x0) averaged over q(x_t | x0) is q(x_s | x0)
    for i in range(1, 40):
        t, s = chain.node(i), chain.node(i - 1)
        q = posterior(t, s)
        assert q.on_x * t.alpha + q.on_x0 == pytest.approx(s.alpha, rel=1e-12)
        assert q.on_x**2 * t.sigma**2 + q.variance == pytest.approx(s.sigma**2, rel=1e-12)


# 5 (6: test_reverse_variances.py)


def test_ancestral_and_reverse_diffusion_differ_by_beta_squared():
    x, score = 0.7, -1.3
    gaps = []
    for beta in (1e-2, 1e-3, 1e-4):
        s = Node(0.0, 0.8, 0.6)
        t = Node(1.0, 0.8 * math.sqrt(1 - beta), math.sqrt(1 - 0.64 * (1 - beta)))
        problem = Fixed(score)
        state = torch.tensor([[x]], dtype=torch.float64)
        ends = [
            solvers.make(name).step(problem, state, t, s, None, Silent()).x.item()
            for name in ("ddpm", "reverse_diffusion")
        ]
        gaps.append((ends[0] - ends[1]) / beta**2 - (x / 4 + score / 2))
    assert abs(gaps[1]) < 1e-3
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.02)  # what is left is O(beta)
    assert abs(gaps[2]) < 1e-4


class Fixed:
    """A model whose score is one number everywhere."""

    def __init__(self, score):
        self.score = score

    def predict(self, x, node):
        eps = torch.full_like(x, -node.sigma * self.score)
        return Prediction((x - node.sigma * eps) / node.alpha, eps)


class Silent:
    """No noise."""

    def __call__(self, t, s):
        return 0.0


# 7


def test_the_bounds_gap_with_beta_tilde_does_not_vanish():
    variance, limit = 0.25, np.euler_gamma / (2 * math.log(2))
    entropy = 0.5 * math.log(2 * math.pi * math.e * variance)
    gaps = {}
    for count in (1000, 10000, 100000):
        chain = DDPMChain(scaled_betas(count))
        optimal = DDPM(variance="optimal", eps_power=power(chain, variance))
        best, small = (expected_terms(chain, variance, k) for k in (optimal, DDPM()))
        last = float(prior_term(chain, torch.tensor([[math.sqrt(variance)]], dtype=torch.float64)))
        if count == 1000:
            # the optimal variance leaves nothing, but for the terminal mismatch
            assert float(best.sum()) + last - entropy == pytest.approx(0, abs=1e-8)
            beta = expected_terms(chain, variance, DDPM(variance="beta"))
            assert float(beta[1:].sum() + best[0]) + last - entropy == pytest.approx(1.6e-3 * math.log(2), rel=0.1)
        small[0] = best[0]  # the first step is the optimal one in all
        gaps[count] = (float(small.sum()) + last - entropy) / math.log(2)
    assert gaps[1000] == pytest.approx(0.66, abs=0.005)
    assert gaps[10000] == pytest.approx(0.456, abs=1e-3)
    assert gaps[100000] == pytest.approx(0.422, abs=1e-3)
    # what is above the limit falls with log(N) / N at the most
    assert 0 < gaps[100000] - limit < 0.15 * (gaps[10000] - limit) < 0.15**2 * (gaps[1000] - limit) * 1.2
    assert limit == pytest.approx(0.41637, abs=1e-5)


# 8


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m", "uni_pc"])
def test_vp_and_ve_walk_one_path(solver):
    # y = x / alpha, rho = sigma / alpha: the same denoiser, D_VE(y, rho) = D_VP(alpha y)
    target = scoresde.targets.GaussianMixture(torch.tensor([[-1.0, 0.3], [1.0, 0.5]], dtype=torch.float64), 0.04)
    chain = VP.chain(30)
    mirrored = SMLDChain([n.ratio for n in chain.nodes])
    x = torch.randn(5, 2, generator=solvers.generator(0), dtype=torch.float64)
    seen = {chain: [], mirrored: []}
    scales = {chain: 1.0, mirrored: 1 / chain.node(29).alpha}
    for each, walked in seen.items():

        def record(y, node, walked=walked):
            walked.append(y / node.alpha)

        start, denoiser = scales[each] * x, target.denoiser(each.sde())
        options = {"x_init": start, "dtype": torch.float64, "hooks": [record]}
        scoresde.sample(denoiser, (2,), range(5), solver, each.grid, **options)
    assert len(seen[chain]) == 30
    for a, b in zip(seen[chain], seen[mirrored], strict=True):
        assert (a - b).abs().max() < 1e-11  # of states of size 150


# 9 and 11


@pytest.mark.parametrize(
    ("chain", "labels"), [(VP.chain(100), range(100)), (SMLDChain(np.geomspace(0.01, 50, 100)), range(100))], ids=str
)
def test_the_discrete_loss_is_score_matching_at_the_nodes(chain, labels):
    shown = []

    def network(x, label):
        shown.append(label)
        return torch.tanh(x) * (1 + label.view(-1, 1) / 100)

    denoiser = scoresde.Denoiser(network, chain.sde(), time_label="index", num_train_timesteps=100)
    x0 = torch.randn(64, 3, generator=solvers.generator(1), dtype=torch.float64)
    draws = Draws.of(2, 0, 64)
    found = DSM(times=Discrete(100))(denoiser, x0, draws)
    # by hand: L_simple (Ho et al. 2020, eq. 14) for DDPM, sigma_i^2 |s - grad log q|^2 (Song and Ermon 2019, eq. 5-6)
    index = (100 * draws.uniform("times")[:, 0]).long()
    eps = draws.normal_like(x0)
    kept = np.cumprod(1 - chain.betas)
    alpha = torch.from_numpy(np.sqrt(kept))[index].view(-1, 1)
    sigma = torch.from_numpy(chain.sigmas)[index].view(-1, 1)
    x = alpha * x0 + sigma * eps
    out = torch.tanh(x) * (1 + index.double().view(-1, 1) / 100)
    by_hand = ((out - eps) ** 2).mean(1)
    weighted = (sigma**2 * (-out / sigma + (x - alpha * x0) / sigma**2) ** 2).mean(1)
    assert torch.equal(shown[0], index.double())
    assert (found - by_hand).abs().max() < 1e-10
    assert (found - weighted).abs().max() < 1e-10
    # and it is the continuous loss with lambda = sigma^2 at t = (i + 1) / N
    node = chain.sde()((index.double() + 1) / 100)
    score = -out / sigma
    continuous = (node.sigma**2).view(-1, 1) * (score + eps / node.sigma.view(-1, 1)) ** 2
    assert (found - continuous.mean(1)).abs().max() < 1e-10


# 10


def test_the_discrete_terms_tend_to_the_continuous_integral():
    # T -> inf: 1/2 int gamma' E|eps - eps_model|^2 dt = int (-lam') E|..|^2 dt; the exact model of N(0, c^2) leaves
    # alpha^2 c^2 / (alpha^2 c^2 + sigma^2) of it, so that in lam the integral is closed
    variance = 0.25
    path = scoresde.VP(t_min=0.2)
    high, low = path(0.2).lam, path(1.0).lam
    integral = 0.5 * math.log1p(variance * math.exp(2 * high)) - 0.5 * math.log1p(variance * math.exp(2 * low))
    gaps = []
    for count in (100, 200, 400, 800):
        chain = VP.chain(count)
        optimal_free = expected_terms(chain, variance, DDPM())  # with beta_tilde the term is (SNR_s - SNR_t) E / 2
        gaps.append(float(optimal_free[count // 5 :].sum()) - integral)
    ratios = [a / b for a, b in pairwise(gaps)]
    assert ratios == pytest.approx([2, 2, 2], rel=0.05)
    assert gaps[0] > gaps[-1] > 0


# 12


def test_euler_maruyama_and_ancestral_agree_strongly_to_first_order():
    target = gaussian(0.25, 3)
    gaps = []
    for count in (100, 200, 400):
        chain = Chain(scoresde.VP(t_min=0.1), count)
        nodes = [n for n in chain.nodes[::-1] if n.t > 0.1 - 1e-9]
        ends = [
            solvers.solve(
                solvers.make(name),
                scoresde.models.problem.Diffusion(target.denoiser(VP)),
                SeededNoise(range(200), (3,), torch.float64).initial(),
                nodes,
                SeededNoise(range(200), (3,), torch.float64),
            ).x
            for name in ("euler_maruyama", "ddpm(variance=beta)")
        ]
        gaps.append(float((ends[0] - ends[1]).square().mean().sqrt()))
    assert [gaps[0] / gaps[1], gaps[1] / gaps[2]] == pytest.approx([2, 2], rel=0.1)
    assert gaps[0] < 0.05


# 13


@pytest.mark.parametrize("levels", [2, 5])
def test_multinomial_chains_have_the_same_betas(levels):
    # x_i keeps its level with probability 1 - beta_i, else it is drawn anew: at the exact betas its transition matrix
    # is that of the jump process with rate beta(t), exp(B (1 1^T / K - I)); at linear betas to first order
    generator = np.full((levels, levels), 1 / levels) - np.eye(levels)

    def law(betas):
        matrix = np.eye(levels)
        for beta in betas:
            matrix = matrix @ ((1 - beta) * np.eye(levels) + beta / levels)
        return matrix

    t = 0.4
    exact = torch.matrix_exp(torch.from_numpy((0.1 * t + 0.5 * 19.9 * t**2) * generator)).numpy()
    assert np.abs(law(VP.chain(500).betas[:200]) - exact).max() < 1e-13
    gaps = [np.abs(law(VP.chain(n, "song").betas[: 2 * n // 5]) - exact).max() for n in (500, 1000, 2000)]
    assert [gaps[0] / gaps[1], gaps[1] / gaps[2]] == pytest.approx([2, 2], rel=0.02)


def test_a_chain_of_another_path_is_refused():
    target = scoresde.targets.Gaussian(torch.zeros(2), 0.25)
    x = target.sample(3, solvers.generator(0))
    denoiser = target.denoiser(scoresde.VP())
    for path in (scoresde.VE(), scoresde.Cosine()):
        with pytest.raises(InputError, match="different noise levels than the model's path, vp"):
            scoresde.chain_bound(denoiser, x, chain=path.chain(900))
    for embedding in ("exact", "song", "ho"):  # which are near enough
        assert scoresde.chain_bound(denoiser, x, chain=scoresde.VP().chain(100, embedding)).nats.isfinite().all()
    with pytest.raises(InputError, match=r"chain must be a Chain, such as sde\.chain\(1000\), got 3"):
        scoresde.chain_bound(denoiser, x, chain=3)
