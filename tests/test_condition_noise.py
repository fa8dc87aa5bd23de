"""Noise of conditions: the four estimators of arXiv:2111.13606 on Gaussians, in training, sampling and saved runs."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import scoresde
from scoresde.cli import main
from scoresde.data.conditions import Condition
from scoresde.models.condition_noise import KEYS, condition_noises, keyed, noised, of_keys
from scoresde.models.networks import networks
from scoresde.runs.run import load_run
from scoresde.training.losses import losses
from scoresde.training.objective import Objective
from solvers import InputError, Node
from solvers.noise.draws import Draws
from solvers.noise.levels import fresh_numbers, level_keys, path_numbers

pytestmark = pytest.mark.quick

Y = Condition("y", "vector", (1,))
VE = scoresde.VE(sigma_min=0.01, sigma_max=100.0)
SPREAD = 0.5  # x ~ N(0, 1), y = x + 0.5 n: given y = 1, x has the mean 0.8 and the deviation 0.4472


def exact(spec, sde=VE, path=True):
    """The exact denoiser of x given y_t, whose network receives y_t and t."""
    noise = condition_noises.make(spec)

    def network(x, t, y):
        node = sde(t.double().cpu())
        r2, level2 = (v.square().to(x)[:, None] for v in (node.ratio, noise.level(node.ratio, sde, 1)))
        alpha = node.alpha.to(x)[:, None]
        y = y * (1 + level2).sqrt()  # y + level e
        gain = 1 / (1 + SPREAD**2 + level2)
        mean, variance = gain * y, 1 - gain
        return mean + variance / (variance + r2) * (x / alpha - mean)

    given = noise if path else type(noise)(path=False)
    return scoresde.Denoiser(network, sde, "x0", "t", conditions=(Y,), condition_noise=given)


def limit(noise, stochastic, steps=20_000):
    """Mean and deviation in the limit of many steps, where the noise of y_t averages out: the affine recursion."""
    levels = torch.linspace(math.log(100.0), math.log(1e-3), steps, dtype=torch.float64).exp()
    mean, variance = 0.0, 100.0**2
    numbers = noise.level(levels, VE, 1).tolist()
    levels = levels.tolist()
    for r, s, own in zip(levels, levels[1:], numbers, strict=False):
        gain = 1 / (1 + SPREAD**2 + own**2)
        kept = (s / r) ** 2 if stochastic else s / r
        wide = 1 + r * r - gain
        factor = kept + (1 - kept) * (1 - r * r / wide)
        mean = factor * mean + (1 - kept) * r * r * gain / wide
        variance = factor**2 * variance + (s * s * (1 - kept) if stochastic else 0.0)
    return mean, math.sqrt(variance)


# measured by an independent script: mean and deviation of the SDE and of the ODE
LIMITS = {
    "cde": (0.8000, 0.4471, 0.7964, 0.4471),
    "cdiffe": (0.5823, 0.5496, 0.4231, 0.6462),
    "scaled(c=0.5)": (0.7124, 0.4788, 0.5829, 0.5361),
    "scaled(0.1)": (0.7929, 0.4485, 0.7516, 0.4550),
    "scaled(c=0.01)": (0.7999, 0.4471, 0.7941, 0.4473),
    "cmde(least=0.01)": (0.7956, 0.4496, 0.7833, 0.4520),
    "geometric(largest=0.5, least=0.01)": (0.7978, 0.4485, 0.7910, 0.4496),
}


@pytest.mark.parametrize("spec", LIMITS)
def test_what_each_estimator_samples_in_the_limit(spec):
    noise = condition_noises.make(spec)
    found = (*limit(noise, True), *limit(noise, False))
    # the same recursion on as many levels: the values are rounded to four digits
    assert found == pytest.approx(LIMITS[spec], abs=2e-4)


@pytest.mark.parametrize(
    ("steps", "path", "mean", "deviation"),
    [
        (20, False, 0.516, 0.489),
        (100, False, 0.574, 0.535),
        (20, True, 0.516, 0.521),
        (100, True, 0.574, 0.573),
        pytest.param(500, False, 0.584, 0.545, marks=pytest.mark.slow),
        pytest.param(500, True, 0.584, 0.581, marks=pytest.mark.slow),
    ],
)
def test_cdiffe_in_few_ancestral_steps(steps, path, mean, deviation):
    count = 20_000
    levels = torch.linspace(math.log(100.0), math.log(0.01), steps, dtype=torch.float64).exp().tolist()
    times = [VE.node_of_lam(-math.log(r)).t for r in levels]
    y = torch.ones(count, 1)
    model = exact("same", path=path)
    x = scoresde.sample(
        model, (1,), count, "ddpm", f"explicit(times={[*times]})", condition={"y": y}, dtype="float32"
    ).x[:, 0]
    # four standard errors of the mean and the deviation of both Monte-Carlo runs, 0.55 / sqrt(20000) = 0.004 each
    assert float(x.mean()) == pytest.approx(mean, abs=0.022)
    assert float(x.std()) == pytest.approx(deviation, abs=0.016)


def test_samples_do_not_depend_on_their_batch():
    y = torch.linspace(-1, 1, 6)[:, None]
    for path, solver in ((True, "heun"), (False, "ddim"), (True, "dpmpp_2m"), (True, "ddpm")):
        model = exact("same", path=path)
        whole = scoresde.sample(model, (1,), range(6), solver, steps=5, condition={"y": y}).x
        part = scoresde.sample(model, (1,), [4, 2], solver, steps=5, condition={"y": y[[4, 2]]}).x
        assert torch.equal(part, whole[[4, 2]])
        assert torch.equal(scoresde.sample(model, (1,), 6, solver, steps=5, condition={"y": y}, batch_size=4).x, whole)
    # another seed has another y_t, and so another sample, where the start and the solver have no noise
    start = torch.zeros(2, 1)
    same = scoresde.sample(model, (1,), [0, 1], "ddim", steps=5, x_init=start, condition={"y": torch.ones(2, 1)}).x
    assert abs(float(same[0] - same[1])) > 1e-3


def test_numbers_are_normal_and_a_path_is_brownian():
    keys, count = level_keys(range(20_000)), 3
    levels = torch.tensor([0.03, 0.4, 0.5, 60.0], dtype=torch.float64)
    path, fresh = (
        torch.stack([f(keys, r[None], count, torch.float64) for r in levels]) for f in (path_numbers, fresh_numbers)
    )
    for numbers in (path, fresh):
        flat = numbers.flatten(1)
        # 60000 numbers: standard errors 0.004 of a mean, 0.006 of a variance
        assert float(flat.mean(1).abs().max()) < 0.017
        assert float((flat.var(1) - 1).abs().max()) < 0.024
    for numbers, law in ((path, lambda r, s: r / s), (fresh, lambda r, s: 0.0)):
        flat = numbers.flatten(1)
        for i in range(4):
            for j in range(i + 1, 4):
                # W(r^2) / r and W(s^2) / s have the covariance r / s for r < s
                assert float((flat[i] * flat[j]).mean()) == pytest.approx(float(law(levels[i], levels[j])), abs=0.03)
        # a row has no part of another, also with one level for each sample
        rows = torch.tensor([0.5, 0.03], dtype=torch.float64)
        made = (path_numbers if numbers is path else fresh_numbers)(keys[[7, 9]], rows, count, torch.float64)
        assert torch.allclose(made, torch.stack([numbers[2, 7], numbers[0, 9]]), atol=1e-12)
    assert path_numbers(keys[:2], torch.tensor([0.0], dtype=torch.float64), 2, torch.float32).isfinite().all()


def affine_problem():
    """x ~ N(0, C) in four dimensions and y = A x + 0.3 n in two."""
    source = torch.Generator().manual_seed(0)
    b = torch.randn(4, 4, generator=source, dtype=torch.float64)
    a = torch.randn(2, 4, generator=source, dtype=torch.float64)
    return b @ b.T / 4, a


def error_of_fit(spec, count, seed, r=1.0):
    """The relative squared error of eps(x_t, y) of a linear model, fitted to ``count`` pairs with noised conditions."""
    c, a = affine_problem()
    root, source, y = torch.linalg.cholesky(c), torch.Generator().manual_seed(seed), Condition("y", "vector", (2,))
    noise, node = condition_noises.make(spec), Node(1.0, 1.0, r)

    def pairs(n):
        x = torch.randn(n, 4, generator=source, dtype=torch.float64) @ root.T
        return x, x @ a.T + 0.3 * torch.randn(n, 2, generator=source, dtype=torch.float64)

    def normal(_, n):
        return torch.randn(count, n, generator=source, dtype=torch.float64)

    (x, clean), eps = pairs(count), torch.randn(count, 4, generator=source, dtype=torch.float64)
    given = noised(noise, {"y": clean}, [y], node, VE, normal)["y"]
    weights = torch.linalg.lstsq(torch.cat([x + r * eps, given], 1), eps).solution
    x, clean = pairs(20_000)
    state = x + r * torch.randn(x.shape, generator=source, dtype=torch.float64)
    gain = c @ a.T @ torch.linalg.inv(a @ c @ a.T + 0.09 * torch.eye(2, dtype=torch.float64))
    right = (
        r
        * torch.linalg.solve(c + r * r * torch.eye(4, dtype=torch.float64) - gain @ a @ c, (state - clean @ gain.T).T).T
    )
    # the mean over fresh noise of y_t, as many steps see it
    level = noise.level(torch.tensor([r], dtype=torch.float64), VE, 2)
    found = torch.cat([state, clean / (1 + level**2).sqrt()], 1) @ weights
    return float((found - right).square().sum() / right.square().sum())


def test_cde_is_consistent_and_cdiffe_is_not():
    errors = [sum(error_of_fit("cde", n, seed) for seed in range(5)) / 5 for n in (100, 1000, 10_000)]
    slopes = [math.log10(b / a) for a, b in itertools.pairwise(errors)]
    # 1 / n: five fits leave a deviation of about 0.15 in a slope
    assert slopes == pytest.approx([-1, -1], abs=0.4)
    # the mean of many: 0.077 +- 10 %
    assert error_of_fit("cdiffe", 100_000, 1) == pytest.approx(7.7e-2, rel=0.1)
    assert error_of_fit("cdiffe", 10_000, 1) == pytest.approx(7.7e-2, rel=0.15)
    assert error_of_fit("scaled(c=0.1)", 100_000, 1) < 1e-4


# relative squared errors of eps(x_t, y), single fits of programs that share no code with ours
FITS = [
    ("cde", 1.0, {100: 1.5e-2, 1000: 1.8e-3, 10_000: 1.7e-4, 100_000: 7.6e-6}),
    ("cdiffe", 1.0, {100: 1.0e-1, 1000: 7.9e-2, 10_000: 7.8e-2, 100_000: 7.7e-2}),
    ("scaled(c=0.1)", 1.0, {100: 1.6e-2, 1000: 1.8e-3, 10_000: 2.1e-4, 100_000: 4.5e-5}),
    ("scaled(c=0.01)", 1.0, {100: 1.5e-2, 1000: 1.8e-3, 10_000: 1.7e-4, 100_000: 7.6e-6}),
    ("cdiffe", 0.3, {100_000: 2.9e-2}),
    ("cdiffe", 3.0, {100_000: 4.8e-2}),
]


@pytest.mark.parametrize(("spec", "r", "errors"), FITS)
def test_errors_of_fits_by_the_number_of_pairs(spec, r, errors):
    for count, wanted in errors.items():
        found = sum(error_of_fit(spec, count, seed, r) for seed in range(3)) / 3
        # 24 weights: a single fit's error varies by sqrt(2 / 24) = 0.3 and more; floors do not
        floor = spec == "cdiffe" and count >= 10_000
        assert wanted / (1.1 if floor else 2.5) < found < wanted * (1.1 if floor else 2.5), (count, found)


@pytest.mark.parametrize("spec", ["cdiffe", "scaled(c=0.3)", "decay(start=2, end=0.5, steps=40)"])
def test_training_receives_the_noise_of_its_nodes(spec):
    seen, y = [], Condition("y", "vector", (3,))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, label, y, digit):
            seen.append((label, y, digit))
            return self.weight * x

    network, digit = Net(), Condition("digit", "class", classes=2)
    denoiser = scoresde.Denoiser(network, "vp", "eps", "t", conditions=(digit, y), condition_noise=spec)
    objective, count = Objective(denoiser, network, losses.make("dsm")), 4000
    given = {"y": torch.full((count, 3), 2.0), "digit": torch.arange(count) % 2}
    given["y"][:10] = torch.nan
    draws = Draws(0, 20, range(count), count)
    objective(torch.zeros(count, 2), given, draws)
    label, found, classes = seen[0]
    assert torch.equal(classes, given["digit"])
    assert found[:10].isnan().all()
    ratio = denoiser.sde(label.double()).ratio
    level = condition_noises.make(spec).after(20).level(ratio, denoiser.sde, 3)[:, None]
    e = ((found * (1 + level.square()).sqrt() - 2) / level)[10:].flatten().double()
    # standard normal: 12000 numbers
    assert abs(float(e.mean())) < 0.04
    assert abs(float(e.var()) - 1) < 0.06
    # by (seed, step, row): the same in a part, others in the next step
    objective(torch.zeros(5, 2), {n: v[20:25] for n, v in given.items()}, draws.part(slice(20, 25)))
    assert torch.equal(seen[1][1], found[20:25])
    objective(torch.zeros(count, 2), given, Draws(0, 21, range(count), count))
    assert not torch.equal(seen[2][1][20:25], found[20:25])
    # in the objective the noise is independent of that of the state
    eps = draws.normal_like(torch.zeros(count, 2))
    assert abs(float((eps[10:, 0] * e.view(-1, 3)[:, 0]).mean())) < 0.07


def test_vs_cmde_decays_as_published():
    noise = condition_noises.make("vs_cmde")
    # 64 x 64 x 3 numbers: from the root, 110.9, to 1 in half a million updates, and no further
    start = math.sqrt(64 * 64 * 3)
    k, e = 500_000, 1.0
    for n in (0, 1000, 250_000, 500_000):
        assert noise.after(n).largest_of(64 * 64 * 3) == pytest.approx(k * e * start / (n * (start - e) + k * e))
    assert noise.after(0).largest_of(64 * 64 * 3) == pytest.approx(start)
    assert noise.after(10**6).largest_of(64 * 64 * 3) == pytest.approx(1.0)
    assert [str(condition_noises.make(n)) for n in ("cde", "cdiffe", "cmde", "VS-CMDE")] == [
        "none", "same", "geometric", "decay",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of VS-CMDE on x ~ N(0, 1) with the vector y = x + 0.5 n as its condition."""
    folder, rng = tmp_path_factory.mktemp("noised"), np.random.default_rng(0)
    x = rng.standard_normal((600, 1), dtype=np.float32)
    np.savez(folder / "data.npz", x=x, seen=x + 0.5 * rng.standard_normal((600, 1), dtype=np.float32))
    arguments = [
        "--config.data.name=file", f"--config.data.path={folder / 'data.npz'}", "--config.data.labels=seen",
        "--config.model.network=mlp(width=16, depth=1)", "--config.model.condition_dropout=0.1",
        "--config.model.condition_noise=decay(start=4, end=0.2, steps=40)", "--config.training.steps=20",
        "--config.training.evaluate_every=20", "--config.training.batch_size=32",
    ]  # fmt: skip
    assert main(["train", "--config=digits_vp", f"--workdir={folder / 'run'}", *arguments]) == 0
    return folder / "run"


def test_a_run_knows_its_noise_and_its_null(run, tmp_path, capsys):
    loaded = load_run(run)
    assert str(loaded.denoiser.condition_noise) == "decay(start=4.0, end=0.2, steps=40, made=20)"
    name = loaded.denoiser.conditions[0].name
    assert "fault" not in (run / "evaluations.jsonl").read_text()
    rows = {name: torch.tensor([[1.0], [math.nan]])}
    found = scoresde.sample(loaded.denoiser, seeds=[3, 4], nfe=6, condition=rows).x
    np.savez(tmp_path / "y.npz", **{name: rows[name].numpy()})
    out = [f"--workdir={run}", f"--condition={tmp_path / 'y.npz'}", "--seeds=3,4", "--nfe=6"]
    assert main(["sample", *out, f"--out={tmp_path / 'a'}"]) == 0
    with np.load(tmp_path / "a" / "samples.npz") as file:
        assert torch.allclose(torch.from_numpy(file["x"]), found, atol=1e-6)
    # the null row has no noise; the network's embedding of it is that of the run
    one = scoresde.sample(loaded.denoiser, seeds=[4], nfe=6, condition={name: loaded.denoiser.conditions[0].empty(1)}).x
    assert torch.allclose(one, found[1:], atol=1e-6)
    fresh = ["--config.sampling.fresh_conditions=True"]
    capsys.readouterr()
    assert main(["sample", *out, *fresh, f"--out={tmp_path / 'b'}"]) == 2
    assert "combines predictions of several steps" in capsys.readouterr().err
    assert main(["sample", *out, *fresh, "--solver=ddim", f"--out={tmp_path / 'b'}"]) == 0
    with pytest.raises(InputError, match="log_prob and bounds need condition_noise=none"):
        scoresde.log_prob(loaded.denoiser, torch.zeros(1, 1), condition={name: torch.zeros(1, 1)})


def test_a_run_with_noise_resumes_to_the_same_bits(run, tmp_path):
    data = json.loads((run / "config.json").read_text())["config"]["data"]
    given = [
        "train", "--config=digits_vp", "--config.data.name=file", f"--config.data.path={data['path']}",
        "--config.data.labels=seen", "--config.model.network=mlp(width=16, depth=1)",
        "--config.model.condition_noise=decay(start=4, end=0.2, steps=8)", "--config.training.evaluate_every=0",
        "--config.training.batch_size=8", "--config.model.condition_dropout=0.3",
    ]  # fmt: skip
    assert main([*given, f"--workdir={tmp_path / 'whole'}", "--config.training.steps=6"]) == 0
    for steps in (2, 6):
        assert main([*given, f"--workdir={tmp_path / 'parts'}", f"--config.training.steps={steps}"]) == 0
    whole, parts = (load_run(tmp_path / name).denoiser for name in ("whole", "parts"))
    ours, theirs = whole.network.state_dict(), parts.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.condition_noise == parts.condition_noise


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sme", "no condition noise 'sme'; did you mean same"),
        ("scaled(c=0)", "c must be positive"),
        ("decay(start=0.5, end=1)", "start must be at least end=1, got 0.5"),
        ("geometric(largest=0.001)", "the largest level is 0.001, below the least one"),
        ("geometric(largest=1000, least=200)", "needs a path with a largest noise level above it"),
        ("decay(steps=0)", "steps"),
    ],
)
def test_bad_noise_is_one_line(spec, message):
    network = networks.make("mlp(width=8, depth=1)").build((2,), 1, [Y])
    with pytest.raises(InputError, match=message):
        scoresde.Denoiser(network, "vp", conditions=(Y,), condition_noise=spec)


def test_classes_have_no_noise():
    digit = Condition("digit", "class", classes=3)
    network = networks.make("mlp(width=8, depth=1)").build((2,), 1, [digit])
    with pytest.raises(InputError, match="needs a condition that is a vector or an image; there are: digit: 3 classes"):
        scoresde.Denoiser(network, "vp", conditions=(digit,), condition_noise="same")
    noise = condition_noises.make("same")
    given = {"digit": torch.tensor([1, 2]), **keyed(noise, [0, 1], "cpu")}
    made = noised(noise, given, [digit], VE(1.0), VE, of_keys(noise, given[KEYS], torch.float32))
    assert made["digit"] is given["digit"]
