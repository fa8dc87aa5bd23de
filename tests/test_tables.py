"""Tables of programs: against every solver's own program, on all paths; their gradients against differences."""

import weakref

import pytest
import torch
from small_tunings import MEANS, MIXTURE, PATHS, PROBLEM, VP, problem_on, starts

import scoresde
import solvers
from scoresde.models.problem import Diffusion
from solvers import InputError, Table
from solvers.program.instructions import Evaluate
from solvers.tuning.numbers import FreeNumbers, Theory, groups_of

pytestmark = pytest.mark.quick

LINEAR = [
    name
    for name in solvers.names(space="gaussian")
    if (made := solvers.make(name)).linear and not made.stochastic and not made.adaptive
]


@pytest.mark.parametrize("path", PATHS)
def test_a_table_has_the_numbers_of_every_deterministic_linear_solver(path):
    assert len(LINEAR) > 30
    sde = PATHS[path]
    # Gaussian data, on which a rounding error of the start, about 1000 on rectified flow, stays one
    problem, x = problem_on(sde, scoresde.targets.Gaussian(MEANS[0], 0.25)), starts(sde, range(8))
    for name in LINEAR:
        for output in {"vp": ("x0", "eps"), "ve": ("eps",), "flow": ("x0",)}[path]:
            program = solvers.trace(name, solvers.grid("logsnr", sde, 6), sde, output)
            table = Table.of(program)
            assert table.nfe == program.nfe
            expected = program.run(problem, x) / program.end.alpha
            # rounding grows with the coefficients, which are large for polynomials in t on rectified flow
            near = 1e-12 * max(1.0, float(table.weights.abs().max()))
            assert (table.run(problem, x / program.start.alpha) - expected).abs().max() < near, name
            again = table.program(sde, output)
            assert (again.nfe, again.start, again.end.t) == (program.nfe, program.start, pytest.approx(program.end.t))
            assert solvers.Program.from_json(again.to_json()) == again
            assert (again.run(problem, x) / program.end.alpha - expected).abs().max() < near, name


def test_one_table_serves_all_paths():
    table = Table.of(solvers.trace("dpmpp_3m", solvers.grid("karras", VP, 7), VP))
    y = starts(VP, range(16)) / VP(VP.t_max).alpha
    found = {}
    for name, sde in PATHS.items():
        program = table.program(scoresde.VE(0.005, 200) if name == "ve" else sde, "velocity")
        problem = problem_on(scoresde.VE(0.005, 200) if name == "ve" else sde)
        found[name] = program.run(problem, y * program.start.alpha) / program.end.alpha
        assert [node.ratio for node in program.grid] == pytest.approx([*table.ratios.tolist()], rel=1e-9)
    # times are inverted to about 1e-13, and y is about 150 at the start
    assert (found["vp"] - found["ve"]).abs().max() < 1e-10
    assert (found["vp"] - found["flow"]).abs().max() < 1e-10


@pytest.mark.parametrize("output", ["x0", "eps", "v", "edm"])
def test_moved_labels_are_nodes_of_their_own(output):
    made = Table.of(solvers.trace("ipndm", solvers.grid("kl_optimal", VP, 5), VP))
    labels = made.labels * torch.tensor([0.9, 1.0, 1.2, 0.7, 1.1])
    table = Table(made.begin, made.ratios, labels, made.start, made.weights)
    program = table.program(VP, output)
    x = starts(VP, range(8))
    assert torch.allclose(
        program.run(PROBLEM, x), table.run(PROBLEM, x / program.start.alpha), rtol=0, atol=1e-11
    )  # the end has alpha = 1
    evaluated = [program.nodes[i.node].ratio for i in program.instructions if isinstance(i, Evaluate)]
    assert evaluated == pytest.approx(labels.tolist(), rel=1e-9)
    assert [node.ratio for node in program.grid] == pytest.approx(made.ratios.tolist(), rel=1e-9)
    assert (made.run(PROBLEM, x / program.start.alpha) - program.run(PROBLEM, x)).abs().max() > 1e-3


def test_a_state_that_is_corrected_at_its_node_ends_the_step():
    program = solvers.trace("heun", solvers.grid("explicit(times=[0.9, 0.5, 0.2, 0.05])", VP), VP)
    made = Table.of(program).program(VP)
    problem, x = PROBLEM, starts(VP, range(4))
    seen = {name: [] for name in ("solver", "table")}
    for name, one in zip(seen, (program, made), strict=True):
        one.run(problem, x, hooks=[lambda state, node, found=seen[name]: found.append((node.t, state))])
    assert [t for t, _ in seen["table"]] == pytest.approx([t for t, _ in seen["solver"]])
    for (_, one), (_, other) in zip(*seen.values(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_program_that_has_no_table_is_refused():
    with pytest.raises(InputError, match="ddpm draws noise: a table is made of a deterministic program"):
        Table.of(solvers.trace("ddpm", solvers.grid("logsnr", VP, 3), VP))
    with pytest.raises(InputError, match="encodes: a table runs from noise to data"):
        Table.of(solvers.trace("ddim", solvers.grid("logsnr", VP, 3)[::-1], VP))
    table = Table.of(solvers.trace("ddim", solvers.grid("logsnr", VP, 3), VP))
    with pytest.raises(InputError, match=r"has sigma / alpha from .* is needed"):
        table.program(scoresde.VE(0.01, 50))


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("group", ["nodes", "labels", "predictions", "states", "all"])
@pytest.mark.parametrize("solver", ["ipndm", "dpm_solver_2"])
def test_gradients_of_the_whole_loss_agree_with_differences(solver, group, follows):
    nodes = solvers.grid("logsnr(end=zero)", VP, 3 if solver == "dpm_solver_2" else 4)
    theory = Theory(solvers.make(solver), VP, nodes[0], nodes[-1])
    free = FreeNumbers(theory, tuple(-n.lam for n in nodes[1:-1]), groups_of(group), follows)
    x = starts(VP, range(5))
    exact = MIXTURE.means[:1].expand(5, 2)

    def loss(numbers):
        return (free.table(numbers).run(PROBLEM, x / nodes[0].alpha) - exact).square().mean()

    at = 0.1 * torch.randn(free.count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # the first node and the last are at the ends of the path, which they and their labels cannot leave
    parts = dict(zip(free.sizes, at.split(list(free.sizes.values())), strict=True))
    if "nodes" in parts:
        parts["nodes"].abs_().neg_()
    if "labels" in parts:
        parts["labels"].copy_(torch.linspace(-0.1, 0.13, free.sizes["labels"], dtype=torch.float64))
    at.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), at)
    step, found = 1e-5, []
    with torch.no_grad():
        for k in range(free.count):
            move = torch.zeros_like(at)
            move[k] = step
            found.append(float(loss(at + move) - loss(at - move)) / (2 * step))
    found = torch.tensor(found, dtype=torch.float64)
    # rounding of the loss over the step is 1e-11; that of times along the path over places.STEP 1e-8
    assert (gradient - found).abs().max() < 1e-6 * max(1.0, float(found.abs().max()))
    assert (found.abs() > 1e-7).all()


def test_a_network_stores_one_evaluation_for_any_number_of_them():
    width, rows = 256, 64
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, width),
                              torch.nn.Tanh(), torch.nn.Linear(width, 2)).double()  # fmt: skip
    problem = Diffusion(scoresde.Denoiser(lambda x, t: net(x), VP, "x0"))
    x = starts(VP, range(rows))

    def peak(nfe):
        live, most = 0, 0

        class Kept:
            def __init__(self, value):
                self.value = value

        def pack(value):
            nonlocal live, most
            kept, size = Kept(value), value.numel()
            live += size
            most = max(most, live)

            def gone():
                nonlocal live
                live -= size

            weakref.finalize(kept, gone)
            return kept

        nodes = solvers.grid("logsnr", VP, nfe)
        free = FreeNumbers(Theory(solvers.make("ddim"), VP, nodes[0], nodes[-1]),
                           tuple(-n.lam for n in nodes[1:-1]), groups_of("all"))  # fmt: skip
        numbers = torch.zeros(free.count, dtype=torch.float64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value):
            torch.autograd.grad(free.table(numbers).run(problem, x / nodes[0].alpha).square().mean(), numbers)
        return most

    # six more evaluations may store six states of two numbers a few times over, far from one layer of activations
    assert peak(10) - peak(4) < rows * width
    assert peak(4) > 2 * rows * width  # those of one evaluation are counted
