"""Time labels: the index conventions of public code against their own tables, there and back, and rounding."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import scoresde
import solvers
from scoresde import Denoiser, InputError, label_shift, time_labels
from scoresde.data import load
from scoresde.models import time_labels as labels
from scoresde.models.networks import networks
from scoresde.paths.chain_paths import ChainSDE, SMLDChainSDE
from solvers import Node, grid

pytestmark = pytest.mark.quick

N = 40
CHAIN = ChainSDE(num_train_timesteps=N, beta_end=0.3)
NOISE = SMLDChainSDE(0.01, 20.0, N)
VP, VE, EDM = scoresde.VP(), scoresde.VE(), scoresde.EDM()
SDES = [VP, scoresde.SubVP(), VE, EDM, scoresde.Cosine(), scoresde.RectifiedFlow(), CHAIN, NOISE]
COUNTING = [name for name, label in labels.LABELS.items() if label.trained]


def network(x, label):
    return 0 * x


def seen_by(sde=CHAIN, **options):
    """A denoiser and the list of the labels that its network has seen."""
    seen = []

    def network(x, label):
        seen.append(float(label[0]))
        return torch.tanh(x) + 0.001 * label.view(-1, 1)

    return Denoiser(network, sde, **options), seen


def test_labels_index_the_tables_of_public_code():
    nodes = grid("leading", CHAIN, N)[:-1]  # every node, the noisiest first

    def told(name):
        return time_labels(Denoiser(network, CHAIN, time_label=name), nodes)

    table = np.cumprod(1 - np.linspace(1e-4, 0.3, N))  # alpha^2
    squares = [node.alpha**2 for node in nodes]
    assert [table[int(i)] for i in told("index")] == pytest.approx(squares, rel=1e-12)
    padded = np.concatenate([[1.0], table])
    assert [padded[int(i)] for i in told("index+1")] == pytest.approx(squares, rel=1e-12)
    assert [table[::-1][int(i)] for i in told("reversed_index")] == pytest.approx(squares, rel=1e-12)
    listed = np.geomspace(20.0, 0.01, N)  # of a discrete VE network, the greatest first
    reverse = time_labels(Denoiser(network, NOISE, time_label="reversed_index"), grid("leading", NOISE, N)[:-1])
    assert [listed[int(i)] for i in reverse] == pytest.approx(
        [n.sigma for n in grid("leading", NOISE, N)[:-1]], rel=1e-9
    )
    assert told("index") == list(range(N - 1, -1, -1))
    assert told("index+1") == list(range(N, 0, -1))
    assert told("reversed_index") == list(range(N))


def test_score_sdes_labels():
    # its steps are t = i / (N - 1) on [0, 1]; its discrete VE networks count from the noisiest
    times = np.linspace(0, 1, 1000)
    sigmas = 0.01 * (50 / 0.01) ** times
    for i in (999, 500, 3):
        node = VE(float(times[i]))
        assert float(labels.LABELS["(N-1)t"].of(node, VE, 1000)) == i
        reverse = labels.LABELS["reversed_index"].of(node, VE, 1000)
        assert sigmas[::-1][int(reverse)] == pytest.approx(node.sigma, rel=1e-12)
        assert labels.LABELS["999t"].of(node, VE, 7) == pytest.approx(i, rel=1e-12)


REFUSED = [(EDM, "(N-1)t"), (EDM, "Nt")]


@pytest.mark.parametrize(
    ("sde", "name"), [pair for pair in itertools.product(SDES, labels.LABELS) if pair not in REFUSED], ids=str
)
def test_a_label_has_its_node(sde, name):
    count = 77
    for share in (0.0, 0.07, 0.5, 0.81, 1.0):
        node = sde((1 - share) * sde.t_min + share * sde.t_max)
        label = float(labels.LABELS[name].of(node, sde, count))
        first, last = labels.reached(name, sde, count)
        assert first <= label <= last
        back = labels.node_of_label(name, label, sde, count)
        # sigma of a variance-preserving path nears 1 and forgets t: 1 ulp of it moves t by as much as 1e-16 / sigma'
        flat = 1e-15 / abs(node.dsigma / node.sigma) if "sigma" in name else 0.0
        assert back.t == pytest.approx(node.t, rel=1e-12, abs=1e-12 + 10 * flat)
        tensors = labels.LABELS[name].of(Node.stack([node, node]), sde, count)
        assert tensors.tolist() == pytest.approx([label] * 2, rel=1e-12, abs=1e-12)


def test_labels_outside_the_path_are_refused():
    with pytest.raises(InputError, match=r"the timestep 41 is outside \[0, 39\], where the network was trained"):
        labels.node_of_label("reversed_index", 41, CHAIN, N)
    with pytest.raises(InputError, match=r"the timestep -5 is outside \[-4.60517, 3.91202\]"):
        labels.node_of_label("log_sigma", -5, VE, 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sde": EDM, "time_label": "(N-1)t"},
            r"^the time label '\(N-1\)t' covers \[1.998, 79920\] on edm, but a network of 1000 steps was trained on "
            r"\[0, 999\]$",
        ),
        ({"sde": EDM, "time_label": "Nt", "num_train_timesteps": 10}, r"covers \[0.02, 800\] on edm.*on \[0, 10\]"),
        ({"time_label": "reverse_index"}, "no time label 'reverse_index'; did you mean reversed_index"),
        (
            {"time_label": "t", "round_labels": True},
            r"a label that counts steps \(\(N-1\)t, Nt, index, index\+1, rev.*'t'",
        ),
        ({"round_labels": True, "predicts": "edm"}, "'c_noise' does not"),
        ({"num_train_timesteps": 1}, "num_train_timesteps must be at least 2, got 1"),
        ({"clip": 0.0}, "clip must be a positive number, got 0.0"),
        ({"clip": math.nan}, "clip must be a positive number, got nan"),
        ({"clip": math.inf}, "clip must be a positive number, got inf"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        Denoiser(**{"network": network, "sde": VP, **options})


def test_the_number_of_steps_is_the_sdes_own():
    assert Denoiser(network, CHAIN).train_timesteps == N
    assert Denoiser(network, VP).train_timesteps == 1000
    assert Denoiser(network, VP, num_train_timesteps=7).train_timesteps == 7
    with pytest.raises(InputError, match=r"num_train_timesteps=7, but the chain of ddpm_chain.* has 40"):
        Denoiser(network, CHAIN, num_train_timesteps=7)
    with pytest.raises(InputError, match=r"must be a positive integer, got 2\.5"):
        Denoiser(network, VP, num_train_timesteps=2.5)
    other = replace(Denoiser(network, CHAIN), sde=VP)
    assert other.train_timesteps == 1000
    model, seen = seen_by(time_label="index")
    scoresde.sample(model, (1,), [0], "ddim", "trailing", steps=4)
    assert seen == [39, 29, 19, 9]
    assert str(solvers.grids.make("trailing")) == "trailing"
    assert grid("trailing", CHAIN, 4) == grid(f"trailing(num_train_timesteps={N})", CHAIN, 4)
    assert grid("trailing", VP, 4) == grid("trailing(num_train_timesteps=1000)", VP, 4)
    with pytest.raises(InputError, match="41 steps, but the network has 40 in this range"):
        grid("trailing", CHAIN, 41)


@pytest.mark.parametrize("name", COUNTING)
def test_rounded_labels_are_whole_and_in_range(name):
    model, seen = seen_by(time_label=name, round_labels=True)
    exact, _ = seen_by(time_label=name)
    nodes = grid("karras", CHAIN, 12)
    truth = time_labels(exact, nodes)
    first, last = labels.LABELS[name].trained(N)
    wanted = [float(min(max(round(label), first), last)) for label in truth]
    assert time_labels(model, nodes) == wanted
    assert wanted != truth
    shift = max(abs(a - b) for a, b in zip(wanted, truth, strict=True))
    assert label_shift(model, nodes) == pytest.approx(shift, abs=1e-5)  # those of time_labels are in float32
    assert label_shift(exact, nodes) is None
    result = scoresde.sample(model, (1,), [0], "ddim", "karras", steps=12)
    assert result.label_shift == label_shift(model, nodes)
    assert seen == wanted
    # rounding changes the sample: by what the network makes of the label
    assert float((result.x - scoresde.sample(exact, (1,), [0], "ddim", "karras", steps=12).x).abs()) > 0


def test_the_shift_is_that_of_all_that_the_solve_asked():
    # the grid's nodes are whole, the stages between them are not
    model, seen = seen_by(time_label="index", round_labels=True)
    result = scoresde.sample(model, (1,), [0, 1], "dpmpp_2s", "trailing", steps=5)
    assert label_shift(model, result.nodes) == 0
    assert all(label == round(label) for label in seen)
    plain, exact = seen_by(time_label="index")
    scoresde.sample(plain, (1,), [0], "dpmpp_2s", "trailing", steps=5)
    assert result.label_shift == pytest.approx(max(abs(label - round(label)) for label in exact), abs=1e-5)
    assert 0.05 < result.label_shift <= 0.5
    assert scoresde.sample(plain, (1,), [0], "dpmpp_2s", "trailing", steps=5).label_shift is None
    # a node a sample, in a solver that has no program
    adaptive = scoresde.sample(model, (1,), [0, 1], "rk45(rtol=0.1, atol=0.1)")
    assert 0.05 < adaptive.label_shift <= 0.5
    target = scoresde.targets.Gaussian(torch.zeros(1), 1.0)
    assert scoresde.sample(target.denoiser(CHAIN), (1,), [0], steps=2).label_shift is None


def test_rounding_of_a_node_of_many_times():
    model, seen = seen_by(time_label="index", round_labels=True)
    times = torch.tensor([0.1, 0.512, 0.51, 1.0], dtype=torch.float64)
    rounded = model._labels(CHAIN(times), torch.float64, torch.zeros(4, 1))
    assert rounded.tolist() == [3.0, 19.0, 19.0, 39.0]  # 40 t - 1 = 3, 19.48, 19.4, 39
    assert seen == []
    # a path that goes a rounding beyond its labels keeps to them
    assert labels.rounded("index+1", torch.tensor([0.4, 40.6]), N).tolist() == [1.0, 40.0]


def doubled(v=0.0):
    """A network that learned its variance: eps = tanh(x), and v everywhere."""

    def network(x, label):
        return torch.cat([torch.tanh(x), torch.full_like(x, v)], 1)

    return network


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)], ids=str)
def test_a_learned_variance(shape):
    x = torch.randn(5, *shape, generator=solvers.generator(0), dtype=torch.float64)
    plain = Denoiser(lambda x, label: torch.tanh(x), CHAIN)
    for v, nu in ((-1.0, 0.0), (0.5, 0.75), (1.0, 1.0)):
        model = Denoiser(doubled(v), CHAIN, learned_variance=True)
        found, wanted = model.predict(x, CHAIN(0.5)), plain.predict(x, CHAIN(0.5))
        assert torch.equal(found.nu, torch.full_like(x, nu))
        assert torch.equal(found.x0, wanted.x0)
        assert torch.equal(found.eps, wanted.eps)
        assert torch.equal(model.raw(x, CHAIN(0.5)), torch.tanh(x))
    assert wanted.nu is None
    # linear solvers leave it out
    ours, theirs = (scoresde.sample(m, shape, range(2), "dpmpp_2m", "trailing", 5).x for m in (model, plain))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("v", "fixed"), [(-1.0, "beta_tilde"), (1.0, "beta"), (0.5, "interpolated, interpolation=0.75")]
)
def test_a_learned_variance_that_is_constant_is_the_solvers_own(v, fixed):
    learned = Denoiser(doubled(v), CHAIN, learned_variance=True)
    plain = Denoiser(lambda x, label: torch.tanh(x), CHAIN)
    one = scoresde.sample(learned, (3,), range(4), "ddpm(variance=learned)", "trailing", 20, dtype=torch.float64).x
    other = scoresde.sample(plain, (3,), range(4), f"ddpm(variance={fixed})", "trailing", 20, dtype=torch.float64).x
    assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def test_a_network_that_did_not_learn_its_variance():
    x = torch.zeros(5, 3)
    with pytest.raises(
        InputError,
        match=r"^the network returns \(5, 3\) for samples \(5, 3\); with a learned variance it must return \(5, 6",
    ):
        Denoiser(lambda x, label: x, CHAIN, learned_variance=True).predict(x, CHAIN(0.5))
    with pytest.raises(
        InputError, match=r"samples \(5, 3\): twice as many channels are a learned variance, pass learn"
    ):
        Denoiser(doubled(), CHAIN).predict(x, CHAIN(0.5))


@pytest.mark.parametrize("predicts", ["x0", "eps", "v", "score", "edm"])
def test_clipping(predicts):
    x = 3 * torch.randn(50, 3, generator=solvers.generator(0), dtype=torch.float64)
    plain = Denoiser(lambda x, label: torch.tanh(x), CHAIN, predicts)
    model = replace(plain, clip=0.4)
    for node, wide in ((CHAIN(0.3), CHAIN(0.3)), (CHAIN(torch.full((50,), 0.3, dtype=torch.float64)),) * 2):
        found, free, n = model.predict(x, node), plain.predict(x, node), wide.like(x)
        assert torch.equal(found.x0, free.x0.clamp(-0.4, 0.4))
        assert 0.1 < float((found.x0 != free.x0).double().mean()) < 0.95  # some of it is clipped, some not
        assert torch.allclose(found.eps, (x - n.alpha * found.x0) / n.sigma, rtol=1e-14, atol=0)
        assert torch.equal(model.raw(x, node), found.x0)
    assert model.output == ("x0", 0.5)
    assert plain.output.name == predicts


def test_programs_see_the_clipped_x0():
    # the program runs on raw(x), solvers.solve on predict(x)
    from scoresde.models.problem import Diffusion

    model = Denoiser(lambda x, label: 2 * torch.tanh(3 * x), CHAIN, "eps", "index", clip=0.4)
    x = torch.randn(6, 3, generator=solvers.generator(0), dtype=torch.float64)
    ours = scoresde.sample(model, (3,), range(6), "dpmpp_2m", "trailing", 8, x_init=x, dtype=torch.float64)
    plain = solvers.solve(solvers.make("dpmpp_2m"), Diffusion(model), x, ours.nodes).x
    assert torch.allclose(ours.x, plain, rtol=1e-10, atol=1e-12)
    free = scoresde.sample(replace(model, clip=None), (3,), range(6), "dpmpp_2m", "trailing", 8, x_init=x).x
    assert float((ours.x - free).abs().max()) > 0.1
    both = Denoiser(doubled(1.0), CHAIN, "eps", "index", learned_variance=True, clip=0.4).predict(x, CHAIN(0.9))
    assert float(both.x0.abs().max()) == 0.4
    assert torch.equal(both.nu, torch.ones_like(x))


def test_a_run_has_these_options(tmp_path, capsys):
    from scoresde.cli import parser
    from scoresde.runs import build, config

    network = "--config.model.network=mlp(width=8, depth=1)"
    options = ["round_labels=True", "learned_variance=True", "num_train_timesteps=20", "time_label=index"]
    cfg = config.read_config(
        "default", [network, "--config.model.predicts=eps", *(f"--config.model.{o}" for o in options)]
    )
    model, module = build.build_model(cfg, load("digits").card)
    assert (model.round_labels, model.learned_variance, model.train_timesteps) == (True, True, 20)
    assert model.shape == (1, 8, 8)
    torch.nn.init.normal_(module.leave.weight)
    x = torch.randn(2, 1, 8, 8)
    assert module(x, torch.zeros(2)).shape == (2, 2, 8, 8)
    v = module(x, torch.full((2,), 9.0))[:, 1:]  # 19 (0.5 - 0.001) / 0.999 = 9.49
    assert torch.allclose(2 * model.predict(x, VP(0.5)).nu - 1, v, atol=1e-6)
    run = tmp_path / "run"
    fields = [o for o in options if not o.startswith("learned")]
    arguments = [network, "--config.model.predicts=eps", "--config.training.weighting=eps", "--config.training.steps=2"]
    arguments += ["--config.training.batch_size=8", *(f"--config.model.{o}" for o in fields)]
    assert parser.main(["train", "--config=default", f"--workdir={run}", *arguments]) == 0
    assert parser.main(["sample", f"--workdir={run}", "--seeds=0-1", f"--out={tmp_path / 'out'}"]) == 0
    assert "labels rounded by at most 0." in capsys.readouterr().out
    assert 0 < json.loads((tmp_path / "out" / "samples.json").read_text())["label_shift"] <= 0.5


@pytest.mark.parametrize("sde", [CHAIN, NOISE, scoresde.chains.DDPMChain([0.1, 0.2, 0.3]).sde()], ids=str)
def test_a_network_of_a_chain_sees_its_index_by_default(sde):
    assert Denoiser(network, sde).label == "index"
    assert Denoiser(network, sde, "x0").label == "index"
    assert Denoiser(network, sde, "edm").label == "c_noise"
    assert Denoiser(network, sde, time_label="t").label == "t"
    # the embedding of this library's networks is made for labels of order 1, unless it is scaled
    long = ChainSDE()
    for recipe in ("mlp(width=8, depth=1)", "unet(channels=[16])"):
        assert Denoiser(networks.make(recipe).build((1, 8, 8)), long).label == "t"
    for recipe in ("mlp(width=8, depth=1, label_scale=0.016)", "unet(channels=[16], label_scale=0.001)"):
        built = networks.make(recipe).build((1, 8, 8))
        assert Denoiser(built, long).label == Denoiser(torch.nn.DataParallel(built), long).label == "index"
        assert Denoiser(built, VP).label == "t"


def test_kinds_of_networks_without_a_safe_default_are_refused():
    import diffusers

    unet = diffusers.UNet2DModel(
        8, 1, 1, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )  # fmt: skip
    for sde in (VP, VE, scoresde.RectifiedFlow()):
        with pytest.raises(InputError, match=r"^UNet2DModel of diffusers on .* needs a time_label: index \(trained as"):
            Denoiser(unet, sde)
    assert Denoiser(unet, CHAIN).label == "index"
    assert Denoiser(unet, VP, time_label="index").label == "index"

    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, label):
            return self.inner(x, label).sample

    for inside in (Wrapped(unet), lambda x, label: unet(x, label).sample, torch.nn.DataParallel(Wrapped(unet))):
        with pytest.raises(InputError, match=r"^UNet2DModel of diffusers on .* needs a time_label"):
            Denoiser(inside, VP)
        assert Denoiser(inside, CHAIN).label == "index"
    layer = diffusers.models.resnet.ResnetBlock2D(in_channels=4, groups=2, temb_channels=8)
    assert Denoiser(Wrapped(layer), VP).label == "t"  # a layer in a network of the user's own

    class EDMPrecond(torch.nn.Module):
        pass

    assert Denoiser(EDMPrecond(), EDM, "x0").label == "sigma"
    assert Denoiser(Wrapped(EDMPrecond()), EDM, "x0").label == "sigma"
    with pytest.raises(InputError, match="EDMPrecond contains the preconditioning and returns x0: pass predicts='x0'"):
        Denoiser(EDMPrecond(), EDM, "edm")


def test_labels_beyond_the_networks_embedding_are_told_wherever_it_is_used():
    built = networks.make("mlp(width=8, depth=1)").build((2,))
    denoiser, x = Denoiser(built, VP, time_label="999t", shape=(2,)), torch.randn(4, 2)
    for call in (
        lambda: scoresde.sample(denoiser, (2,), range(4), steps=2),
        lambda: scoresde.encode(denoiser, x, steps=2),
        lambda: scoresde.log_prob(denoiser, x, steps=2),
        lambda: scoresde.sample_with_log_prob(denoiser, (2,), range(4), steps=2),
    ):
        with pytest.warns(UserWarning, match="the labels '999t' reach 999, but the network's embedding is made for"):
            call()
