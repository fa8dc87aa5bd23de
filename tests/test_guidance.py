"""Guidance against closed forms: combinations in every output, orders of solvers, intervals, and what is sampled."""

import functools
import logging
import math
import warnings
from itertools import pairwise

import pytest
import torch

import scoresde
import solvers
from scoresde import InputError, guide, sample
from scoresde.data.conditions import Condition
from scoresde.guidance.base import guidances
from scoresde.models.counting import counted
from scoresde.models.targets import GaussianMixture
from solvers import Node, Prediction
from solvers.types.model_output import Output

VP = scoresde.VP()
BOTH = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.25)
RIGHT, LEFT = (GaussianMixture(torch.tensor([[m]]), 0.25) for m in (1.0, -1.0))
PATHS = {"vp": VP, "ve": scoresde.VE(), "flow": scoresde.RectifiedFlow()}
OUTPUTS = ("x0", "eps", "v", "score", "velocity", "edm")


class Pair(scoresde.Denoiser):
    """A network whose output is exact: of the whole mixture for y = 2, "no class"; else of one of its two parts."""

    def __init__(self, sde=VP, predicts="x0", parts=(LEFT, RIGHT, BOTH), known=True):
        self.parts, output = parts, Output(predicts)

        def network(x, t, y):
            node = Node(*(v.view(-1, *(1,) * (x.ndim - 1)) for v in _numbers(sde, t)))
            found = [part.predict(x, node) for part in parts]
            pick = y.view(-1, *(1,) * (x.ndim - 1))
            x0, eps = (
                torch.where(pick == 2, third, torch.where(pick == 1, second, first))
                for first, second, third in (tuple(p.x0 for p in found), tuple(p.eps for p in found))
            )
            return output.target(x0, eps, node)

        super().__init__(
            network, sde, predicts, "t", sigma_data=0.5,
            conditions=(Condition("y", "class", classes=2),) if known else (), shape=(1,),
        )  # fmt: skip


def _numbers(sde, t):
    nodes, names = [sde(float(value)) for value in t], ("t", "alpha", "sigma", "dalpha", "dsigma")
    return (torch.tensor([getattr(n, k) for n in nodes], dtype=torch.float64) for k in names)


class Exact:
    """The same as an object with ``predict``, without a network."""

    def __init__(self, sde=VP, parts=(LEFT, RIGHT, BOTH), output=None):
        self.sde, self.parts, self.shape = sde, parts, (1,)
        if output is not None:
            self.output = Output(output)
            self.raw = self._raw

    def predict(self, x, node, y):
        if bool((y == y[0]).all()):
            return self.parts[int(y[0])].predict(x, node)
        first, second, third = (part.predict(x, node) for part in self.parts)
        pick = y.view(-1, *(1,) * (x.ndim - 1))
        return Prediction(*(
            torch.where(pick == 2, getattr(third, k), torch.where(pick == 1, getattr(second, k), getattr(first, k)))
            for k in ("x0", "eps")
        ))  # fmt: skip

    def _raw(self, x, node, y):
        found = self.predict(x, node, y)
        return self.output.target(found.x0, found.eps, node.like(x))


NULL = {"y": 2}


def states(count=6, d=1, seed=0):
    return torch.randn(count, d, generator=solvers.generator(seed), dtype=torch.float64)


def classes(count, k=1):
    return torch.full((count,), k)


def guided(spec, model=None, **more):
    return guide(Exact() if model is None else model, spec, null=NULL, **more)


LINEAR = ["cfg(scale=3)", "cfg(scale=3, interval=[0.3, 3])", "cfg(scale=-0.5)", "negative(scale=2)",
          "autoguidance(scale=2.5)",
          "compose(scales=[2.5])"]  # fmt: skip


def made(spec, sde=VP, output=None):
    """A guided model, with what its rule needs."""
    more = {"negative": {"y": torch.tensor([0])}} if "negative" in spec else {}
    more |= {"bad": Exact(sde, (BOTH, BOTH, BOTH), output)} if "auto" in spec else {}
    return guide(Exact(sde, output=output), spec, null=NULL, **more)


@pytest.mark.quick
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spec", LINEAR)
def test_linear_guidance_is_the_same_in_every_output(spec, path):
    """Each output is an affine function of x0: equal up to rounding, times r or 1 / r."""
    sde, x = PATHS[path], states()
    for t in (0.2, 0.5, 0.9):
        node = sde(sde.t_min + t * (sde.t_max - sde.t_min))
        wanted = made(spec, sde).predict(x, node, y=classes(6))
        for name in OUTPUTS:
            model = made(spec, sde, name)
            assert model.output == Output(name)
            read = model.output.read(model.raw(x, node, y=classes(6)), x, node)
            for found in (read, model.predict(x, node, y=classes(6))):
                scale = 1 + max(node.ratio, 1 / node.ratio)
                assert float((found.x0 - wanted.x0).abs().max()) < 1e-12 * scale * (1 + float(wanted.x0.abs().max()))
                assert float((found.eps - wanted.eps).abs().max()) < 1e-12 * scale * (1 + float(x.abs().max()))


@pytest.mark.quick
@pytest.mark.parametrize("output", OUTPUTS)
def test_programs_of_guided_models_are_in_the_networks_output(output):
    """The bits of a program differ from step-by-step ones by rounding; many outputs agree to that."""
    found = sample(made(LINEAR[1], output=output), seeds=5, solver="dpmpp_2m", steps=8, dtype=torch.float64,
                   condition={"y": classes(5)})  # fmt: skip
    wanted = sample(made(LINEAR[1]), seeds=5, solver="dpmpp_2m", steps=8, dtype=torch.float64,
                    condition={"y": classes(5)})  # fmt: skip
    assert float((found.x - wanted.x).abs().max()) < 1e-9
    assert found.nfe == wanted.nfe


@pytest.mark.quick
def test_scales_one_and_zero_are_the_predictions_themselves():
    x, node, y = states(), VP(0.4), classes(6)
    for spec, other in (("cfg(scale=1)", y), ("cfg(scale=0)", classes(6, 2))):
        with counted() as count:
            found = guided(spec).predict(x, node, y=y)
        wanted = Exact().predict(x, node, other)
        assert torch.equal(found.x0, wanted.x0)
        assert torch.equal(found.eps, wanted.eps)
        assert (count.forwards, count.calls) == (6, 1)
    assert guide(Exact(), "cfg(scale=1)").predict(x, node, y=y).x0.equal(found.x0) is False  # needs no null
    drawn = sample(guided("cfg(scale=0)"), seeds=4, solver="heun", steps=5, condition={"y": classes(4)})
    assert drawn.forwards == drawn.nfe
    assert torch.equal(drawn.x, sample(Exact(), seeds=4, solver="heun", steps=5, condition={"y": classes(4, 2)}).x)


@functools.cache
def error(spec, solver, steps, divided=True):
    """The error of a solver at t_min for s = 3 in the interval (0.3, 3), against many steps of the divided solve."""
    model, nodes = guided(spec), solvers.grid("logsnr", VP, steps)
    problem = scoresde.models.problem.Diffusion(model, {"y": classes(1)})
    start = torch.full((1, 1), 0.7 * nodes[0].sigma, dtype=torch.float64)
    if divided:
        return float(solvers.solve(solvers.make(solver), problem, start, nodes).x)
    whole = solvers.Problem()
    whole.path, whole.predict = VP, problem.predict
    return float(solvers.solve(solvers.make(solver), whole, start, nodes).x)


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_dividing_a_solve_at_the_edges_restores_order_two(solver):
    """With steps of 40 to 320 the order is within 0.15 of its limit; across the edges, the worst is below 1.5."""
    spec, steps = "cfg(scale=3, interval=[0.3, 3])", (40, 80, 160, 320)
    exact = error(spec, "rk4", 320)
    for divided in (True, False):
        errors = [abs(error(spec, solver, n, divided) - exact) for n in steps]
        orders = [math.log2(a / b) for a, b in pairwise(errors)]
        if divided:
            assert min(orders) >= 1.85, orders
            assert math.log2(errors[0] / errors[-1]) / 3 >= 1.9, orders
        else:
            assert min(orders) < 1.5, orders


ORDERED = ["ddim", "heun", "dpmpp_2m", "uni_pc", "rk4"]


def check_order(solver, spec, tolerance=0.35):
    """The order of a solver under a guidance, between 40 and 120 steps; at most 3 is asked for."""
    method = solvers.make(solver)
    exact = error(spec, "rk4", 320)
    errors = [abs(error(spec, solver, n) - exact) for n in (40, 120)]
    assert math.log2(errors[0] / errors[1]) / 2 > min(method.order, 4) - tolerance or errors[1] < 1e-10, (
        solver,
        errors,
    )


@pytest.mark.parametrize("spec", ["cfg(scale=3)", "cfg(scale=3, interval=[0.3, 3])"])
@pytest.mark.parametrize("solver", ORDERED)
def test_solvers_keep_their_order_under_guidance(solver, spec):
    check_order(solver, spec)


def deterministic_names():
    for name in solvers.solvers.names("gaussian"):
        method = solvers.make(name)
        if not (method.stochastic or method.adaptive or method.parallel) and method.nodes is None and method.order >= 1:
            yield name


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*LINEAR[:2], "compose(scales=[2.5])"])
@pytest.mark.parametrize("solver", list(deterministic_names()))
def test_every_solver_keeps_its_order_under_every_linear_guidance(solver, spec):
    check_order(solver, spec, 0.5)


@pytest.mark.quick
def test_cfgpp_is_cfg_with_the_stated_scale():
    """In a step of ddim from r_t to r_s: x0 = u + lam (c - u) with the eps of u, written out; and the scale of cfg."""
    model, nodes, lam = Exact(), solvers.grid("karras", VP, 9), 0.6
    x = states() * nodes[0].sigma
    wanted = x
    for t, s in pairwise(nodes):
        u, c = model.predict(wanted, t, classes(6, 2)), model.predict(wanted, t, classes(6))
        by_cfg = guided(f"cfg(scale={lam / (1 - s.ratio / t.ratio)!r})").predict(wanted, t, y=classes(6))
        wanted = s.alpha * (u.x0 + lam * (c.x0 - u.x0)) + s.sigma * u.eps
        if s.sigma > 0:
            assert float((s.alpha * by_cfg.x0 + s.sigma * by_cfg.eps - wanted).abs().max()) < 1e-12 * t.sigma
    found = sample(guided("cfgpp(scale=0.6)"), solver="ddim", grid="karras", steps=9, x_init=x, dtype=torch.float64,
                   condition={"y": classes(6)})  # fmt: skip
    assert float((found.x - wanted).abs().max()) < 1e-12
    assert found.forwards == 2 * found.nfe == 18


def test_what_guidance_samples_is_not_the_tilted_law():
    """Reference values: mean and deviation of p(x|c) guided at s = 2 and 3, for the ODE and the SDE.

    4000 samples: the limits are four standard errors of the mean (sd / 63) and of the deviation (sd / 89), and 0.006
    for the step size, which at 100 steps moves these numbers by less.
    """
    wanted = {("ODE", 2): (1.320, 0.359), ("ODE", 3): (1.519, 0.314), ("SDE", 2): (1.166, 0.440),
              ("SDE", 3): (1.239, 0.431)}  # fmt: skip
    for (kind, s), (mean, deviation) in wanted.items():
        solver = "dpmpp_2m" if kind == "ODE" else "dpmpp_2m_sde"
        found = sample(guided(f"cfg(scale={s})"), seeds=4000, solver=solver, grid="logsnr", steps=100,
                       dtype=torch.float64, condition={"y": classes(4000)}).x  # fmt: skip
        assert abs(float(found.mean()) - mean) < 4 * deviation / 63 + 0.006, (kind, s, float(found.mean()))
        assert abs(float(found.std()) - deviation) < 4 * deviation / 89 + 0.006, (kind, s, float(found.std()))


def test_gaussian_guidance_has_the_derived_deviation():
    """u = N(0, 1), c = N(1, 1/4): the ODE's deviation is sd_c^s sd_u^(1 - s), and the mean of 3.3; both up to t_min."""
    narrow, wide = (GaussianMixture(torch.tensor([[m]]), v) for m, v in ((1.0, 0.25), (0.0, 1.0)))
    model = Exact(parts=(narrow, narrow, wide))
    for s, mean in ((2, 1.377), (3, 1.497)):
        x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) * VP(1.0).sigma
        ends = sample(guide(model, f"cfg(scale={s})", null=NULL), solver="heun", grid="logsnr(end=zero)", steps=400,
                      x_init=x, dtype=torch.float64, condition={"y": classes(2)}).x  # fmt: skip
        # linear in the start: half of the distance of starts +-1 is the deviation. The reference starts at r = 100
        assert float((ends[1] - ends[0]) / 2) == pytest.approx(0.5**s, abs=5e-4)
        assert float(ends.mean()) == pytest.approx(mean, abs=6e-3)


def bayes(x, node):
    return RIGHT.log_prob(x, node) - BOTH.log_prob(x, node) - math.log(2)


@pytest.mark.quick
@pytest.mark.parametrize("output", [None, *OUTPUTS])
def test_the_bayes_classifier_is_cfg(output):
    """grad log p(c|x_t) is the difference of the scores: u + s (sigma^2 / alpha) grad is cfg, to rounding."""

    class Unconditional:
        sde, shape = VP, (1,)

        def predict(self, x, node):
            return BOTH.predict(x, node)

    if output is not None:
        Unconditional.output = Output(output)
        Unconditional.raw = lambda self, x, node: self.output.target(
            BOTH.predict(x, node).x0, BOTH.predict(x, node).eps, node.like(x)
        )
    model = guide(Unconditional(), "classifier(scale=3)", classifier=bayes)
    x = states()
    for t in (0.05, 0.5, 1.0):
        node = VP(t)
        wanted = guided("cfg(scale=3)").predict(x, node, y=classes(6))
        with counted() as count:
            found = model.predict(x, node)
        assert (count.forwards, count.vjps) == (6, 6)
        read = model.output.read(model.raw(x, node), x, node)
        for each in (found, read):
            limit = 1e-12 * (1 + node.ratio + 1 / node.ratio)
            assert float((each.x0 - wanted.x0).abs().max()) < limit
            assert float((each.eps - wanted.eps).abs().max()) < limit
    drawn = sample(model, seeds=3, solver="ddim", steps=6)
    assert (drawn.nfe, drawn.forwards, drawn.vjps) == (6, 6.0, 6.0)
    density = scoresde.log_prob(model, x, "heun", steps=10)
    other = scoresde.log_prob(guided("cfg(scale=3)"), x, "heun", steps=10, condition={"y": classes(6)})
    assert torch.allclose(density.nats, other.nats, rtol=0, atol=1e-9)
    assert density.density == other.density == "guided ode"
    assert scoresde.log_prob(Unconditional(), x, "heun", steps=4).density == "model"


@pytest.mark.quick
def test_a_module_classifies_the_class_of_each_sample():
    class Logits(torch.nn.Module):
        def forward(self, x, t):
            return torch.cat([-x * t[:, None], x * t[:, None]], 1)

    model = guide(Exact(), "classifier(scale=2)", null=NULL, classifier=Logits())
    x, node, y = states(), VP(0.5), torch.tensor([0, 1, 1, 0, 1, 0])
    found = model.predict(x, node, y=y)
    u = Exact().predict(x, node, classes(6, 2))
    slope = torch.where(y == 1, 1.0, -1.0)[:, None] * node.t * (1 - torch.tanh((2 * y - 1)[:, None] * x * node.t))
    assert torch.allclose(found.x0, u.x0 + 2 * node.sigma**2 / node.alpha * slope, atol=1e-12)


@pytest.mark.quick
def test_composition_drops_the_other_conditions():
    """Two conditions of additive scores: u + s_1 (c_1 - u) + s_2 (c_2 - u), each c with the other one empty."""
    conditions = (Condition("a", "class", classes=1), Condition("b", "vector", (1,)))

    def network(x, t, a, b):
        return x + torch.where(a == 0, 3.0, 0.0)[:, None] + torch.nan_to_num(b)

    model = scoresde.Denoiser(network, VP, "x0", conditions=conditions)
    x, b = states(2), torch.full((2, 1), 0.5, dtype=torch.float64)
    with counted() as count:
        found = guide(model, "compose(scales=[2, 3])").predict(x, VP(0.5), a=classes(2, 0), b=b)
    assert torch.allclose(found.x0, x + 2 * 3 + 3 * 0.5, atol=1e-12)
    assert count.calls == 3
    with pytest.raises(InputError, match="other scales than the model conditions, which are a, b"):
        guide(model, "compose(scales=[2])")


def rows_alone(spec, sde=VP, d=3):
    """Whether the rows of a batch have the bits that they have alone, at one node and with a node for each."""
    means = torch.tensor([[-1.0], [1.0]]) * torch.ones(2, d)
    parts = tuple(GaussianMixture(m, 0.25) for m in (means[:1], means[1:], means))
    model = guide(Exact(sde, parts), spec, null=NULL)
    x, y = states(5, d), torch.tensor([0, 1, 1, 0, 1])
    if model.guidance.on([sde(1.0), sde(0.5)]) is not model.guidance:
        return
    nodes = [sde(t) for t in (0.05, 0.3, 0.5, 0.7, 0.95)]
    mixed = model.predict(x, Node.stack(nodes, 2), y=y)
    for i, node in enumerate(nodes):
        alone = model.predict(x[i : i + 1], Node.stack([node], 2), y=y[i : i + 1])
        assert torch.equal(mixed.x0[i : i + 1], alone.x0)
        assert torch.equal(mixed.eps[i : i + 1], alone.eps)
        wanted = model.predict(x[i : i + 1], node, y=y[i : i + 1])
        assert torch.allclose(wanted.x0, alone.x0, rtol=1e-12, atol=1e-12)
        batch = model.predict(x, node, y=y)
        assert torch.allclose(batch.x0[i], wanted.x0[0], rtol=1e-13, atol=1e-13)


@pytest.mark.quick
@pytest.mark.parametrize("path", PATHS)
def test_a_sample_does_not_depend_on_its_batch(path):
    for spec in ("cfg(scale=3, interval=[0.3, 3])", "rescale(cfg(scale=5, interval=[0.3, 3]), phi=0.7)",
                 "apg(scale=4, radius=1)",
                 "zero_star(scale=3, zero_init=0)", "threshold(cfg(scale=5), quantile=0.9)"):  # fmt: skip
        rows_alone(spec, PATHS[path])
    for spec in (
        "cfg(scale=3, interval=[0.3, 3])",
        "cfgpp(scale=0.6)",
        "zero_star(scale=3)",
        "apg(scale=3, momentum=-0.5)",
    ):
        args = {"solver": "ddim", "steps": 6, "dtype": torch.float64}
        model = guided(spec, Exact(PATHS[path]))
        whole = sample(model, seeds=range(5), condition={"y": torch.tensor([0, 1, 1, 0, 1])}, **args).x
        parts = sample(model, seeds=range(5), condition={"y": torch.tensor([0, 1, 1, 0, 1])}, batch_size=2, **args).x
        assert torch.equal(whole, parts), spec


@pytest.mark.quick
def test_nonlinear_rules_are_their_formulas_in_x0():
    d, x, node, y = 4, states(3, 4), VP(0.5), classes(3)
    parts = tuple(
        GaussianMixture(torch.tensor([v]), 0.25) for v in ([-1.0, 0, 2, 1], [1.0, 2, -1, 0], [0.0, 1, 0.5, 0.5])
    )
    model = Exact(parts=parts)
    c, u = (model.predict(x, node, classes(3, k)) for k in (1, 2))
    g = u.x0 + 5 * (c.x0 - u.x0)

    def of(spec):
        found = guide(model, spec, null=NULL).predict(x, node, y=y)
        # the pair is of the state: eps follows x0
        assert torch.allclose(node.alpha * found.x0 + node.sigma * found.eps, x, atol=1e-12)
        return found.x0

    ratio = c.x0.std(1, correction=0, keepdim=True) / g.std(1, correction=0, keepdim=True)
    assert torch.allclose(of("rescale(cfg(scale=5), phi=0.7)"), 0.3 * g + 0.7 * ratio * g, atol=1e-12)
    q = torch.quantile(g.abs(), 0.6, dim=1, keepdim=True).clamp_min(1.0)
    assert torch.allclose(of("threshold(cfg(scale=5), quantile=0.6)"), g.clamp(-q, q) / q, atol=1e-12)
    diff = c.x0 - u.x0
    along = (diff * c.x0).sum(1, keepdim=True) / (c.x0**2).sum(1, keepdim=True) * c.x0
    assert torch.allclose(of("apg(scale=5)"), c.x0 + 4 * (diff - along), atol=1e-12)
    assert torch.allclose(of("apg(scale=5, eta=1)"), g, atol=1e-12)
    small = 0.5 / diff.norm(dim=1, keepdim=True).clamp_min(0.5)
    assert torch.allclose(of("apg(scale=5, eta=1, radius=0.5)"), c.x0 + 4 * small * diff, atol=1e-12)
    vc, vu = (p.velocity(node) for p in (c, u))
    k = (vc * vu).sum(1, keepdim=True) / (vu**2).sum(1, keepdim=True)
    found = guide(model, "zero_star(scale=5, zero_init=0)", null=NULL).predict(x, node, y=y)
    assert torch.allclose(found.velocity(node), k * vu + 5 * (vc - k * vu), atol=1e-11)
    assert d == found.x0.shape[1]


@pytest.mark.quick
def test_zero_star_rests_in_its_first_steps():
    flow = PATHS["flow"]
    states_seen = []
    model = guided("zero_star(scale=3, zero_init=2)", Exact(flow))
    found = sample(model, seeds=3, solver="euler", grid="uniform", steps=10, dtype=torch.float64,
                   condition={"y": classes(3)}, hooks=lambda x, node: states_seen.append(x.clone()))  # fmt: skip
    start = sample(model, seeds=3, solver="euler", grid="uniform", steps=10, dtype=torch.float64,
                   condition={"y": classes(3)}, hooks=lambda x, node: None).x  # fmt: skip
    assert torch.equal(found.x, start)
    # on this path x itself is at rest, up to the distance of t_max from pure noise
    assert float((states_seen[0] - states_seen[1]).abs().max()) < 1e-12
    assert float((states_seen[1] - states_seen[2]).abs().max()) > 1e-3
    assert found.forwards == 2 * (found.nfe - 2)


@pytest.mark.quick
def test_momentum_is_that_of_the_last_step():
    model, nodes = Exact(), solvers.grid("karras", VP, 5)
    x = wanted = states(3) * nodes[0].sigma
    d = torch.zeros(3, 1, dtype=torch.float64)
    for t, s in pairwise(nodes):
        c, u = (model.predict(wanted, t, classes(3, k)) for k in (1, 2))
        d = c.x0 - u.x0 - 0.5 * d
        x0 = c.x0 + 2 * d
        wanted = s.alpha * x0 + s.sigma * (c.eps - t.alpha / t.sigma * (x0 - c.x0))
    model = guided("apg(scale=3, eta=1, momentum=-0.5)")
    for _ in range(2):  # a second solve begins anew
        found = sample(model, solver="ddim", grid="karras", steps=5, x_init=x, dtype=torch.float64,
                       condition={"y": classes(3)})  # fmt: skip
        assert float((found.x - wanted).abs().max()) < 1e-10


@pytest.mark.quick
@pytest.mark.parametrize("solver", ["rk45", "adams_adaptive", "dpm_adaptive", "tsit5"])
def test_adaptive_solvers_cross_intervals(solver):
    """Their own tolerances hold across the edges: the distance to an accurate solve is of the tolerance's size."""
    spec = "cfg(scale=3, interval=[0.3, 3])"
    args = {"seeds": 6, "dtype": torch.float64, "condition": {"y": classes(6)}}
    exact = sample(guided(spec), solver="rk4", grid="logsnr", steps=400, **args)
    method = solvers.make(f"{solver}(rtol=1e-6, atol=1e-6)")
    found = sample(guided(spec), solver=method, **args)
    assert float((found.x - exact.x).abs().max()) < 1e-4
    assert [round(n.ratio, 6) for n in found.nodes[1:-1]] == [3.0, 0.3]
    assert found.nfe < found.forwards < 2 * found.nfe


@pytest.mark.quick
def test_forward_budgets_of_guided_solves():
    for solver in ("ddim", "heun", "dpmpp_2m", "ddpm", "uni_pc"):
        for spec in ("cfg(scale=3)", "cfg(scale=3, interval=[0.3, 3])", "zero_star(scale=3)", "cfgpp"):
            model = guided(spec)
            found = sample(model, seeds=2, solver=solver, forwards=40, condition={"y": classes(2)}, on_failure="keep")
            assert 34 <= found.forwards <= 40, (solver, spec, found.forwards)


@pytest.mark.quick
def test_negative_rows_travel_with_the_samples():
    y = torch.tensor([0, 1, 1, 0])
    model = guide(Exact(), "negative(scale=2)", negative={"y": torch.tensor([1, 0, 2, 1])})
    args = {"solver": "heun", "steps": 5, "dtype": torch.float64}
    whole = sample(model, seeds=4, condition={"y": y}, **args).x
    for i in range(4):
        one = guide(Exact(), "negative(scale=2)", negative={"y": [[1, 0, 2, 1][i]]})
        assert torch.equal(sample(one, seeds=[i], condition={"y": y[i : i + 1]}, **args).x, whole[i : i + 1])
    assert torch.equal(sample(model, seeds=4, condition={"y": y}, batch_size=3, **args).x, whole)
    x, node = states(4), VP(0.4)
    n, c = Exact().predict(x, node, torch.tensor([1, 0, 2, 1])), Exact().predict(x, node, y)
    found = model.predict(x, node, y=y, negative_y=torch.tensor([1, 0, 2, 1]))
    assert torch.allclose(found.x0, n.x0 + 2 * (c.x0 - n.x0), atol=1e-12)


@pytest.mark.quick
def test_encoding_and_density_come_back():
    model, x, y = guided("cfg(scale=3, interval=[0.3, 3])"), states(4), {"y": classes(4)}
    up = scoresde.encode(model, x, "heun", steps=160, condition=y)
    plan = scoresde.plan(model, "heun", "karras(end=t_min)", 160)
    back = sample(model, plan=plan, x_init=up.x, dtype=torch.float64, condition=y)
    assert float((back.x / back.nodes[-1].alpha - x).abs().max()) < 2e-2
    drawn, found = scoresde.sample_with_log_prob(model, seeds=4, steps=200, condition=y, dtype=torch.float64)
    again = scoresde.log_prob(model, drawn, condition=y, steps=200)
    assert found.density == again.density == "guided ode"
    assert float((found.nats - again.nats).abs().max()) < 2e-2
    assert found.forwards < 2 * found.nfe


@pytest.mark.quick
def test_w_is_scale_less_one(caplog):
    with caplog.at_level(logging.INFO, "scoresde"):
        rule = guidances.make("rescale(cfg(w=2), phi=0.5)")
    assert str(rule) == "rescale(inner=cfg(scale=3.0), phi=0.5)"
    assert [r.message for r in caplog.records] == ["cfg: w=2 is scale=3 here: scale 1 is the conditional prediction"]
    assert guidances.make(str(rule)) == rule


@pytest.mark.quick
def test_known_conditions_know_their_null():
    model = Pair()
    assert torch.allclose(guide(model, "cfg(scale=3)").predict(states(), VP(0.5), y=classes(6)).x0,
                          guided("cfg(scale=3)").predict(states(), VP(0.5), y=classes(6)).x0, atol=1e-12)  # fmt: skip
    found = sample(model, seeds=2, solver="ddim", steps=3, guidance="cfg(scale=2)", condition={"y": classes(2)})
    assert found.forwards == 6


@pytest.mark.quick
@pytest.mark.parametrize(
    ("spec", "message", "more"),
    [
        ("cfg(scale=inf)", "cfg: scale must be finite, got inf", {}),
        ("cfg(scale=3, interval=[3, 0.3])", r"interval must have 0 <= lo < hi in sigma / alpha, got \[3, 0.3\]", {}),
        ("cfg(scale=3, interval=[3])", r"interval is \[lo, hi\]", {}),
        ("cfg(scale=3, interval=[500, 900])", "outside of the path, whose noise levels sigma / alpha are", {}),
        ("rescale(cfg(scale=3, interval=[0.0001, 0.001]))", "outside of the path", {}),
        ("cfg(scale=3)", r"needs the prediction without a condition.*pass null=\{name: row\}", {"null": None}),
        ("cfg(scale=3)", "null must name the conditions", {"null": 2}),
        ("cfg(scale=3)", "null has 2 rows of 'y'; give one", {"null": {"y": torch.tensor([2, 2])}}),
        ("negative(scale=3)", r"needs the conditions to be avoided: pass negative=\{name: rows\}", {}),
        ("autoguidance(scale=3)", "needs a worse model: pass bad=", {}),
        ("classifier(scale=3)", "needs a classifier: pass classifier=", {}),
        ("cfg(scale=3)", r"does not use negative=; negative\(scale=...\) does", {"negative": {"y": 1}}),
        ("autoguidance(scale=2)", "both must be on one path", {"bad": Exact(scoresde.VE())}),
        ("cgf(scale=3)", "no guidance 'cgf'; did you mean cfg", {}),
        ("cfg(scal=3)", "no option of cfg 'scal'; did you mean scale", {}),
        ("compose(scales=[])", "scales has no numbers", {}),
    ],
)
def test_bad_input_is_told_in_one_line(spec, message, more):
    with pytest.raises(InputError, match=message) as raised:
        guide(Exact(), spec, **{"null": NULL, **more})
    assert "\n" not in str(raised.value)


@pytest.mark.quick
def test_solvers_that_do_not_suit_a_rule_are_refused():
    args = {"seeds": 2, "condition": {"y": classes(2)}}
    for spec, solver, message in (
        ("cfgpp", "rk45", "cfgpp: its scale depends on the steps, but rk45"),
        ("rescale(cfgpp)", "rk45", "cfgpp: its scale depends on the steps, but rk45"),
        ("zero_star(scale=2)", "rk45", "zero_init=1 counts steps, but rk45"),
        ("apg(scale=3, momentum=-0.5)", "dpmpp_2m", "apg: momentum=-0.5 counts steps"),
        ("apg(scale=3, momentum=-0.5)", "heun", "apg: momentum=-0.5 counts steps"),
    ):
        with pytest.raises(InputError, match=message):
            sample(guided(spec), solver=solver, **args)
    with pytest.raises(InputError, match="a single prediction has none"):
        guided("cfgpp").predict(states(), VP(0.5), y=classes(6))


@pytest.mark.quick
def test_a_network_that_ignores_its_condition_is_told_once():
    model = guide(scoresde.Denoiser(lambda x, t, y: 0.5 * x, VP), "cfg(scale=3)", null=NULL)
    with pytest.warns(UserWarning, match="has no effect: the network predicts the same"):
        sample(model, (2,), 3, "ddim", steps=4, condition={"y": classes(3)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(model, (2,), 3, "ddim", steps=4, condition={"y": classes(3)})


@pytest.mark.quick
def test_cuda_graphs_and_fixed_nodes_do_not_divide(tmp_path):
    model, args = guided("cfg(scale=3, interval=[0.3, 3])"), {"seeds": 2, "condition": {"y": classes(2)}}
    program = solvers.trace(solvers.make("ddim"), solvers.grid("karras", VP, 5), VP)
    (tmp_path / "p.json").write_text(program.to_json())
    with pytest.raises(InputError, match="has fixed nodes, but this model's prediction jumps"):
        sample(model, solver=f"file:{tmp_path / 'p.json'}", **args)
    assert sample(guided("cfg(scale=3)"), solver=f"file:{tmp_path / 'p.json'}", **args).forwards == 10
