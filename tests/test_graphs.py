"""Trajectories as CUDA graphs: what goes in is copied to where the graph reads it, whatever the batch."""

import pytest
import torch

import scoresde
from scoresde.sampling import cuda_graph
from solvers import InputError, SeededNoise, grid, trace

pytestmark = pytest.mark.quick

SDE = scoresde.VP()


def network(x, label, shift):
    return 0.9 * torch.tanh(x + label.view(-1, 1) + shift)


DENOISER = scoresde.Denoiser(network, SDE, predicts="eps")


def again(run):
    """Stands in for ``record`` where there is no GPU: what a graph does, on the same memory."""
    outcome = run()

    def replay():
        outcome.copy_(run())

    return replay, outcome


@pytest.mark.parametrize("spec", ["dpmpp_2m", "dpmpp_2m_sde", "seeds_3", "restart"])
def test_what_goes_in_is_copied_and_what_comes_out_too(spec, monkeypatch):
    """Two replays with other starts, draws and conditions are two runs; a batch of another length is recorded anew."""
    recorded = []

    def record(run):
        recorded.append(run)
        return again(run)

    monkeypatch.setattr(cuda_graph, "record", record)
    nodes = grid("karras", SDE, 5)
    program = trace(spec, nodes, SDE, "eps")
    run = cuda_graph.runner(program, DENOISER, spec)
    outcomes, expected = [], []
    with torch.no_grad():
        for rows in (range(4), range(4, 8), range(8, 10)):
            shift = {"shift": torch.tensor([[0.1 * i] for i in rows])}
            x = SeededNoise(rows, (3,)).initial()
            outcomes.append(run(x, SeededNoise(rows, (3,)), shift))
            problem = scoresde.models.problem.Diffusion(DENOISER, shift)
            expected.append(program.run(problem, x, SeededNoise(rows, (3,))))
    assert len(recorded) == 2
    for found, known in zip(outcomes, expected, strict=True):
        assert torch.equal(found.x, known)
        assert found.nfe.tolist() == [program.nfe] * len(known)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", ["ddim", "heun", "dpmpp_2m", "uni_pc", "dpmpp_2m_sde", "restart"])
def test_a_graph_gives_the_samples_of_a_run(spec):
    options = {"shape": (3,), "seeds": range(10), "solver": spec, "steps": 8, "device": "cuda", "batch_size": 4}
    options["condition"] = {"shift": torch.linspace(0, 1, 10, device="cuda").view(10, 1)}
    plain = scoresde.sample(DENOISER, **options)
    found = scoresde.sample(DENOISER, **options, cuda_graph=True)
    assert torch.equal(found.x, plain.x)
    assert found.nfe == plain.nfe


def test_bad_input():
    options = {"shape": (3,), "seeds": range(2), "steps": 5, "condition": {"shift": torch.zeros(2, 1)}}
    with pytest.raises(InputError, match="cuda_graph=True needs a CUDA device, got cpu"):
        scoresde.sample(DENOISER, **options, cuda_graph=True)
    with pytest.raises(InputError, match="launches all steps at once: leave out hooks and progress"):
        scoresde.sample(DENOISER, **options, cuda_graph=True, hooks=[lambda x, node: None])
    with pytest.raises(InputError, match="pc has no program"):
        cuda_graph.runner(None, DENOISER, "pc")
