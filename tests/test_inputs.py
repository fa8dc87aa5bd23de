"""Inputs in the forms in which people have them: accepted, with the values of the strict form, or refused in a line."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import scoresde
import solvers
from scoresde.io import inputs
from scoresde.likelihood.log_prob import dequantise
from solvers import InputError

pytestmark = pytest.mark.quick

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
MODEL = scoresde.targets.GaussianMixture(MEANS, 0.04).denoiser(scoresde.VP())


class Labelled(torch.nn.Module):
    """A network that shifts its output by a condition."""

    def forward(self, x, label, shift):
        return x - shift[:, None].to(x)


LABELLED = scoresde.Denoiser(Labelled(), scoresde.VP(), predicts="x0")


def draw(**options):
    return scoresde.sample(MODEL, **{"shape": (2,), "seeds": [0, 1, 2], "solver": "ddim", "steps": 3, **options}).x


@pytest.mark.parametrize(
    "seeds",
    [
        3, np.int64(3), range(3), (0, 1, 2), iter([0, 1, 2]), torch.arange(3), torch.arange(3, dtype=torch.int32),
        np.arange(3), [torch.tensor(0), np.uint8(1), 2],
    ],
    ids=lambda seeds: type(seeds).__name__,
)  # fmt: skip
def test_seeds_of_any_form_are_the_same_seeds(seeds):
    assert torch.equal(draw(seeds=seeds), draw())


@pytest.mark.parametrize("shape", [2, [2], torch.Size([2]), np.array([2]), torch.tensor([2]), None])
def test_a_shape_of_any_form_is_the_same_shape(shape):
    assert torch.equal(draw(shape=shape), draw())  # None: the model states its shape


def test_arrays_go_where_tensors_go():
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    strict = draw(x_init=start)
    assert torch.equal(draw(x_init=start.numpy()), strict)
    assert torch.equal(draw(x_init=start.numpy()[::-1]), draw(x_init=start.flip(0)))  # memory that torch does not take
    assert torch.equal(scoresde.sample(MODEL, x_init=start.numpy(), solver="ddim", steps=3).x, strict)
    ours, code = (scoresde.encode(MODEL, x, "ddim", steps=3).x for x in (start.numpy(), start))
    assert torch.equal(ours, code)
    fixed = {"steps": 4, "divergence": "exact"}
    ours, nats = (scoresde.log_prob(MODEL, x, seeds=s, **fixed).nats for x, s in ((start.numpy(), 3), (start, None)))
    assert torch.equal(ours, nats)
    shift = np.array([0.0, 1.0, 2.0])
    ours, theirs = (
        scoresde.sample(LABELLED, 2, 3, steps=3, condition={"shift": value}).x
        for value in (shift, torch.from_numpy(shift))
    )
    assert torch.equal(ours, theirs)


def test_levels_are_spread_alike_from_arrays_and_numbers_of_seeds():
    spread = dequantise(MEANS, 0.5, [0, 1])
    assert torch.equal(dequantise(MEANS.numpy(), 0.5, 2), spread)
    assert 0 < (spread - MEANS).abs().max() <= 0.25


def test_names_go_where_dtypes_and_devices_go():
    strict = draw(dtype=torch.float64)
    for dtype in ("float64", "torch.float64", "double", np.float64, np.dtype("float64")):
        assert torch.equal(draw(dtype=dtype, device="cpu"), strict)
    assert strict.dtype == torch.float64


def test_a_single_hook_and_the_default_steps():
    seen = []
    draw(hooks=lambda x, node: seen.append(node.t))
    assert len(seen) == 3
    result = scoresde.sample(MODEL, seeds=2)
    assert len(result.nodes) == 21
    assert scoresde.plan(MODEL, "heun").steps == 20


def test_a_spec_goes_where_a_path_goes():
    assert scoresde.Denoiser(Labelled(), "vp(beta_max=10)").sde == scoresde.VP(beta_max=10.0)
    assert scoresde.targets.Gaussian(torch.zeros(2)).denoiser("ve").sde == scoresde.VE()


class Tensors:
    sde = scoresde.VP()

    def predict(self, x, node):
        return x


NET = torch.nn.Linear(2, 2)
REFUSED = {
    "a network": (lambda: scoresde.sample(NET, 2, 3), "Linear has no sde: wrap a network in scoresde.Denoiser("),
    "a class": (lambda: scoresde.sample(Tensors, 2, 3), "a denoiser is an object, got the class Tensors"),
    "a class of paths": (lambda: scoresde.Denoiser(NET, scoresde.VP), "got the class VP: write VP()"),
    "a number": (lambda: scoresde.Denoiser(NET, 3), "sde must be a path such as scoresde.VP(), or its name, got int"),
    "a wrong name": (lambda: scoresde.Denoiser(NET, "vpp"), "no SDE 'vpp'; did you mean vp?"),
    "swapped": (lambda: scoresde.Denoiser(scoresde.VP(), NET), "the first argument of Denoiser is a network"),
    "a class of networks": (lambda: scoresde.Denoiser(torch.nn.Linear, "vp"), "got the class Linear"),
    "a tensor": (lambda: scoresde.sample(Tensors(), 2, 3), "Tensors.predict must return solvers.Prediction(x0, eps)"),
    "a plan": (
        lambda: scoresde.sample(MODEL, 2, 3, scoresde.plan(MODEL, "ddim", steps=3)),
        "the solver is a plan: pass it by name, plan=...",
    ),
    "text in a path": (lambda: scoresde.VP(beta_min="a"), "vp: beta_min must be a number, got 'a'"),
    "nothing in a path": (lambda: scoresde.EDM(t_max=None), "edm: t_max must be a number, got None"),
    "no shape": (lambda: scoresde.sample(scoresde.Denoiser(NET, "vp"), seeds=3), "shape is missing: pass the shape of"),
    "no seeds": (lambda: scoresde.sample(MODEL, 2), "seeds are missing: pass a number of samples such as seeds=16"),
    "an empty shape": (lambda: draw(shape=()), "single numbers have the shape (1,)"),
    "text for a shape": (lambda: draw(shape="2"), "shape must be the shape of one sample, such as (2,)"),
    "seeds of fractions": (lambda: draw(seeds=torch.tensor([0.5])), "integer of at least 0, got 0.5"),
    "text for seeds": (lambda: draw(seeds="12"), "seeds must be a number of samples or a list of integers, got '12'"),
    "a negative number": (lambda: draw(seeds=-3), "got -3"),
    "no number": (lambda: draw(seeds=True), "seeds must be a number of samples or a list of integers, got True"),
    "too many seeds": (lambda: scoresde.log_prob(MODEL, MEANS, seeds=3), "got 3 seeds for 2 samples"),
    "text for a state": (
        lambda: draw(x_init="zeros"),
        "x_init must be a tensor or a numpy array",
    ),
    "integers": (
        lambda: scoresde.encode(MODEL, [[1, 2]]),
        "x must be floats (B, *), at least one sample",
    ),
    "words": (lambda: scoresde.log_prob(MODEL, [["a"]]), "x must be a tensor or a numpy array of numbers"),
    "a dtype": (lambda: draw(dtype="flot32"), "no dtype 'flot32'; did you mean float32"),
    "an integer dtype": (lambda: draw(dtype="int64"), "dtype must be a float type, got torch.int64"),
    "a device": (lambda: draw(device="cudaa"), "device 'cudaa' is not available"),
    "a time that is text": (lambda: draw(t_min="a"), "t_min must be a number, got 'a'"),
    "a time of a plan": (lambda: scoresde.plan(MODEL, t_max=[1]), "t_max must be a number, got [1]"),
    "a deviation": (
        lambda: scoresde.Denoiser(NET, "vp", "edm", sigma_data="a"),
        "sigma_data must be a number, got 'a'",
    ),
    "levels": (lambda: dequantise("a", 0.1, 2), "x must be a tensor or a numpy array of numbers, got 'a'"),
    "too few seeds of levels": (lambda: dequantise(MEANS, 0.1, 3), "got 3 seeds for 2 samples"),
    "nothing to load": (lambda: scoresde.load(None), "load takes the folder of a run, or diffusers:FOLDER, got None"),
    "a variance": (lambda: scoresde.targets.GaussianMixture(MEANS, "a"), "covariances must be numbers, got 'a'"),
    "a hook": (lambda: draw(hooks="print"), "hooks must be functions of (x, node), got 'print'"),
    "a bare condition": (
        lambda: scoresde.sample(LABELLED, 2, 3, condition=torch.zeros(3)),
        "such as condition={'label': labels}; got Tensor of shape (3,)",
    ),
    "a misnamed condition": (
        lambda: scoresde.sample(LABELLED, 2, 3, condition={"shfit": torch.zeros(3)}),
        "no condition of the network 'shfit'; did you mean shift?",
    ),
    "a missing condition": (lambda: scoresde.sample(LABELLED, 2, 3), "the network needs the condition 'shift'"),
    "one row": (
        lambda: scoresde.sample(LABELLED, 2, 3, condition={"shift": torch.zeros(1)}),
        "the condition shift has 1 rows for 3 samples",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_inputs_are_refused_in_one_clear_line(name):
    call, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_inside_a_network_stay_what_they_are():
    class Broken(torch.nn.Module):
        def forward(self, x, label):
            return torch.nn.functional.relu(x, inplce=True)

    with pytest.raises(TypeError, match="inplce"):
        scoresde.sample(scoresde.Denoiser(Broken(), "vp"), 2, 1)


def test_results_show_themselves_in_a_few_lines():
    result = scoresde.sample(MODEL, (2,), 300, "heun", steps=5)
    assert repr(result).startswith("Sample: x (300, 2), torch.float32, on cpu\n  heun on karras, 5 steps, 9 NFE, ")
    found = scoresde.log_prob(MODEL, result.x, steps=4)
    denoiser = scoresde.Denoiser(NET, "vp")
    for shown in (repr(result), repr(found), repr(denoiser), repr(scoresde.plan(MODEL, "heun"))):
        assert len(shown.splitlines()) <= 10
        assert len(shown) < 1000
    assert repr(found) == str(found)
    program = scoresde.plan(MODEL, "heun", steps=5).program()
    assert repr(program) == "<Program heun: 5 steps, 9 NFE, x0>"
    assert "target=GaussianMixture(2 of shape (2,))" in repr(MODEL)
    assert repr(scoresde.targets.Empirical(MEANS)) == "Empirical(2 rows of shape (2,))"


def test_samples_save_themselves(tmp_path):
    result = scoresde.sample(MODEL, seeds=[4, 7], solver="heun", steps=2)
    result.save(tmp_path / "samples.npz")
    saved = np.load(tmp_path / "samples.npz")
    assert np.array_equal(saved["x"], result.x.numpy())
    assert (saved["seeds"].tolist(), saved["nfe"].tolist()) == ([4, 7], [3, 3])
    result.save(str(tmp_path / "x.npy"))
    assert np.array_equal(np.load(tmp_path / "x.npy"), result.x.numpy())
    flat = scoresde.targets.Gaussian(torch.zeros(1, 4, 4), 0.25).denoiser(scoresde.VP())
    scoresde.sample(flat, seeds=4, steps=2).save(tmp_path / "grid.png", low=-2, high=2)
    assert Image.open(tmp_path / "grid.png").size == (130, 130)  # two by two pictures of 64 pixels, two apart
    for path, message in (
        ("x.txt", "must end with .npz, .npy or .png"), ("x.png", "needs samples"), ("none/x.npz", "there is no folder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            result.save(tmp_path / path)


def test_a_number_of_seeds_is_not_a_seed():
    assert inputs.seeds_of(0) == []
    x = scoresde.sample(MODEL, (2,), [4], steps=2).x
    assert not torch.equal(scoresde.sample(MODEL, (2,), 1, steps=2).x, x)
    assert math.isfinite(float(x.sum()))
    assert solvers.generator(4).initial_seed() != solvers.generator(0).initial_seed()


def test_a_shape_with_the_number_of_samples_is_named():
    layers = torch.nn.Linear(4, 3)
    own = scoresde.Denoiser(lambda x, t: layers(torch.cat([x, t[:, None]], 1)), scoresde.VP())
    with pytest.raises(InputError, match=r"called with x \(4, 4, 3\) .*; is the shape of one sample \(3,\), without"):
        scoresde.sample(own, (4, 3), seeds=4)
    with pytest.raises(InputError, match=r"shape \(4, 2\) includes the number of samples: .* one sample, \(2,\)$"):
        scoresde.sample(MODEL, (4, 2), seeds=4)


@pytest.mark.parametrize("network", [lambda x: x, torch.nn.Sequential(torch.nn.Linear(3, 3))])
def test_a_network_without_a_time_is_named(network):
    own = scoresde.Denoiser(network, scoresde.VP())
    for call in (lambda: scoresde.sample(own, (3,), 4), lambda: scoresde.check(own, torch.randn(4, 3))):
        with pytest.raises(InputError, match=r"does not take .* the time: for a network without time pass lambda x, t"):
            call()


def test_log_prob_warns_of_data_that_are_not_scaled(recwarn):
    how = {"steps": 4, "divergence": "exact"}
    x = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
    x[0] = torch.tensor([0.0, 1.0])
    known = scoresde.Denoiser(lambda x, t: 0.5 * x, scoresde.VP(), data_range=(-1.0, 1.0))
    edm = scoresde.Denoiser(lambda x, t: 0.5 * x, scoresde.EDM(), "edm", sigma_data=0.5)
    plain = scoresde.Denoiser(lambda x, t: 0.5 * x, scoresde.VP())
    for model, data, message in (
        (known, 255 * x, "x ranges from 0 to 255, the training data from -1 to 1; log p is the density of scaled data"),
        (known, x, "x ranges from 0 to 1, the training data from -1 to 1"),
        (edm, 255 * x, r"sigma_data of the model is 0\.5; log p is the density of scaled data"),
        (plain, (255 * x).round(), "x are whole numbers from 0 to 255; log p"),
    ):
        with pytest.warns(UserWarning, match=message):
            scoresde.log_prob(model, data, **how)
    recwarn.clear()
    for model in (known, edm, plain):
        scoresde.log_prob(model, 2 * x - 1, **how)
    scoresde.log_prob(plain, (255 * x).round(), bin_width=1.0, **how)
    assert [str(each.message) for each in recwarn if "scaled data" in str(each.message)] == []
