"""Estimators of a trace against matrices that are known."""

import math

import pytest
import torch
from torch import nn

import scoresde
from scoresde.likelihood.density_ode import WithLogDensity
from scoresde.likelihood.divergence import Exact, Hutchinson, HutchPP, Orthogonal, divergences, orthonormal
from solvers import InputError, generator

D = 12
A = torch.randn(D, D, generator=generator(0), dtype=torch.float64)
LOW_RANK = A[:, :2] @ A[:, :2].T + 1e-3 * torch.eye(D, dtype=torch.float64)
ESTIMATORS = [
    Hutchinson(3),
    Hutchinson(3, "gaussian"),
    Hutchinson(3, "sphere"),
    Orthogonal(3),
    HutchPP(2),
]


def found(rule, matrix, seeds):
    """The channels (B, m) of an estimator for one matrix, and its standard errors."""
    like = torch.zeros(len(seeds), D, dtype=torch.float64)
    vectors = rule.draw(seeds, D)
    channels = rule.trace(lambda v: v @ matrix, vectors, like)
    return channels, rule.stderr(channels, D)


def spread(rule, matrix, n=4000):
    estimates = found(rule, matrix, list(range(n)))[0].mean(1)
    return float(estimates.mean()), float(estimates.var())


@pytest.mark.parametrize("matrix", [A, LOW_RANK], ids=["full", "low rank"])
@pytest.mark.parametrize("rule", ESTIMATORS, ids=str)
def test_the_mean_is_the_trace(rule, matrix):
    mean, variance = spread(rule, matrix)
    assert abs(mean - float(matrix.trace())) < 4.5 * math.sqrt(variance / 4000)


def test_the_variances_of_single_probes_are_their_closed_forms():
    s = (A + A.T) / 2
    norm, diagonal = float((s**2).sum()), float((s.diagonal() ** 2).sum())
    sphere = D / (D + 2) * 2 * (norm - float(s.trace()) ** 2 / D)
    # the variance of 4000 near-normal draws is known to 1 / sqrt(2000) of itself: 4.5 of those, and some for the tails
    for law, expected in (("rademacher", 2 * (norm - diagonal)), ("gaussian", 2 * norm), ("sphere", sphere)):
        assert spread(Hutchinson(1, law), A)[1] == pytest.approx(expected, rel=0.15)
        assert spread(Hutchinson(4, law), A)[1] == pytest.approx(expected / 4, rel=0.15)
    # four of a frame of twelve: a finite population
    assert spread(Orthogonal(4), A)[1] == pytest.approx(sphere / 4 * (D - 4) / (D - 1), rel=0.15)


def test_orthogonal_probes_are_exact_when_there_are_as_many_as_dimensions():
    channels, error = found(Orthogonal(D), A, [3, 4])
    assert channels.mean(1).tolist() == pytest.approx([float(A.trace())] * 2, abs=1e-12)
    assert error.tolist() == [0, 0]


def test_exact_is_exact():
    channels, error = found(Exact(), A, [0, 1])
    assert channels.tolist() == [[pytest.approx(float(A.trace()), abs=1e-13)]] * 2
    assert error.tolist() == [0, 0]


def test_hutchpp_is_nearly_exact_on_what_has_low_rank():
    # at the same six products; the span misses the two large directions by 1e-3 of their length
    assert spread(HutchPP(2), LOW_RANK, 200)[1] < 1e-5 * spread(Hutchinson(6), LOW_RANK, 200)[1]


@pytest.mark.parametrize("rank", [0, 1, 2, 4])
def test_a_basis_has_the_directions_that_there_are(rank):
    """Four columns of that rank, and noise of the size of rounding: Q Q^T is the projection on what they span."""
    g = generator(3)
    span, mix = (torch.randn(*size, generator=g, dtype=torch.float64) for size in ((2, D, rank), (2, rank, 4)))
    noise = 1e-15 * torch.randn(4, 2, D, generator=g, dtype=torch.float64)
    columns = (span @ mix).permute(2, 0, 1) + (noise if rank else 0)
    q = orthonormal(columns, 1e-13).permute(1, 2, 0)
    inner = q.mT @ q
    lengths = torch.diagonal(inner, dim1=1, dim2=2)
    assert lengths.sum(1).tolist() == pytest.approx([rank, rank], abs=1e-12)
    assert torch.allclose(inner, lengths.diag_embed(), rtol=0, atol=1e-14)
    assert torch.allclose(q @ q.mT, span @ torch.linalg.pinv(span), rtol=0, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 2, 3, 8])
def test_gradients_of_hutchpp_where_there_are_fewer_directions_than_columns(rank):
    """Three columns of S: by differences along Jacobians J = a b^T of the same rank, where Q is smooth."""
    a, b = torch.randn(2, D, rank, generator=generator(4), dtype=torch.float64)
    vectors, like = HutchPP(3).draw([0, 1, 2], D), torch.zeros(3, D, dtype=torch.float64)

    def value(a):
        return HutchPP(3).trace(lambda v: v @ (a @ b.T), vectors, like).mean()

    (gradient,) = torch.autograd.grad(value(a.requires_grad_()), a)
    step = 1e-5
    for i in range(D):
        shift = torch.zeros_like(a)
        shift[i, i % rank] = step
        with torch.no_grad():
            change = float(value(a + shift) - value(a - shift)) / (2 * step)
            # central differences: step^2 of third derivatives of order 1, and rounding 1e-15 / step
            assert float(gradient[i, i % rank]) == pytest.approx(change, abs=1e-7)
    if rank <= 3:  # all of J is in the span: the trace, and its gradient, without an error
        assert float((gradient - b).abs().max()) < 1e-11


def test_the_gradient_of_hutchpp_at_a_jacobian_of_zero_is_unbiased():
    """There the estimate has a kink, J^T S / |J^T S| jumps; what is told is the probes' estimate of tr(dJ)."""
    n = 4000
    vectors, like = HutchPP(2).draw(list(range(n)), D), torch.zeros(n, D, dtype=torch.float64)
    size = torch.zeros(n, 1, dtype=torch.float64, requires_grad=True)
    each = HutchPP(2).trace(lambda v: size * (v @ A), vectors, like).mean(1)
    assert each.tolist() == [0.0] * n
    (gradient,) = torch.autograd.grad(each.sum(), size)
    assert abs(float(gradient.mean()) - float(A.trace())) < 4.5 * float(gradient.std()) / math.sqrt(n)


@pytest.mark.parametrize("predicts", ["eps", "x0", "edm"])
@pytest.mark.parametrize("start", [0.0, 0.6])
def test_gradients_of_log_p_by_hutchpp_of_a_network_of_low_rank(predicts, start):
    """x0, eps or F = size a tanh(b x): a Jacobian of rank 1, or of 0 at the start of a training, and two columns."""
    a, b = torch.randn(2, 5, generator=generator(5), dtype=torch.float64) / 2
    x = torch.randn(4, 5, generator=generator(6), dtype=torch.float64)

    def gradients(divergence, size):
        size, at = torch.tensor(size, dtype=torch.float64, requires_grad=True), x.clone().requires_grad_()
        denoiser = scoresde.Denoiser(lambda y, label: size * torch.tanh(y @ b)[:, None] * a, scoresde.VP(), predicts)
        found = scoresde.log_prob(denoiser, at, "heun", steps=6, divergence=divergence, differentiable=True)
        return found.nats, torch.autograd.grad(found.nats.sum(), (size, at))

    (_, truth), (_, found) = gradients("exact", start), gradients("hutchpp(vectors=2)", start)
    assert torch.isfinite(found[0])
    # nothing is left to the probes but at size 0, where the gradient by the size is an estimate
    assert torch.allclose(found[1], truth[1], rtol=0, atol=1e-8)
    if start:
        assert float(found[0]) == pytest.approx(float(truth[0]), abs=1e-7)
        h = 1e-5
        ends = [float(gradients("hutchpp(vectors=2)", start + side * h)[0].detach().sum()) for side in (1, -1)]
        assert float(found[0]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-6)


def test_products_of_a_network_of_16_bits_are_summed_in_64():
    """x0 = w x number by number, w of 8 bits: 3000 products are exact, and a sum in 16 bits would stop at 512."""

    class Slopes(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.w = nn.Parameter(w)

        def forward(self, x, label):
            assert x.dtype == torch.bfloat16
            return self.w * x

    d = 3000
    w = (torch.randint(128, 256, (d,), generator=generator(0)) / 256).bfloat16()
    x = torch.randn(2, d, generator=generator(1)).bfloat16()
    denoiser, node = scoresde.Denoiser(Slopes(w), scoresde.VP(), "x0"), scoresde.VP()(0.3)
    rule = Hutchinson(2)
    problem = WithLogDensity(denoiser, (d,), divergence=rule, vectors=rule.draw([0, 1], d), dtype=torch.bfloat16)
    state = problem.start(x, node)
    assert torch.equal(problem.split(state)[0], node.alpha * x.double())
    eps = problem.split(problem.predict(state, node).eps)[1]
    # of channels at 0, eps = -(1 + r) (d / (1 + r^2) - alpha tr / alpha) / r: see WithLogDensity
    r, trace = node.ratio, node.alpha * float(w.double().sum())
    drive = r * d / (1 + r**2) - r * trace
    assert (eps / (-(1 + r) * drive / r**2) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("rule", [*ESTIMATORS[:4], Orthogonal(10)], ids=str)
def test_the_standard_error_is_the_spread_of_the_estimate(rule):
    channels, error = found(rule, A, list(range(4000)))
    # its square is unbiased
    assert float((error**2).mean()) == pytest.approx(float(channels.mean(1).var()), rel=0.12)


def test_draws_belong_to_their_seeds():
    for rule in ESTIMATORS:
        assert torch.equal(rule.draw([5, 8], D)[1], rule.draw([8], D)[0])


class Odd(torch.autograd.Function):
    """tanh, by a function that cannot be batched."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - torch.tanh(x) ** 2)


def test_networks_whose_functions_cannot_be_batched():
    sde, weight = scoresde.VP(), A[:4, :4].clone()
    plain = scoresde.Denoiser(lambda x, label: torch.tanh(x @ weight), sde)
    odd = scoresde.Denoiser(lambda x, label: Odd.apply(x @ weight), sde)
    x = torch.randn(3, 4, generator=generator(1), dtype=torch.float64)
    for divergence in ("exact", "hutchinson(probes=2)"):
        values = [scoresde.log_prob(d, x, steps=5, divergence=divergence).nats for d in (plain, odd)]
        assert float((values[0] - values[1]).abs().max()) < 1e-12


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "edm", "score"])
def test_what_is_known_of_the_jacobian_is_not_estimated(predicts):
    # a network that ignores x: the trace is the share of x in the output, whatever the probes
    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(5, dtype=torch.float64))

        def forward(self, x, label):
            return self.bias.expand_as(x) + 0 * x

    sde = scoresde.VP()
    denoiser, node = scoresde.Denoiser(Bias(), sde, predicts=predicts), sde(0.3)
    x = torch.randn(2, 5, generator=generator(1), dtype=torch.float64)
    share = denoiser.output.weights(node)[0][0]
    for rule in (Hutchinson(2, "gaussian"), Hutchinson(2, "sphere"), Orthogonal(2), HutchPP(2), Exact()):
        problem = WithLogDensity(denoiser, (5,), divergence=rule, vectors=rule.draw([0, 1], 5), dtype=torch.float64)
        leaf = x.clone().requires_grad_()
        trace = problem._trace(denoiser.predict(leaf, node).x0, leaf, node)
        assert trace.flatten().tolist() == pytest.approx([5 * share] * trace.numel(), abs=1e-12)


def test_products_are_counted_apart():
    target = scoresde.targets.GaussianMixture(torch.tensor([[-1.0, 0.0, 0.5], [1.0, 0.5, 0.0]]), 0.04)
    denoiser = target.denoiser(scoresde.VP())
    x = target.sample(4, generator(0))
    for rule, each in (
        ("exact", 3),
        ("hutchinson(probes=2)", 2),
        ("orthogonal(probes=3)", 3),
        ("hutchpp(vectors=2)", 6),
    ):
        result = scoresde.log_prob(denoiser, x, steps=10, divergence=rule)
        assert (result.nfe, result.vjps) == (20, 20 * each)
        assert f"{20 * each} vector-Jacobian products" in str(result)
    adaptive = scoresde.log_prob(denoiser, x, "rk45", divergence="exact")
    assert adaptive.nfe == int(adaptive.nfe_per_sample.max())
    assert adaptive.vjps == 3 * float(adaptive.nfe_per_sample.double().mean())
    assert len(set(adaptive.nfe_per_sample.tolist())) > 1


def test_names_and_bad_input():
    assert divergences.names() == ["exact", "hutchinson", "hutchpp", "orthogonal"]
    for rule in ESTIMATORS:
        assert divergences.make(str(rule)) == rule
    with pytest.raises(InputError, match="probes=13 exceeds the data's 12 dimensions; use at most 12"):
        Orthogonal(13).draw([0], D)
    with pytest.raises(InputError, match="vectors=12 must be below the data's 12 dimensions"):
        HutchPP(12).draw([0], D)
    with pytest.raises(InputError, match="hutchinson: probes must be a positive integer, got 0"):
        Hutchinson(0)
    with pytest.raises(InputError, match="did you mean hutchinson"):
        divergences.make("hutchinsn")
    with pytest.raises(InputError, match="option 'law' of hutchinson"):
        divergences.make("hutchinson(law=uniform)")


@pytest.mark.parametrize("predicts", ["eps", "x0", "edm"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson(probes=2)"])
def test_a_model_without_gradients_is_told(predicts, divergence):
    weight = nn.Parameter(torch.eye(3, dtype=torch.float64))

    @torch.no_grad()
    def silent(x, label):
        return torch.tanh(x @ weight)

    def detached(x, label):
        return torch.tanh(x.detach() @ weight)

    def blind(x, label):
        return 0.3 * torch.ones_like(x)

    sde, x = scoresde.VP(), torch.randn(2, 3, generator=generator(0), dtype=torch.float64)
    for network in (silent, detached):
        with pytest.raises(InputError, match="no gradient with respect to x, which a likelihood needs"):
            scoresde.log_prob(scoresde.Denoiser(network, sde, predicts), x, steps=3, divergence=divergence)
    # a model that does not look at x has no gradient, and needs none
    assert (
        scoresde.log_prob(scoresde.Denoiser(blind, sde, predicts), x, steps=3, divergence=divergence)
        .nats.isfinite()
        .all()
    )
