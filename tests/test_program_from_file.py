"""A program in a file, by name wherever a solver's name is taken."""

import os

import pytest
import torch

import scoresde
import solvers
from scoresde.runs import build, config
from solvers import InputError, SeededNoise, grid, solve, trace
from solvers.conformance.problems import EDM, VP, Mixture

pytestmark = pytest.mark.quick

SDE = scoresde.VP()


def denoiser(sde=SDE):
    return scoresde.Denoiser(lambda x, label: 0.9 * torch.tanh(x + label.view(-1, 1)), sde, predicts="eps")


@pytest.fixture
def recorded(tmp_path):
    def write(spec, rule="karras", steps=6, sde=SDE, output="x0"):
        path = tmp_path / "mine.json"
        path.write_text(trace(spec, grid(rule, sde, steps), sde, output).to_json(), encoding="utf-8")
        return f"file:{path}"

    return write


@pytest.mark.parametrize("spec", ["dpmpp_2m", "uni_pc", "heun", "dpmpp_2m_sde", "restart", "seeds_3"])
@pytest.mark.parametrize("output", ["x0", "eps", "v"])
def test_it_samples_as_the_solver_that_it_was_traced_from(spec, output, recorded):
    name = recorded(spec, output=output)
    options = {"shape": (2,), "seeds": range(3), "dtype": torch.float64}
    found = scoresde.sample(denoiser(), **options, solver=name)
    known = scoresde.sample(denoiser(), **options, solver=spec, grid="karras", steps=6)
    assert torch.allclose(found.x, known.x, rtol=1e-12, atol=1e-12)
    assert (found.nfe, found.solver, found.grid) == (known.nfe, name, "its own")
    assert found.nodes == known.nodes


@pytest.mark.parametrize("spec", ["uni_pc", "dpmpp_2m_sde", "heun"])
def test_its_steps_are_taken_one_by_one_too(spec, recorded):
    """With a hook that replaces states."""
    solver = solvers.make(recorded(spec, "logsnr", 7, EDM))
    nodes, problem = grid("logsnr", EDM, 7), Mixture(EDM)
    x = torch.linspace(-40, 40, 6, dtype=torch.float64).view(3, 2)
    hooks = [lambda x, node: 0.95 * x]
    draws = [SeededNoise(range(3), (2,), torch.float64) for _ in range(2)]
    found, known = (
        solve(s, problem, x, nodes, d, hooks).x for s, d in zip((solver, solvers.make(spec)), draws, strict=True)
    )
    assert torch.allclose(found, known, rtol=1e-12, atol=1e-12)
    assert solvers.equal(trace(solver, nodes, EDM), trace(spec, nodes, EDM))


def test_it_is_a_value_with_a_spec(recorded):
    name = recorded("dpm_2")
    solver = solvers.make(name)
    assert str(solver) == name
    assert solvers.make(str(solver)) == solver
    assert (solver.stochastic, solver.linear, solver.evaluations) == (False, True, 2)
    assert "file" not in solvers.names()
    inside = solvers.make(f"final(solver='{name}', last=euler)")
    assert inside.solver == solver


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "mine.json"
    for steps in (3, 5):
        path.write_text(trace("ddim", grid("karras", SDE, steps)).to_json(), encoding="utf-8")
        os.utime(path, ns=(steps, steps))
        assert solvers.make(f"file:{path}").program.nfe == steps


def test_what_does_not_fit_is_refused(recorded, tmp_path):
    name = recorded("dpmpp_2m")
    for option in ({"steps": 6}, {"nfe": 6}, {"grid": "karras"}, {"t_min": 0.1}):
        with pytest.raises(InputError, match=r"has fixed nodes, from noise to data: leave out grid, steps, nfe"):
            scoresde.sample(denoiser(), (2,), range(2), name, **option)
    x = torch.zeros(1, 2)
    for call in (scoresde.log_prob, scoresde.encode):
        with pytest.raises(InputError, match="use a different solver for encode and log_prob"):
            call(denoiser(), x, name)
    with pytest.raises(InputError, match=r"was made for a different path: at t=1 it has alpha=0.0065.* has 1 and 50"):
        scoresde.sample(denoiser(scoresde.VE()), (2,), range(2), name)
    with pytest.raises(InputError, match="runs on the 7 nodes of its own"):
        solve(solvers.make(name), Mixture(VP), x.double(), grid("karras", VP, 6))
    with pytest.raises(InputError, match=r"cannot read the program 'none.json': No such file"):
        solvers.make("file:none.json")
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"bad.json: not a program"):
        solvers.make(f"file:{tmp_path / 'bad.json'}")
    (tmp_path / "bad.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot read the program .*: it is not text"):
        solvers.make(f"file:{tmp_path / 'bad.bin'}")


def test_a_config_names_it(recorded):
    cfg = config.read_config("digits_vp", [f"--config.sampling.solver={recorded('ddim')}"])
    plan = build.plan_of(denoiser(), cfg.sampling)
    assert (plan.grid, plan.rule, plan.nodes) == ("its own", None, plan.solver.nodes)
