"""The learned law of the noise within bins: a density, uniform before training, and afterwards close to the best."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from test_dequantisation import LEVELS, SDE, WIDTH, masses

import scoresde
from scoresde import log_prob
from scoresde.cli.parser import main
from scoresde.likelihood.dequantisation import UniformNoise, dequantisers, uniforms
from scoresde.likelihood.learned_dequantisation import (
    FORMAT,
    VariationalDequantiser,
    fit_dequantiser,
    load_dequantiser,
    save_dequantiser,
)
from scoresde.runs.run import load_run
from scoresde.runs.score import options_of
from solvers import InputError

# within 2e-3 of 200 steps in the mean, nearer than heun in 240 steps, for a third of the evaluations
OPTIONS = {"solver": "rk4", "steps": 40, "divergence": "exact", "bin_width": WIDTH}

# peaks a quarter of a bin wide, somewhere in their bins
PEAKED = scoresde.targets.GaussianMixture(
    torch.tensor([[-0.80], [-0.42], [0.07], [0.2], [0.70]], dtype=torch.float64), 0.004, [0.1, 0.3, 0.2, 0.1, 0.3]
)


def untidy(shape, **options):
    """A dequantiser in float64 with random weights."""
    torch.manual_seed(0)
    made = VariationalDequantiser(shape, **options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def test_untrained_it_is_uniform():
    u = uniforms((2, 3), list(range(20)))
    made = VariationalDequantiser((2, 3)).double()
    noise, law = made.spread(torch.zeros_like(u), u, WIDTH, SDE(0.1))
    expected, flat = UniformNoise().spread(torch.zeros_like(u), u, WIDTH, SDE(0.1))
    assert torch.allclose(noise, expected, rtol=0, atol=1e-12)
    assert torch.allclose(law, flat, rtol=0, atol=1e-9)


def test_the_law_is_the_density_of_the_noise():
    """By the Jacobian of the map from uniform numbers: log q = -log |d noise / d u|."""
    made, u = untidy((4,), layers=3, width=8), uniforms((4,), [1, 2, 3])
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
    noise, law = made.spread(x, u, WIDTH, SDE(0.1))
    assert float(noise.detach().abs().max()) <= WIDTH / 2
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=i: made.spread(x[i : i + 1], v[None], WIDTH, SDE(0.1))[0][0], u[i]
        )
        assert float(law[i].detach()) == pytest.approx(-float(jacobian.detach().det().abs().log()), abs=1e-8)
        assert float((jacobian - jacobian.diag().diag()).abs().max()) > 1e-3  # the couplings couple
    moved = made.spread(-x, u, WIDTH, SDE(0.1))[0]
    assert float((moved - noise).detach().abs().max()) > 1e-3  # the levels are seen


@pytest.mark.long
def test_in_one_dimension_it_comes_close_to_the_exact_mass_and_never_above():
    denoiser, exact = PEAKED.denoiser(SDE), masses(PEAKED)
    torch.manual_seed(0)
    made = VariationalDequantiser((1,), layers=0, width=32)
    trained = fit_dequantiser(
        denoiser, LEVELS, WIDTH, made, iterations=100, batch=64, rate=0.02, steps=15, divergence="exact"
    )
    assert trained is made
    n, gaps = 60, {}
    for name, law in (("uniform", "uniform"), ("learned", trained)):
        found = log_prob(denoiser, LEVELS.repeat(n, 1), dequantiser=law, **OPTIONS).nats.view(n, 8)
        gap, error = exact.log() - found.mean(0), found.std(0) / math.sqrt(n)
        assert (gap > -4 * error - 2e-3).all()  # 2e-3: rk4 in 40 steps
        gaps[name] = float((exact * gap).sum())
    assert gaps["uniform"] == pytest.approx(0.46, abs=0.1)
    assert gaps["learned"] < 0.12  # measured 0.04
    # importance weights tighten a learned bound as well, and exp of one draw is unbiased
    found = log_prob(denoiser, LEVELS.repeat(20, 1), dequantiser=trained, draws=4, **OPTIONS).nats.view(20, 8)
    assert float((exact * (exact.log() - found.mean(0))).sum()) < gaps["learned"]
    assert float((exact * (exact.log() - found.mean(0))).sum()) > -0.02


@pytest.mark.long
def test_couplings_learn_what_one_number_says_of_another():
    """Two numbers almost equal within a square bin: elementwise noise loses their mutual information."""
    covariance = torch.tensor([[0.0050, 0.0045], [0.0045, 0.0050]], dtype=torch.float64)
    target = scoresde.targets.Gaussian(torch.zeros(2, dtype=torch.float64), covariance)
    denoiser, levels = target.denoiser(SDE), torch.zeros(1, 2, dtype=torch.float64)
    axis = (torch.arange(200, dtype=torch.float64) + 0.5) / 200 * WIDTH - WIDTH / 2
    density = target.log_prob(torch.cartesian_prod(axis, axis), SDE(SDE.t_min)).exp()
    exact, gaps = math.log(float(density.mean()) * WIDTH**2), []
    for layers in (0, 2):
        torch.manual_seed(1)
        made = VariationalDequantiser((2,), layers=layers, width=16)
        fit_dequantiser(denoiser, levels, WIDTH, made, iterations=50, batch=48, rate=0.04, steps=15, divergence="exact")
        found = log_prob(denoiser, levels.expand(300, 2), dequantiser=made, **OPTIONS).nats
        gaps.append(exact - float(found.mean()))
        assert gaps[-1] > -4 * float(found.std()) / math.sqrt(300) - 2e-3
    assert gaps[1] < 0.5 * gaps[0], gaps


def test_the_model_is_left_as_it_is():
    network = torch.nn.Linear(1, 1).double()
    denoiser = scoresde.Denoiser(lambda x, label: network(x), SDE, predicts="x0")
    before = [p.clone() for p in network.parameters()]
    state = torch.random.get_rng_state()
    fits = [fit_dequantiser(denoiser, LEVELS, WIDTH, iterations=3, batch=4, steps=4) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
    for p, q in zip(*(fit.parameters() for fit in fits), strict=True):
        assert torch.equal(p, q)  # the same seed
    start = VariationalDequantiser((1,), layers=0)
    assert any(float(p.detach().abs().max()) > 0 for p in fits[0].networks[0][-1].parameters())
    assert all(float(p.detach().abs().max()) == 0 for p in start.networks[0][-1].parameters())


def test_the_law_is_in_float64_whatever_the_weights_are():
    """3000 bins: log q to 1e-7 of its size, and noise that float32 would round."""
    u = uniforms((3000,), [1, 2])
    single = VariationalDequantiser((3000,), layers=0, width=4)
    noise, law = single.spread(torch.zeros(2, 3000).bfloat16(), u, WIDTH, SDE(0.1))
    expected, flat = UniformNoise().spread(u, u, WIDTH, SDE(0.1))
    assert (noise.dtype, law.dtype) == (torch.float64, torch.float64)
    assert torch.allclose(noise.detach(), expected, rtol=0, atol=1e-12)
    assert torch.allclose(law.detach(), flat, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_and_loaded_it_is_the_same(tmp_path, dtype):
    made, file = untidy((2, 3), layers=3, width=8).to(dtype), tmp_path / "own.safetensors"
    save_dequantiser(made, file)
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
    u = uniforms((2, 3), [1, 2, 3])
    x = torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 2, 3)
    named = dequantisers.make(f'variational(path="{file}")')
    assert dequantisers.make(str(named)) == named
    for back in (load_dequantiser(file), named):
        for ours, theirs in zip(made.spread(x, u, WIDTH, SDE(0.1)), back.spread(x, u, WIDTH, SDE(0.1)), strict=True):
            assert torch.equal(ours, theirs)
    assert next(load_dequantiser(file).parameters()).dtype == dtype
    save_dequantiser(VariationalDequantiser((1,), layers=0), file)  # in its place
    assert load_dequantiser(file).shape == (1,)


def test_a_config_names_it_by_its_file(tmp_path):
    """As ``scoresde likelihood`` reads a run's section."""
    small = ["--config.model.network=mlp(width=8, depth=1)", "--config.training.steps=2"]
    assert main(["train", "--config=digits_vp", f"--workdir={tmp_path / 'run'}", *small]) == 0
    run = load_run(tmp_path / "run")
    made = untidy((1, 8, 8), layers=1, width=4)
    save_dequantiser(made, tmp_path / "own.safetensors")
    run.config.likelihood.dequantiser = f'variational(path="{tmp_path / "own.safetensors"}")'
    run.config.likelihood.steps, run.config.likelihood.error = 3, False
    options = options_of(run)
    x = scoresde.data.load("digits").test.first(3).x.double()
    found = log_prob(run.denoiser, x, **options)
    direct = log_prob(run.denoiser, x, **(options | {"dequantiser": made}))
    assert torch.equal(found.nats, direct.nats)
    assert (
        float((found.nats - log_prob(run.denoiser, x, **(options | {"dequantiser": "uniform"})).nats).abs().min()) > 1
    )
    run.config.likelihood.dequantiser = "variational"
    with pytest.raises(InputError, match=r"needs the file of a trained dequantiser, variational\(path="):
        options_of(run)


def test_files_that_are_none(tmp_path):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_dequantiser(VariationalDequantiser((2,), layers=1, width=4), good)
    for content, message in (
        (None, "cannot read the dequantiser '.*bad.safetensors': No such file"),
        (b"weights", "cannot read the dequantiser '.*bad.safetensors'"),
        (good.read_bytes()[:-9], "cannot read the dequantiser '.*bad.safetensors'"),
    ):
        if content is not None:
            bad.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_dequantiser(bad)
    tensors = {"w": torch.zeros(2)}
    for facts, message in (
        ({}, "is not a file that save_dequantiser wrote"),
        ({"format": FORMAT}, "is damaged: 'made'"),
        ({"format": FORMAT, "made": json.dumps({"shape": [2], "layers": 1, "width": 4})}, "it has 1 tensors for 1 lay"),
    ):
        save_file(tensors, bad, facts)
        with pytest.raises(InputError, match=message):
            load_dequantiser(bad)
    with pytest.raises(InputError, match="cannot read the dequantiser"):
        load_dequantiser(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        save_dequantiser(load_dequantiser(good), tmp_path / "none" / "x.safetensors")
    with pytest.raises(InputError, match="only a VariationalDequantiser can be saved, got uniform"):
        save_dequantiser(UniformNoise(), bad)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"shape": [1]}, "couplings need at least two numbers"),
        ({"shape": [3]}, "size mismatch|Error"),
        ({"shape": [10**6] * 3}, "."),  # memory for it would be 1e18 numbers
        ({"shape": [10**4000]}, "every length in shape must be at most"),
        ({"shape": 3}, "not iterable"),
        ({"shape": ["x"]}, "every length in shape must be a positive integer"),
        ({"layers": 10**9}, "it has 12 tensors for 1000000000 layers"),
        ({"layers": True}, "it has 12 tensors for True layers"),
        ({"width": 10**6}, "size mismatch|Error"),
        ({"width": 10**12}, "width must be at most"),
        ({"width": None}, "width must be a positive integer"),
    ],
)
def test_what_a_file_claims_is_compared_with_its_weights(tmp_path, claims, reason):
    path, made = tmp_path / "x.safetensors", VariationalDequantiser((2,), layers=1, width=4)
    facts = {"shape": [2], "layers": 1, "width": 4, **claims}
    save_file(made.state_dict(), path, {"format": FORMAT, "made": json.dumps(facts)})
    with pytest.raises(InputError, match=f"the dequantiser '.*x.safetensors' is damaged: .*({reason})") as error:
        load_dequantiser(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "iterations must be a positive integer"),
        ({"batch": 0}, "batch must be a positive integer"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"bin_width": -1.0}, "bin_width must be positive"),
        ({"levels": torch.zeros(0, 1)}, "at least one sample"),
        ({"dequantiser": VariationalDequantiser((3,))}, r"made for samples of shape \(3,\), got \(1,\)"),
    ],
)
def test_bad_input(change, message):
    options = {"levels": LEVELS, "bin_width": WIDTH, "iterations": 1, "batch": 2, "steps": 2, **change}
    with pytest.raises(InputError, match=message):
        fit_dequantiser(PEAKED.denoiser(SDE), **options)
    with pytest.raises(InputError, match="couplings need at least two numbers"):
        VariationalDequantiser((1,))
