"""The function behind seeded noise: its integers, its independence of batches and devices, and its quality."""

import math

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from solvers import BrownianNoise, Node, SeededNoise
from solvers.noise import counter
from solvers.noise.counter import fill, keys_of, room

pytestmark = pytest.mark.quick

T, S = Node(1.0, 0.1, 0.9), Node(0.5, 0.8, 0.6)
M32 = 2**32 - 1


def words(place, draw, key, rounds=4):
    """pcg4d on integers modulo 2^32, as the module describes it: four words."""
    place, draw = (1664525 * c + 1013904223 & M32 for c in (place, draw))
    x = place + key[0] + draw * key[1] & M32
    y = draw + x * x & M32
    z = key[0] + x * y & M32
    w = key[1] + y * z & M32
    for _ in range(rounds - 1):
        x, y, z, w = (v + (v >> 16) - (v >> 31) * 2**16 & M32 for v in (x, y, z, w))  # the shift repeats the sign
        x = x + y * w & M32
        y = y + z * x & M32
        z = z + x * y & M32
        w = w + y * z & M32
    return x, y, z, w


def key_of(seed):
    """The keys of a seed: 64 of its bits at a time enter under the key of those before."""
    key = (0, 0x9E3779B9)
    while True:
        four = words(seed & M32, seed >> 32 & M32, key)
        key, seed = four[:2], seed >> 64
        if not seed:
            return four


def by_hand(seed, draw, place):
    """The four numbers that a sample's draw has at a place."""
    four = words(place, draw, key_of(seed)[:2])
    radii = [math.sqrt(-2 * math.log(float(torch.tensor(w % 2**31 | 1).float()) / 2**31)) for w in four[:2]]
    return [r * f(2 * math.pi * w / 2**32) for f in (math.cos, math.sin) for r, w in zip(radii, four[2:], strict=True)]


SEEDS = [0, 1, 5, 2**31, 2**32 + 5, 2**63 + 11, 2**64, 2**64 + 5, 3 * 2**130 + 1]


def test_the_integers_are_those_of_the_formula():
    found = keys_of(SEEDS)
    for i, seed in enumerate(SEEDS):
        assert [v & M32 for v in found[:, i].tolist()] == list(key_of(seed))
        assert torch.equal(keys_of([seed])[:, 0], found[:, i])  # for any neighbours
    assert len({tuple(v) for half in (found[:2], found[2:]) for v in half.T.tolist()}) == 2 * len(SEEDS)


def test_the_numbers_are_those_of_the_formula():
    seeds, size = SEEDS[::2], 7  # two places, the last of which is cut
    noise = SeededNoise(seeds, (size,), torch.float64)
    for k, found in enumerate([noise.initial(), *(noise(T, S) for _ in range(70))]):  # beyond the draws made ahead
        if k in (0, 1, 2, 63, 64, 70):
            for row, seed in zip(found.tolist(), seeds, strict=True):
                fours = [by_hand(seed, k, place) for place in (0, 1)]
                expected = [four[i] for i in range(4) for four in fours][:size]
                assert row == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 2), (16,), (3, 17), (4999,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_a_sample_is_the_same_bits_for_any_batch_and_block(shape, dtype, monkeypatch):
    def draws(seeds, block=counter.BLOCK):
        monkeypatch.setattr(counter, "BLOCK", block)
        noise = SeededNoise(seeds, shape, dtype)
        first = [noise.initial(), noise(T, S)]
        part = noise.select(torch.tensor([len(seeds) - 1, 0]))  # one count per row
        return torch.stack([*first, noise(T, S), noise(T, S)], 1), part(T, S)

    whole, part = draws(range(37))
    assert part.shape == (2, *shape)
    assert whole.shape == (37, 4, *shape)
    for block in (1, 100, 5000, counter.DEVICE_BLOCK):  # fewer rows than a batch at once, fewer draws ahead
        found, other = draws(range(37), block)
        assert torch.equal(found, whole)
        assert torch.equal(other, part)
    for seeds in ([11], [36, 4, 4], range(20, 29)):
        assert torch.equal(draws(seeds)[0], whole[torch.tensor(list(seeds))])


def test_counts_of_rows_give_the_numbers_of_the_same_draws():
    noise, alone = SeededNoise(range(5), (3,)), SeededNoise([3], (3,))
    expected = [alone(T, S) for _ in range(4)]
    part = noise.select(slice(3, 4))
    assert torch.equal(part(T, S), expected[0])
    assert torch.equal(noise(T, S)[3:4], expected[1])
    for rows in (slice(0, 3), slice(4, 5)):
        noise.select(rows)(T, S)  # now all have made two draws
    assert torch.equal(noise(T, S)[3:4], expected[2])
    assert torch.equal(part(T, S), expected[3])


def test_a_returned_draw_may_be_changed():
    noise, other = SeededNoise([1, 2], (4,)), SeededNoise([1, 2], (4,))
    for _ in range(3):
        noise.initial().zero_()
        noise(T, S).zero_()
        assert torch.equal(noise.initial(), other.initial())
        other(T, S)
    assert torch.equal(noise(T, S), other(T, S))


class Devices(TorchDispatchMode):
    """Records the devices of the tensors of each operation."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        found = [*args, out]
        self.seen |= {v.device.type for v in found if isinstance(v, torch.Tensor)}
        return out


@pytest.mark.parametrize("kind", [SeededNoise, BrownianNoise])
def test_a_step_on_a_device_neither_copies_nor_waits(kind):
    """On torch's device without data a value cannot be read, and each operation names its devices."""
    noise = kind(range(3), (2, 5), device="meta")
    noise.initial()  # copies the keys, once
    with Devices() as devices:
        for _ in range(70):
            assert noise(T, S).shape == (3, 2, 5)
            assert noise(S, S).shape == (3, 2, 5)
    assert devices.seen == {"meta"}


def rows(seeds, draws, size):
    """Numbers (draws, B, size) in float64."""
    out = room(len(draws), len(seeds), size, torch.float64, torch.device("cpu"))
    return fill(out, keys_of(seeds)[:2], torch.tensor(draws, dtype=torch.int32)).flatten(2)


# the same million numbers by seed, by draw and by place: counters that run along another axis
LAYOUTS = {"seeds": (range(2**18), [1], 4), "draws": ([3], range(2**18), 4), "places": ([3], [1], 2**20)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_law_is_standard_normal(layout):
    x = rows(*LAYOUTS[layout]).flatten()
    n = x.numel()
    assert n == 2**20
    # sqrt(n) D above 2.3 has the probability 2 exp(-2 * 2.3^2) = 5e-5
    assert math.sqrt(n) * stats.kstest(x.numpy(), "norm").statistic < 2.3
    # moments: Var x^k = (2k - 1)!! - ((k - 1)!!)^2
    for k, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(float((x**k).mean()) - mean) < 4.5 * math.sqrt(variance / n)
    # binomial counts of the tails; 60 beyond 4
    for bound in (2, 3, 4):
        p = math.erfc(bound / math.sqrt(2))
        assert abs(float((x.abs() > bound).double().mean()) - p) < 4.5 * math.sqrt(p / n)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["draws", "seeds", "places"])
@pytest.mark.parametrize("lag", [1, 2, 3, 8])
def test_neighbours_are_uncorrelated(axis, lag):
    """Neighbouring draws of a seed, seeds of a draw, and places of a draw: in value, in size, and in value to size."""
    x = rows(range(64), range(64), 512)
    if axis == 2:
        x = x.view(64, 64, 4, 128)
    x = x.movedim(axis if axis < 2 else 3, 0)
    a, b = x[lag:].flatten(), x[:-lag].flatten()
    for one in (a, a**2 - 1):
        for other in (b, b**2 - 1):
            # 1 / sqrt(n) each; 4.5 of them is exceeded by one of 48 with a chance of 3e-4
            assert abs(float(one @ other / (one.norm() * other.norm()))) < 4.5 / math.sqrt(len(a))


def test_the_four_numbers_of_a_place_are_uncorrelated():
    x = rows(range(64), [1, 2], 8192).view(2, 64, 4, -1).movedim(2, 0).flatten(1)
    table = torch.corrcoef(torch.cat([x, x**2]))
    off = table[tuple(torch.triu_indices(8, 8, 1))]
    assert float(off.abs().max()) < 4.5 / math.sqrt(x.shape[1])  # 28 of them: a chance of 2e-4


def flipped(rounds, samples, monkeypatch):
    """For each bit of (place, draw, key): how often flipping it flips each bit of the four words, as 128 x 128 counts.

    Half of the counters are random, the others small as in use."""
    monkeypatch.setattr(counter, "_ROUNDS", rounds)
    numbers = torch.Generator().manual_seed(0)
    inputs = torch.randint(-(2**31), 2**31, (4, samples), generator=numbers, dtype=torch.int64).to(torch.int32)
    inputs[0, ::2] &= 1023
    inputs[1, ::2] &= 63
    mixed, found = counter._mixed(*inputs), torch.empty(128, 128)
    for i in range(128):
        changed = inputs.clone()
        changed[i // 32] ^= (1 << i % 32) if i % 32 < 31 else -(2**31)
        difference = counter._mixed(*changed) ^ mixed
        found[i] = torch.stack([(difference >> bit & 1).sum(1) for bit in range(32)], 1).flatten()
    return found


def test_every_bit_of_seed_and_counter_changes_every_bit_of_the_words(monkeypatch):
    samples = 2**14
    counts = flipped(4, samples, monkeypatch)
    scores = (counts - samples / 2) / math.sqrt(samples / 4)
    # one of 16384 standard normal scores exceeds 5.5 with a chance of 6e-4; their mean square is 1 +- sqrt(2 / 16384)
    assert float(scores.abs().max()) < 5.5
    assert float((scores**2).mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 16384))
    # the test is sharp: one round fewer fails it
    assert float(((flipped(3, samples, monkeypatch) - samples / 2) / math.sqrt(samples / 4)).abs().max()) > 5.5
