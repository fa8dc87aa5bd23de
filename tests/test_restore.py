"""``condition`` and ``restore``: their draws, costs, defaults, files and errors."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import scoresde
from scoresde.benchmark.posterior_problems import mixture_problem
from scoresde.models.targets import Gaussian
from scoresde.operators.linear import Inpaint, Matrix, Sense
from scoresde.operators.nonlinear import Custom, Quantise
from scoresde.posterior.base import Draws, Posterior
from scoresde.sampling.parts import Parts
from solvers import InputError, Prediction

pytestmark = pytest.mark.quick
D, M = 4, 2
DTYPE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


FACTOR = normal(D, D, seed=1)
PRIOR = Gaussian(normal(D, seed=2), FACTOR @ FACTOR.T / D + 0.1 * torch.eye(D, dtype=DTYPE))
MODEL = PRIOR.denoiser(scoresde.VP())
SEEN, Y = Matrix(normal(M, D, seed=3), sigma=0.5), normal(3, M, seed=4)
HOW = {"solver": "dpmpp_2m_sde", "grid": "logsnr(end=zero)", "steps": 8, "dtype": DTYPE}


def test_draws_are_those_of_the_posterior():
    found = scoresde.restore(MODEL, SEEN, Y[:2], "mmps(iterations=2)", samples=400, steps=50, dtype=DTYPE)
    assert found.x.shape == (2, 400, D)
    for x, mean, deviation, y in zip(found.x, found.mean, found.deviation, Y, strict=False):
        exact = PRIOR.posterior(SEEN, y)
        variance = (exact.vectors[0] @ torch.diag(exact.values[0]) @ exact.vectors[0].T).diag()
        # 4.5 standard errors of the means; deviations have the relative standard error sqrt(1 / 800) = 0.035
        assert ((mean - exact.means[0]).abs() < 4.5 * (variance / 400).sqrt()).all()
        assert torch.allclose(deviation, variance.sqrt(), rtol=4.5 * 0.036)
        assert torch.allclose(x.std(0), deviation)
    assert found.nfe == found.forwards == 50
    assert found.vjps == 50 * 3
    assert (found.posterior, found.solver, found.grid) == ("mmps(iterations=2)", "dpmpp_2m_sde", "logsnr(end=zero)")


@pytest.mark.parametrize("method", ["mmps", "jfps", "dps"])
def test_an_observation_alone_has_the_bits_that_it_has_among_others(method):
    whole = scoresde.restore(MODEL, SEEN, Y, method, seeds=[5, 0, 9], **HOW)
    parts = scoresde.restore(MODEL, SEEN, Y, method, seeds=[5, 0, 9], batch_size=4, **HOW)
    alone = scoresde.restore(MODEL, SEEN, Y[1], method, seeds=[0], **HOW)
    assert torch.equal(whole.x, parts.x)
    assert torch.equal(whole.x[1, 1], alone.x[0, 0])
    assert whole.seeds == (5, 0, 9)
    conditioned = scoresde.sample(scoresde.condition(MODEL, SEEN, Y[1], method), seeds=[5, 0, 9], **HOW)
    assert torch.allclose(
        conditioned.x, whole.x[1], rtol=1e-12
    )  # whose steps are a program, with sums in another order


def test_defaults_are_chosen_by_the_operator():
    found = scoresde.restore(MODEL, SEEN, Y[0], samples=1)
    assert (found.solver, found.grid, found.steps) == ("dpmpp_2m_sde", "logsnr(end=zero)", 100)
    assert (found.posterior, found.x.dtype) == ("mmps", torch.float32)
    assert scoresde.restore(MODEL, Sense(2), Y[0], samples=1, steps=3).posterior == "pigdm"
    with pytest.warns(
        UserWarning, match=r"not linear: the draws are those of dps, whose spread is not the posterior's"
    ):
        bent = scoresde.restore(MODEL, "tanh(2, sigma=0.1)", Y[0], samples=1, steps=3)
    assert bent.posterior == "dps"
    assert scoresde.restore(MODEL, SEEN, Y[0], samples=1, solver="heun", nfe=9).nfe == 9
    assert scoresde.restore(MODEL, SEEN, Y[0], "jfps", samples=1, forwards=9).forwards == 9


def test_conditions_belong_to_observations():
    class Shifted:
        sde, shape = scoresde.VP(), (D,)

        def predict(self, x, node, shift):
            found = MODEL.predict(x - node.alpha * shift, node)
            return Prediction(found.x0 + shift, found.eps)

    shifts = normal(3, D, seed=6)
    moved = Y + SEEN(shifts)
    found = scoresde.restore(
        Shifted(), SEEN, moved, "mmps(iterations=2)", samples=2, condition={"shift": shifts}, **HOW
    )
    plain = scoresde.restore(MODEL, SEEN, Y, "mmps(iterations=2)", samples=2, **HOW)
    assert not torch.allclose(found.x, plain.x, atol=0.1)
    # the start at t_max has the mean 0 and not that of the shifted data: alpha = 0.0066 of a shift of order 1
    assert torch.allclose(found.x - shifts.unsqueeze(1), plain.x, rtol=0, atol=0.02)


def test_the_density_of_an_exact_method_is_that_of_the_posterior():
    x = normal(3, D, seed=7)
    refused = scoresde.condition(MODEL, SEEN, Y[0], "mmps(iterations=2)")
    with pytest.raises(InputError, match=r"density of its own, which is not p\(x0 \| y\).*ode_density=True"):
        scoresde.log_prob(refused, x)
    with pytest.raises(InputError, match="ode_density=True"):
        scoresde.sample_with_log_prob(refused, seeds=2, steps=4, solver="heun")
    allowed = scoresde.condition(MODEL, SEEN, Y[0], "mmps(iterations=2)", ode_density=True)
    exact, sde = PRIOR.posterior(SEEN, Y[0]), scoresde.VP()
    found = scoresde.log_prob(allowed, x, divergence="exact", prior=lambda x: exact.log_prob(x, sde(sde.t_max)))
    assert found.density == "ode of mmps(iterations=2)"
    first = sde(sde.t_min)
    wanted = exact.log_prob(first.alpha * x, first) + D * math.log(first.alpha)
    assert torch.allclose(found.nats, wanted, rtol=0, atol=2e-3)  # the solver's tolerances are 4e-5 of each number


def test_encodings_return():
    conditioned = scoresde.condition(MODEL, SEEN, Y, "mmps(iterations=2)")
    x = torch.stack([PRIOR.posterior(SEEN, y).sample(1, torch.Generator().manual_seed(0))[0] for y in Y])
    latent = scoresde.encode(conditioned, x, "dpmpp_3m", grid="logsnr", steps=100).x
    back = scoresde.sample(
        conditioned, x_init=latent, solver="dpmpp_3m", grid="logsnr(end=t_min)", steps=100, dtype=DTYPE
    )
    assert torch.allclose(back.x, x, rtol=0, atol=0.02)  # the least noise, 0.01, is not removed


@dataclass(frozen=True)
class Particles(Posterior):
    """A method that is no denoiser: exact draws of a known posterior, with an evidence and effective numbers."""

    def draw(self, task):
        exact = [PRIOR.posterior(task.operator, y) for y in task.y]
        x = torch.stack(
            [one.sample(1, torch.Generator().manual_seed(s))[0] for one, s in zip(exact, task.seeds, strict=True)]
        )
        x[[seed == 3 for seed in task.seeds]] = math.nan
        evidence = torch.tensor([math.log(1.0 + seed) for seed in task.seeds], dtype=DTYPE)
        return Draws(x.to(task.y), torch.full((len(x),), 7), evidence, 10.0 + evidence)


def test_methods_that_are_no_denoisers_are_run_by_restore(tmp_path):
    with pytest.warns(UserWarning, match=r"2 of 8 samples of .*Particles.* are not finite.*3, 7 \(seed 3\)"):
        found = scoresde.restore(MODEL, SEEN, Y[:2], Particles(), samples=4, dtype=DTYPE, batch_size=3)
    assert found.log_evidence.tolist() == pytest.approx([math.log(2.5)] * 2)  # the mean of 1, 2, 3, 4
    assert found.effective.tolist() == [10.0, 10.0]
    assert found.x.isnan().any(2).tolist() == [[False, False, False, True]] * 2
    assert torch.allclose(found.mean, found.x[:, :3].mean(1))
    assert torch.allclose(found.deviation, found.x[:, :3].std(1))
    assert "2 of 8 draws failed" in repr(found)
    assert "log p(y) = 0.92, 0.92 nats" in repr(found)
    with pytest.raises(InputError, match="are not finite"):
        scoresde.restore(MODEL, SEEN, Y[0], Particles(), seeds=[3])
    with pytest.raises(InputError, match=r"is no denoiser, it moves the samples itself: use scoresde\.restore"):
        scoresde.condition(MODEL, SEEN, Y[0], Particles())


def test_files(tmp_path):
    model = Gaussian(torch.zeros(1, 4, 4), 1.0).denoiser(scoresde.VP())
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2] = True
    y = normal(2, 8)
    found = scoresde.restore(model, Inpaint(mask, sigma=0.1), y, samples=3, steps=4)
    found.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as arrays:
        assert arrays["x"].shape == (2, 3, 1, 4, 4)
        assert np.array_equal(arrays["mean"], found.mean)
        assert np.array_equal(arrays["deviation"], found.deviation)
        assert np.array_equal(arrays["seeds"], [0, 1, 2])
        assert np.allclose(arrays["y"], y)
        assert set(arrays) == {"x", "y", "mean", "deviation", "seeds"}
    found.save(tmp_path / "r.npy")
    assert np.array_equal(np.load(tmp_path / "r.npy"), found.x)
    found.save(tmp_path / "r.png", pictures=[1])
    picture = np.array(Image.open(tmp_path / "r.png"))
    assert picture.shape == (64, 4 * 64 + 3 * 2)  # the mean and three draws of one observation
    shown = ((found.mean[1, 0] + 1) * 255 / 2).clamp(0, 255).round().byte().numpy()
    assert np.array_equal(picture[::16, :64:16], shown)
    with pytest.raises(InputError, match="must end with"):
        found.save(tmp_path / "r.jpg")
    assert repr(found).splitlines()[:2] == [
        "Restored: x (2, 3, 1, 4, 4), torch.float32, on cpu",
        "  mmps of inpaint(mask=<4 x 4>, sigma=0.1)",
    ]
    assert f"4 steps, 4 NFE, {found.vjps:g} VJPs" in repr(found)


BARE = scoresde.Denoiser(lambda x, t: x, scoresde.VP())
BAD = [
    (lambda: scoresde.restore(MODEL, SEEN, Y[0][:1]), r"as y \(2,\), or \(n, 2,\) for n of them; got the shape \(1,\)"),
    (lambda: scoresde.restore(MODEL, SEEN, Y / 0), "finite real numbers only"),
    (lambda: scoresde.restore(MODEL, SEEN, "y.npy"), "the observation must be a tensor or a numpy array"),
    (lambda: scoresde.restore(MODEL, SEEN, Y[0], "mmsp"), "did you mean mmps"),
    (lambda: scoresde.restore(MODEL, "inpant(m.npy)", Y[0]), "did you mean inpaint"),
    (lambda: scoresde.restore(MODEL, SEEN, Y[0], "mmps(iterations=0)"), "iterations must be a positive integer"),
    (lambda: scoresde.restore(MODEL, SEEN, Y[0], "dps(scale=-1)"), "scale must be positive"),
    (lambda: scoresde.restore(MODEL, Sense(2), Y[0], "mmps"), r"divides by the noise.*sense\(m=2\) a sigma above 0"),
    (lambda: scoresde.restore(MODEL, "tanh(2)", Y[0], "pigdm"), "needs a linear operator"),
    (lambda: scoresde.restore(MODEL, Quantise(3, sigma=0.1), normal(D)), "gradient of the residual, which is 0"),
    (lambda: scoresde.restore(BARE, SEEN, Y[0]), r"shape is missing"),
    (lambda: scoresde.restore(MODEL, SEEN, Y[0], shape=(5,)), r"shape is \(5,\), but the model's samples have"),
    (lambda: scoresde.restore(MODEL, Matrix(normal(2, 7)), Y[0]), "does not apply to samples"),
    (lambda: scoresde.restore(MODEL, SEEN, Y[0], samples=0), "no seeds"),
    (lambda: scoresde.restore(MODEL, SEEN, Y[0], seeds=[-1]), "a seed must be an integer of at least 0"),
    (lambda: scoresde.restore(MODEL, SEEN, Y, condition={"c": Y[:2]}), "c has 2 rows for 3 samples"),
    (lambda: scoresde.restore(MODEL, SEEN, Y[0], nfe=9, forwards=9), "nfe or forwards, not both"),
    (lambda: scoresde.restore(MODEL, SEEN, Y[0], on_failure="no"), "on_failure"),
    (lambda: scoresde.condition(MODEL, SEEN, Y[0], "mmsp"), "did you mean mmps"),
    (lambda: scoresde.sample(scoresde.condition(MODEL, SEEN, Y), seeds=2, steps=2), "3 rows for 2 samples"),
    (
        lambda: scoresde.restore(MODEL, Custom(lambda x: x.detach()[:, :2], sigma=0.1), Y[0], "dps", steps=2),
        "has no gradient",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input_is_one_clear_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# sliced W1 and total variation on P(4, 0.1) under dpmpp_2m_sde, of 8 observations with 250 draws: bands of a tenth to a
# fifth around single runs of programs that share no code with ours. Their 64 directions are other ones, which matters
# by an eighth: the same draws of mmps have 0.075 by ours and 0.085 by theirs. tmpd has 0.207 and 0.39 there, where
# negative variances do not count as 0.
ROWS = {
    "mmps(iterations=4)": ((0.065, 0.10), (0.18, 0.25)),
    "naive_dps": ((0.028, 0.045), (0.03, 0.07)),
    "pigdm": ((0.17, 0.22), (0.42, 0.52)),
    "tmpd": ((0.12, 0.16), (0.28, 0.37)),
    "dps(scale=0.1)": ((0.08, 0.11), (0.015, 0.05)),
    "jfps": ((0.32, 0.39), (0.66, 0.78)),
    "diffpir": ((0.42, 0.53), (0.72, 0.86)),
    "ddnm": ((0.27, 0.34), (0.58, 0.70)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:tmpd counts negative variances")
@pytest.mark.parametrize("method", ROWS)
def test_scores_against_exact_posteriors(method):
    problem, steps = mixture_problem(4, 0.1), 100 if method.startswith("mmps") else 200
    found = scoresde.restore(
        problem.prior.denoiser(scoresde.VP()),
        problem.operator,
        problem.y,
        method,
        samples=250,
        steps=steps,
        dtype=DTYPE,
    )
    scores = problem.scores(found.x, problem.draws(250, torch.Generator().manual_seed(1)))
    for name, (low, high) in zip(("sw", "tv"), ROWS[method], strict=True):
        assert low < scores[name] < high, scores


class Counted:
    """The model of the tests, which ends the process's patience after some evaluations."""

    sde, shape = MODEL.sde, (D,)

    def __init__(self, most=math.inf):
        self.calls, self.most = 0, most

    def predict(self, x, node):
        self.calls += 1
        if self.calls > self.most:
            raise KeyboardInterrupt
        return MODEL.predict(x, node)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["mmps", "tds(particles=4)"])
def test_finished_batches_are_not_drawn_again(method, dtype, tmp_path):
    how = {"samples": 3, "steps": 8, "batch_size": 2, "dtype": dtype, "parts": Parts(tmp_path / "p", {"model": 1})}
    whole = scoresde.restore(MODEL, SEEN, Y, method, **{**how, "parts": None})
    with pytest.raises(KeyboardInterrupt):
        scoresde.restore(Counted(20), SEEN, Y, method, **how)  # in the third of five batches
    assert [path.name for path in sorted((tmp_path / "p").iterdir())] == ["00000.npz", "00001.npz"]
    model = Counted()
    found = scoresde.restore(model, SEEN, Y, method, **how)
    assert model.calls == 3 * 8
    for name in ("x", "log_evidence", "effective"):
        mine, other = getattr(found, name), getattr(whole, name)
        assert (mine is other is None) or (torch.equal(mine, other) and mine.dtype == other.dtype), name
    assert (found.nfe, found.forwards, found.vjps) == (whole.nfe, whole.forwards, whole.vjps)
    again = scoresde.restore(Counted(0), SEEN, Y, method, **how)
    assert torch.equal(again.x, whole.x)
    assert again.seconds == found.seconds
    how["parts"].remove()
    assert not (tmp_path / "p").exists()


def test_batches_of_another_restoration_are_refused(tmp_path):
    parts = Parts(tmp_path, {"the model": "a"})
    how = {"samples": 2, "steps": 3, "parts": parts}
    scoresde.restore(MODEL, SEEN, Y[0], "mmps", **how)
    other = Matrix(SEEN.values + 1e-9, sigma=0.5)  # the same text
    for name, call in {
        "the operator": lambda: scoresde.restore(MODEL, other, Y[0], "mmps", **how),
        "the observations": lambda: scoresde.restore(MODEL, SEEN, Y[1], "mmps", **how),
        "the method": lambda: scoresde.restore(MODEL, SEEN, Y[0], "jfps", **how),
        "the solver": lambda: scoresde.restore(MODEL, SEEN, Y[0], "mmps", **{**how, "steps": 4}),
        "the seeds": lambda: scoresde.restore(MODEL, SEEN, Y[0], "mmps", **{**how, "samples": 3}),
        "the model": lambda: scoresde.restore(
            MODEL, SEEN, Y[0], "mmps", **{**how, "parts": Parts(tmp_path, {"the model": "b"})}
        ),
    }.items():
        with pytest.raises(InputError, match=f"batches of another restoration: {name} is .* use a different folder"):
            call()
    path = tmp_path / "00000.npz"
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez(path, **{**content, "x": content["x"] + 1})
    with pytest.raises(InputError, match=r"00000.npz is damaged \(its digest is not the recorded one\): remove it"):
        scoresde.restore(MODEL, SEEN, Y[0], "mmps", **how)
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match="is damaged"):
        scoresde.restore(MODEL, SEEN, Y[0], "mmps", **how)
