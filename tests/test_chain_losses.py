"""Losses of chains: who teaches what in the hybrid loss, the bound as a loss, and runs from configs alone."""

import json
import math

import numpy as np
import pytest
import torch

import scoresde
import solvers
from scoresde import InputError
from scoresde.bounds.chain import chain_bound
from scoresde.bounds.decoders import Discretised, Gaussian, Levels
from scoresde.cli.parser import main
from scoresde.data import load
from scoresde.paths.chains import DDPMChain
from scoresde.paths.time_samplers import Discrete, LogNormal, LowDiscrepancy, Uniform
from scoresde.runs import config
from scoresde.runs.build import build_loss, load_data
from scoresde.runs.run import load_run
from scoresde.training import checkpoint
from scoresde.training.bound_losses import ChainBound, ContinuousBound, Hybrid
from scoresde.training.losses import DSM, losses
from scoresde.training.weightings import EDMWeighting, UniformWeighting
from solvers import Prediction
from solvers.noise.draws import Draws
from solvers.one_step.ancestral import DDPM

CHAIN = DDPMChain("linear", num_train_timesteps=10, beta_start=0.01, beta_end=0.5)
BITS = math.log(2)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=solvers.generator(seed), dtype=torch.float64)


class Learner(torch.nn.Module):
    """eps = tanh(scale x) and v = shift + x / 10, each of one parameter."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.8, -0.2))

    def forward(self, x, label):
        return torch.cat([torch.tanh(self.scale * x) * (1 + 0.01 * label[:, None]), self.shift + x / 10], 1)


def learner(**options):
    network = Learner()
    return network, scoresde.Denoiser(network, CHAIN.sde(), "eps", "index", **{"learned_variance": True, **options})


def draws(seed, n):
    return Draws.of(seed, 0, n)


def by_hand(network, x0, draws, kernel=None):
    """L_simple (B,) and the term of the bound at each index (B,) in nats, from the betas and the normal densities."""
    index = (10 * draws.uniform("times")[:, 0]).long()
    eps = draws.normal_like(x0)
    betas = np.linspace(0.01, 0.5, 10)
    kept = np.concatenate([[1.0], np.cumprod(1 - betas)])
    simple, terms = [], []
    for i, clean, z in zip(index.tolist(), x0, eps, strict=True):
        beta, a, before = betas[i], kept[i + 1], kept[i]
        x = math.sqrt(a) * clean + math.sqrt(1 - a) * z
        out, v = network(x[None], torch.full((1,), float(i), dtype=torch.float64))[0].chunk(2)
        simple.append(((out - z) ** 2).mean())
        lowest = betas[1] * (1 - kept[1]) / (1 - kept[2])
        tilde = beta * (1 - before) / (1 - a) if i else lowest
        nu = (v + 1) / 2
        variance = torch.exp(nu * math.log(beta) + (1 - nu) * math.log(tilde))
        if kernel == "beta":
            variance = torch.full_like(nu, beta)
        guess = (x - math.sqrt(1 - a) * out) / math.sqrt(a)
        if i:
            on_x0 = math.sqrt(before) * beta / (1 - a)
            gap = on_x0 * (guess - clean)
            terms.append((0.5 * (torch.log(variance / tilde) + (tilde + gap**2) / variance - 1)).sum())
        else:
            terms.append(-torch.distributions.Normal(guess, variance.sqrt()).log_prob(clean).sum())
    return torch.stack(simple), torch.stack(terms)


def test_the_hybrid_loss_by_hand():
    network, model = learner()
    x0 = normal(40, 3)
    found = Hybrid(weight=0.02, decoder=Gaussian())(model, x0, draws(1, len(x0)))
    simple, terms = by_hand(network, x0, draws(1, len(x0)))
    assert found.shape == (40,)
    assert torch.allclose(found, simple + 0.02 * 10 * terms / (3 * BITS), rtol=1e-9, atol=1e-9)
    # the first part is L_simple at the chain's nodes
    assert torch.allclose(simple, DSM(times=Discrete(10))(model, x0, draws(1, len(x0))), rtol=1e-9, atol=1e-12)
    assert Hybrid().weight == 0.001


def test_the_bound_teaches_the_variance_alone_and_l_simple_the_noise_alone():
    network, model = learner()
    x0, weight = normal(60, 3), 0.3
    Hybrid(weight, Gaussian())(model, x0, draws(1, len(x0))).sum().backward()
    simple, terms = by_hand(network, x0, draws(1, len(x0)))
    of_simple = torch.autograd.grad(simple.sum(), network.scale, retain_graph=True)[0]
    of_bound = weight * 10 / (3 * BITS) * torch.autograd.grad(terms.sum(), network.shift, retain_graph=True)[0]
    assert float(network.scale.grad) == pytest.approx(float(of_simple), rel=1e-9)
    assert float(network.shift.grad) == pytest.approx(float(of_bound), rel=1e-9)
    # the bound would have moved eps as well: by more than a hundredth of what L_simple does
    leaked = weight * 10 / (3 * BITS) * torch.autograd.grad(terms.sum(), network.scale)[0]
    assert abs(float(leaked)) > 0.01 * abs(float(of_simple))
    # and the whole bound as a loss does
    network, model = learner()
    ChainBound(DDPM("learned"), Gaussian())(model, x0, draws(1, len(x0))).sum().backward()
    assert float(network.scale.grad) == pytest.approx(float(leaked) / weight, rel=1e-9)
    assert float(network.shift.grad) == pytest.approx(float(of_bound) / weight, rel=1e-9)


@pytest.mark.parametrize("variance", ["learned", "beta"])
def test_the_bound_as_a_loss_by_hand(variance):
    network, model = learner()
    x0 = normal(40, 3)
    loss = ChainBound(DDPM(variance), Gaussian(), prior=False)
    found = loss(model, x0, draws(1, len(x0)))
    _, terms = by_hand(network, x0, draws(1, len(x0)), variance)
    assert torch.allclose(found, 10 * terms / (3 * BITS), rtol=1e-9, atol=1e-9)
    last = float(np.prod(1 - np.linspace(0.01, 0.5, 10)))  # alpha^2 of the last node
    prior = 0.5 * (last * x0**2 + (1 - last) - 1 - math.log(1 - last)).sum(1)
    whole = ChainBound(DDPM(variance), Gaussian())(model, x0, draws(1, len(x0)))
    assert torch.allclose(whole - found, prior / (3 * BITS), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("decoder", [Gaussian(), Discretised(0.5)], ids=str)
@pytest.mark.parametrize("variance", ["learned", "beta_tilde"])
def test_its_mean_is_the_bound(decoder, variance):
    _, model = learner()
    x0 = torch.tensor([[0.5, -1.0, 0.0], [1.0, 0.5, 0.5]], dtype=torch.float64)
    n = 20000
    found = ChainBound(DDPM(variance), decoder)(model, x0.repeat(n, 1), draws(2, 2 * n)).view(n, 2)
    bound = chain_bound(model, x0.repeat(1500, 1), DDPM(variance), decoder=decoder)
    bits = -bound.nats.view(1500, 2) / (3 * BITS)
    if isinstance(decoder, Discretised):
        assert torch.equal(bits.flatten(), bound.bits_per_dim)
    error = (found.var(0) / n + bits.var(0) / 1500).sqrt()
    assert ((found.mean(0) - bits.mean(0)).abs() < 4.5 * error).all()
    assert (error < 0.1 * bits.mean(0)).all()  # so that the line above says something


def test_the_draws_alone_decide_and_dtypes_agree():
    _, model = learner()
    x0 = normal(30, 3)
    for loss in (Hybrid(0.1, Gaussian()), ChainBound(DDPM("learned"), Gaussian())):
        one, again, other = (loss(model, x0, draws(s, 30)) for s in (3, 3, 4))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        single = loss(model, x0.float(), draws(3, 30))
        assert single.dtype == torch.float32
        assert torch.allclose(single.double(), one, rtol=1e-4, atol=1e-4)


def test_names():
    assert {"dsm", "chain_bound", "hybrid"} <= set(losses.names())
    for spec in (
        "hybrid",
        "hybrid(weight=0.01, decoder=discretised(bin_width=0.25))",
        "chain_bound(kernel=ddpm(variance=learned), prior=False)",
        "chain_bound(kernel=ddpm(variance=interpolated, interpolation=0.3), decoder=gaussian)",
    ):
        assert str(losses.make(spec)) == spec
        assert losses.make(str(losses.make(spec))) == losses.make(spec)
    assert losses.make("chain_bound").kernel == DDPM("beta")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hybird", r"no loss 'hybird'; did you mean hybrid\?"),
        ("hybrid(weight=0)", "hybrid: weight must be positive, got 0"),
        ("hybrid(weight=inf)", "hybrid: weight must be finite and positive"),
        ("hybrid(decoder=gauss)", "no decoder 'gauss'"),
        ("hybrid(wieght=0.1)", "no option of hybrid 'wieght'; did you mean weight"),
        ("chain_bound(kernel=ddim)", r"the kernel of a reverse chain must be ddpm\(variance=\.\.\.\), got ddim"),
        ("chain_bound(decoder=discretised(bin_width=0.3))", r"levels 0\.3 apart|option 'decoder' of chain_bound takes"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(InputError, match=message) as error:
        losses.make(spec)
    assert "\n" not in str(error.value)


def test_what_a_loss_needs():
    x0, g = normal(4, 3), draws(0, 4)
    _, model = learner()
    plain = scoresde.Denoiser(lambda x, label: torch.tanh(x), CHAIN.sde(), "eps", "index")
    for loss, name in ((Hybrid(), "hybrid"), (ChainBound(DDPM("learned")), "chain_bound")):
        with pytest.raises(InputError, match=f"^{name} needs a decoder: gaussian for continuous data, discretised for"):
            loss(model, x0, g)
    with pytest.raises(InputError, match=r"^hybrid needs a model that learns its variance: Denoiser\(learned_var"):
        Hybrid(decoder=Gaussian())(plain, x0, g)
    with pytest.raises(InputError, match="needs a model that learned its variance"):
        ChainBound(DDPM("learned"), Gaussian())(plain, x0, g)
    short = scoresde.Denoiser(lambda x, label: x, scoresde.SubVP(), "eps", "index")
    with pytest.raises(InputError, match="1000 nodes cover t in"):  # labels that nobody would expect
        ChainBound(decoder=Gaussian())(short, x0, g)


# a learned variance in a solve


@pytest.mark.parametrize("v", [-1.0, -0.3, 0.5, 1.0])
def test_a_constant_nu_is_the_interpolated_variance(v):
    def network(x, label):
        return torch.cat([torch.tanh(x), torch.full_like(x, v)], 1)

    model = scoresde.Denoiser(network, CHAIN.sde(), "eps", "index", learned_variance=True)
    problem = scoresde.models.problem.Diffusion(model)
    noise = [solvers.SeededNoise(range(4), (3,), torch.float64) for _ in range(2)]
    nodes = CHAIN.grid.nodes(CHAIN.sde(), None)
    learned, fixed = (
        solvers.solve(solvers.make(spec), problem, normal(4, 3), nodes, source).x
        for spec, source in zip(
            ("ddpm(variance=learned)", f"ddpm(variance=interpolated, interpolation={(v + 1) / 2})"), noise, strict=True
        )
    )
    assert (learned - fixed).abs().max() < 1e-12
    # nu, an element at a time
    prediction = Prediction(normal(2, 2), normal(2, 2), torch.tensor([[0.0, 1.0], [0.25, 0.5]], dtype=torch.float64))
    variances = CHAIN.reverse(normal(2, 2), prediction, 4, DDPM("learned")).variance
    beta, tilde = CHAIN.betas[4], DDPM().variance_of(CHAIN.node(4), CHAIN.node(3))
    expected = [tilde, beta, beta**0.25 * tilde**0.75, (beta * tilde) ** 0.5]
    assert variances.flatten().tolist() == pytest.approx(expected, rel=1e-9)


def test_a_learned_variance_has_no_program_and_a_budget():
    _, model = learner()
    spec = "ddpm(variance=learned)"
    assert str(solvers.make(spec)) == spec
    assert solvers.make(str(solvers.make(spec))) == solvers.make(spec)
    with pytest.raises(InputError, match="no program: the model predicts the variance of the noise"):
        solvers.trace(spec, CHAIN.grid.nodes(CHAIN.sde(), None))
    whole = scoresde.sample(model, (3,), range(5), spec, nfe=8, dtype=torch.float64)
    assert whole.nfe == 8
    alone = scoresde.sample(model, (3,), [4], spec, nfe=8, dtype=torch.float64)
    assert torch.equal(alone.x[0], whole.x[4])
    plain = scoresde.Denoiser(lambda x, label: torch.tanh(x), CHAIN.sde(), "eps", "index")
    with pytest.raises(InputError, match=r"^ddpm\(variance=learned\) needs a model that learned its variance$"):
        scoresde.sample(plain, (3,), range(2), spec, steps=4)


def test_checking_a_learned_variance(capsys):
    # the problems of known answers say nu = 1/2, so that the solver is checked like any other
    assert main(["check-solver", "ddpm(variance=learned)"]) == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said
    assert "raised" not in said
    assert "PASS  order on vp: measured 1.0" in said
    assert "PASS  alone and in a batch on vp: largest difference 0.0e+00" in said


# from configs alone


def arguments(folder, name, scale, *more):
    network = f"--config.model.network=mlp(width=16, depth=1, label_scale={scale})"
    return ["train", f"--config={name}", f"--workdir={folder}", network, "--config.training.batch_size=16", *more]


def build(*overrides):
    cfg = config.read_config("digits_ddpm", [f"--config.{o}" for o in overrides])
    return build_loss(cfg, load_data(cfg).card)


def test_a_config_fills_in_what_a_loss_needs():
    assert build() == DSM(times=Discrete())
    assert build("training.loss=hybrid") == Hybrid(decoder=Gaussian())
    discrete = build("training.loss=chain_bound", "data.dequantise=False")
    assert discrete == ChainBound(decoder=Discretised(0.125, -1.0, 1.0))
    own = build("training.loss=hybrid(weight=0.1, decoder=discretised(bin_width=0.25))")
    assert own == Hybrid(0.1, Discretised(0.25))
    assert build("training.weighting=x0") == DSM(UniformWeighting(), Discrete())
    assert build("training.times=uniform") == DSM(times=Uniform())


@pytest.mark.parametrize("name", ["weighting", "times"])
@pytest.mark.parametrize("loss", ["hybrid", "chain_bound"])
def test_what_a_loss_does_not_use_is_refused(name, loss):
    with pytest.raises(
        InputError, match=rf"^the loss {loss} does not use training\.{name}, got 'eps'; its options: .*decoder"
    ):
        build(f"training.loss={loss}", f"training.{name}=eps")


def test_every_config_has_the_loss_it_had():
    lognormal = DSM(EDMWeighting(), LogNormal(-1.0, 1.2))
    expected = dict.fromkeys(("default", "digits_vp", "digits_ve", "digits_subvp", "mnist_vp"), lognormal)
    expected |= {name: DSM(times=Discrete()) for name in ("digits_ddpm", "digits_smld")}
    expected |= {"digits_edm": DSM(EDMWeighting(), LogNormal(-1.2, 1.2))}
    expected |= {"digits_vdm": ContinuousBound(Levels(0.125), LowDiscrepancy())}
    card = load("digits").card
    for name, loss in expected.items():
        assert build_loss(config.read_config(name), card) == loss, name
    beside = ["--config.training.loss=dsm", "--config.training.weighting=edm"]
    beside.append("--config.training.times=lognormal(mean=-1.0, std=1.2)")
    assert build_loss(config.read_config("default", beside), card) == lognormal


@pytest.mark.parametrize(("name", "scale"), [("digits_ddpm", 0.004), ("digits_smld", 0.017)])
@pytest.mark.parametrize("dequantise", [True, False])
def test_a_run_of_a_chain_and_its_bound(tmp_path, name, scale, dequantise):
    run, out = tmp_path / "run", tmp_path / "out"
    more = ["--config.training.steps=4", f"--config.data.dequantise={dequantise}"]
    assert main(arguments(run, name, scale, *more)) == 0
    own = ["--config.sampling.solver=ddpm", "--config.sampling.grid=leading", "--config.sampling.steps=10"]
    assert main(["sample", f"--workdir={run}", "--seeds=0-1", f"--out={out}", *own]) == 0
    assert json.loads((out / "samples.json").read_text())["nfe"] == 10
    cheap = ["--config.likelihood.steps=4", "--config.likelihood.divergence=hutchinson(probes=1)"]
    cheap += ["--config.likelihood.bound_indices=6", "--limit=5", f"--out={out}"]
    assert main(["likelihood", f"--workdir={run}", *cheap]) == 0
    record, arrays = json.loads((out / "likelihood.json").read_text()), np.load(out / "likelihood.npz")
    trained, x = load_run(run), scoresde.data.load("digits").test.first(5).x
    if dequantise:
        direct = chain_bound(trained.denoiser, scoresde.dequantise(x, 0.125, range(5)), bin_width=0.125, indices=6)
    else:
        direct = chain_bound(trained.denoiser, x, decoder=Discretised(0.125), indices=6)
    assert arrays["bound_nats"] == pytest.approx(direct.nats.numpy(), rel=1e-9)
    assert arrays["bound_bits_per_dim"] == pytest.approx(direct.bits_per_dim.numpy(), rel=1e-9)
    assert record["means"]["bound_nats"] == pytest.approx(float(direct.nats.mean()), rel=1e-9)
    for part in ("prior", "diffusion", "decoder", "offset"):
        assert record["means"][f"bound_{part}"] == pytest.approx(float(direct.budget[part].mean()), rel=1e-9)
    assert record["bound"]["kernel"] == "ddpm(variance=beta)"
    assert record["bound"]["nfe"] == 7
    assert len(trained.denoiser.sde.lams) == (1000 if name == "digits_ddpm" else 232)


def test_a_learned_variance_from_a_config_alone(tmp_path):
    options = ["--config.model.learned_variance=True", "--config.training.loss=hybrid(weight=0.01)"]
    whole, halves, out = (tmp_path / part for part in ("whole", "halves", "out"))
    for folder, steps in ((whole, (8,)), (halves, (5, 8))):
        for count in steps:
            more = [*options, f"--config.training.steps={count}"]
            assert main(arguments(folder, "digits_ddpm", 0.004, *more)) == 0
    ours, theirs = (checkpoint.load(checkpoint.latest(folder)) for folder in (whole, halves))
    assert [n for n in ours.model if not torch.equal(ours.model[n], theirs.model[n])] == []
    assert ours.model["leave.weight"].shape == (128, 16)
    # both halves of the last layer were taught
    assert (ours.model["leave.bias"].view(2, 64).abs().amax(1) > 0).all()
    sampling = ["--config.sampling.solver=ddpm(variance=learned)", "--config.sampling.grid=leading"]
    sampling += ["--config.sampling.steps=10", "--seeds=0-2", f"--out={out}"]
    assert main(["sample", f"--workdir={whole}", *sampling]) == 0
    model = load_run(whole).denoiser
    again = scoresde.sample(model, (1, 8, 8), range(3), "ddpm(variance=learned)", "leading", 10)
    assert np.array_equal(np.load(out / "samples.npz")["x"], again.x.numpy())
    assert np.isfinite(again.x.numpy()).all()
    scoring = ["--config.likelihood.bound=ddpm(variance=learned)", "--config.likelihood.bound_indices=3"]
    scoring += ["--config.likelihood.steps=4", "--limit=2", f"--out={out}"]
    assert main(["likelihood", f"--workdir={whole}", *scoring]) == 0
    record = json.loads((out / "likelihood.json").read_text())
    x = scoresde.dequantise(scoresde.data.load("digits").test.first(2).x, 0.125, range(2))
    direct = chain_bound(model, x, "ddpm(variance=learned)", bin_width=0.125, indices=3)
    assert record["means"]["bound_nats"] == pytest.approx(float(direct.nats.mean()), rel=1e-9)


def test_a_run_that_cannot_be(tmp_path, capsys):
    assert main(arguments(tmp_path / "a", "digits_ddpm", 0.004, "--config.training.loss=hybrid")) == 2
    assert "hybrid needs a model that learns its variance" in capsys.readouterr().err
    assert main(arguments(tmp_path / "b", "digits_ddpm", 0.004, "--config.training.loss=chain_bond")) == 2
    assert "no loss 'chain_bond'; did you mean chain_bound" in capsys.readouterr().err


def test_one_draw_a_term_tells_no_standard_error():
    target = scoresde.targets.Gaussian(torch.zeros(1, dtype=torch.float64), 1.0)
    x0 = torch.zeros(2, 1, dtype=torch.float64)
    found = chain_bound(target.denoiser(scoresde.VP().chain(20).sde()), x0, chain=scoresde.VP().chain(20), indices=4)
    assert torch.isnan(found.stderr).all()
    assert all(torch.isnan(end).all() for end in found.interval())
    assert "standard error of the draws of noise, one a term: not known" in str(found)
