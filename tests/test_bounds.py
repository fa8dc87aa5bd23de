"""Bounds of chains: the decoders against the normal law, the terms in closed form for Gaussian data, the bound below
the true probability of a small chain, subsets of the terms, and refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import scoresde
import solvers
from scoresde import InputError
from scoresde.bounds.chain import chain_bound, chain_of, prior_term, step_terms
from scoresde.bounds.decoders import Discretised, Gaussian, decoders
from scoresde.models.targets import Gaussian as GaussianTarget
from scoresde.paths.chains import DDPMChain, SMLDChain
from solvers import Prediction
from solvers.one_step.ancestral import DDPM

CHAINS = [
    scoresde.VP().chain(12),
    scoresde.SubVP().chain(12),
    SMLDChain(np.geomspace(0.1, 9, 12)),
    DDPMChain("squaredcos_cap_v2", num_train_timesteps=12),
]
each_chain = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain.sde())[:30])
VARIANCE = 0.3
KERNELS = ["ddpm", "ddpm(variance=beta)", "ddpm(variance=interpolated, interpolation=0.4)"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=solvers.generator(seed), dtype=torch.float64)


class Model:
    """x0 as a function of x on a path, with a constant nu if one is given."""

    def __init__(self, sde, x0, nu=None):
        self.sde, self.x0, self.nu = sde, x0, nu

    def predict(self, x, node, **conditions):
        wide, x0 = node.like(x), self.x0(x)
        nu = None if self.nu is None else torch.full_like(x, self.nu)
        return Prediction(x0, (x - wide.alpha * x0) / wide.sigma, nu)


def exact(chain, d=1):
    return GaussianTarget(torch.zeros(d, dtype=torch.float64), VARIANCE).denoiser(chain.sde())


# decoders


@pytest.mark.quick
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("bins", [1, 7, 16, 255])
def test_the_masses_of_all_levels_sum_to_one(dtype, limit, bins):
    decoder = Discretised(2 / bins)
    mean = torch.linspace(-1.7, 1.7, 23, dtype=dtype)
    for std in (1e-3, 0.02, 0.3, 5.0):
        # in float32 a bin of 0.4 thousandths of the spread is a difference of 4e-4 of numbers rounded to 6e-8
        mass = sum(decoder.log_prob(level.to(dtype), mean, std**2).double().exp() for level in decoder.levels)
        assert (mass - 1).abs().max() < (limit if std < 5 or bins < 255 else 10 * limit)
    assert len(decoder.levels) == bins + 1


def test_masses_against_the_normal_law():
    decoder, std = Discretised(0.25), 0.07
    x0 = decoder.levels[1:-1].unsqueeze(1)
    mean = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)  # up to 45 standard deviations away
    found = decoder.log_prob(x0, mean, std**2)
    far = (x0 - mean).abs().numpy()  # mirrored, so that scipy's upper tails are what is small
    a, b = (far - 0.125) / std, (far + 0.125) / std
    expected = norm.logsf(a) + np.log1p(-np.exp(norm.logsf(b) - norm.logsf(a)))
    assert found.numpy() == pytest.approx(expected, rel=1e-10)
    # the last levels have all that lies beyond
    for level, sign in ((-1.0, 1), (1.0, -1)):
        tail = decoder.log_prob(torch.tensor(level, dtype=torch.float64), mean, std**2).numpy()
        assert tail == pytest.approx(
            norm.logcdf(sign * (level + sign * 0.125 - mean.numpy()) / std), rel=1e-10, abs=1e-15
        )


def test_the_density_is_the_normal_one():
    x0, mean, variance = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2).exp()
    expected = norm.logpdf(x0.numpy(), mean.numpy(), variance.sqrt().numpy())
    assert Gaussian().log_prob(x0, mean, variance).numpy() == pytest.approx(expected, rel=1e-12)
    narrow = Discretised(1e-4, -10, 10).log_prob(x0, mean, variance) - math.log(1e-4)
    assert narrow.numpy() == pytest.approx(expected, abs=1e-6)  # of bins so narrow, up to width^2 / 24


def test_gradients_of_the_masses():
    decoder = Discretised(0.25)
    for dtype, far in ((torch.float32, -30.0), (torch.float64, -30000.0)):  # 12000 and 12 million deviations away
        x0 = decoder.levels.to(dtype).unsqueeze(1).expand(-1, 5)
        mean = torch.tensor([far, -0.3, 0.0, 0.13, 40.0], dtype=dtype).repeat(9, 1).requires_grad_()
        log_variance = torch.tensor([-12.0, -4.0, 0.0, 3.0, -1.0], dtype=dtype).repeat(9, 1).requires_grad_()
        decoder.log_prob(x0, mean, log_variance.exp()).sum().backward()
        assert torch.isfinite(mean.grad).all()
        assert torch.isfinite(log_variance.grad).all()
    m, s = mean.detach().numpy(), np.exp(0.5 * log_variance.detach().numpy())
    a, b = ((x0.numpy() - m + side) / s for side in (-0.125, 0.125))
    near = slice(1, 4)  # where scipy's differences do not vanish
    a[0], b[-1] = -np.inf, np.inf
    inside, mass = norm.pdf(a) - norm.pdf(b), norm.cdf(b) - norm.cdf(a)
    clear = (mass > 1e-8)[:, near]
    assert clear.sum() > 20
    found, expected = mean.grad.numpy()[:, near], (inside / (s * np.maximum(mass, 1e-300)))[:, near]
    assert found[clear] == pytest.approx(expected[clear], rel=1e-6, abs=1e-9)


# the bound of a chain whose probabilities are known


def expected_bound(chain, model, x0, kernel, decoder, points=60):
    """-E of all the terms (B,) for x0 (B, 1), by Gauss-Hermite quadrature over the noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    total = prior_term(chain, x0)
    for i in range(chain.count):
        index = torch.full((len(x0),), i)
        at, _ = chain.steps(index)
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            eps = torch.full_like(x0, float(node))
            wide = at.like(x0)
            prediction = model.predict(wide.alpha * x0 + wide.sigma * eps, at)
            total = total + weight * step_terms(chain, index, x0, eps, prediction, kernel, decoder)
    return -total


def probabilities(chain, model, kernel, decoder, x0, points=1801):
    """log p(x0) (B,) of the reverse chain from its prior, by the trapezoid rule over every node."""
    std = chain.sde().prior().std
    line = torch.linspace(-9 * std, 9 * std, points, dtype=torch.float64)
    width = float(line[1] - line[0])
    law = torch.exp(Gaussian().log_prob(line, torch.zeros_like(line), std**2))
    for i in range(chain.count - 1, 0, -1):
        step = chain.reverse(line[:, None], model.predict(line[:, None], chain.node(i)), i, kernel)
        law = width * law @ torch.exp(Gaussian().log_prob(line, step.mean, step.variance))
    step = chain.reverse(line[:, None], model.predict(line[:, None], chain.node(0)), 0, kernel)
    return torch.log(width * law @ torch.exp(decoder.log_prob(x0.T, step.mean, step.variance)))


@pytest.mark.parametrize("kernel", [DDPM(), DDPM("beta"), DDPM("learned")], ids=str)
@pytest.mark.parametrize("chain", [scoresde.VP().chain(2), SMLDChain([0.2, 0.6, 1.5])], ids=lambda c: str(c.count))
def test_it_is_below_the_true_probability(chain, kernel):
    decoder = Discretised(2 / 7)
    model = Model(chain.sde(), lambda x: 0.9 * torch.tanh(1.3 * x), nu=0.35)
    levels = decoder.levels.unsqueeze(1)
    truth = probabilities(chain, model, kernel, decoder, levels)
    assert float(truth.exp().sum()) == pytest.approx(1, abs=1e-9)
    bound = expected_bound(chain, model, levels, kernel, decoder)
    assert (bound < truth - 1e-3).all()
    assert (bound > truth - 6).all()  # and says something: a uniform guess is at log(1 / 8)
    # what chain_bound reports, one draw each, is an estimate of it
    many = levels.repeat(400, 1)
    found = chain_bound(model, many, kernel, chain=chain, decoder=decoder).nats.view(400, 8)
    assert ((found.mean(0) - bound).abs() < 4.5 * found.std(0) / math.sqrt(400)).all()


def test_it_is_tight_where_the_reverse_chain_is_exact():
    # data N(0, 1) on a variance-preserving chain: q(x_s | x_t) has the variance beta, so that nothing is lost
    chain = scoresde.VP().chain(3)
    model = GaussianTarget(torch.zeros(1, dtype=torch.float64), 1.0).denoiser(chain.sde())
    x0 = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64).unsqueeze(1)
    bound = expected_bound(chain, model, x0, DDPM("beta"), Gaussian())
    assert bound.numpy() == pytest.approx(norm.logpdf(x0[:, 0].numpy()), abs=1e-12)
    truth = probabilities(chain, model, DDPM("beta"), Gaussian(), x0)
    assert truth.numpy() == pytest.approx(norm.logpdf(x0[:, 0].numpy()), abs=1e-10)
    # with another variance v the mean over the data is lower by the kernels' divergences, and by nothing else
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    draws, weights = torch.from_numpy(nodes).unsqueeze(1), weights / weights.sum()
    mean = weights @ expected_bound(chain, model, draws, DDPM(), Gaussian()).numpy()
    small = np.array([DDPM().variance_of(chain.node(i), chain.node(i - 1), None, chain.lowest) for i in range(3)])
    lost = 0.5 * (np.log(small / chain.betas) + chain.betas / small - 1).sum()
    assert mean == pytest.approx(-0.5 * math.log(2 * math.pi * math.e) - lost, abs=1e-10)
    assert lost > 0.02


# Gaussian data


def closed_terms(chain, x0, kernel):
    """E L_0 .. E L_{N-1}, L_N (N + 1,) over the noise for one number x0 and the exact model of N(0, VARIANCE)."""
    terms = []
    for i in range(chain.count):
        t, s = chain.node(i), chain.node(i - 1)
        total = t.alpha**2 * VARIANCE + t.sigma**2
        error = (t.sigma * t.alpha / total * x0) ** 2 + (t.alpha**2 * VARIANCE / total) ** 2
        var_ts = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
        v = kernel.variance_of(t, s, None, chain.lowest)
        if i == 0:
            terms.append(0.5 * (math.log(2 * math.pi * v) + t.ratio**2 * error / v))
            continue
        tilde = 1 / (1 / s.sigma**2 + (t.alpha / s.alpha) ** 2 / var_ts)
        gap = (s.alpha * var_ts / t.sigma**2 * t.ratio) ** 2 * error
        terms.append(0.5 * (math.log(v / tilde) + (tilde + gap) / v - 1))
    last = chain.nodes[-1]
    std2 = last.alpha**2 + last.sigma**2
    terms.append(0.5 * ((last.alpha**2 * x0**2 + last.sigma**2) / std2 - 1 - math.log(last.sigma**2 / std2)))
    return np.array(terms)


@pytest.mark.quick
@each_chain
@pytest.mark.parametrize("kernel", KERNELS)
def test_terms_have_their_closed_form(chain, kernel):
    numbers, n = (0.4, -1.1), 1000
    x = torch.tensor(numbers, dtype=torch.float64).expand(n, 2)
    found = chain_bound(exact(chain, 2), x, kernel, chain=chain)
    expected = sum(closed_terms(chain, number, solvers.make(kernel)) for number in numbers)
    assert found.terms.shape == (n, 13)
    error = found.terms.std(0) / math.sqrt(n)
    assert (np.abs(found.terms.mean(0).numpy() - expected) <= 4.5 * error.numpy() + 1e-9).all()
    assert abs(float(found.nats.mean()) + expected.sum()) < 4.5 * float(found.nats.std()) / math.sqrt(n)
    # the terms are the budget, and the budget the bound
    assert torch.allclose(found.nats, -found.terms.sum(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(found.budget["decoder"], -found.terms[:, 0])
    assert torch.equal(found.budget["prior"], -found.terms[:, -1])
    assert torch.allclose(found.budget["diffusion"], -found.terms[:, 1:-1].sum(1), rtol=1e-12, atol=1e-12)
    assert found.nfe == 12
    assert found.kind == "lower bound, of the reverse chain"


@pytest.mark.parametrize("indices", [1, 4, 10])
def test_a_subset_of_the_terms_is_unbiased(indices):
    chain, n = CHAINS[0], 3000
    x = torch.full((n, 1), 0.8, dtype=torch.float64)
    seen = []

    class Recording(type(exact(chain))):
        def predict(self, x, node, **conditions):
            seen.append((12 * node.t).round().long() - 1)
            return super().predict(x, node, **conditions)

    model = Recording(exact(chain).target, chain.sde())
    found = chain_bound(model, x, "ddpm", chain=chain, indices=indices)
    expected = closed_terms(chain, 0.8, DDPM())
    assert abs(float(found.budget["diffusion"].mean()) + expected[1:-1].sum()) < 4.5 * float(
        found.budget["diffusion"].std()
    ) / math.sqrt(n)
    assert found.terms is None
    assert found.nfe == len(seen) == indices + 1
    asked = torch.stack(seen[1:])  # every term as often as any other, in order, none of a sample twice
    counts = torch.bincount(asked.flatten(), minlength=12)[1:]
    mean = n * indices / 11
    assert ((counts - mean).abs() < 4.5 * math.sqrt(mean)).all()
    assert (asked[1:] > asked[:-1]).all()
    assert (seen[0] == 0).all()
    # the mean of the terms in the place of the sum would be far away
    assert abs(float(found.budget["diffusion"].std())) / math.sqrt(n) < 0.07 * expected[1:-1].sum()


def test_all_terms_are_the_subset_of_all():
    x = normal(5, 2)
    one, other = (chain_bound(exact(CHAINS[0], 2), x, chain=CHAINS[0], indices=k) for k in (None, 11))
    assert torch.equal(one.terms, other.terms)


@pytest.mark.parametrize("indices", [None, 3])
def test_neither_the_batch_nor_the_order_matters(indices):
    chain, x, seeds = CHAINS[0], normal(7, 3), [4, 0, 9, 17, 2, 3, 8]
    model = Model(chain.sde(), lambda x: 0.7 * torch.tanh(x))
    whole = chain_bound(model, x, chain=chain, indices=indices, seeds=seeds)
    for size in (1, 3):
        parts = chain_bound(model, x, chain=chain, indices=indices, seeds=seeds, batch_size=size)
        assert torch.allclose(parts.nats, whole.nats, rtol=1e-12, atol=0)
        assert torch.equal(parts.latent, whole.latent)
    turned = chain_bound(model, x.flip(0), chain=chain, indices=indices, seeds=seeds[::-1])
    assert torch.allclose(turned.nats.flip(0), whole.nats, rtol=1e-12, atol=0)
    assert not torch.allclose(chain_bound(model, x, chain=chain, indices=indices).nats, whole.nats, rtol=1e-3)


def test_conditions_go_with_their_rows():
    chain, x = CHAINS[0], normal(4, 2)

    class Conditional(Model):
        def predict(self, x, node, shift):
            return Model(self.sde, lambda x: 0.3 * x + shift).predict(x, node)

    shift = normal(4, 1, seed=3)
    found = chain_bound(Conditional(chain.sde(), None), x, chain=chain, condition={"shift": shift}, batch_size=3).nats
    for i in range(4):
        model = Model(chain.sde(), lambda x, i=i: 0.3 * x + shift[i])
        assert float(chain_bound(model, x[i : i + 1], chain=chain, seeds=[i]).nats) == pytest.approx(
            float(found[i]), rel=1e-12
        )


def test_bits():
    chain, width = CHAINS[0], 0.25
    levels = Discretised(width).levels[torch.randint(9, (40, 3), generator=solvers.generator(0))]
    model = Model(chain.sde(), lambda x: 0.7 * torch.tanh(x))
    discrete = chain_bound(model, levels, chain=chain, decoder=f"discretised(bin_width={width})")
    assert discrete.bin_width == width
    assert torch.allclose(discrete.bits_per_dim, -discrete.nats / (3 * math.log(2)), rtol=1e-14)
    assert (discrete.budget["offset"] == 0).all()
    density = chain_bound(model, levels, chain=chain)
    spread = chain_bound(model, levels, chain=chain, bin_width=width)
    assert (spread.nats - density.nats - 3 * math.log(width)).abs().max() < 1e-12
    assert torch.allclose(spread.bits_per_dim, -spread.nats / (3 * math.log(2)), rtol=1e-14)
    with pytest.raises(InputError, match="bits/dim need the bin width"):
        _ = density.bits_per_dim
    # all but the last step is the same; there the mass is about the density times the width
    for name in ("prior", "diffusion"):
        assert torch.equal(discrete.budget[name], density.budget[name])
    narrow = [
        chain_bound(model, levels, chain=chain, decoder=d, bin_width=1e-4)
        for d in ("discretised(bin_width=0.00025)", "gaussian")
    ]
    inner = (levels.abs() < 1).all(1)
    gap = (narrow[0].nats - narrow[1].nats - 3 * math.log(2.5))[inner]
    assert inner.sum() > 10
    assert gap.abs().max() < 1e-6


@pytest.mark.parametrize("decoder", ["gaussian", "discretised(bin_width=0.25)"])
def test_float32_agrees_with_float64(decoder):
    levels = Discretised(0.25).levels[torch.randint(9, (20, 3), generator=solvers.generator(0))]
    for chain in CHAINS:
        model = Model(chain.sde(), lambda x: 0.7 * torch.tanh(x), nu=0.4)
        one, other = (
            chain_bound(model, x, "ddpm(variance=learned)", chain=chain, decoder=decoder)
            for x in (levels, levels.float())
        )
        assert other.nats.dtype == torch.float64
        assert other.latent.dtype == torch.float32
        # x is rounded to 6e-8, and a first step of ratio 0.01 looks at it ten thousand times as closely
        assert torch.allclose(one.nats, other.nats, rtol=1e-4, atol=1e-4)


def test_the_chain_of_a_path():
    own = DDPMChain("linear", num_train_timesteps=30)
    assert chain_of(own.sde()).betas == pytest.approx(own.betas, rel=1e-12)
    assert len(chain_of(scoresde.VP())) == 1000
    assert len(chain_of(scoresde.VP(), 40)) == 40
    # an embedding of the path is given beside it
    x, song = normal(3, 1), scoresde.VP().chain(50, "song")
    beside = chain_bound(GaussianTarget(torch.zeros(1), 1.0).denoiser(scoresde.VP()), x, chain=song)
    alone = chain_bound(GaussianTarget(torch.zeros(1), 1.0).denoiser(song.sde()), x)
    assert torch.equal(beside.nats, alone.nats)


X = torch.zeros(2, 3)
OWN = scoresde.VP().chain(50)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X, {"kernel": "ddim"}, r"^the kernel of a reverse chain must be ddpm\(variance=\.\.\.\), got ddim$"),
        (X, {"kernel": "ddmp"}, r"no solver 'ddmp'; did you mean ddpm"),
        (X, {"kernel": "ddpm(variance=learned)"}, "needs a model that learned its variance"),
        (X, {"decoder": "gauss"}, "no decoder 'gauss'; did you mean gaussian"),
        (X, {"decoder": "discretised(bin_width=0.3)"}, r"levels 0\.3 apart do not fit the range from -1 to 1"),
        (X, {"decoder": "discretised(bin_width=0)"}, "needs bin_width > 0 and low < high, all finite, got 0"),
        (X + 0.1, {"decoder": "discretised(bin_width=0.5)"}, r"needs data at its levels, got 0\.1; .* gaussian$"),
        (X + 1.5, {"decoder": "discretised(bin_width=0.5)"}, r"needs data at its levels, got 1\.5"),
        (X, {"bin_width": 0.0}, "bin_width must be positive, got 0"),
        (X, {"bin_width": math.nan}, "bin_width must be positive, got nan"),
        (X, {"indices": 0}, "indices must be a positive integer, got 0"),
        (X, {"indices": 50}, "indices=50, but the chain has 49 terms between the first and the last"),
        (X, {"seeds": [1]}, "got 1 seeds for 2 samples"),
        (X, {"batch_size": 0}, "batch_size must be a positive integer"),
        (X.long(), {}, r"x must be floats \(B, \*\)"),
        (X[:0], {}, "at least one sample"),
        (X + math.nan, {}, "x contains numbers that are not finite"),
        (X, {"condition": {"y": torch.zeros(3)}}, "y has 3 rows for 2 samples"),
        (
            X,
            {"chain": scoresde.VP().chain(2000)},
            r"2000 nodes cover t in \[0\.0005, 1\], but .* vp, covers \[0\.02, 1\]",
        ),
    ],
)
def test_bad_input(x, options, message):
    model = GaussianTarget(torch.zeros(3), 1.0).denoiser(OWN.sde())
    with pytest.raises(InputError, match=message) as error:
        chain_bound(model, x, **{"chain": OWN, **options})
    assert "\n" not in str(error.value)


def test_a_chain_that_leaves_the_labels_of_the_model():
    # sub-VP's own range starts at 0.01, and a network told the index knows no label of t = 0.001
    model = scoresde.Denoiser(lambda x, label: x, scoresde.SubVP(), time_label="index")
    with pytest.raises(InputError, match=r"1000 nodes cover t in \[0\.001, 1\], but the model's path, subvp, covers"):
        chain_bound(model, X)
    assert chain_bound(model, X, chain=scoresde.SubVP().chain(100)).nats.shape == (2,)


def test_names_of_decoders():
    assert {"discretised", "gaussian"} <= set(decoders.names())
    for spec in ("gaussian", "discretised(bin_width=0.125, low=-2.0)"):
        assert str(decoders.make(spec)) == spec
        assert decoders.make(str(decoders.make(spec))) == decoders.make(spec)
    for options in ({"bin_width": math.inf}, {"bin_width": 0.1, "high": math.inf}, {"bin_width": 0.1, "low": 1.0}):
        with pytest.raises(InputError, match="low < high, all finite"):
            Discretised(**options)
