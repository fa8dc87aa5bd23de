"""Grids against their formulas, their ends, and the errors that keep a bad grid from being solved on."""

import dataclasses
import math
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import scoresde
import solvers
from solvers import InputError, Node, grid
from solvers.conformance.problems import Mixture
from solvers.time_grids.base import Grid, checked
from solvers.types.schedule import as_schedule

pytestmark = pytest.mark.quick

SDES = [scoresde.VP(), scoresde.VE(), scoresde.EDM(), scoresde.RectifiedFlow(), scoresde.SubVP(), scoresde.Cosine()]
SPECS = ["uniform", "quadratic", "quadratic(power=3)", "logsnr", "karras", "karras(rho=3)"]
each_sde = pytest.mark.parametrize("sde", SDES, ids=str)
each_spec = pytest.mark.parametrize("spec", SPECS)


def equally_spaced(values, tolerance):
    """Whether the values are the points of a line between their ends, to a tolerance relative to the largest."""
    line = np.linspace(values[0], values[-1], len(values))
    return np.abs(np.array(values) - line).max() <= tolerance * np.abs(line).max()


RULES = {
    "uniform": lambda node: node.t,
    "quadratic": lambda node: node.t**0.5,
    "quadratic(power=3)": lambda node: node.t ** (1 / 3),
    "logsnr": lambda node: node.lam,
    "karras(end=t_min)": lambda node: node.ratio ** (1 / 7),
    "karras(end=t_min, rho=3)": lambda node: node.ratio ** (1 / 3),
}

# lam is linear in t on VE's path, and t is the ratio on EDM's
SAME = {
    scoresde.VE: [{"uniform", "logsnr"}],
    scoresde.EDM: [{"quadratic(power=3)", "karras(end=t_min, rho=3)"}],
}


# t(lam) is good to 1e-12 of t (tests/test_paths.py), which the slopes of these rules raise to less than 1e-11
@each_sde
@pytest.mark.parametrize("spec", RULES)
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_nodes_are_equally_spaced_in_the_rules_coordinate(spec, sde, steps):
    nodes = grid(spec, sde, steps)
    assert len(nodes) == steps + 1
    assert (nodes[0].t, nodes[-1].t) == (sde.t_max, sde.t_min)  # to the last bit
    assert equally_spaced([RULES[spec](node) for node in nodes], 1e-11)
    for name, rule in RULES.items():  # and in no other rule's: the test tells them apart
        alike = {name, spec} in SAME.get(type(sde), [])
        if steps == 17 and name != spec and not alike:
            assert not equally_spaced([rule(node) for node in nodes], 1e-4)


@each_sde
@each_spec
def test_nodes_are_the_paths_own(spec, sde):
    for node in grid(spec, sde, 9)[:-1]:
        assert node == sde(node.t)


@each_sde
@each_spec
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_grid_to_zero_takes_its_last_step_from_t_min(spec, sde, steps):
    rule = dataclasses.replace(solvers.grids.make(spec), end="zero")
    nodes = grid(rule, sde, steps)
    assert len(nodes) == steps + 1
    assert (nodes[-1].alpha, nodes[-1].sigma) == (1.0, 0.0)
    assert nodes[-1].lam == math.inf
    assert nodes[0].t == sde.t_max
    if steps > 1:  # before it, the grid of one step less
        assert nodes[:-1] == grid(dataclasses.replace(rule, end="t_min"), sde, steps - 1)


@each_sde
@each_spec
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_grid_that_repeats_has_the_levels_before_zero_and_t_min(spec, sde, steps):
    rule = dataclasses.replace(solvers.grids.make(spec), end="repeat")
    nodes, before = grid(rule, sde, steps), grid(dataclasses.replace(rule, end="zero"), sde, steps)
    assert len(nodes) == steps + 1
    assert nodes[-1] == sde(sde.t_min)
    assert nodes[: steps - 1] == before[: steps - 1]
    if steps > 1:  # the last of them is t_min too, 1e-9 of lam before it; t(lam) is good to 1e-12
        assert nodes[-1].lam - nodes[-2].lam == pytest.approx(1e-9, abs=2e-12)


def test_karras_grid_is_the_published_one():
    # Karras et al. 2022, eq. 5 with the values of their table 1: 18 levels from 80 to 0.002, then 0
    n, low, high = 18, 0.002 ** (1 / 7), 80 ** (1 / 7)
    published = [(high + i / (n - 1) * (low - high)) ** 7 for i in range(n)] + [0.0]
    nodes = grid("karras", scoresde.EDM(), 18)
    assert [node.sigma for node in nodes] == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize("spec", RULES)
def test_the_range_may_be_a_part_of_the_schedules(spec):
    nodes = grid(spec, scoresde.VP(), 5, t_min=0.125, t_max=0.75)
    assert (nodes[0].t, nodes[-1].t) == (0.75, 0.125)
    assert equally_spaced([RULES[spec](node) for node in nodes], 1e-11)


def test_explicit_times_are_taken_as_they_are():
    sde = scoresde.VP()
    assert [node.t for node in grid("explicit(times=[1.0, 0.5, 0.01])", sde)] == [1.0, 0.5, 0.01]
    assert [node.t for node in grid("explicit(times=[0.9, 0.5])", sde, 1)] == [0.9, 0.5]


@each_sde
def test_explicit_ratios_are_reached(sde):
    low, high = sde(sde.t_min).ratio, sde(sde.t_max).ratio
    wanted = [high, math.sqrt(low * high), low]
    nodes = grid(f"explicit(ratios=[{', '.join(map(repr, wanted))}])", sde)
    assert [node.ratio for node in nodes] == pytest.approx(wanted, rel=1e-11)
    to_zero = grid(f"explicit(ratios=[{', '.join(map(repr, wanted))}, 0])", sde, 3)
    assert to_zero[:-1] == nodes
    assert to_zero[-1].sigma == 0


@pytest.mark.parametrize("spec", ["explicit(times=[1, 0.5], end=zero)", "explicit(ratios=[10, 1], end=zero)"])
def test_an_explicit_grid_counts_its_step_to_zero(spec):
    nodes = grid(spec, scoresde.VP(), 2)
    assert len(nodes) == 3
    assert nodes[-1].sigma == 0
    with pytest.raises(InputError, match="2 steps, not 1"):
        grid(spec, scoresde.VP(), 1)


def test_an_explicit_grid_runs_from_noise_to_data():
    with pytest.raises(InputError, match=r"out of order|noise to data"):
        grid("explicit(times=[0.001, 0.5, 1.0])", scoresde.VP())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("explicit", r"either times=\[...\] or ratios=\[...\]"),
        ("explicit(times=[1], ratios=[1])", "either times"),
        ("explicit(times=[0.5])", "has 1 node; a solve needs at least two"),
        ("explicit(ratios=[0])", "has 1 node"),
        ("explicit(times=[1, 0.5, 0.5, 0.1])", r"nodes 1 and 2 \(t=0.5, t=0.5\) coincide"),
        ("explicit(times=[1, 0.2, 0.5, 0.1])", r"nodes 1 and 2 \(t=0.2, t=0.5\) are out of order"),
        ("explicit(times=[1, 0.5, 0.5])", r"nodes 1 and 2 .* coincide"),
        ("explicit(times=[1.5, 0.5])", r"t=1.5 is outside \[0.001, 1\]"),
        ("explicit(times=[1, 0.0001])", r"t=0.0001 is outside"),
        ("explicit(times=[1, inf])", "t=inf is outside"),
        ("explicit(ratios=[10, -1])", "ratios must be positive, except for a last 0"),
        ("explicit(ratios=[10, 0, 1])", "ratios must be positive"),
        ("explicit(ratios=[1000, 1])", "is outside"),
        ("explicit(times=[1, 'x'])", "takes a number"),
    ],
)
def test_a_bad_explicit_grid_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        grid(spec, scoresde.VP())


def test_an_explicit_grid_has_as_many_steps_as_it_has():
    with pytest.raises(InputError, match="the explicit grid has 2 steps, not 5"):
        grid("explicit(times=[1, 0.5, 0.1])", scoresde.VP(), 5)


@each_spec
@pytest.mark.parametrize("steps", [0, -3, 2.5, 10.0, True, "10", math.nan])
def test_a_bad_number_of_steps_is_refused(spec, steps):
    with pytest.raises(InputError, match=f"^steps must be a positive integer, got {steps!r}$"):
        grid(spec, scoresde.VP(), steps)


@each_spec
def test_a_grid_needs_a_number_of_steps(spec):
    with pytest.raises(InputError, match="needs a number of steps"):
        grid(spec, scoresde.VP())


@each_spec
@pytest.mark.parametrize(
    "limits",
    [{"t_min": 1e-4}, {"t_max": 1.1}, {"t_min": 0.8, "t_max": 0.2}, {"t_min": 0.5, "t_max": 0.5}, {"t_min": math.nan}],
    ids=str,
)
def test_a_range_outside_the_schedules_is_refused(spec, limits):
    with pytest.raises(InputError, match=r"are not a range within \[0.001, 1\], where vp is defined"):
        grid(spec, scoresde.VP(), 5, **limits)


@pytest.mark.parametrize("spec", ["uniform", "logsnr", "karras(end=t_min)"])
def test_nodes_that_float64_cannot_tell_apart_are_refused(spec):
    high = 0.5
    for _ in range(4):  # a range of four numbers has no room for 100 steps
        high = float(np.nextafter(high, 1))
    with pytest.raises(InputError, match=r"(coincide|are out of order); use fewer steps"):
        grid(spec, scoresde.VP(), 100, t_min=0.5, t_max=high)


@pytest.mark.parametrize(
    "node",
    [
        Node(math.nan, 1.0, 1.0),
        Node(0.5, 1.0, math.nan),
        Node(0.5, 1.0, math.inf),
        Node(0.5, -1.0, 1.0),
        Node(0.5, 1.0, -1.0),
        Node(0.5, 0.0, 1.0),
    ],
    ids=str,
)
def test_a_node_that_is_not_on_a_path_is_refused(node):
    good = Node(1.0, 1.0, 2.0)
    assert checked((good, Node(0.5, 1.0, 1.0))) == (good, Node(0.5, 1.0, 1.0))
    with pytest.raises(InputError, match=r"^mine: node 1 "):
        checked((good, node), "mine")


@each_spec
def test_a_path_whose_signal_underflows_is_refused_in_one_line(spec):
    sde = scoresde.VP(beta_max=5000.0)  # alpha(1) = exp(-1250), which is 0 in float64
    with pytest.raises(InputError, match="alpha=0"):
        grid(spec, sde, 5)


def test_checked_takes_either_direction():
    nodes = grid("uniform", scoresde.VP(), 4)
    assert checked(nodes[::-1]) == nodes[::-1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("karras(rho=0)", r"rho must lie in \[0.01, 1e\+06\], got 0"),
        ("karras(rho=-7)", r"rho must lie in \[0.01, 1e\+06\], got -7"),
        ("quadratic(power=0)", "power must be positive"),
        ("karras(end=nowhere)", "'end' of karras 'nowhere'; accepted: repeat, t_min, zero"),
        ("karras(7, zero)", "karras takes at most 1 options by position, got 2"),
        ("karass", "no grid 'karass'; did you mean karras"),
        ("karras(roh=7)", "no option of karras 'roh'; did you mean rho"),
        ("karras(rho=nan)", "rho"),
        ("quadratic(power=nan)", "power"),
    ],
)
def test_a_bad_spec_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        solvers.grids.make(spec)


@pytest.mark.parametrize(
    ("alias", "name"),
    [("exponential", "logsnr"), ("time_uniform", "uniform"), ("edm", "karras"), ("time_quadratic", "quadratic")],
)
def test_aliases(alias, name):
    assert solvers.grids.make(alias) == solvers.grids.make(name)
    assert str(solvers.grids.make(alias)) == name


@dataclass(frozen=True)
class Everywhere(Grid):
    """A user's grid: all the ends are put right, whatever the rule's own rounding."""

    def place(self, schedule, lo, hi, steps):
        return [hi * (1 + 1e-12), *np.geomspace(hi, lo, steps + 1)[1:-1], lo * (1 - 1e-12)]


def test_a_users_grid_has_exact_ends():
    nodes = Everywhere().nodes(scoresde.VP(), 3)
    assert [node.t for node in nodes] == pytest.approx([1, 0.1, 0.01, 0.001], rel=1e-12)
    assert (nodes[0].t, nodes[-1].t) == (1.0, 0.001)


def test_a_grids_own_option_comes_first():
    assert solvers.grids.make("karras(5)") == solvers.grids.make("karras(rho=5)")
    assert grid("explicit([1, 0.5])", scoresde.VP()) == grid("explicit(times=[1, 0.5])", scoresde.VP())


def test_grids_are_made_of_python_floats():
    for node in grid("karras", scoresde.VP(), 3):
        assert all(type(v) is float for v in (node.t, node.alpha, node.sigma))
        assert not isinstance(node.ratio, torch.Tensor)


class Own:
    """A path of a user's own, that derives from nothing."""

    t_min, t_max, clean = 0.01, 10.0, Node(0.0, 1.0, 0.0)

    def __call__(self, t):
        return Node(t, 1.0, t, 0.0, 1.0)

    def t_of_lam(self, lam):
        return math.exp(-lam)


@pytest.mark.parametrize("spec", ["karras", "uniform", "trailing", "explicit(ratios=[8, 2, 1, 0.5])"])
def test_an_object_that_says_as_much_is_a_schedule(spec):
    path = scoresde.EDM(t_min=0.01, t_max=10.0)
    made, wanted = grid(spec, Own(), 4 - ("explicit" in spec)), grid(spec, path, 4 - ("explicit" in spec))
    assert [n.ratio for n in made] == pytest.approx([n.ratio for n in wanted], rel=1e-12)
    solved = [solvers.solve(solvers.make("dpm_2"), Mixture(p), torch.ones(1, 1), made).x for p in (Own(), path)]
    assert torch.equal(*solved)


def test_what_an_object_has_besides_is_used():
    class Chain(Own):
        num_train_timesteps = 5
        asked = 0

        def nodes(self, times):
            Chain.asked += 1
            return map(self, times)

    assert grid("trailing", Chain(), 3) == grid("trailing(num_train_timesteps=5)", Own(), 3)
    assert Chain.asked == 1
    assert as_schedule(Chain()).node_of_lam(99.0).t == Own.t_min


def test_an_object_that_is_no_schedule_is_told_what_it_lacks():
    with pytest.raises(
        InputError, match=r"^a schedule has t_min, .*; <object .*> lacks t_min, t_max, clean, t_of_lam$"
    ):
        grid("karras", object(), 3)
    lost = types.SimpleNamespace(t_min=0.0, t_max=1.0, clean=None, t_of_lam=math.exp)
    with pytest.raises(InputError, match=r"lacks a call with a time$"):
        grid("karras", lost, 3)
