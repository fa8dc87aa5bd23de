"""Noise belongs to a sample: its numbers follow from its seed and from nothing else."""

import math

import numpy as np
import pytest
import torch

from solvers import InputError, Node, SeededNoise, generator

pytestmark = pytest.mark.quick

T, S = Node(1.0, 0.1, 0.9), Node(0.5, 0.8, 0.6)


def draws(seeds, shape=(3, 2), steps=3, **options):
    noise = SeededNoise(seeds, shape, **options)
    return torch.stack([noise.initial(), *(noise(T, S) for _ in range(steps))], 1)


def test_a_row_depends_on_its_seed_alone():
    batch = draws(range(10))
    assert batch.shape == (10, 4, 3, 2)
    assert torch.equal(draws([7, 2, 9, 2]), batch[[7, 2, 9, 2]])  # order, neighbours, count, repetition
    assert torch.equal(draws([5]), batch[[5]])


def test_the_start_does_not_depend_on_the_steps_nor_the_steps_on_the_start():
    with_start, without = SeededNoise([3], (4,)), SeededNoise([3], (4,))
    first = with_start.initial()
    assert torch.equal(with_start(T, S), without(T, S))
    assert torch.equal(with_start.initial(), first)  # asked again, later
    assert torch.equal(with_start(T, S), without(T, S))


def test_the_steps_go_on_and_do_not_repeat():
    noise = SeededNoise([0], (1000,))
    rows = [noise.initial(), noise(T, S), noise(T, S), noise(T, T)]
    for i, a in enumerate(rows):
        for b in rows[:i]:
            # correlation of independent normal rows of n numbers has standard deviation 1 / sqrt(n); 5 of them
            assert abs(float((a * b).mean())) < 5 / math.sqrt(1000)


def test_float32_and_float64_are_the_same_numbers():
    narrow, wide = draws(range(50), (40,)), draws(range(50), (40,), dtype=torch.float64)
    assert narrow.dtype == torch.float32
    assert wide.dtype == torch.float64
    # radius up to 6.6 times the angle's rounding, pi (2^-24 from the integer, 2^-25 from the product), and three more
    # roundings of a number up to 6.6
    assert torch.allclose(narrow.double(), wide, rtol=0, atol=6.6 * (1.5 * math.pi + 3) * 2**-24)
    assert not torch.equal(narrow.double(), wide)  # float64 has its own digits


def test_bfloat16_is_float32_rounded():
    assert torch.equal(draws([1], dtype=torch.bfloat16), draws([1]).to(torch.bfloat16))


def test_the_numbers_are_standard_normal():
    x = SeededNoise(range(200), (500,), dtype=torch.float64).initial()
    n = x.numel()
    assert abs(float(x.mean())) < 5 / math.sqrt(n)
    assert abs(float(x.var()) - 1) < 5 * math.sqrt(2 / n)  # Var of the sample variance of n normals: 2 / n
    assert abs(float((x**4).mean()) - 3) < 5 * math.sqrt(96 / n)  # Var x^4 = 105 - 9
    # a binomial count, beyond 2: p = 0.0455
    p = math.erfc(2 / math.sqrt(2))
    assert abs(float((x.abs() > 2).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_seeds_are_uncorrelated():
    x = SeededNoise(range(60), (4096,), dtype=torch.float64).initial()
    correlations = torch.corrcoef(x)[tuple(torch.triu_indices(60, 60, 1))]
    assert len(correlations) == 1770
    # 1 / sqrt(n) each; 5.5 of them is exceeded by one of 1770 with a chance below 1e-4
    assert float(correlations.abs().max()) < 5.5 / math.sqrt(4096)
    # and their mean square is 1 / n, with a relative spread of sqrt(2 / 1770)
    assert float((correlations**2).mean()) * 4096 == pytest.approx(1, abs=5 * math.sqrt(2 / 1770))


def first(*label, n=2000):
    return torch.randn(n, generator=generator(*label), dtype=torch.float64)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0,), (1,)),
        ((5, 0), (5, 1)),
        ((5, 1), (5, 1, 0)),
        ((5,), (5, 0)),
        ((5, 1, 2), (5, 2, 1)),
        ((1, 5), (5, 1)),
        ((2**32 + 5, 2), (5, 1, 2)),
        ((2**32 + 5,), (5,)),
        ((2**64,), (0,)),
        ((2**96 + 1, 3), (1, 0, 0, 1, 3)),
    ],
)
def test_streams_do_not_collide(one, other):
    a, b = first(*one), first(*other)
    assert abs(float((a * b).mean())) < 5 / math.sqrt(2000)  # equal streams would give 1
    assert torch.equal(a, first(*one))


# The first pairs of seeds below 120000 whose SeedSequence words agree in the low 32 bits for the streams 0 and 1. A
# generator that keeps 32 bits of its seed gives such pairs the same numbers: one sample drawn twice.
@pytest.mark.parametrize(("one", "other"), [(14375, 53572), (41780, 104948)])
def test_seeds_are_told_apart_by_more_than_32_bits(one, other):
    words = [int(np.random.SeedSequence(s, spawn_key=(0,)).generate_state(1, np.uint64)[0]) for s in (one, other)]
    assert words[0] % 2**32 == words[1] % 2**32
    assert words[0] != words[1]
    x = SeededNoise([one, other], (2000,), dtype=torch.float64).initial()
    assert abs(float((x[0] * x[1]).mean())) < 5 / math.sqrt(2000)


@pytest.mark.parametrize("seed", [-1, 1.0, 0.5, True, "1", None, np.float64(2), torch.tensor(1)])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(InputError, match=r"^a seed must be an integer of at least 0, got "):
        generator(seed, 1)
    with pytest.raises(InputError, match=r"^a seed must be an integer of at least 0, got "):
        SeededNoise([0, seed], (2,))


def test_numpy_integers_are_seeds():
    assert torch.equal(first(np.int32(7), 1), first(7, 1))
    assert torch.equal(draws(np.arange(3)), draws([0, 1, 2]))


def test_selected_rows_share_the_counts_of_the_whole():
    """A sample's k-th draw is its own, through whichever selection it is made."""
    alone = torch.stack([SeededNoise([seed], (2,))(T, S)[0] for seed in (4, 5, 6)])
    noise, second = SeededNoise([4, 5, 6], (2,)), {}
    for seed in (4, 5, 6):
        source = SeededNoise([seed], (2,))
        source(T, S)
        second[seed] = source(T, S)[0]
    part = noise.select(torch.tensor([2, 0]))
    assert part.seeds == [6, 4]
    assert torch.equal(part(T, S), alone[[2, 0]])  # their first draws
    assert torch.equal(part.select(slice(1, None))(T, S)[0], second[4])  # a selection of a selection
    whole = noise(T, S)
    assert torch.equal(whole[1], alone[1])  # row 1 has drawn nothing yet
    assert torch.equal(whole[2], second[6])
    assert torch.equal(part.initial(), noise.initial()[[2, 0]])


def test_no_rows_draw_nothing():
    noise = SeededNoise([1, 2], (3,), torch.float64)
    assert noise.select(slice(0, 0))(T, S).shape == (0, 3)
    assert noise.select(torch.tensor([], dtype=torch.long))(T, S).dtype == torch.float64
