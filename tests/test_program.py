"""Running programs: in place, step by step, with hooks and gradients, and with the same bits in any company."""

import gc
import math
from dataclasses import dataclass

import pytest
import torch

import scoresde
import solvers
from solvers import InputError, SeededNoise, Solver, Step, grid, solve, trace
from solvers.conformance.problems import EDM, VP, Mixture
from solvers.program.program import Answer

pytestmark = pytest.mark.quick

LINEAR = [name for name in solvers.names() if solvers.make(name).linear]
SOME = ["ddim", "heun", "dpmpp_2m", "uni_pc", "sa_solver", "dpmpp_2m_sde", "seeds_3", "churn", "restart"]


def begin(nodes, rows=3, dtype=torch.float64):
    noise = SeededNoise(range(rows), (2,), dtype)
    return math.hypot(nodes[0].alpha, nodes[0].sigma) * noise.initial(), noise


@pytest.mark.parametrize("spec", LINEAR)
def test_a_sample_has_the_same_bits_alone_in_a_batch_and_watched(spec):
    """Where memory is reused does not change the order of a sum."""
    denoiser = scoresde.targets.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.04).denoiser(scoresde.VP())
    options = {"shape": (1,), "solver": spec, "steps": 7}
    batch = scoresde.sample(denoiser, seeds=range(16), **options)
    alone = torch.cat([scoresde.sample(denoiser, seeds=[seed], **options).x for seed in (0, 9)])
    watched = scoresde.sample(denoiser, seeds=range(16), **options, hooks=[lambda x, node: None])
    assert torch.equal(alone, batch.x[[0, 9]])
    assert torch.equal(watched.x, batch.x)
    assert batch.calls == batch.nfe == solvers.evaluations(solvers.make(spec), scoresde.VP(), batch.nodes)


@pytest.mark.parametrize("spec", LINEAR)
def test_sample_gives_the_numbers_of_the_steps(spec):
    """``sample`` runs the program; ``solve`` takes the steps. A network of its own output, in float64."""

    def network(x, label):
        return 0.3 * torch.tanh(x + label.view(-1, 1)) + 0.2 * x

    sde = scoresde.VP()
    denoiser = scoresde.Denoiser(network, sde, predicts="v")
    found = scoresde.sample(denoiser, (2,), range(3), spec, steps=6, dtype=torch.float64)
    x, noise = begin(found.nodes)
    eager = solve(solvers.make(spec), scoresde.models.problem.Diffusion(denoiser), x, found.nodes, noise)
    assert float((found.x - eager.x).abs().max() / eager.x.abs().max()) < 1e-12
    assert found.nfe_per_sample.tolist() == eager.nfe.tolist()


@pytest.mark.parametrize("spec", SOME)
def test_the_start_is_left_as_it_is(spec):
    nodes = grid("karras", VP, 4)
    x, noise = begin(nodes)
    before = x.clone()
    with torch.no_grad():
        trace(spec, nodes, VP).run(Mixture(VP), x, noise)
    assert torch.equal(x, before)


@pytest.mark.parametrize("spec", SOME)
def test_gradients_are_those_of_the_steps(spec):
    nodes = grid("logsnr", VP, 5)
    grads = []
    for how in ("program", "steps"):
        x, noise = begin(nodes)
        x.requires_grad_()
        if how == "program":
            out = trace(spec, nodes, VP).run(Mixture(VP), x, noise)
        else:
            out = solve(solvers.make(spec), Mixture(VP), x, nodes, noise).x
        (out**2).sum().backward()
        grads.append(x.grad)
    assert torch.allclose(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("spec", SOME)
def test_hooks_are_shown_every_state_and_may_replace_it(spec):
    nodes = grid("karras", VP, 5)
    states = {}
    for how in ("program", "steps"):
        seen = []

        def hook(x, node, seen=seen):
            seen.append((node, x.clone()))
            return 0.9 * x + 0.1 if len(seen) % 2 else None

        x, noise = begin(nodes)
        with torch.no_grad():
            if how == "program":
                x = trace(spec, nodes, VP).run(Mixture(VP), x, noise, [hook])
            else:
                x = solve(solvers.make(spec), Mixture(VP), x, nodes, noise, [hook]).x
        states[how] = [*seen, (None, x)]
    for (node, x), (other, y) in zip(states["program"], states["steps"], strict=True):
        assert node == other
        assert torch.allclose(x, y, rtol=1e-11, atol=1e-12)


def test_what_a_hook_keeps_is_not_written_over():
    nodes, kept = grid("logsnr", VP, 6), []
    x, _ = begin(nodes)
    with torch.no_grad():
        trace("dpmpp_2m", nodes).run(Mixture(VP), x, hooks=[lambda x, node: kept.append((x, x.clone()))])
    assert all(torch.equal(x, copy) for x, copy in kept)


class Echo:
    """A model that answers with the very tensor that it was shown, or with a view of it."""

    output = solvers.Output("eps")

    def __init__(self, view=False):
        self.view = view

    def raw(self, x, node):
        return x[:] if self.view else x

    def predict(self, x, node):
        return self.output.read(x, x, node)


@pytest.mark.parametrize("view", [False, True])
def test_a_model_may_answer_with_its_input(view):
    nodes = grid("logsnr", EDM, 4)
    x, _ = begin(nodes)
    eager = solve(solvers.make("dpmpp_2m"), Echo(), x, nodes).x
    with torch.no_grad():
        assert torch.allclose(trace("dpmpp_2m", nodes, EDM, "eps").run(Echo(view), x), eager, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", LINEAR)
def test_a_foreign_loop_drives_any_program(spec):
    nodes, problem = grid("karras", VP, 6), Mixture(VP)
    x, noise = begin(nodes)
    exact = solve(solvers.make(spec), problem, x, nodes, noise).x
    program = trace(spec, nodes, VP)
    asked = []
    for request in program.steps(*begin(nodes)):
        asked.append(request.node)
        request.answer(problem.predict(request.x, request.node))
    assert torch.allclose(request.outcome, exact, rtol=1e-12, atol=1e-12)
    assert len(asked) == program.nfe
    # and by sending, with the model's own output
    assert torch.equal(sent(program.steps(*begin(nodes)), problem), request.outcome)


def sent(steps, problem):
    """What a loop arrives at that sends x0, the model's own output."""
    request = next(steps)
    while True:
        try:
            request = steps.send(problem.predict(request.x, request.node).x0)
        except StopIteration as stop:
            return stop.value


def test_a_foreign_loop_may_blend_the_state():
    """An answer with another state is a hook that replaces it."""
    nodes, problem = grid("logsnr", VP, 6), Mixture(VP)

    def blend(x, node):
        return 0.7 * x + 0.3 * node.alpha

    with torch.no_grad():
        x, _ = begin(nodes)
        program = trace("dpmpp_2m", nodes)
        expected = program.run(
            problem, blend(x, nodes[0]), hooks=[lambda x, n: blend(x, n) if n != nodes[-1] else None]
        )
        for request in program.steps(x):
            mixed = blend(request.x, request.node)
            request.answer(Answer(problem.predict(mixed, request.node), mixed))
    assert torch.allclose(request.outcome, expected, rtol=1e-12, atol=1e-12)


def test_a_loop_that_does_not_answer_is_told():
    nodes = grid("logsnr", VP, 3)
    steps = trace("ddim", nodes).steps(begin(nodes)[0])
    next(steps)
    with pytest.raises(InputError, match="waits for the model's answer at t="):
        next(steps)


def test_programs_that_draw_need_noise():
    nodes = grid("logsnr", VP, 3)
    program, (x, _) = trace("ddpm", nodes), begin(nodes)
    with pytest.raises(InputError, match="ddpm draws noise: give it a noise source"):
        program.run(Mixture(VP), x)
    with pytest.raises(InputError, match="ddpm draws noise"):
        next(program.steps(x))


def test_facts():
    nodes = grid("karras", VP, 8)
    program = trace("churn(solver=dpm_2, s_churn=0.1)", nodes, VP, "eps")
    assert (program.nfe, program.draws, program.stochastic) == (15, 7, True)
    assert (program.start, program.end, program.grid) == (nodes[0], nodes[-1], nodes)
    assert len(program.nodes) == 9 + 7 + 7  # and where churn goes, and the middles of the steps
    assert str(program) == "churn(solver=dpm_2, s_churn=0.1): 8 steps, 15 NFE, eps"


class Counting:
    """A model that counts how many state tensors are alive when it is asked, its own answers aside."""

    output = solvers.Output("x0")

    def __init__(self, size):
        self.size, self.most = size, 0

    def raw(self, x, node):
        gc.collect()
        alive = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.numel() == self.size]
        self.most = max(self.most, len({o.untyped_storage().data_ptr() for o in alive}))
        return 0.1 * x


@pytest.fixture
def young():
    """The collector looks at what is made from here on alone: a process of tests holds millions of objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("spec", ["ddim", "dpmpp_2m", "uni_pc", "lms", "heun", "ddpm"])
def test_memory_does_not_grow_with_the_number_of_steps(spec, young):
    most = []
    for steps in (6, 24):
        nodes = grid("logsnr", VP, steps)
        noise = SeededNoise([0], (7919,), torch.float64)
        counting = Counting(7919)
        with torch.no_grad():
            trace(spec, nodes, VP).run(counting, noise.initial(), noise)
        most.append(counting.most)
    assert most[0] == most[1] <= 8


@dataclass(frozen=True)
class Clipped(Solver):
    """Says that it is linear and is not."""

    def step(self, problem, x, t, s, carry, noise):
        eps = problem.predict(x, t).eps
        return Step((s.alpha * (x / t.alpha + (s.ratio - t.ratio) * eps)).clamp(-1, 1))


def test_sample_takes_the_steps_of_a_solver_that_has_no_program():
    denoiser = scoresde.targets.Gaussian(torch.zeros(2), 4.0).denoiser(scoresde.VP())
    found = scoresde.sample(denoiser, (2,), range(8), Clipped(), steps=5, grid="logsnr")
    plain = scoresde.sample(denoiser, (2,), range(8), "euler", steps=5, grid="logsnr")
    assert float(found.x.abs().max()) == 1.0 < float(plain.x.abs().max())


class Single:
    """A model and a noise source that answer in float32, whatever the state."""

    output = solvers.Output("eps")

    def raw(self, x, node):
        return torch.tanh(x.float())

    def predict(self, x, node):
        return self.output.read(self.raw(x, node), x, node)

    def __call__(self, t, s):
        return torch.full((3, 2), 0.5)


@pytest.mark.parametrize("spec", ["dpmpp_2m", "uni_pc", "dpmpp_2m_sde", "lms"])
def test_a_state_keeps_its_dtype_whatever_the_answers(spec):
    nodes, model = grid("logsnr", VP, 8), Single()
    x, _ = begin(nodes)
    known = solve(solvers.make(spec), model, x, nodes, model).x
    for program in (trace(spec, nodes, VP, "eps"), trace(spec, nodes, VP, "x0")):
        with torch.no_grad():
            found = program.run(model, x, model, [lambda x, node: x.float()])
            assert program.run(model, x, model).dtype == found.dtype == torch.float64
            assert torch.allclose(program.run(model, x, model), known, rtol=0, atol=1e-5)  # rounding of the answers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spec", ["ddim", "dpmpp_2m", "uni_pc", "dpmpp_2m_sde"])
def test_states_of_sixteen_bits_are_the_same_alone_and_near_float32(spec, dtype):
    """Rows of five numbers: on their own, kernels round the ends of 16-bit rows otherwise than the rest."""

    def network(x, label):
        return 0.5 * x / (1 + x.abs())

    denoiser = scoresde.Denoiser(network, scoresde.VP(), predicts="eps")
    options = {"shape": (5,), "solver": spec, "steps": 7}
    batch = scoresde.sample(denoiser, seeds=range(9), dtype=dtype, **options).x
    alone = torch.cat([scoresde.sample(denoiser, seeds=[seed], dtype=dtype, **options).x for seed in range(9)])
    assert batch.dtype == dtype
    assert torch.equal(alone, batch)
    wide = scoresde.sample(denoiser, seeds=range(9), dtype=torch.float32, **options).x
    # the start, the draws and the network's numbers are rounded to 16 bits, a few units of them in all
    assert float((batch.float() - wide).abs().max() / wide.abs().max()) < 8 * torch.finfo(dtype).eps


def test_a_program_that_asks_nothing_has_an_outcome():
    nodes = grid("logsnr", VP, 1)
    program, (x, _) = trace("afs(solver=ddim)", nodes), begin(nodes)
    with pytest.raises(StopIteration) as stop:
        next(program.steps(x))
    assert program.nfe == 0
    assert torch.equal(stop.value.value, program.run(Mixture(VP), x))


def test_a_hook_may_drop_rows(recwarn):
    nodes = grid("logsnr", VP, 6)
    x, _ = begin(nodes, 4)
    hooks = [lambda x, node: x[:2] if node == nodes[2] else None]
    with torch.no_grad():
        found = trace("heun", nodes, VP).run(Mixture(VP), x, hooks=hooks)
    assert torch.allclose(found, solve(solvers.make("heun"), Mixture(VP), x[:2], nodes).x, rtol=1e-12, atol=1e-12)
    assert not recwarn.list
