"""Network recipes: what the modules compute, what they learn of time, and what they refuse."""

import os
import subprocess
import sys

import pytest
import torch

import scoresde
from scoresde.data.conditions import Condition
from scoresde.models.faults import time_faults
from scoresde.models.networks import MLP, FourierFeatures, UNet, networks
from scoresde.training.loop import train
from scoresde.training.losses import DSM
from scoresde.training.options import TrainingOptions
from solvers import InputError

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def spread_over_labels(net, x, labels):
    """The largest change of the output over labels, relative to its size."""
    with torch.no_grad():
        outs = [net(x, torch.full((len(x),), label)) for label in labels]
    return max(float((out - outs[0]).abs().max() / outs[0].abs().max()) for out in outs[1:])


def test_specs_round_trip():
    assert networks.names() == ["dit", "mlp", "transformer", "unet"]
    for spec in ("mlp", "mlp(width=64, depth=2)", "unet", "unet(channels=[16, 32, 32], attention=[2], groups=4)"):
        recipe = networks.make(spec)
        assert str(recipe) == spec
        assert networks.make(str(recipe)) == recipe
    assert networks.make("unet(channels=[16])").channels == (16,)
    with pytest.raises(InputError, match=r"did you mean width\?"):
        networks.make("mlp(widht=3)")


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_mlp_starts_as_zero_and_maps_rows_independently(shape):
    net = MLP(width=32, depth=2).build(shape)
    x, label = torch.randn(5, *shape), torch.rand(5)
    assert torch.equal(net(x, label), torch.zeros_like(x))
    torch.nn.init.normal_(net.leave.weight)
    out = net(x, label)
    assert out.shape == x.shape
    alone = torch.cat([net(x[i : i + 1], label[i : i + 1]) for i in range(5)])
    assert torch.allclose(out, alone, atol=1e-5)


def test_mlp_counts_its_parameters():
    # embed, enter, depth blocks of a norm and three linears, norm, leave
    width, size, features, depth = 16, 6, 8, 3
    square = width * width + width
    expected = (features + 1) * width + (size + 1) * width + depth * (2 * width + 3 * square) + 2 * width
    expected += (width + 1) * size
    net = MLP(width=width, depth=depth, time_features=features).build((2, 3))
    assert sum(p.numel() for p in net.parameters()) == expected


def test_fourier_features_are_cosines_and_sines_of_their_frequencies():
    label = torch.tensor([0.0, -0.5, 1.25])
    features = FourierFeatures(6)(label)
    frequencies = torch.tensor([0.25, 4.0, 64.0])
    expected = torch.cat([torch.cos(label[:, None] * frequencies), torch.sin(label[:, None] * frequencies)], 1)
    assert torch.allclose(features, expected, atol=1e-5)


def test_mlp_fits_a_function_of_the_label_alone():
    net = MLP(width=32, depth=1).build((1,))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    label = torch.linspace(-1.5, 1.1, 64)
    wanted = torch.sin(3 * label)[:, None]
    for _ in range(150):
        optimizer.zero_grad()
        error = ((net(torch.ones(64, 1), label) - wanted) ** 2).mean()
        error.backward()
        optimizer.step()
    assert error < 1e-2  # the variance of the target is about 0.5


@pytest.mark.parametrize("recipe", [UNet((16, 32)), UNet((16, 24), attention=(1,), groups=4), UNet((8,), groups=1)])
def test_unet_answers_for_images_and_hears_the_label(recipe):
    net = recipe.build((2, 8, 12))
    x = torch.randn(2, 2, 8, 12)
    assert net(x, torch.zeros(2)).shape == x.shape
    assert spread_over_labels(net, x, (0.0, 0.3, 1.0, -1.0)) > 0.03


def test_single_channel_groups_really_are_blind_to_time():
    # the trap that the recipe refuses, built by hand
    from diffusers import UNet2DModel

    blind = UNet2DModel(
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    x = torch.randn(2, 1, 8, 8)
    assert spread_over_labels(lambda x, label: blind(x, 1000 * label).sample, x, (0.0, 1.0)) < 1e-4
    assert spread_over_labels(UNet((16, 16), groups=8).build((1, 8, 8)), x, (0.0, 1.0)) > 0.03


def test_unet_scales_labels_of_order_one_to_diffusers_steps():
    net = UNet((16,)).build((1, 4, 4))
    x = torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        assert torch.equal(net(x, torch.full((2,), 0.5)), net.backbone(x, torch.full((2,), 500.0)).sample)


def test_networks_serve_a_denoiser():
    net = MLP(width=16, depth=1).build((3,))
    denoiser = scoresde.Denoiser(net, scoresde.VP(), predicts="eps")
    node = denoiser.sde(0.5)
    x = torch.randn(4, 3)
    prediction = denoiser.predict(x, node)
    assert torch.equal(prediction.eps, torch.zeros(4, 3))
    assert torch.allclose(prediction.x0, x / node.alpha)
    with pytest.raises(InputError, match=r"the network rejects samples of shape \(4,\)"):
        denoiser.predict(torch.randn(4, 4), node)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mlp(width=0)", "mlp: width must be a positive integer, got 0"),
        ("mlp(depth=-1)", "mlp: depth"),
        ("mlp(time_features=7)", "must be even, got 7"),
        ("unet(channels=[])", "needs at least one number"),
        ("unet(channels=[16, 0])", "unet: every number of channels"),
        ("unet(layers=0)", "unet: layers"),
        ("unet(groups=0)", "unet: groups"),
        ("unet(channels=[8, 64], groups=8)", "groups=8 must be less than the fewest channels, 8: .* blind to time"),
        ("unet(channels=[4, 64], groups=8)", "blind to time"),
        ("unet(channels=[16, 20], groups=8)", r"channels=\[16, 20\] must be multiples of groups=8"),
        ("unet(attention=[2])", r"attention=\[2\] must be of the resolutions 0 to 1"),
        ("unet(size=huge)", "huge"),
        ("unet(attention=[0], head_channels=24)", "must be multiples of head_channels=24"),
        ("unet(dropout=2)", "unet: dropout must lie in"),
        ("dit(tiny, heads=3)", "dit: width=128 must be a multiple of heads=3"),
    ],
)
def test_bad_options(spec, message):
    with pytest.raises(InputError, match=message):
        networks.make(spec)


def count_of(spec, shape, outputs=1, conditions=()):
    with torch.device("meta"):  # shapes only
        return sum(p.numel() for p in networks.make(spec).build(shape, outputs, conditions).parameters())


def test_published_sizes():
    # millions of weights as published: ADM, ImageNet 64, with 1000 classes (Dhariwal and Nichol 2021, table 4: 296)
    thousand = Condition("y", "class", classes=999)  # and the empty one
    assert round(count_of("unet(size=adm64)", (3, 64, 64), 2, [thousand]) / 1e6) == 296
    # Peebles and Xie 2022, table 4: 33, 130, 458 and 675, with a learned variance on latents and 1000 classes
    for size, millions in (("S", 33), ("B", 130), ("L", 458), ("XL", 675)):
        found = count_of(f"dit({size})", (4, 32, 32), 2, [Condition("y", "class", classes=1000)])
        assert round(found / 1e6) == millions
    # EDM's DDPM++ has 55.7; the docstring says what diffusers' blocks lack
    assert count_of("unet(size=cifar)", (3, 32, 32)) / 1e6 == pytest.approx(55.7, rel=0.03)
    assert count_of("unet(size=cifar, channels=[32, 64], groups=8)", (1, 8, 8)) < 1e7
    assert networks.make("unet(size=adm64, channels=[64, 64])").settings.attention == (1,)


def test_dit_starts_as_zero_and_shares_its_embedding():
    net = networks.make("dit(tiny, depth=2, width=32)").build((2, 8, 8), 1, [Condition("y", "class", classes=3)])
    x, label, y = torch.randn(3, 2, 8, 8), torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0, 1, 3])
    assert torch.equal(net(x, label, y=y), torch.zeros_like(x))
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    # nothing is dropped in training, unlike in diffusers' own embedding; rows are independent
    with torch.no_grad():
        out = net.train()(x, label, y=y)
        assert torch.equal(out, net(x, label, y=y))
        assert torch.allclose(out[1:2], net(x[1:2], label[1:2], y=y[1:2]), atol=1e-5)
    named = [name for name in net.state_dict() if "emb" in name and "pos_embed" not in name]
    assert len(named) == 4  # two layers of one embedding of the time, for all blocks


def ignoring(shape, conditions, outputs, width=4, bias: bool = True):
    """A network of the user's, of which the time and the conditions do not matter."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conditions, self.layer = (
                conditions,
                torch.nn.Conv2d(shape[0], outputs * shape[0], width + 1, 1, 2, bias=bias),
            )

        def forward(self, x, t, **given):
            return self.layer(x)

    return Net()


class Shaped(torch.nn.Linear):
    """A module whose class is the factory."""

    def __init__(self, shape):
        super().__init__(shape[0], shape[0])

    def forward(self, x, label):
        return super().forward(x) * label[:, None]


def no_shape(width=3):
    return torch.nn.Linear(width, width)


def no_default(shape, width):
    return torch.nn.Linear(width, width)


def not_a_module(shape):
    return len(shape)


def broken(shape):
    raise KeyError("weights")


def test_a_factory_of_the_user_is_a_recipe():
    recipe = networks.make("test_networks:ignoring(bias=False)")
    assert str(recipe) == "test_networks:ignoring(bias=False)"
    assert networks.make(str(recipe)) == recipe != networks.make("test_networks:ignoring")
    given = [Condition("y", "class", classes=3)]
    net = recipe.build((2, 8, 8), 2, given)
    assert net.conditions == tuple(given)
    assert net.layer.bias is None
    assert net(torch.randn(3, 2, 8, 8), torch.rand(3), y=torch.zeros(3)).shape == (3, 4, 8, 8)
    assert networks.make("test_networks:Shaped").build((3,))(torch.randn(2, 3), torch.rand(2)).shape == (2, 3)
    for spec, message in [
        ("test_networks:ignoring(width=a)", "option 'width' of test_networks:ignoring takes an integer"),
        ("test_networks:ignoring(widht=2)", r"did you mean width\?"),
        ("test_networks:no_shape", "must have a parameter 'shape'"),
        ("test_networks:no_default", "the parameter 'width' of the network test_networks:no_default needs a default"),
        ("test_networks:torch", "is not a class"),
        ("test_networks:nothing", "cannot import the network"),
    ]:
        with pytest.raises(InputError, match=message):
            networks.make(spec)
    for spec, message in [
        ("test_networks:not_a_module", "must return a torch.nn.Module, got a int"),
        ("test_networks:broken", r"cannot be made for samples \(3,\): KeyError: 'weights'"),
    ]:
        with pytest.raises(InputError, match=message):
            networks.make(spec).build((3,))
    with pytest.raises(InputError, match="test_networks:Shaped has no parameter 'conditions'"):
        networks.make("test_networks:Shaped").build((3,), 1, given)


def test_a_network_that_is_blind_to_time_is_told_before_training():
    shape = (1, 8, 8)
    zero = networks.make("dit(tiny, depth=2, width=32)").build(shape)

    class Trap(torch.nn.Module):
        """A U-Net that normalises single channels; its last layer starts as zero, as many do."""

        def __init__(self):
            super().__init__()
            from diffusers import UNet2DModel

            blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
            self.net = UNet2DModel(in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
                                   norm_num_groups=8, add_attention=False, **blocks)  # fmt: skip
            torch.nn.init.zeros_(self.net.conv_out.weight)
            torch.nn.init.zeros_(self.net.conv_out.bias)

        def forward(self, x, label):
            return self.net(x, 1000 * label).sample

    nets = [
        (Trap(), True),
        (networks.make("test_networks:ignoring").build(shape), True),
        (MLP(width=8, depth=1).build(shape), False),
        (UNet((16,)).build(shape), False),
        (zero, False),
    ]
    state = torch.get_rng_state()
    for net, blind in nets:
        before = {name: value.clone() for name, value in net.state_dict().items()}
        net.train()
        found = time_faults(scoresde.Denoiser(net, "vp", time_label="t"), shape)
        assert [fault.what for fault in found] == ["time"] * blind, net
        assert net.training
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert time_faults(scoresde.targets.Gaussian(torch.zeros(2)).denoiser(scoresde.VP()), (2,)) == []
    net, options = networks.make("test_networks:ignoring").build(shape), TrainingOptions(steps=1, batch_size=4)
    with pytest.warns(UserWarning, match="the network ignores its time label: it cannot learn different noise levels"):
        train(scoresde.Denoiser(net, "vp"), net, torch.randn(8, *shape), DSM(), options, progress=False)


@pytest.mark.long
def test_a_broken_package_is_named_with_its_remedy(tmp_path):
    # as a torchvision for another torch fails; transformers and diffusers import it where it is installed
    package, facts = tmp_path / "torchvision", tmp_path / "torchvision-0.21.0.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.21.0\n")
    code = "from scoresde.models.networks import networks; networks.make('unet').build((1, 8, 8))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("this diffusers does not import torchvision")
    last = done.stderr.strip().splitlines()[-1]
    assert "torchvision is broken in this environment (RuntimeError: operator torchvision::nms does not exist)" in last
    assert "uninstall torchvision (scoresde does not need it)" in last


def test_bad_shapes_and_missing_packages(monkeypatch):
    for shape in ((), (0,)):
        with pytest.raises(InputError, match="mlp needs samples"):
            MLP().build(shape)
    for shape in ((8, 8), (2,), (0, 8, 8)):
        with pytest.raises(InputError, match=r"unet needs samples of shape \(C, H, W\)"):
            UNet().build(shape)
    with pytest.raises(InputError, match=r"3 resolutions needs H and W divisible by 4, got \(1, 8, 6\)"):
        UNet((16, 16, 16)).build((1, 8, 6))
    for shape in ((1, 8, 4), (8, 8)):
        with pytest.raises(InputError, match=r"dit needs samples of shape \(C, H, H\)"):
            networks.make("dit(tiny)").build(shape)
    with pytest.raises(InputError, match="patches of 3 needs H divisible by 3"):
        networks.make("dit(tiny, patch=3)").build((1, 8, 8))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"'dit' needs diffusers: pip install \"scoresde\[images\]\""):
        networks.make("dit(tiny)").build((1, 8, 8))
    with pytest.raises(InputError, match=r'pip install "scoresde\[images\]"'):
        UNet().build((1, 8, 8))


@pytest.mark.parametrize("recipe", [MLP(width=8, depth=1), UNet((16,))], ids=str)
def test_two_outputs_are_one_after_the_other_along_the_channels(recipe):
    x, label = torch.randn(3, 2, 4, 4), torch.rand(3)
    net, one = recipe.build((2, 4, 4), outputs=2), recipe.build((2, 4, 4))
    for module in (net, one):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    weights = net.state_dict()
    # the first half of the last layer's rows is the network of one output
    one.load_state_dict({name: weights[name][: len(value)] for name, value in one.state_dict().items()})
    with torch.no_grad():
        both, first = net(x, label), one(x, label)
    assert both.shape == (3, 4, 4, 4)
    assert torch.allclose(both[:, :2], first, atol=1e-5)
    assert float((both[:, 2:] - both[:, :2]).abs().max()) > 0.1
