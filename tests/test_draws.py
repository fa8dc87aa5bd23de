"""The random numbers of training: functions of seed, stream, step and place, with the right distribution."""

import numpy as np
import pytest
import scipy.stats
import torch

from solvers.noise.counter import fill, room, uniforms
from solvers.noise.draws import STREAMS, Draws, _keys

pytestmark = pytest.mark.quick


def test_a_row_has_the_same_numbers_in_every_part_of_its_batch():
    whole = Draws.of(3, 7, 10)
    for part, rows in ((whole.part(slice(0, 4)), slice(0, 4)), (whole.part(slice(1, 10, 3)), slice(1, 10, 3))):
        assert torch.equal(part.uniform("times", 3), whole.uniform("times", 3)[rows])
        noise = whole.normal("noise", (3, 5), torch.float32, "cpu")
        assert torch.equal(part.normal("noise", (3, 5), torch.float32, "cpu"), noise[rows])
        assert part.shared("times") == whole.shared("times")


def test_seeds_streams_steps_and_places_are_independent():
    firsts = [
        float(Draws.of(seed, step, 40).uniform(stream)[place])
        for seed in (0, 1, 2**40) for step in (0, 1, 2**31 - 1) for stream in STREAMS for place in range(40)
    ]  # fmt: skip
    assert len(set(firsts)) == len(firsts)
    # 2520 numbers: the distance of Kolmogorov and Smirnov exceeds 0.04 with a probability of 6e-4 for one seed of tests
    assert scipy.stats.kstest(firsts, "uniform").statistic < 0.04


def test_uniform_and_normal_numbers_have_their_distributions():
    u = torch.cat([Draws.of(5, step, 100).uniform("times", 101).flatten() for step in range(20)]).numpy()
    assert u.min() > 0
    assert u.max() < 1
    # 202,000 numbers: the distance exceeds 0.005 with a probability of 1e-4
    assert scipy.stats.kstest(u, "uniform").statistic < 0.005
    z = torch.cat([Draws.of(5, step, 100).normal("noise", (101,), torch.float64, "cpu") for step in range(20)])
    assert scipy.stats.kstest(z.flatten().numpy(), "norm").statistic < 0.005
    # neighbours in place, row and step: a correlation of n independent pairs has the deviation 1 / sqrt(n)
    for a, b in ((z[:, 1:], z[:, :-1]), (z[1:], z[:-1]), (z[100:], z[:-100])):
        correlation = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
        assert abs(correlation) < 5 / a.numel() ** 0.5


@pytest.mark.parametrize("count", [1, 3, 700, 20_000])
def test_numbers_do_not_depend_on_the_steps_that_are_computed_together(count):
    for step in (0, 5, 64, 2**31 - 1):
        draws = Draws.of(3, step, 2)
        keys = _keys(3, "noise", range(2), torch.device("cpu"))
        number = torch.full((1,), step, dtype=torch.int32)
        alone = fill(room(1, 2, count, torch.float32, torch.device("cpu")), keys, number)[0].flatten(1)[:, :count]
        assert torch.equal(draws.normal("noise", (count,), torch.float32, "cpu"), alone)
        assert torch.equal(draws.uniform("noise", count), uniforms(keys, number, count)[0])
        draws.normal("noise", (count,), torch.float32, "cpu").zero_()  # what is handed out is the caller's own
        draws.uniform("noise", count).zero_()
        assert torch.equal(draws.normal("noise", (count,), torch.float32, "cpu"), alone)
        assert torch.equal(draws.uniform("noise", count), uniforms(keys, number, count)[0])
