"""Solvers behind k-diffusion's signature: the numbers are those of ``solvers.solve`` on EDM's path."""

import math
import sys
from itertools import pairwise

import pytest
import torch
from foreign_loops import LINEAR, VARIANTS, gap, seeded, solved, start

import scoresde
import solvers
from scoresde import InputError
from scoresde.interop import sample_function

pytestmark = pytest.mark.quick

SIGMAS = [14.0, 6.0, 2.5, 1.0, 0.4, 0.1, 0.03]
WIDE = scoresde.EDM(t_min=1e-12, t_max=1e12)
DOUBLE = torch.tensor(SIGMAS, dtype=torch.float64)
TO_ZERO = torch.tensor([*SIGMAS, 0.0], dtype=torch.float64)


def model(x, sigma, bias=0.0):
    """A denoiser (B, *) of x (B, *) at sigma (B,)."""
    level = sigma.view(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x / (1 + level) + 0.3 * x.roll(1, -1) / (1 + level**2) + bias)


def nodes_of(sigmas):
    return [WIDE(sigma) if sigma else WIDE.clean for sigma in sigmas.tolist()]


def drawn(x, generator):
    return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator, dtype=x.dtype)


@pytest.mark.parametrize("spec", LINEAR + [spec for spec in VARIANTS if not spec.startswith("churn")])
@pytest.mark.parametrize("sigmas", [DOUBLE, TO_ZERO], ids=["to the last level", "to zero"])
def test_every_linear_solver(spec, sigmas, monkeypatch):
    x, own = 14 * start(), seeded()
    # draws that belong to no interval are torch's own, here of the same generator
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.randn(x.shape, generator=own, dtype=x.dtype))
    found = sample_function(spec)(model, x, sigmas, disable=True, noise_sampler=drawn(x, own))
    assert (
        gap(found, solved(scoresde.Denoiser(model, WIDE, "x0", "sigma"), spec, nodes_of(sigmas), x, seeded())) < 1e-10
    )


def test_churn_as_karras_et_al_write_it():
    # Karras et al. 2022, algorithm 2, by hand: gamma = min(s_churn / N, sqrt(2) - 1)
    x, count = 14 * start(), len(SIGMAS)
    torch.manual_seed(3)
    found = sample_function("churn(euler, s_churn=2.1)")(model, x, TO_ZERO, disable=True)
    torch.manual_seed(3)
    for sigma, following in pairwise(TO_ZERO):
        hat = sigma * (1 + min(2.1 / count, math.sqrt(2) - 1))
        x = x + torch.sqrt(hat**2 - sigma**2) * torch.randn_like(x)
        x = x + (following - hat) * (x - model(x, hat.expand(2))) / hat
    assert gap(found, x) < 1e-10


def test_dpmpp_2m_as_in_k_diffusion():
    # Lu et al. 2022, arXiv:2211.01095, algorithm 2, in t = -log sigma; the last step, to zero, is the denoiser's answer
    x, old = 14 * start(), None
    found = sample_function("dpmpp_2m")(model, x, TO_ZERO, disable=True)
    for i in range(len(SIGMAS)):
        denoised = model(x, TO_ZERO[i].expand(2))
        if TO_ZERO[i + 1] == 0:
            x = denoised
            break
        h = torch.log(TO_ZERO[i] / TO_ZERO[i + 1])
        slope = denoised
        if old is not None:
            r = torch.log(TO_ZERO[i - 1] / TO_ZERO[i]) / h
            slope = (1 + 1 / (2 * r)) * denoised - old / (2 * r)
        x, old = TO_ZERO[i + 1] / TO_ZERO[i] * x - torch.expm1(-h) * slope, denoised
    assert gap(found, x) < 1e-12


@pytest.mark.parametrize("spec", ["euler", "heun", "dpm_2", "churn(heun, s_churn=2.1)", "pndm", "dpmpp_2m_sde"])
def test_what_the_callback_is_told(spec):
    told, asked = [], []

    def spied(x, sigma, **extra):
        out = model(x, sigma, **extra)
        asked.append((x.clone(), sigma, out))
        return out

    x = 14 * start()
    sample_function(spec)(spied, x, TO_ZERO, {"bias": 0.5}, told.append, True)
    assert [one["i"] for one in told] == list(range(len(SIGMAS)))
    assert [float(one["sigma"]) for one in told] == SIGMAS
    firsts = [next(a for a in asked if a[2] is one["denoised"]) for one in told]
    for one, (x_asked, sigma, _) in zip(told, firsts, strict=True):
        assert torch.equal(one["x"], x_asked)  # kept as it was
        assert sigma.tolist() == [float(one["sigma_hat"])] * 2
        assert torch.equal(one["denoised"], model(x_asked, sigma, bias=0.5))
    hats = [float(one["sigma_hat"]) / sigma for one, sigma in zip(told, SIGMAS, strict=True)]
    assert hats == pytest.approx([1.3 if "churn" in spec else 1.0] * len(SIGMAS))


@pytest.mark.parametrize("spec", ["euler", "heun", "dpmpp_2m"])
def test_what_models_and_callbacks_keep_stays(spec):
    kept, copies, told = [], [], []

    def keeps(x, sigma):
        kept.append(x)
        copies.append(x.clone())
        return x  # its input, of which x0 = x: every state is the first

    x = 14 * start()
    sample_function(spec)(keeps, x, TO_ZERO, callback=lambda one: told.append((one, one["denoised"].clone())))
    assert all(map(torch.equal, kept, copies))
    assert all(torch.equal(one["denoised"], copy) and torch.equal(one["x"], copy) for one, copy in told)
    kept, copies = [], []

    def spied(x, sigma):
        kept.append(x)
        copies.append(x.clone())
        return model(x, sigma)

    sample_function(spec)(spied, x, TO_ZERO)
    assert all(map(torch.equal, kept, copies))
    assert gap(kept[-1], kept[0]) > 0.5  # the states are different ones


def test_intervals_are_told_to_the_noise_sampler():
    intervals, x = [], start()

    def noise(sigma, following):
        intervals.append((float(sigma), float(following)))
        return torch.zeros_like(x)

    sample_function("euler_ancestral")(model, x, TO_ZERO, disable=True, noise_sampler=noise)
    assert intervals == list(pairwise(SIGMAS))  # none to zero, where nothing is drawn


def test_dtypes_and_lists():
    x = 14 * start(dtype=torch.float32)
    sample = sample_function("uni_pc")
    narrow = sample(model, x.bfloat16(), SIGMAS, disable=True)
    assert narrow.dtype == torch.bfloat16
    wide = sample(model, x.bfloat16().double(), DOUBLE, disable=True)
    # the model sees roundings of 2^-9 and answers with them
    assert gap(narrow, wide) < 8 * 2**-9
    assert gap(sample(model, x, SIGMAS, disable=True), sample(model, x.double(), DOUBLE, disable=True)) < 1e-5
    constant = sample(lambda x, sigma: torch.ones_like(x), x.half(), [*SIGMAS, 0], disable=True)
    assert torch.equal(constant, torch.ones_like(constant))
    whole = [sample(model, x, levels, disable=True) for levels in ([14, 6, 1, 0], torch.tensor([14, 6, 1, 0]))]
    assert torch.equal(whole[0], sample(model, x, [14.0, 6.0, 1.0, 0.0], disable=True))
    assert torch.equal(whole[1], whole[0])
    x.requires_grad_()
    assert not sample(model, x, SIGMAS, disable=True).requires_grad


def test_the_bar(capsys, monkeypatch):
    sample_function("heun")(model, start(), TO_ZERO, disable=False)
    assert capsys.readouterr().err == ""  # a log gets lines every so often, not frames
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    sample_function("heun")(model, start(), TO_ZERO, disable=False)
    assert "/7 " in capsys.readouterr().err


def test_names():
    assert sample_function("DPM++ 2M SDE Karras").__name__ == "sample_dpmpp_2m_sde"
    assert sample_function(solvers.make("dpmpp_2m(variant=heun)")).__name__ == "sample_dpmpp_2m"


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0], "list of at least two"),
        (torch.tensor(3.0), "list of at least two"),
        (None, "list of at least two"),
        ("abc", "list of at least two"),
        (torch.ones(2, 2), "list of at least two"),
        ([1.0, 2.0], "strictly descend to at least 0, got 1 and 2 at 0 and 1"),
        ([2.0, 1.0, 1.0], "got 1 and 1 at 1 and 2"),
        ([2.0, 0.0, -1.0], "got 0 and -1 at 1 and 2"),
        ([2.0, math.nan], "got 2 and nan"),
    ],
)
def test_bad_sigmas(sigmas, message):
    with pytest.raises(InputError, match=message):
        sample_function("euler")(model, start(), sigmas, disable=True)


def test_other_bad_input():
    with pytest.raises(InputError, match="rk45 cannot be driven step by step: it chooses each sample's steps"):
        sample_function("rk45")
    with pytest.raises(InputError, match="no solver 'eulr'; did you mean euler"):
        sample_function("eulr")
    with pytest.raises(InputError, match=r"x must be a floating-point tensor, got torch\.int64"):
        sample_function("euler")(model, start().long(), SIGMAS, disable=True)
    with pytest.raises(InputError, match=r"the model returns \(2, 3, 2\) for samples \(2, 3, 4\)"):
        sample_function("euler")(lambda x, sigma: x[..., :2], start(), SIGMAS, disable=True)
