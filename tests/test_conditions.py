"""Conditions: their checks, dropout for guidance, networks that depend on them, and runs that know theirs."""

import copy
import math

import pytest
import torch

import scoresde
from scoresde.data.conditions import Condition, dropped
from scoresde.data.rows import Batch
from scoresde.models.networks import networks
from scoresde.models.networks.conditioning import SelfConditioned, own_estimate
from scoresde.training.objective import Conditioning
from solvers import InputError
from solvers.noise.draws import Draws

pytestmark = pytest.mark.quick

CLASS = Condition("digit", "class", classes=3)
VECTOR = Condition("angle", "vector", (2,))
IMAGE = Condition("mask", "image", (2, 8, 8))
TOKENS = Condition("words", "tokens", (3, 4))
SMALL = "unet(channels=[8, 16], groups=4, attention=[1])"


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def some(condition, count, seed=0):
    """Rows of a condition."""
    source = torch.Generator().manual_seed(seed)
    if condition.kind == "class":
        return torch.randint(condition.classes, (count,), generator=source)
    return torch.randn((count, *condition.shape), generator=source)


def awake(network):
    """The network with random numbers in the layers that start at zero."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "clas"}, r"did you mean class\?"),
        ({"name": "x", "kind": "class", "classes": 2}, "other than x"),
        ({"name": "a b", "kind": "class", "classes": 2}, "'a b'"),
        ({"kind": "class"}, "number of classes of c"),
        ({"kind": "vector", "shape": (2, 3)}, "1 dimensions"),
        ({"kind": "vector", "shape": (0,)}, "every length of the condition c"),
    ],
)
def test_bad_conditions(options, message):
    with pytest.raises(InputError, match=message):
        Condition(**{"name": "c", **options})


def test_rows_that_do_not_suit_a_condition_are_one_clear_line():
    node = scoresde.Denoiser(networks.make("mlp(width=8, depth=1)").build((2,), 1, [CLASS]), "vp", conditions=(CLASS,))
    for rows, message in [
        (torch.tensor([0, 4]), "the condition digit has the classes 0 to 2, and 3 for no class; got 4"),
        (torch.tensor([-1, 0]), "got -1"),
        (torch.tensor([0.0, 1.0]), "whole numbers, the classes, got torch.float32"),
        (torch.tensor([[0], [1]]), r"rows of shape \(\), got \(1,\)"),
    ]:
        with pytest.raises(InputError, match=message):
            scoresde.sample(node, (2,), 2, "ddim", steps=2, condition={"digit": rows})
        with pytest.raises(InputError, match=message):
            scoresde.log_prob(node, torch.randn(2, 2), "heun", steps=2, condition={"digit": rows})
    with pytest.raises(InputError, match="needs the condition 'digit'"):
        scoresde.sample(node, (2,), 2, "ddim", steps=2)
    with pytest.raises(InputError, match=r"did you mean digit\?"):
        scoresde.sample(node, (2,), 2, "ddim", steps=2, condition={"digit": torch.tensor([0, 1]), "digits": [0, 1]})
    VECTOR.check(torch.tensor([[math.nan, math.nan], [0.0, 1.0]]))
    with pytest.raises(InputError, match="row 1 of the condition angle"):
        VECTOR.check(torch.tensor([[0.0, 1.0], [0.0, math.nan]]))


def test_dropout_takes_the_samples_that_the_draws_name():
    rows = {"digit": some(CLASS, 4000), "angle": some(VECTOR, 4000), "other": torch.zeros(4000)}
    draws = Draws.of(seed=3, step=5, count=4000)
    found = dropped(rows, [CLASS, VECTOR], 0.2, draws)
    lost = draws.uniform("conditions", 2)[:, 0] < 0.2
    # a coin for each sample: 800 of 4000 with a deviation of 25, not all or none
    assert abs(int(lost.sum()) - 800) < 100
    assert torch.equal(found["digit"] == 3, lost)
    assert torch.equal(found["digit"][~lost], rows["digit"][~lost])
    assert torch.equal(found["angle"].isnan().all(1), lost)
    assert torch.equal(found["angle"][~lost], rows["angle"][~lost])
    assert found["other"] is rows["other"]
    # a part of the batch, as another process has it
    part = dropped({name: value[7:20] for name, value in rows.items()}, [CLASS, VECTOR], 0.2, draws.part(slice(7, 20)))
    assert torch.equal(part["digit"], found["digit"][7:20])
    assert not torch.equal(lost, Draws.of(3, 6, 4000).uniform("conditions", 2)[:, 0] < 0.2)
    assert dropped(rows, [CLASS], 0.0, draws) == rows


def test_conditions_are_dropped_together_and_one_by_one():
    count, p, each = 6000, 0.1, 0.3
    rows, draws = {"digit": some(CLASS, count), "angle": some(VECTOR, count)}, Draws.of(seed=3, step=5, count=count)
    conditioning = Conditioning((CLASS, VECTOR), p, dropout_each=each)
    found = conditioning(Batch(torch.zeros(count, 2), rows), draws).conditions
    lost = torch.stack([found["digit"] == 3, found["angle"].isnan().all(1)])
    # joint shares of none, the first, the second and both, each to three deviations
    alone, both = (1 - p) * each * (1 - each), p + (1 - p) * each**2
    for what, share in ((~lost.any(0), (1 - p) * (1 - each) ** 2), (lost[0] & ~lost[1], alone), (lost.all(0), both)):
        assert abs(float(what.double().mean()) - share) < 3 * math.sqrt(share * (1 - share) / count)
    # together with the coin of the samples that lose all, which is that of a run without single rates
    together = dropped(rows, [CLASS, VECTOR], p, draws)["digit"] == 3
    assert lost.all(0)[together].all()
    # a row has the same fate alone
    for i in (0, 1, 4321):
        own = Batch(torch.zeros(1, 2), {name: value[i : i + 1] for name, value in rows.items()})
        made = conditioning(own, Draws(3, 5, range(i, i + 1), count)).conditions
        assert torch.equal(made["digit"][0], found["digit"][i])
        assert torch.equal(made["angle"][0].isnan(), found["angle"][i].isnan())
    # a batch of one can lose its condition and can keep it
    ones = [dropped({"digit": torch.tensor([1])}, [CLASS], 0.5, Draws.of(0, step, 1))["digit"] for step in range(40)]
    assert 8 <= sum(int(one) == 3 for one in ones) <= 32
    with pytest.raises(InputError, match=r"condition_dropout_each=0\.1 is for several conditions"):
        Conditioning((CLASS,), 0.1, dropout_each=0.1)
    with pytest.raises(InputError, match=r"condition_dropout_each must lie in \[0, 1\)"):
        Conditioning((CLASS, VECTOR), dropout_each=1.0)


@pytest.mark.parametrize("condition", [CLASS, VECTOR, IMAGE, TOKENS], ids=lambda c: c.kind)
@pytest.mark.parametrize("spec", ["mlp(width=16, depth=1)", SMALL, "dit(tiny, depth=2, width=16)"])
def test_a_network_depends_on_its_condition_row_by_row(spec, condition):
    if condition.kind not in (*networks.make(spec).kinds, "image"):
        with pytest.raises(
            InputError, match=f"takes conditions of the kinds .*; words is of the kind {condition.kind}"
        ):
            networks.make(spec).build((1, 8, 8), 1, [condition])
        return
    network = awake(networks.make(spec).build((1, 8, 8), 1, [condition]))
    x, label, rows = torch.randn(4, 1, 8, 8), torch.rand(4), some(condition, 4)
    changed = rows.clone()
    changed[1] = condition.empty(1)[0]
    changed[2] = (rows[2] + 1) % 3 if condition.kind == "class" else 2 * rows[2] + 1
    with torch.no_grad():
        first = network(x, label, **{condition.name: rows})
        second = network(x, label, **{condition.name: changed})
    assert first.shape == x.shape
    change = (second - first).flatten(1).abs().amax(1) / first.abs().max()
    # rows 1 and 2 move visibly; the others by rounding at most, as the rows of a batch are independent
    assert float(change[1:3].min()) > 1e-3
    assert float(change[[0, 3]].max()) < 1e-5
    with pytest.raises(InputError, match=f"needs the condition {condition.name!r}"):
        network(x, label)
    with pytest.raises(InputError, match=r"did you mean|no condition of the network"):
        network(x, label, **{condition.name: rows, "another": rows})


def test_all_conditions_together_and_an_empty_one_equals_the_null_class():
    network = awake(networks.make(SMALL).build((1, 8, 8), 2, [TOKENS, CLASS, IMAGE, VECTOR]))
    x, label = torch.randn(2, 1, 8, 8), torch.rand(2)
    given = {c.name: some(c, 2) for c in (CLASS, VECTOR, IMAGE, TOKENS)}
    lost = {name: value.clone() for name, value in given.items()}
    lost |= {c.name: c.emptied(given[c.name], torch.tensor([True, False])) for c in (CLASS, VECTOR, IMAGE, TOKENS)}
    empty = {c.name: c.empty(1) for c in (CLASS, VECTOR, IMAGE, TOKENS)}
    with torch.no_grad():
        out, alone = network(x, label, **lost), network(x[:1], label[:1], **empty)
        assert out.shape == (2, 2, 8, 8)
        assert torch.allclose(out[:1], alone, atol=1e-5)
        assert torch.allclose(out[1:], network(x, label, **given)[1:], atol=1e-5)
    # what is learned of an empty row has a gradient
    network(x[:1], label[:1], **empty).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in network.named_parameters() if name.endswith("empty"))


def test_images_have_the_size_of_the_samples():
    with pytest.raises(InputError, match=r"the condition mask \(2, 8, 8\) must have the height and width of samples"):
        networks.make(SMALL).build((1, 4, 4), 1, [IMAGE])
    with pytest.raises(InputError, match="different names"):
        networks.make(SMALL).build((1, 8, 8), 1, [IMAGE, Condition("mask", "vector", (2,))])
    with pytest.raises(InputError, match="one condition of tokens"):
        networks.make(SMALL).build((1, 8, 8), 1, [TOKENS, Condition("more", "tokens", (3, 4))])


def test_a_conditional_network_learns_the_means_of_the_classes():
    # p(x | y) = N(m_y, s^2 I), and without the class a mixture; at a node, E[x0 | x_t, y] is linear in x_t
    means, spread, p = torch.tensor([[-1.5, 0.5], [1.0, 1.0], [0.3, -1.4]]), 0.3, 0.2
    network = networks.make("mlp(width=64, depth=2)").build((2,), 1, [CLASS])
    denoiser = scoresde.Denoiser(network, "vp", predicts="edm", sigma_data=1.0, conditions=(CLASS,))
    untrained = scoresde.Denoiser(copy.deepcopy(network), "vp", predicts="edm", sigma_data=1.0, conditions=(CLASS,))
    conditioning, optimiser = Conditioning((CLASS,), p), torch.optim.Adam(network.parameters(), 4e-3)
    source, count, steps = torch.Generator().manual_seed(1), 256, 400
    for step in range(steps):
        draws = Draws.of(0, step, count)
        digit = torch.randint(3, (count,), generator=source)
        x0 = means[digit] + spread * torch.randn(count, 2, generator=source)
        batch = conditioning(Batch(x0, {"digit": digit}), draws)
        node = denoiser.sde(0.1 + 0.8 * draws.uniform("times")[:, 0])
        wide = node.like(x0)
        x = wide.alpha * x0 + wide.sigma * draws.normal_like(x0)
        error = (denoiser.predict(x, node, **batch.conditions).x0 - x0) / wide.ratio.clamp(max=1.0)
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
        optimiser.zero_grad()
        error.square().mean().backward()
        optimiser.step()
    digit = torch.arange(3).repeat_interleave(200)
    x0, noise = means[digit] + spread * torch.randn(600, 2, generator=source), torch.randn(600, 2, generator=source)
    mixture = scoresde.targets.GaussianMixture(means, torch.tensor(spread**2)).denoiser(denoiser.sde)
    node = denoiser.sde(0.5)
    x = node.alpha * x0 + node.sigma * noise
    gain = node.alpha * spread**2 / (node.alpha**2 * spread**2 + node.sigma**2)
    exact = means[digit] + gain * (x - node.alpha * means[digit])
    with torch.no_grad():
        given = denoiser.predict(x, node, digit=digit).x0
        without = denoiser.predict(x, node, digit=CLASS.empty(600)).x0
        at_first = untrained.predict(x, node, digit=digit).x0
    # root mean squares; five seeds gave at most 0.04 and 0.07, against 0.98 at least between the two
    assert float((given - exact).square().mean().sqrt()) < 0.1
    assert float((without - mixture.predict(x, node).x0).square().mean().sqrt()) < 0.15
    # a network that ignores the class, or is untrained, fails the first
    assert float((without - exact).square().mean().sqrt()) > 0.7
    assert float((at_first - exact).square().mean().sqrt()) > 0.7
    # in eps, at a level where the classes are apart; an untrained network fails at the null, too
    node = denoiser.sde(0.2)
    x, null = node.alpha * x0 + node.sigma * noise, CLASS.empty(600)
    with torch.no_grad():
        right, found, at_first = (m.predict(x, node, digit=null).eps for m in (mixture, denoiser, untrained))
    assert float((found - right).square().mean().sqrt()) < 0.15
    assert float((at_first - right).square().mean().sqrt()) > 0.3


def test_self_conditioning_is_two_evaluations_of_one_network():
    shape = (1, 8, 8)
    inner = awake(networks.make("mlp(width=16, depth=1)").build(shape, 2, [CLASS, own_estimate(shape)]))
    network, calls = SelfConditioned(inner, shape).eval(), []
    inner.register_forward_hook(lambda *_: calls.append(1))
    x, label, digit = torch.randn(4, *shape), torch.rand(4), some(CLASS, 4)
    empty = own_estimate(shape).empty(4)
    first = inner(x, label, digit=digit, estimate=empty)
    second = inner(x, label, digit=digit, estimate=first[:, :1])
    assert torch.equal(network(x, label, digit=digit), second)
    assert float((second - first).abs().max()) > 0.01
    # while training, only the chosen rows, and without a gradient through the first evaluation
    network.train()
    chosen = torch.tensor([1.0, 0.0, 1.0, 0.0])
    out = network(x, label, digit=digit, with_estimate=chosen)
    assert torch.allclose(out, torch.where(chosen.view(-1, 1, 1, 1) > 0, second, first), atol=1e-6)
    assert torch.allclose(network(x, label, digit=digit), first, atol=1e-6)
    out.square().sum().backward()
    mine = [p.grad.clone() for p in inner.parameters()]
    inner.zero_grad()
    estimate = torch.where(chosen.view(-1, 1, 1, 1) > 0, first[:, :1].detach(), empty)
    inner(x, label, digit=digit, estimate=estimate).square().sum().backward()
    assert all(torch.allclose(a, p.grad, rtol=1e-4, atol=1e-5) for a, p in zip(mine, inner.parameters(), strict=True))
    # an evaluation of the model costs two of the network: counted, and taken from a budget
    denoiser = scoresde.Denoiser(SelfConditioned(awake(networks.make("mlp(width=16, depth=1)").build(
        (2,), 1, [own_estimate((2,))])), (2,)), "vp", predicts="edm")  # fmt: skip
    denoiser.network.network.register_forward_hook(lambda *_: calls.append(1))
    for solver, budget in (("ddim", {"forwards": 10}), ("heun", {"steps": 3}), ("rk45", {})):
        calls.clear()
        found = scoresde.sample(denoiser, (2,), 1, solver, **budget)
        assert found.forwards == 2 * found.nfe == len(calls) > 0, solver
        assert found.forwards <= budget.get("forwards", found.forwards)
    # the likelihood is that of the function as a whole: both evaluations are differentiated
    x = torch.randn(3, 2)
    exact = scoresde.log_prob(denoiser, x, "heun", steps=4, divergence="exact")
    plain = scoresde.Denoiser(lambda x, t: denoiser.network(x, t), "vp", predicts="edm", dtype=torch.float32)
    assert torch.allclose(exact.nats, scoresde.log_prob(plain, x, "heun", steps=4, divergence="exact").nats)


def test_half_of_the_samples_get_an_estimate():
    draws, batch = Draws.of(0, 1, 2000), Batch(torch.zeros(2000, 2), {"digit": some(CLASS, 2000)})
    found = Conditioning((CLASS,), 0.3, True)(batch, draws).conditions
    chosen, lost = found["with_estimate"].bool(), found["digit"] == 3
    assert torch.equal(chosen, draws.uniform("conditions", 2)[:, 1] < 0.5)
    # independent of the dropout: of 2000, 300 have both, with a deviation of 16
    assert abs(int((chosen & lost).sum()) - 300) < 64
    for dropout, conditions, message in ((1.0, (CLASS,), r"lie in \[0, 1\)"), (0.1, (), "the data have no conditions")):
        with pytest.raises(InputError, match=message):
            Conditioning(conditions, dropout)
