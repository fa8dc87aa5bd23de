"""Network recipes: what the modules compute, what they learn of time, and what they refuse."""

import sys

import pytest
import torch

import scoresde
from scoresde.models.networks import MLP, FourierFeatures, UNet, networks
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
    assert networks.names() == ["dit", "mlp", "unet"]
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
    ],
)
def test_bad_options(spec, message):
    with pytest.raises(InputError, match=message):
        networks.make(spec)


def test_bad_shapes_and_missing_packages(monkeypatch):
    for shape in ((), (0,)):
        with pytest.raises(InputError, match="mlp needs samples"):
            MLP().build(shape)
    for shape in ((8, 8), (2,), (0, 8, 8)):
        with pytest.raises(InputError, match=r"unet needs samples of shape \(C, H, W\)"):
            UNet().build(shape)
    with pytest.raises(InputError, match=r"3 resolutions needs H and W divisible by 4, got \(1, 8, 6\)"):
        UNet((16, 16, 16)).build((1, 8, 6))
    monkeypatch.setitem(sys.modules, "diffusers", None)
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
