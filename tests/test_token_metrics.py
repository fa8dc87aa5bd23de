"""Distances of tokens, and the benchmark and its page of discrete states."""

import math

import pytest
import torch

import scoresde
from scoresde.benchmark.metrics import compare
from scoresde.benchmark.rows import read, write
from scoresde.benchmark.runner import benchmark
from scoresde.benchmark.token_metrics import invalid, meaningful, ngrams, wilson
from scoresde.data.dataset import DataCard
from scoresde.models.discrete import DiscreteEmpirical
from scoresde.show.page import write_report
from solvers import InputError

HEARTBEAT = DiscreteEmpirical(torch.eye(5, dtype=torch.long).repeat(1, 4))


@pytest.fixture(scope="module")
def rows(absorbing):
    """Two solvers of the exact model of the heartbeat."""
    model = HEARTBEAT.denoiser(absorbing)
    return benchmark(
        model, HEARTBEAT.data.repeat(8, 1), ["tweedie", "tau_hold"], [4, 64], range(256), shape=(20,), progress=False
    )


@pytest.fixture(scope="module")
def absorbing():
    return scoresde.Absorbing(2)


def test_runs_of_tokens_are_counted_at_every_place():
    x, y = torch.tensor([[0, 1, 0, 2]]), torch.tensor([[0, 1, 1, 2]])
    # pairs 01, 10, 02 and 01, 11, 12: one of three is common; triples 010, 102 and 011, 112: none
    assert ngrams(x, y, 2) == pytest.approx(2 / 3, abs=1e-15)
    assert ngrams(x, y, 3) == 1.0
    assert ngrams(x, y, 1) == pytest.approx(0.25, abs=1e-15)  # 0 0 1 2 and 0 1 1 2
    # shapes do not matter, and order of the samples neither
    assert ngrams(torch.cat([x, y]).view(2, 1, 2, 2), torch.cat([y, x]), 2) == 0.0


def test_the_distance_of_the_same_law_falls_like_that_of_draws():
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    draws = [
        torch.multinomial(law.expand(4000, 3), 2, True, generator=torch.Generator().manual_seed(k)) for k in (0, 1)
    ]
    pairs = (law[:, None] * law).flatten()
    # each count has the variance p (1 - p) / n, and their difference twice as much
    expected = 0.5 * math.sqrt(2 / math.pi) * float((2 * pairs * (1 - pairs) / 4000).sqrt().sum())
    assert ngrams(*draws, 2) == pytest.approx(expected, rel=0.6)  # one draw of a sum of nine half-normal numbers


def test_a_sample_is_invalid_if_the_reference_has_none_equal():
    x = torch.tensor([[0, 1], [1, 1], [2, 0], [0, 1]])
    assert invalid(x, torch.tensor([[0, 1], [1, 0]])) == 0.5
    assert invalid(x, x) == 0.0


def test_the_interval_of_a_share_is_wilsons():
    # Agresti and Coull 1998, table 1 has 0 of 10 at 95 %: (0, 0.278)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    low, high = wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_samples_have_the_metrics_that_mean_something():
    beats = HEARTBEAT.data
    assert meaningful(beats, beats) == ("invalid", "bigrams", "trigrams")
    assert meaningful(beats.repeat(8, 1)) == ("invalid", "bigrams", "trigrams")
    assert meaningful(beats, beats[:4]) == ("bigrams", "trigrams")  # one of the held-out ones is new
    text = torch.randint(0, 9, (40, 12), generator=torch.Generator().manual_seed(0))
    assert meaningful(text) == ("bigrams", "trigrams")
    assert meaningful(text[:, :2]) == ("bigrams",)
    assert meaningful(torch.tensor([[0], [1]]), torch.tensor([[1], [0], [0]])) == ("invalid", "unigrams")


@pytest.mark.parametrize(
    ("x", "y", "length", "words"),
    [
        (torch.rand(4, 3), torch.rand(4, 3), 2, "whole numbers"),
        (torch.zeros(4, 3).long() - 1, torch.zeros(4, 3).long(), 2, "at least 0"),
        (torch.zeros(4, 2).long(), torch.zeros(4, 2).long(), 3, "so many, got 2"),
    ],
)
def test_what_are_no_tokens_is_refused(x, y, length, words):
    with pytest.raises(InputError, match=words):
        ngrams(x, y, length)


def test_an_estimate_of_the_share_has_its_own_interval():
    found = compare(HEARTBEAT.data.repeat(20, 1), HEARTBEAT.data, ["invalid"])["invalid"]
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(wilson(0.0, 100)[1])  # above 0, although no sample of 100 is wrong


def test_a_benchmark_of_tokens_reports_what_means_something(rows, tmp_path):
    assert [row.nfe for row in rows] == [4, 64, 4, 64]
    assert set(rows[0].metrics) == {"invalid", "bigrams", "trigrams"}
    wrong = [row.metrics["invalid"] for row in rows]
    # the valid shares of tweedie's 4 and 64 steps are .383 and .948, measured with many draws
    for found, expected in zip(wrong[:2], (1 - 0.383, 1 - 0.948), strict=True):
        assert abs(found.value - expected) < 4 * math.sqrt(expected * (1 - expected) / 256)
    assert wrong[1].high < wrong[0].low
    assert rows[1].metrics["trigrams"].value < rows[0].metrics["trigrams"].value
    write(rows, tmp_path, {"seeds": [0]})
    assert [row.metrics for row in read(tmp_path)[1]] == [row.metrics for row in rows]


def test_the_page_shows_tokens_as_text(rows, tmp_path):
    card = DataCard((20,), 0.0, 1.0, None, 0.0, 1.0, None, (1, 1), ("a", "b"), states=2)
    reference = HEARTBEAT.data.repeat(8, 1)
    write_report(tmp_path / "page.html", title="beat", rows=rows, reference=reference, texts=card.texts)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<pre>10000100001000010000\n01000010000100001000" in page
    assert "share of invalid samples" in page
    assert ">discrete<" in page
    assert "<th>share of invalid samples</th>" in page


def test_numbers_without_symbols_are_their_own_text():
    card = DataCard((3,), 0.0, 1.0, None, 0.0, 1.0, None, (1, 1), ("a", "b"), states=12)
    assert card.texts(torch.tensor([[0, 11, 3]])) == ["0 11 3"]


def test_an_interval_of_a_share_covers_it_as_often_as_it_says():
    """The probability that Wilson's interval contains the share, from the binomial law itself."""
    for share, count in ((0.9, 100), (0.97, 500), (0.5, 100)):
        covered = 0.0
        for right in range(count + 1):
            low, high = wilson(right / count, count)
            if low <= share <= high:
                covered += math.comb(count, right) * share**right * (1 - share) ** (count - right)
        assert 0.92 < covered < 0.98  # discrete: it swings about 0.95
    assert wilson(1.0, 100)[1] == 1
