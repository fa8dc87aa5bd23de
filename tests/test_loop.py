"""The loop: what it counts, calls and refuses; one step of every solver by hand."""

import math
from fractions import Fraction

import pytest
import torch

import scoresde
import solvers
from solvers import InputError, SeededNoise, evaluations, generator, grid, solve, steps_of_nfe
from solvers.conformance.problems import VE, VP, Mixture
from solvers.one_step.coefficients import phi1, phi2

pytestmark = pytest.mark.quick

SDES = [scoresde.VP(), scoresde.VE(), scoresde.RectifiedFlow(), scoresde.SubVP()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=str)


def start(node, n=6, shape=(2,)):
    x = torch.randn(n, *shape, generator=generator(1), dtype=torch.float64)
    return math.hypot(node.alpha, node.sigma) * x


def noise(n=6, shape=(2,)):
    return SeededNoise(range(n), shape, dtype=torch.float64)


class Recording:
    """A problem that keeps what it was asked."""

    def __init__(self, problem):
        self.problem, self.asked = problem, []
        self.node, self.node_of_lam = problem.node, problem.node_of_lam

    def predict(self, x, node):
        self.asked.append((x.clone(), node))
        return self.problem.predict(x, node)


# evaluations


@pytest.mark.parametrize(
    ("solver", "grid_spec", "steps", "nfe"),
    [
        ("euler", "uniform", 7, 7),
        ("euler", "karras", 7, 7),
        ("heun", "uniform", 7, 14),
        ("heun", "karras", 18, 35),  # Karras et al. 2022: 18 steps, 35 evaluations
        ("heun", "karras", 1, 1),
        ("dpmpp_2m", "logsnr", 20, 20),
        ("pc(corrector_steps=2)", "uniform", 5, 15),
        ("pc(corrector_steps=2)", "karras", 5, 13),  # the last step, to sigma = 0, has no corrector
        ("pc(predictor=heun, corrector_steps=1)", "karras", 5, 13),
    ],
)
def test_evaluations_are_counted_as_they_are_made(solver, grid_spec, steps, nfe):
    solver = solvers.make(solver)
    nodes = grid(grid_spec, scoresde.VP(), steps)
    problem = Recording(Mixture(scoresde.VP()))
    solution = solve(solver, problem, start(nodes[0]), nodes, noise())
    assert solution.nfe.tolist() == [nfe] * 6
    assert len(problem.asked) == nfe
    assert evaluations(solver, scoresde.VP(), nodes) == nfe


@pytest.mark.parametrize("name", ["rk45", "dopri5"])
def test_an_adaptive_solver_counts_for_each_sample(name):
    solver, nodes = solvers.make(f"{name}(rtol=1e-6, atol=1e-6)"), grid("uniform", VP, 1)
    x = torch.tensor([[0.0], [0.37], [20.0]], dtype=torch.float64)
    together = solve(solver, Mixture(VP), x, nodes)
    counts = []
    for row in x:
        problem = Recording(Mixture(VP))
        alone = solve(solver, problem, row.unsqueeze(0), nodes)
        counts.append(len(problem.asked))
        assert alone.nfe.tolist() == counts[-1:]
    assert together.nfe.tolist() == counts
    assert len(set(counts)) > 1


def test_a_budget_is_spent_as_far_as_it_goes():
    sde, karras, uniform = scoresde.VP(), solvers.grids.make("karras"), solvers.grids.make("uniform")
    heun, pc = solvers.make("heun"), solvers.make("pc(corrector_steps=2)")
    # heun takes 2 n - 1 to zero and 2 n to t_min; pc takes 3 n - 2 and 3 n
    for nfe, wanted in [(1, 1), (2, 1), (3, 2), (18, 9), (19, 10), (20, 10), (35, 18)]:
        assert steps_of_nfe(heun, karras, sde, nfe) == wanted == (nfe + 1) // 2
    for nfe, wanted in [(2, 1), (3, 1), (4, 2), (20, 10)]:
        assert steps_of_nfe(heun, uniform, sde, nfe) == wanted
    for nfe, wanted in [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)]:
        assert steps_of_nfe(pc, karras, sde, nfe) == wanted
    assert steps_of_nfe(solvers.make("euler"), uniform, sde, 50, t_min=0.2, t_max=0.4) == 50


@pytest.mark.parametrize("solver", ["ddim", "heun", "pndm", "dpm_fast", "restart", "pc(corrector_steps=3)"])
def test_a_budget_gives_the_largest_number_of_steps(solver, monkeypatch):
    sde, rule, solver = scoresde.VP(), solvers.grids.make("karras"), solvers.make(solver)
    cost = {steps: evaluations(solver, sde, rule.nodes(sde, steps)) for steps in range(1, 32)}
    for nfe in range(cost[1], 31):
        assert steps_of_nfe(solver, rule, sde, nfe) == max(steps for steps in cost if cost[steps] <= nfe), nfe
    counted = []
    monkeypatch.setattr(solvers.budget, "evaluations", lambda *parts: counted.append(parts) or evaluations(*parts))
    steps_of_nfe(solver, rule, sde, 200)
    assert len(counted) <= 5  # bisection takes 9


@pytest.mark.parametrize(
    ("solver", "nfe", "message"),
    [
        ("heun", 1, "nfe=1 is too small for heun: one step takes 2"),
        ("pc(corrector_steps=4)", 4, "nfe=4 is too small for .* one step takes 5"),
        ("rk45", 50, "rk45 chooses its own steps, so nfe=50 cannot be set; use its tolerances"),
        ("heun", 0, "nfe must be a positive integer, got 0"),
        ("heun", 2.5, "nfe must be a positive integer, got 2.5"),
        ("heun", True, "nfe must be a positive integer, got True"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(solver, nfe, message):
    with pytest.raises(InputError, match=message):
        steps_of_nfe(solvers.make(solver), solvers.grids.make("uniform"), scoresde.VP(), nfe)


# hooks and errors


def test_hooks_see_every_node_and_can_replace_the_state():
    nodes = grid("karras", scoresde.VP(), 4)
    problem, seen = Recording(Mixture(scoresde.VP())), []

    def watch(x, node):
        seen.append((x.clone(), node))

    def replace(x, node):
        return torch.full_like(x, node.sigma)

    solution = solve(solvers.make("euler"), problem, start(nodes[0]), nodes, hooks=(watch, replace))
    assert tuple(node for _, node in seen) == nodes[1:]
    for (x, node), before in zip(problem.asked[1:], nodes[1:], strict=False):
        assert node == before
        assert torch.equal(x, torch.full_like(x, before.sigma))
    assert torch.equal(solution.x, torch.zeros(6, 2, dtype=torch.float64))  # replaced after the last step as well
    assert solution.node == nodes[-1]
    # the first hook saw what the solver made, before it was replaced
    eps = Mixture(scoresde.VP()).predict(start(nodes[0]), nodes[0]).eps
    wanted = nodes[1].alpha * (start(nodes[0]) / nodes[0].alpha + (nodes[1].ratio - nodes[0].ratio) * eps)
    assert torch.allclose(seen[0][0], wanted, rtol=1e-13, atol=1e-13)


STOCHASTIC = ["ddpm", "ddim(eta=0.1)", "euler_maruyama", "reverse_diffusion", "pc", "pc(predictor=heun)"]


@pytest.mark.parametrize("spec", STOCHASTIC)
def test_a_stochastic_solver_needs_noise_and_cannot_encode(spec):
    solver, nodes = solvers.make(spec), grid("uniform", VP, 3)
    with pytest.raises(InputError, match="draws noise: give it a noise source"):
        solve(solver, Mixture(VP), start(nodes[0]), nodes)
    with pytest.raises(InputError, match="draws noise and cannot encode; use a deterministic solver"):
        solve(solver, Mixture(VP), start(nodes[0]), nodes[::-1], noise())


def test_unordered_nodes_are_not_solved_on():
    nodes = grid("uniform", VP, 3)
    with pytest.raises(InputError, match=r"nodes 1 and 2 .* are out of order"):
        solve(solvers.make("euler"), Mixture(VP), start(nodes[0]), [nodes[0], nodes[2], nodes[1], nodes[3]])
    with pytest.raises(InputError, match="has 1 node"):
        solve(solvers.make("euler"), Mixture(VP), start(nodes[0]), nodes[:1])


def test_a_grid_in_pieces_is_the_grid():
    nodes = grid("uniform", VP, 6)
    whole = solve(solvers.make("heun"), Mixture(VP), start(nodes[0]), nodes).x
    half = solve(solvers.make("heun"), Mixture(VP), start(nodes[0]), nodes[:4]).x
    assert torch.equal(solve(solvers.make("heun"), Mixture(VP), half, nodes[3:]).x, whole)


# one step by hand; equalities hold to the rounding of a few float64 operations on numbers of order at most 50


def close(a, b, tolerance=1e-12):
    scale = float(b.abs().max())
    return float((a - b).abs().max()) <= tolerance * max(scale, 1.0)


def advance(spec, sde, nodes):
    return solve(solvers.make(spec), Mixture(sde), start(nodes[0]), nodes, noise()).x


@each_sde
def test_euler_is_ddim_without_noise(sde):
    nodes = grid("karras", sde, 12)
    assert close(advance("euler", sde, nodes), advance("ddim", sde, nodes))


@each_sde
def test_ddpm_is_ddim_with_eta_one(sde):
    nodes = grid("uniform", sde, 12)
    assert close(advance("ddpm", sde, nodes), advance("ddim(eta=1)", sde, nodes))
    assert not close(advance("ddpm", sde, nodes), advance("ddim(eta=0.9)", sde, nodes), 1e-3)
    assert not close(advance("ddpm", sde, nodes), advance("ddpm(variance=beta)", sde, nodes), 1e-3)


@each_sde
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_is_the_published_ancestral_step(sde, eta):
    # k-diffusion's form, with Karras' sigma: x + (down - sigma) d + up z in the coordinates x / alpha
    t, s = nodes = (sde(0.6), sde(0.35))
    up = eta * s.ratio * math.sqrt(1 - (s.ratio / t.ratio) ** 2)
    down = math.sqrt(s.ratio**2 - up**2)
    x, z = start(t), noise()(t, s)
    x0 = Mixture(sde).predict(x, t).x0
    wanted = s.alpha * (x0 + down / t.ratio * (x / t.alpha - x0) + up * z)
    assert close(advance(f"ddim(eta={eta})", sde, nodes), wanted)


@each_sde
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_ddpm_is_the_posterior_of_the_chain(sde, variance):
    # the product of the Gaussians q(x_t | x_s) and q(x_s | x0), by precisions
    t, s = nodes = (sde(0.6), sde(0.35))
    a = t.alpha / s.alpha
    beta = t.sigma**2 - a**2 * s.sigma**2
    precision = a**2 / beta + 1 / s.sigma**2
    x, z = start(t), noise()(t, s)
    mean = (a / beta * x + s.alpha / s.sigma**2 * Mixture(sde).predict(x, t).x0) / precision
    spread = math.sqrt(1 / precision if variance == "beta_tilde" else beta)
    assert close(advance(f"ddpm(variance={variance})", sde, nodes), mean + spread * z)


def test_ddpm_is_algorithm_2_on_the_vp_path():
    # Ho et al. 2020: (x - beta / sqrt(1 - abar) eps) / sqrt(1 - beta) + sqrt(beta) z
    sde = scoresde.VP()
    t, s = nodes = (sde(0.6), sde(0.58))
    beta = 1 - (t.alpha / s.alpha) ** 2
    x, z = start(t), noise()(t, s)
    eps = Mixture(sde).predict(x, t).eps
    wanted = (x - beta / math.sqrt(1 - t.alpha**2) * eps) / math.sqrt(1 - beta) + math.sqrt(beta) * z
    assert close(advance("ddpm(variance=beta)", sde, nodes), wanted)


def test_reverse_diffusion_is_its_published_special_forms():
    # Song et al. 2021: VP (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z; VE x + d score + sqrt(d) z
    vp, ve = scoresde.VP(), scoresde.VE()
    t, s = nodes = (vp(0.6), vp(0.58))
    beta = 1 - (t.alpha / s.alpha) ** 2
    x, z = start(t), noise()(t, s)
    score = Mixture(vp).predict(x, t).score(t)
    wanted = (2 - math.sqrt(1 - beta)) * x + beta * score + math.sqrt(beta) * z
    assert close(advance("reverse_diffusion", vp, nodes), wanted)
    t, s = nodes = (ve(0.6), ve(0.58))
    gap = t.sigma**2 - s.sigma**2
    x = start(t)
    wanted = x + gap * Mixture(ve).predict(x, t).score(t) + math.sqrt(gap) * z
    assert close(advance("reverse_diffusion", ve, nodes), wanted)


def test_euler_maruyama_steps_with_the_grids_spacing():
    vp, ve = scoresde.VP(), scoresde.VE()
    t, s = nodes = (vp(0.6), vp(0.53))
    beta = 0.1 + 0.6 * (20 - 0.1)
    x, z = start(t), noise()(t, s)
    score = Mixture(vp).predict(x, t).score(t)
    wanted = x + (-0.5 * beta * x - beta * score) * (0.53 - 0.6) + math.sqrt(beta * (0.6 - 0.53)) * z
    assert close(advance("euler_maruyama", vp, nodes), wanted)
    t, s = nodes = (ve(0.6), ve(0.53))
    g2 = 2 * math.log(50 / 0.01) * t.sigma**2
    x = start(t)
    score = Mixture(ve).predict(x, t).score(t)
    wanted = x - g2 * score * (0.53 - 0.6) + math.sqrt(g2 * (0.6 - 0.53)) * z
    assert close(advance("euler_maruyama", ve, nodes), wanted)


@each_sde
def test_heun_is_karras_algorithm_1(sde):
    t, s = nodes = (sde(0.6), sde(0.35))
    x, problem = start(t), Mixture(sde)
    y, h = x / t.alpha, s.ratio - t.ratio
    d = (y - problem.predict(x, t).x0) / t.ratio
    euler = y + h * d
    d_next = (euler - problem.predict(s.alpha * euler, s).x0) / s.ratio
    assert close(advance("heun", sde, nodes), s.alpha * (y + h * (d + d_next) / 2))


@each_sde
@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_dpmpp_2m_is_its_two_published_steps(sde, variant):
    r, t, s = nodes = (sde(0.7), sde(0.55), sde(0.35))
    x, problem = start(r), Mixture(sde)
    first = problem.predict(x, r).x0
    y = (t.sigma / r.sigma) * x - t.alpha * (math.exp(r.lam - t.lam) - 1) * first
    second = problem.predict(y, t).x0
    h_before, h = t.lam - r.lam, s.lam - t.lam
    slope = (second - first) / (h_before / h)  # D1 over r = h_before / h, of Lu et al. 2022
    phi_1, phi_2 = 1 - math.exp(-h), (math.exp(-h) - 1) / h + 1
    weight = phi_1 / 2 if variant == "midpoint" else phi_2
    wanted = (s.sigma / t.sigma) * y + s.alpha * (phi_1 * second + weight * slope)
    assert close(advance(f"dpmpp_2m(variant={variant})", sde, nodes), wanted)


def test_pc_is_a_predictor_and_langevin_steps_with_each_samples_norms():
    sde = scoresde.VP()
    t, s = nodes = (sde(0.6), sde(0.55))
    draws, x, problem = noise(), start(t), Mixture(sde)
    z = draws(t, s)
    beta = 1 - (t.alpha / s.alpha) ** 2
    x = (2 - math.sqrt(1 - beta)) * x + beta * problem.predict(x, t).score(t) + math.sqrt(beta) * z
    for _ in range(2):
        z, score = draws(s, s), problem.predict(x, s).score(s)
        step = torch.stack([2 * (0.2 * z[i].norm() / score[i].norm()) ** 2 for i in range(6)]).unsqueeze(1)
        x = x + step * score + torch.sqrt(2 * step) * z
    assert close(advance("pc(corrector=langevin(snr=0.2), corrector_steps=2)", sde, nodes), x)


@pytest.mark.parametrize("spec", ["heun", "dpmpp_2m", "ddpm", "euler_maruyama", "reverse_diffusion", "pc", "rk45"])
def test_the_last_step_is_the_prediction(spec):
    nodes = (VE(VE.t_min), VE.clean)
    x = start(nodes[0])
    assert torch.equal(solve(solvers.make(spec), Mixture(VE), x, nodes, noise()).x, Mixture(VE).predict(x, nodes[0]).x0)


@pytest.mark.parametrize("h", [1e-8, 1e-4, 0.049, 0.051, 1.0, 30.0, -0.02, -3.0])
def test_phi_functions_do_not_cancel(h):
    # their series, summed exactly: phi1 = h - h^2/2 + ..., phi2 = h/2 - h^2/6 + ...
    exact = Fraction(h)
    series = [sum((-1) ** (k + 1) * exact**k / math.factorial(k + j) for k in range(1, 140)) for j in (0, 1)]
    assert phi1(h) == pytest.approx(float(series[0]), rel=4e-16)
    assert phi2(h) == pytest.approx(float(series[1]), rel=2e-14)  # the sum's last term is below h^9 / 11!


@pytest.mark.parametrize("name", ["rk45", "dopri5"])
def test_a_tolerance_bounds_the_error(name):
    # Gaussian data N(0, 0.09): the solution scales with the standard deviation
    problem, nodes = Mixture(VP, (0.0,), (1.0,), 0.09), grid("uniform", VP, 1)
    x = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    deviations = [math.sqrt(node.alpha**2 * 0.09 + node.sigma**2) for node in nodes]
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        solver = solvers.make(f"{name}(rtol={tolerance}, atol={tolerance})")
        errors.append(float((solve(solver, problem, x, nodes).x - x * deviations[1] / deviations[0]).abs().max()))
        assert errors[-1] < 20 * tolerance  # a local tolerance; the flow contracts, and takes tens of steps
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
