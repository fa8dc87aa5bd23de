"""Guidance against closed forms: each rule's prediction in every output, its inputs and its errors."""

import logging
import math
import warnings
from itertools import pairwise

import pytest
import torch
from guided_models import BOTH, LINEAR, NULL, OUTPUTS, PATHS, RIGHT, VP, Exact, classes, guided, made, pair, states

import scoresde
import solvers
from scoresde import InputError, guide, sample
from scoresde.data.conditions import Condition
from scoresde.guidance.base import guidances
from scoresde.models.counting import counted
from scoresde.models.targets import GaussianMixture
from solvers.types.model_output import Output

pytestmark = pytest.mark.quick


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


@pytest.mark.parametrize("output", OUTPUTS)
def test_programs_of_guided_models_are_in_the_networks_output(output):
    """The bits of a program differ from step-by-step ones by rounding; many outputs agree to that."""
    found = sample(made(LINEAR[1], output=output), seeds=5, solver="dpmpp_2m", steps=8, dtype=torch.float64,
                   condition={"y": classes(5)})  # fmt: skip
    wanted = sample(made(LINEAR[1]), seeds=5, solver="dpmpp_2m", steps=8, dtype=torch.float64,
                    condition={"y": classes(5)})  # fmt: skip
    assert float((found.x - wanted.x).abs().max()) < 1e-9
    assert found.nfe == wanted.nfe


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


@pytest.mark.parametrize(("label", "solver"), [("euler_cfg_pp", "euler"), ("dpmpp_2m_cfg_pp", "dpmpp_2m"),
                                                ("euler_ancestral_cfg_pp", "euler_ancestral"),
                                                ("dpmpp_2s_ancestral_cfg_pp", "dpmpp_2s_ancestral")])  # fmt: skip
def test_names_that_end_with_cfg_pp_are_the_solver_with_cfgpp(label, solver):
    args = {"seeds": 3, "grid": "karras", "steps": 7, "dtype": torch.float64, "condition": {"y": classes(3)}}
    for guidance in ("cfg(scale=0.6)", "cfgpp(scale=0.6)"):
        found = sample(pair(), solver=label, guidance=guidance, **args)
        assert torch.equal(found.x, sample(pair(), solver=solver, guidance="cfgpp(scale=0.6)", **args).x)
    for guidance in (None, "autoguidance(scale=2)", "cfg(scale=0.6, interval=[0.3, 3])"):
        with pytest.raises(InputError, match=f"the solver '{label}' needs the scale of its guidance: pass guidance="):
            sample(pair(), solver=label, guidance=guidance, **args)


def bayes(x, node):
    return RIGHT.log_prob(x, node) - BOTH.log_prob(x, node) - math.log(2)


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


def test_w_is_scale_less_one(caplog):
    with caplog.at_level(logging.INFO, "scoresde"):
        rule = guidances.make("rescale(cfg(w=2), phi=0.5)")
    assert str(rule) == "rescale(inner=cfg(scale=3.0), phi=0.5)"
    assert [r.message for r in caplog.records] == ["cfg: w=2 is scale=3 here: scale 1 is the conditional prediction"]
    assert guidances.make(str(rule)) == rule
    # lam of CFG++, the weight of a gradient and that of autoguidance, w of its paper, are scales themselves
    for spec in ("cfgpp(w=0.6)", "classifier(w=2)", "autoguidance(w=2)", "tilt(w=2)"):
        with pytest.raises(InputError, match="'w'"):
            guidances.make(spec)


def test_known_conditions_know_their_null():
    model = pair()
    assert torch.allclose(guide(model, "cfg(scale=3)").predict(states(), VP(0.5), y=classes(6)).x0,
                          guided("cfg(scale=3)").predict(states(), VP(0.5), y=classes(6)).x0, atol=1e-12)  # fmt: skip
    found = sample(model, seeds=2, solver="ddim", steps=3, guidance="cfg(scale=2)", condition={"y": classes(2)})
    assert found.forwards == 6


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


def test_a_network_that_ignores_its_condition_is_told_once():
    model = guide(scoresde.Denoiser(lambda x, t, y: 0.5 * x, VP), "cfg(scale=3)", null=NULL)
    with pytest.warns(UserWarning, match="has no effect: the network predicts the same"):
        sample(model, (2,), 3, "ddim", steps=4, condition={"y": classes(3)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(model, (2,), 3, "ddim", steps=4, condition={"y": classes(3)})


def test_cuda_graphs_and_fixed_nodes_do_not_divide(tmp_path):
    model, args = guided("cfg(scale=3, interval=[0.3, 3])"), {"seeds": 2, "condition": {"y": classes(2)}}
    program = solvers.trace(solvers.make("ddim"), solvers.grid("karras", VP, 5), VP)
    (tmp_path / "p.json").write_text(program.to_json())
    with pytest.raises(InputError, match="has fixed nodes, but this model's prediction jumps"):
        sample(model, solver=f"file:{tmp_path / 'p.json'}", **args)
    assert sample(guided("cfg(scale=3)"), solver=f"file:{tmp_path / 'p.json'}", **args).forwards == 10
