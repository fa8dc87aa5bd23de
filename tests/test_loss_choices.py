"""Equal choices of output and weighting have equal losses and gradients; learned weightings; sliced score matching."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import scoresde
from scoresde.models.model import Model
from scoresde.paths.time_samplers import LogSNR, TimeSampler
from scoresde.training.losses import DSM, Sliced, losses
from scoresde.training.weightings import EDM2Weighting, EDMWeighting, weightings
from solvers import InputError
from solvers.noise.draws import Draws
from solvers.types.model_output import PREDICTS, Output

pytestmark = pytest.mark.quick

VP = scoresde.VP()
X0 = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DRAWS = Draws.of(3, 0, 40)


@dataclass(frozen=True)
class At(TimeSampler):
    """One time."""

    t: float

    def times_at(self, sde, u):
        return torch.full_like(u, self.t)


class Net(nn.Module):
    """A smooth network that looks at x and at the label."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.first = nn.Parameter(0.5 * torch.randn(4, 8, generator=g, dtype=torch.float64))
        self.last = nn.Parameter(0.5 * torch.randn(8, 3, generator=g, dtype=torch.float64))

    def forward(self, x, label):
        return torch.tanh(torch.cat([x, label[:, None]], 1) @ self.first) @ self.last


def gradient(value, network):
    return torch.cat([part.flatten() for part in torch.autograd.grad(value.mean(), list(network.parameters()))])


def gradient_of(spec, output, sde):
    """The gradient of a loss from the registry, by the network's parameters."""
    network = Net()
    denoiser = scoresde.Denoiser(network, sde, output, "c_noise", sigma_data=0.6)
    return gradient(losses.make(spec)(denoiser, X0, DRAWS), network)


def plain_gradient(output, sde, wrong):
    """The gradient of a mean square by hand: ``wrong`` returns the error, by the names that the papers use."""
    network = Net()
    t = LogSNR().sample(sde, DRAWS)
    node, eps = sde(t).like(X0), DRAWS.normal_like(X0)
    x = node.alpha * X0 + node.sigma * eps
    label = -sde(t).lam / 4
    out = network(x / (node.alpha * (node.ratio**2 + 0.36) ** 0.5) if output == "edm" else x, label)
    return gradient(wrong(out, X0, eps, node, 1 / node.ratio**2).square().mean(1), network)


def same(spec, output, sde, wrong):
    found, expected = gradient_of(spec, output, sde), plain_gradient(output, sde, wrong)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
    assert float(expected.abs().min()) > 0


SDES = [VP, scoresde.EDM(), scoresde.RectifiedFlow(), scoresde.Cosine()]


@pytest.mark.parametrize("sde", SDES, ids=str)
def test_each_output_has_a_weighting_that_is_its_plain_error(sde):
    for spec in ("dsm", "snr", "eps"):
        same(f"dsm(weighting={spec}, times=logsnr)", "eps", sde, lambda out, x0, eps, n, snr: out - eps)
    same("dsm(weighting=uniform, times=logsnr)", "x0", sde, lambda out, x0, eps, n, snr: out - x0)
    same("dsm(weighting=dsm, times=logsnr)", "score", sde, lambda out, x0, eps, n, snr: n.sigma * out + eps)
    v = lambda out, x0, eps, n, snr: out - (n.alpha * eps - n.sigma * x0)  # noqa: E731
    same("dsm(weighting=v, times=logsnr)", "v", sde, v)
    # flow matching's loss: the path's own derivative is the target
    u = lambda out, x0, eps, n, snr: out - (n.dalpha * x0 + n.dsigma * eps)  # noqa: E731
    same("dsm(weighting=flow, times=logsnr)", "velocity", sde, u)

    def raw(out, x0, eps, n, snr):
        """Karras et al. 2022, eq. 8: F against (y0 - c_skip y) / c_out."""
        y, total = x0 + n.ratio * eps, n.ratio**2 + 0.36
        return out - (x0 - 0.36 / total * y) * total**0.5 / (n.ratio * 0.6)

    same("dsm(weighting=edm, times=logsnr)", "edm", sde, raw)


def test_min_snr_in_three_parametrisations():
    """Hang et al. 2023: min(SNR, 5) on x0, min(SNR, 5) / SNR on eps and, on VP, min(SNR, 5) / (SNR + 1) on v."""
    spec = "dsm(weighting=min_snr, times=logsnr)"
    same(spec, "x0", VP, lambda out, x0, eps, n, snr: snr.clamp(max=5).sqrt() * (out - x0))
    same(spec, "eps", VP, lambda out, x0, eps, n, snr: (snr.clamp(max=5) / snr).sqrt() * (out - eps))
    same(
        spec, "v", VP,
        lambda out, x0, eps, n, snr: (
            (snr.clamp(max=5) / (snr + 1)).sqrt() * (out - (n.alpha * eps - n.sigma * x0))
        ),
    )  # fmt: skip


def test_v_is_snr_plus_one_and_flow_is_one_over_sigma_squared_on_x0():
    same("dsm(weighting=v, times=logsnr)", "x0", VP, lambda out, x0, eps, n, snr: (snr + 1).sqrt() * (out - x0))
    flow = scoresde.RectifiedFlow()
    same("dsm(weighting=flow, times=logsnr)", "x0", flow, lambda out, x0, eps, n, snr: (out - x0) / n.sigma)
    # P2 with k = 1 and gamma = 1 on eps is 1 / (1 + SNR), which is sigma^2 on VP
    same("dsm(weighting=p2, times=logsnr)", "eps", VP, lambda out, x0, eps, n, snr: n.sigma * (out - eps))


def test_the_likelihood_weighting_at_uniform_times_is_unit_weight_at_times_uniform_in_log_snr():
    """Both are the same integral over lam: by quadrature over the fractions, for a fixed function of the node."""
    u = (torch.arange(200000, dtype=torch.float64) + 0.5) / 200000
    for sde in (VP, scoresde.SubVP(), scoresde.VE(), scoresde.RectifiedFlow()):
        node = sde(sde.t_min + (sde.t_max - sde.t_min) * u)
        weighted = weightings.make("vdm").of_eps(sde, node, None) * torch.sin(node.lam) ** 2
        even = torch.sin(sde(LogSNR().times_at(sde, u)).lam) ** 2
        span = sde(sde.t_min).lam - sde(sde.t_max).lam
        # the midpoint rule errs by h^2 / 24 times the change of the slope, at most 1e6 near t_min = 1e-3
        assert float(weighted.mean()) == pytest.approx(span * float(even.mean()), rel=1e-5)


class Near(Model):
    """A model whose raw output is right but for a small known error, as a network's after training."""

    def __init__(self, sde, output, x0, eps, wrong):
        self.sde, self.sigma_data, self._output = sde, 0.5, Output(output)
        self.x0, self.eps, self.wrong = x0, eps, wrong

    @property
    def output(self):
        return self._output

    def raw(self, x, node, **conditions):
        target = self._output.target(self.x0, self.eps, node.like(x))
        return target + self.wrong * target.square().mean().sqrt()

    def predict(self, x, node, **conditions):
        return self._output.read(self.raw(x, node), x, node.like(x))


ENDS = [
    (scoresde.VP(t_min=1e-5), 1e-5), (VP, 1.0), (scoresde.EDM(), 0.002), (scoresde.EDM(), 80.0),
    (scoresde.RectifiedFlow(), 1e-3), (scoresde.RectifiedFlow(), 0.999),
]  # fmt: skip


@pytest.mark.parametrize(("sde", "t"), ENDS, ids=str)
@pytest.mark.parametrize("output", PREDICTS)
def test_nothing_cancels_at_the_ends_of_a_path(output, sde, t):
    """In float32, with an error of a thousandth of the output: as in float64 to the rounding of a thousandth, 1e-3."""
    for weighting in ("dsm", "uniform", "v", "flow", "edm", "min_snr", "p2", "likelihood", "vdm"):
        loss = DSM(weightings.make(weighting), At(t))
        single, double = (
            loss(Near(sde, output, x0, DRAWS.normal_like(x0), 1e-3), x0, DRAWS) for x0 in (X0.float(), X0)
        )
        assert torch.allclose(single.double(), double, rtol=1e-3, atol=0), weighting
        assert float(double.min()) > 0


@pytest.mark.parametrize("output", PREDICTS)
@pytest.mark.parametrize("sde", [*SDES, scoresde.VE(), scoresde.SubVP()], ids=str)
def test_a_target_is_the_output_that_reads_as_the_pair(sde, output):
    node = sde(LogSNR().sample(sde, DRAWS)).like(X0)
    eps = DRAWS.normal_like(X0)
    given = Output(output, 0.6)
    read = given.read(given.target(X0, eps, node), node.alpha * X0 + node.sigma * eps, node)
    # x0 of eps, and eps of x0, lose r = exp(5) digits at most
    assert torch.allclose(read.x0, X0, atol=1e-11)
    assert torch.allclose(read.eps, eps, atol=1e-11)


# the learned weighting of EDM2


def test_edm2_begins_as_edm_and_learns_the_logarithm_of_the_loss():
    sde = scoresde.EDM()
    target = scoresde.targets.Gaussian(torch.zeros(3), 0.25)

    class Exact(Model):
        sigma_data = 0.5

        def __init__(self):
            self.sde = sde

        def predict(self, x, node, **conditions):
            return target.predict(x, node)

    times = LogSNR()
    loss = DSM(EDM2Weighting(), times)
    state = loss.state(sde)
    assert sum(p.numel() for p in state.parameters()) == 128
    plain = DSM(EDMWeighting(), times)(Exact(), X0, DRAWS)
    assert torch.allclose(loss(Exact(), X0, DRAWS, state), plain, rtol=1e-6)
    with torch.no_grad():
        state["weighting"].linear.normal_(generator=torch.Generator().manual_seed(0))
    u = state["weighting"](loss.nodes(sde, DRAWS, state)).double()
    assert torch.allclose(loss(Exact(), X0, DRAWS, state), plain / u.exp() + u, rtol=1e-5)
    assert float(u.detach().std()) > 0.1

    # E L is known: the minimum over u of E L / exp(u) + u is at u = log E L, here over a range of 10 in log(sigma)
    node = sde(times.times_at(sde, (torch.arange(200, dtype=torch.float64) + 0.5) / 200))
    weight = EDMWeighting().of_eps(sde, node, 0.5)
    expected = (weight * 0.25 / (0.25 + node.sigma**2) * (1 + torch.sin(node.lam) ** 2)).float()
    optimizer = torch.optim.LBFGS(state.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = EDM2Weighting().applied(expected, node, state["weighting"]).mean()
        value.backward()
        return value

    optimizer.step(closure)
    far = (state["weighting"](node).detach() - expected.log()).abs()
    assert float(far.max()) < 0.05  # of values over a range of log 2
    with pytest.raises(InputError, match=r"the weighting edm2 learns: pass state=loss.state\(sde\)"):
        loss(Exact(), X0, DRAWS)


def test_training_learns_the_uncertainty_and_resumes_it(tmp_path):
    def run(steps, folder):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = scoresde.models.networks.MLP(width=8, depth=1).build((2,))
        options = scoresde.training.TrainingOptions(steps=steps, batch_size=16, workdir=folder, checkpoint_every=50)
        data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        loss = losses.make("dsm(weighting=edm2, times=low_discrepancy(over=adaptive(bins=4, history=3)))")
        scoresde.training.train(
            scoresde.Denoiser(network, scoresde.EDM(), "edm", "c_noise"), network, data, loss, options, progress=False
        )
        checkpoint = scoresde.training.checkpoint
        return checkpoint.load(checkpoint.latest(folder))

    whole = run(8, tmp_path / "whole")
    run(5, tmp_path / "halves")
    halves = run(8, tmp_path / "halves")
    learned = whole.others["loss"]
    assert set(learned) == {"weighting.linear", "times.losses", "times.counts"}
    assert float(learned["weighting.linear"].abs().max()) > 0
    assert int(learned["times.counts"].sum()) == 8 * 16
    assert all(torch.equal(value, halves.others["loss"][name]) for name, value in learned.items())
    assert all(torch.equal(value, halves.model[name]) for name, value in whole.model.items())


# sliced score matching


class Nodes(Draws):
    """Draws whose noise is the abscissae of a quadrature: for exact means over one-dimensional states."""

    def normal_like(self, x, stream="noise"):
        return self.__dict__["eps"].to(x).view_as(x)


def quadrature(t_count=60, std=0.5):
    """x0 (n, 1) of N(0, std^2), draws with eps ~ N(0, 1), and weights (n,): exact for polynomials of degree 119."""
    points, weights = np.polynomial.hermite_e.hermegauss(t_count)
    points, weights = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
    draws = Nodes.of(0, 0, t_count**2)
    draws.__dict__["eps"] = points.repeat(t_count)
    return std * points.repeat_interleave(t_count)[:, None], draws, torch.outer(weights, weights).flatten()


class Scaled(nn.Module):
    """eps = scale tanh(slope x), or scale x if there is no slope."""

    def __init__(self, scale, slope=None):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.slope = None if slope is None else nn.Parameter(torch.tensor(slope, dtype=torch.float64))

    def forward(self, x, label):
        return self.scale * (x if self.slope is None else torch.tanh(self.slope * x))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("weighting", ["dsm", "edm"])
def test_sliced_score_matching_is_denoising_score_matching_in_expectation(weighting, t):
    """Values and gradients, wherever the network is; on a Gaussian both vanish at the exact score."""
    x0, draws, weights = quadrature()
    rule = weightings.make(weighting)
    node = VP(t)
    best = node.sigma / ((0.5 * node.alpha) ** 2 + node.sigma**2)  # eps = best x
    for network in (Scaled(0.3), Scaled(best), Scaled(0.7, 0.9)):
        denoiser = scoresde.Denoiser(network, VP)
        values, gradients = [], []
        for loss in (DSM(rule, At(t)), Sliced(rule, At(t))):
            mean = (weights * loss(denoiser, x0, draws)).sum()
            values.append(mean.item())
            gradients.append([g.item() for g in torch.autograd.grad(mean, list(network.parameters()))])
        # tanh is no polynomial: what remains of its quadrature
        assert values[0] == pytest.approx(values[1], rel=1e-7)
        assert gradients[0] == pytest.approx(gradients[1], rel=1e-6, abs=1e-9)
        if network.slope is None and network.scale == best:
            assert gradients[1][0] == pytest.approx(0, abs=1e-10)
        else:
            assert abs(gradients[1][0]) > 1e-3


def test_sliced_score_matching_by_hand_and_its_probes():
    """Of a linear network A x, v' A v at random signs v; many probes approach the trace, one does not."""
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.2, -0.3, 0.7], [0.4, 0.0, 0.6]], dtype=torch.float64)
    denoiser = scoresde.Denoiser(lambda x, label: x @ matrix.T, VP)
    node, eps = VP(0.4), DRAWS.normal_like(X0)
    x = node.alpha * X0 + node.sigma * eps
    v = DRAWS.normal("probes", (1, 3), torch.float64, "cpu").sign()[:, 0]
    slice_ = torch.einsum("bi,ij,bj->b", v, matrix, v) / 3
    expected = (x @ matrix.T).square().mean(1) - 2 * node.sigma * slice_ + 1
    found = Sliced(times=At(0.4))(denoiser, X0, DRAWS)
    assert torch.allclose(found, expected, rtol=1e-12)
    with torch.no_grad():  # as in an evaluation
        assert torch.equal(Sliced(times=At(0.4))(denoiser, X0, DRAWS), found)
    square = (x @ matrix.T).square().mean(1) + 1
    far = []
    for probes in (1, 64):
        many = Sliced(times=At(0.4), probes=probes)(denoiser, X0, DRAWS)
        far.append(float(((square - many) / (2 * node.sigma) - matrix.trace() / 3).square().mean().sqrt()))
    # the standard deviation of v' A v, from its entries off the diagonal
    symmetric = (matrix + matrix.T) / 2
    spread = math.sqrt(2 * float(symmetric.square().sum() - symmetric.diagonal().square().sum())) / 3
    assert 0.6 * spread < far[0] < 1.4 * spread
    assert far[1] < 0.3 * spread


def test_a_part_of_a_batch_has_the_losses_of_its_rows():
    """A probability of each row alone: any division of a batch among processes computes the same losses."""
    network = Net()
    denoiser = scoresde.Denoiser(network, VP, "v", "c_noise", sigma_data=0.6)
    specs = ("dsm", "dsm(times=low_discrepancy(over=logsnr))", "dsm(weighting=likelihood, times=importance)", "sliced")
    for spec in specs:
        loss = losses.make(spec)
        whole = loss(denoiser, X0, DRAWS)
        parts = [loss(denoiser, X0[rows], DRAWS.part(rows)) for rows in (slice(0, 40, 2), slice(1, 40, 2))]
        assert torch.allclose(torch.stack(parts, 1).flatten(), whole, rtol=1e-12), spec
        assert torch.equal(loss.nodes(VP, DRAWS.part(slice(3, 9))).t, loss.nodes(VP, DRAWS).t[3:9])


def test_names():
    for spec in (
        "dsm(weighting=min_snr(gamma=3), times=importance(draw=logit_normal(mean=0.5, std=2.0), law=logsnr))",
        "dsm(weighting=edm2, times=adaptive(over=logsnr, bins=8))",
        "sliced(times=logsnr, probes=4)",
    ):
        assert losses.make(str(losses.make(spec))) == losses.make(spec)
    assert scoresde.paths.times.make("likelihood") == LogSNR()
    with pytest.raises(InputError, match="min_snr: gamma must be"):
        weightings.make("min_snr(gamma=0)")
    assert replace(losses.make("sliced"), probes=2).probes == 2
