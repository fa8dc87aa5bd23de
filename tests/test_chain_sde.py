"""A DDPM chain as a path: exact at its nodes, monotone and invertible between them."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

import scoresde
import solvers
from scoresde import InputError, make_sde
from scoresde.paths.chain_paths import ChainSDE, SMLDChainSDE
from solvers.time_grids.beta_schedules import SCHEDULES
from solvers.time_grids.network_steps import index_of_time

BETAS = tuple(np.linspace(1e-3, 0.3, 20) ** 1.5)
CHAINS = [
    ChainSDE(),
    ChainSDE("scaled_linear", 0.00085, 0.012),
    ChainSDE("squaredcos_cap_v2"),
    ChainSDE("sigmoid"),
    ChainSDE(num_train_timesteps=50, beta_end=0.3),
    ChainSDE(betas=BETAS),
    ChainSDE(zero_terminal_snr=True),
]
SIGMAS = tuple(np.geomspace(0.05, 7, 20) * (1 + 0.2 * np.sin(np.arange(20))))
SMLD = [SMLDChainSDE(num_train_timesteps=232), SMLDChainSDE(0.02, 30.0, 40), SMLDChainSDE(sigmas=SIGMAS)]
each_chain = pytest.mark.parametrize("chain", CHAINS + SMLD, ids=lambda c: str(c)[:60])


def nodes_of(chain):
    return [chain(float((i + 1) / chain.num_train_timesteps)) for i in range(chain.num_train_timesteps)]


@pytest.mark.parametrize("chain", CHAINS[:-1], ids=lambda c: str(c)[:60])
def test_the_nodes_are_the_chains(chain):
    squares = np.cumprod(1 - chain.all_betas())
    nodes = nodes_of(chain)
    # numpy's product and its difference to one round to 1e-16 each time; sigma^2 = 1e-4 makes that 1e-12
    assert np.array([node.alpha**2 for node in nodes]) == pytest.approx(squares, rel=1e-12)
    assert np.array([node.sigma**2 for node in nodes]) == pytest.approx(1 - squares, rel=1e-11)
    assert chain.t_min == 1 / chain.num_train_timesteps
    assert chain.t_max == 1.0


@pytest.mark.parametrize("chain", SMLD, ids=lambda c: str(c)[:60])
def test_the_nodes_are_the_noise_scales(chain):
    count = chain.num_train_timesteps
    own = np.geomspace(chain.sigma_min, chain.sigma_max, count)
    expected = np.array(SIGMAS) if chain.sigmas else own
    nodes = nodes_of(chain)
    assert np.array([node.sigma for node in nodes]) == pytest.approx(expected, rel=1e-13)
    assert {node.alpha for node in nodes} == {1.0}
    assert (chain.t_min, chain.t_max) == (1 / count, 1.0)
    if not chain.sigmas:  # equal steps of log sigma are a line, halfway between two nodes too
        middle = [chain((i + 1.5) / count).sigma for i in range(count - 1)]
        assert np.array(middle) == pytest.approx(np.sqrt(own[1:] * own[:-1]), rel=1e-12)
        path = scoresde.VE(own[0], own[-1])  # VE's, whose t is 0 where the chain's is 1 / N
        t = 0.37
        assert chain(t).sigma == pytest.approx(path((t * count - 1) / (count - 1)).sigma, rel=1e-12)


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"sigmoid_alpha", "exp"}))
def test_the_schedules_are_those_of_checkpoints(name):
    options = {"beta_start": 0.0005, "beta_end": 0.015, "num_train_timesteps": 400}
    theirs = DDPMScheduler(beta_schedule=name, **options)
    ours = ChainSDE(name, **options)
    # theirs are multiplied in float32: 400 roundings of 6e-8
    assert np.array([node.alpha**2 for node in nodes_of(ours)]) == pytest.approx(
        theirs.alphas_cumprod.double().numpy(), rel=3e-5
    )


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_no_signal_at_the_end(name):
    options = {"beta_start": 0.00085, "beta_end": 0.012}
    theirs = DDIMScheduler(beta_schedule=name, rescale_betas_zero_snr=True, **options).alphas_cumprod.double().numpy()
    found = np.array([node.alpha**2 for node in nodes_of(ChainSDE(name, **options, zero_terminal_snr=True))])
    assert theirs[-1] == 0
    # the last alphas are differences of numbers near 0.07 in float32, and of size 4e-4
    assert np.sqrt(found[:-1]) == pytest.approx(np.sqrt(theirs[:-1]), rel=1e-4, abs=1e-6)
    assert found[-1] == pytest.approx(min(2.0**-24, found[-2] / 4), rel=1e-12)


@each_chain
def test_it_falls_and_turns_back(chain):
    times = np.linspace(chain.t_min, 1, 1301)
    lams = np.array([chain(float(t)).lam for t in times])
    assert (np.diff(lams) < 0).all()
    some = slice(None, None, 11)  # no divisor of the 1300 and the 1000 intervals: places of all kinds
    assert max(abs(chain.t_of_lam(float(lam)) - t) for lam, t in zip(lams[some], times[some], strict=True)) < 1e-12
    at_nodes = [chain.t_of_lam(float(lam)) for lam in chain.lams[some]]
    count = chain.num_train_timesteps
    assert at_nodes == pytest.approx(np.arange(1, count + 1)[some] / count, abs=1e-15, rel=1e-14)
    assert (chain.t_of_lam(1e3), chain.t_of_lam(-1e3)) == (chain.t_min, 1.0)


@each_chain
def test_its_derivatives(chain):
    # the cubic's pieces meet with one slope: the difference quotient across a node is the derivative there
    for t in (chain.t_min + 0.013, 0.37, 10 / chain.num_train_timesteps, 0.7501):
        node, h = chain(t), 1e-6
        alpha = (chain(t + h).alpha - chain(t - h).alpha) / (2 * h)
        sigma = (chain(t + h).sigma - chain(t - h).sigma) / (2 * h)
        # h times the jump of the second derivative, which is about lam'' = 1e2
        assert (node.dalpha, node.dsigma) == pytest.approx((alpha, sigma), rel=1e-3)
        assert node.g2 > 0
    kept = 1 if isinstance(chain, SMLDChainSDE) else chain(0.4).alpha ** 2 + chain(0.4).sigma ** 2
    assert kept == pytest.approx(1, abs=1e-15)


def test_it_tends_to_songs_path():
    # Song et al. 2021, appendix B: with betas beta(t) / N the chain is the VP path up to a first-order difference
    gaps = []
    for count in (500, 1000, 2000):
        chain = ChainSDE(num_train_timesteps=count, beta_start=0.1 / count, beta_end=20 / count)
        gaps.append(max(abs(chain(t).lam - scoresde.VP()(t).lam) for t in np.linspace(0.05, 1, 77).tolist()))
    assert gaps[1] < 0.04
    assert [gaps[0] / gaps[1], gaps[1] / gaps[2]] == pytest.approx([2, 2], rel=0.03)


@pytest.mark.parametrize("chain", [CHAINS[1], SMLD[0]], ids=str)
def test_tensors_and_floats_agree(chain):
    times = torch.linspace(chain.t_min, 1, 501, dtype=torch.float64)
    node = chain(times)
    singly = [chain(float(t)) for t in times]
    for name in ("alpha", "sigma", "dalpha", "dsigma"):
        assert getattr(node, name).tolist() == pytest.approx([getattr(n, name) for n in singly], rel=1e-12)
    single = chain(times.float())
    assert single.alpha.dtype == torch.float32
    assert single.sigma.double() == pytest.approx(node.sigma, rel=1e-4)  # t itself is rounded to 6e-8 of 1, lam' is 1e2


@pytest.mark.parametrize("spec", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("chain", [CHAINS[0], CHAINS[4], SMLD[1]], ids=str)
def test_discrete_grids_meet_the_nodes(spec, chain):
    count = chain.num_train_timesteps
    nodes = solvers.grid(f"{spec}(num_train_timesteps={count})", chain, 17)[:-1]
    indices = [round(index_of_time(chain, node.t, count)) for node in nodes]
    smld = isinstance(chain, SMLDChainSDE)
    squares = chain.all_sigmas() ** 2 if smld else 1 / np.cumprod(1 - chain.all_betas()) - 1
    assert np.array([node.ratio**2 for node in nodes]) == pytest.approx(squares[indices], rel=1e-10)
    denoiser = scoresde.Denoiser(lambda x, label: x, chain, time_label="index", num_train_timesteps=count)
    assert scoresde.time_labels(denoiser, nodes) == indices


@each_chain
def test_its_spec(chain):
    assert make_sde(str(chain)) == chain
    assert hash(make_sde(str(chain))) == hash(chain)


def test_a_likelihood_through_it():
    # the density of x0 + ratio eps for data N(0, I); an adaptive solver meets every joint of the cubics
    chain = ChainSDE()
    x = torch.tensor([[0.3, -1.2], [1.0, 0.1]], dtype=torch.float64)
    target = scoresde.targets.Gaussian(torch.zeros(2), 1.0)
    found = scoresde.log_prob(target.denoiser(chain), x, solver="rk45(rtol=1e-9, atol=1e-9)").nats
    level = 1 + chain(chain.t_min).ratio ** 2
    exact = -0.5 * (x**2).sum(1) / level - np.log(2 * np.pi * level)
    assert found.tolist() == pytest.approx(exact.tolist(), abs=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linea"}, "no schedule of ddpm_chain 'linea'; did you mean linear"),
        ({"betas": (0.1, 1.0, 0.2)}, "betas must lie between 0 and 1, got 1 at node 1"),
        ({"beta_start": -0.1}, "betas must lie between 0 and 1, got -0.1 at node 0"),
        ({"num_train_timesteps": 2}, "at least three nodes, got 2"),
        ({"num_train_timesteps": 0}, "at least three nodes, got 0"),
        ({"num_train_timesteps": -5}, "must be a positive integer, got -5"),
        ({"betas": ()}, "at least three nodes, got 0"),
        ({"t_min": 0.1}, "t_min is 0.001 with 1000 nodes, got 0.1"),
        ({"t_max": 0.9}, "t_max is 1 with 1000 nodes"),
        ({"betas": (1e-20, 1e-30, 1e-40)}, "two nodes have the same noise level"),
    ],
)
def test_bad_chains(options, message):
    with pytest.raises(InputError, match=message):
        ChainSDE(**options)
