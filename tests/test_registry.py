"""Specs, names and the registry: what is read, what is refused, and with which line."""

import dataclasses
import math
import os
import sys
import types
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import solvers
from solvers import InputError, Registry, Solver, Step
from solvers.conformance.convergence import measured_order
from solvers.conformance.problems import VP, Mixture
from solvers.registry.ranges import Choice, Count, NonNegative, Range
from solvers.registry.spec import Spec, parse, write

pytestmark = pytest.mark.quick


class Thing:
    def __str__(self):
        return things.format(self)


things = Registry("thing", Thing)


@things.register("leaf", aliases=("Leaf Node",))
@dataclass(frozen=True)
class Leaf(Thing):
    """A thing with an option of every type."""

    number: float = 1.0
    count: int = 0
    flag: bool = False
    word: str = "plain"
    kind: Literal["left", "right"] = "left"
    maybe: float | None = None
    items: tuple[float, ...] = ()
    words: tuple[str, ...] = ()


@things.register("branch")
@dataclass(frozen=True)
class Branch(Thing):
    left: Thing = Leaf()
    right: Thing | None = None
    label: str = ""


numbers = st.floats(allow_nan=False)
words = st.text(max_size=8) | st.sampled_from(["lambda", "None", "True", "inf", "nan", "a:b", "x.y:z(1)", "-1", "ﬁ"])
leaves = st.builds(
    Leaf,
    number=numbers,
    count=st.integers(-(2**70), 2**70),
    flag=st.booleans(),
    word=words,
    kind=st.sampled_from(["left", "right"]),
    maybe=st.none() | numbers,
    items=st.lists(numbers, max_size=3).map(tuple),
    words=st.lists(words, max_size=3).map(tuple),
)
trees = st.recursive(
    leaves, lambda inner: st.builds(Branch, left=inner, right=st.none() | inner, label=words), max_leaves=4
)


@given(trees)
@example(Leaf(number=-1e-5, count=-3, maybe=math.inf))
@example(Leaf(number=-math.inf))
@example(Leaf(items=(1e-5, -2.0, math.inf)))
@example(Leaf(word="lambda"))
@example(Leaf(word="module:Name"))
@example(Leaf(words=("None", "1", "a 'quoted' \"word\"")))
@example(Branch(left=Branch(left=Leaf(count=2)), right=Leaf(), label="ﬁ"))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_a_spec_makes_the_object_again(thing):
    text = str(thing)
    assert things.make(text) == thing
    assert str(things.make(text)) == text


def test_the_text_of_a_spec():
    assert str(Leaf(number=1e-5, kind="right", items=(1.0, 2.0))) == "leaf(number=1e-05, kind=right, items=[1.0, 2.0])"
    assert write((1.0, "two", None, True)) == "[1.0, two, None, True]"


def test_the_tree_of_a_spec():
    assert parse("a") == Spec("a")
    assert parse("a(-1, b(c=[1.5, x]), d='e f')") == Spec(
        "a", (-1, Spec("b", (), (("c", (1.5, Spec("x"))),))), (("d", "e f"),)
    )
    assert parse("p.q:R(s=u.v:W)") == Spec("p.q:R", (), (("s", Spec("u.v:W")),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the spec ''"),
        ("a b", "cannot read the spec 'a b'; expected name"),
        ("a(b=)", "cannot read the spec"),
        ("3", "is a value, not a name"),
        ("a(1 + 1)", r"cannot read '1 \+ 1' in the spec 'a\(1 \+ 1\)'"),
        ("a(*b)", r"cannot read '\*b'"),
        ("a(**b)", "cannot read"),
        ("a(b=c/d.npy)", "cannot read 'c / d.npy' in the spec .*; write the path of a file in quotes: 'folder"),
        ("a(b=../d.npz)", r"cannot read the spec .*; write the path of a file in quotes"),
        ("a(b=c-1.npy)", "write the path of a file in quotes"),
        ("a(b=lambda: 1)", "cannot read 'lambda: 1'"),
        ("a(f().g)", "cannot read"),
        ("a\0", "cannot read the spec"),
        ("(" * 500 + ")" * 500, "more than 50 brackets within brackets"),
    ],
)
def test_what_is_no_spec_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "heun(__import__('os').system('x'))",
        "ddim(eta=__import__('os').system('x'))",
        "__import__('os').system('x')",
        "ddim(eta=os.system('x'))",
        "os:system('x')",
    ],
)
def test_a_spec_is_never_evaluated(text, monkeypatch):
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    with pytest.raises(InputError):
        solvers.make(text)
    assert ran == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leef", "^no thing 'leef'; did you mean leaf"),
        ("xyz", "^no thing 'xyz'; accepted: branch, leaf$"),
        ("leaf(numbr=1)", "^no option of leaf 'numbr'; did you mean number"),
        ("leaf(number=1, number=2)", "leaf got the option 'number' twice"),
        ("leaf(1, 2, True, a, left, None, [], [], 9)", "leaf takes at most 8 options.*, got 9"),
        ("leaf(number=True)", "option 'number' of leaf takes a number, got True"),
        ("leaf(number='1')", "option 'number' of leaf takes a number, got '1'"),
        ("leaf(number=nan)", "option 'number' of leaf"),
        ("leaf(count=True)", "option 'count' of leaf takes an integer, got True"),
        ("leaf(flag=1)", "option 'flag' of leaf takes True or False, got 1"),
        ("leaf(word=1)", "option 'word' of leaf takes a string, got 1"),
        ("leaf(kind=rihgt)", "no value for option 'kind' of leaf 'rihgt'; did you mean right"),
        ("leaf(items=[1, x])", "option 'items' of leaf takes a number, got 'x'"),
        ("leaf(maybe=x)", "option 'maybe' of leaf takes .*None, got 'x'"),
        ("branch(left=3)", "option 'left' of branch takes a thing, got 3"),
        ("branch(left=leaf(numbr=1))", "no option of leaf 'numbr'"),
        ("nowhere_module:Thing", "cannot import the thing 'nowhere_module:Thing': No module named 'nowhere_module'"),
        ("math:pi", "'math:pi' is not a class"),
    ],
)
def test_a_bad_spec_is_told_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        things.make(text)
    assert "\n" not in str(caught.value)


def test_values_are_made_what_their_fields_are():
    leaf = things.make("leaf(number=2, items=[1, 2.5], words=[a, 'b c'], maybe=None)")
    assert leaf == Leaf(number=2.0, items=(1.0, 2.5), words=("a", "b c"))
    assert type(leaf.number) is float
    assert things.make("leaf(3, 4)") == Leaf(number=3.0, count=4)
    assert things.make("branch(left='leaf(count=2)')") == Branch(left=Leaf(count=2))
    assert things.make(Leaf(count=3)) == Leaf(count=3)
    with pytest.raises(InputError, match="expected the spec of a thing, got 3"):
        things.make(3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("huen", "no solver 'huen'; did you mean heun"),
        ("ddim(eta=2)", r"ddim: eta must lie in \[0, 1\], got 2"),
        ("ddpm(variance=betta)", "'betta'; did you mean beta"),
        ("pc(corrector=heun)", "no corrector 'heun'"),
        ("pc(corrector=langevin(snr=0))", "langevin: snr must be positive, got 0"),
        ("pc(corrector_steps=0)", "corrector_steps must be a positive integer, got 0"),
        ("rk45(rtol=0)", "rtol must be positive, got 0"),
        ("rk45(first_step=0)", "first_step must be positive"),
    ],
)
def test_a_bad_solver_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        solvers.make(spec)


@dataclass(frozen=True)
class Ranged(Solver):
    share: Annotated[float, Range(0, 1, "(]")] = 0.5
    size: NonNegative | None = None
    count: Count = 3
    counts: tuple[Annotated[int, Range(1, 4)], ...] = (1, 4)
    table: Annotated[str, Choice({"left": 1, "right": 2})] = "left"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, r"Ranged: share must lie in \(0, 1\], got 0$"),
        ({"share": math.nan}, "share must lie in .*, got nan"),
        ({"share": "half"}, "share must lie in .*, got 'half'"),
        ({"size": -1.0}, "size must be at least 0, got -1"),
        ({"size": math.inf}, "size must be finite and at least 0, got inf"),
        ({"count": 0}, "count must be a positive integer, got 0"),
        ({"count": True}, "count must be a positive integer, got True"),
        ({"count": 2.0}, "count must be a positive integer, got 2"),
        ({"count": 10**7}, "count must be at most 1000000, got 10000000"),
        ({"counts": (1, 5)}, "every number of counts must be one of 1 to 4, got 5"),
        ({"table": "rigth"}, "no table of .*Ranged 'rigth'; did you mean right"),
    ],
)
def test_ranges_hold_at_construction(options, message):
    """However an object is made; a solver outside the library is named by its module."""
    with pytest.raises(InputError, match=message):
        Ranged(**options)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Ranged(size=1.0), **options)


def test_a_class_outside_is_made_by_its_module():
    assert str(solvers.make("solvers.one_step.runge_kutta:Heun")) == "heun"  # a registered class keeps its name
    mine = types.ModuleType("module_of_a_user")
    mine.Mine = dataclass(frozen=True)(
        type("Mine", (Solver,), {"__annotations__": {"eta": float}, "eta": 0.5, "__module__": "module_of_a_user"})
    )
    sys.modules["module_of_a_user"] = mine
    try:
        solver = solvers.make("module_of_a_user:Mine(eta=0.25)")
        assert solver == mine.Mine(eta=0.25)
        nested = "pc(predictor=module_of_a_user:Mine)"
        assert str(solvers.make(nested)) == nested
    finally:
        del sys.modules["module_of_a_user"]


# registering


def test_a_solver_of_ones_own(registry):
    @solvers.register("my_midpoint", aliases=("Mine 2",), order=2, evaluations=2, kind="ODE", reference="mine")
    @dataclass(frozen=True)
    class MyMidpoint(Solver):
        """Midpoint in the coordinates x / alpha against sigma / alpha."""

        where: float = 0.5

        def step(self, problem, x, t, s, carry, noise):
            h = s.ratio - t.ratio
            middle = problem.node_of_lam(-math.log(t.ratio + self.where * h))
            y = middle.alpha * (x / t.alpha + self.where * h * problem.predict(x, t).eps)
            return Step(s.alpha * (x / t.alpha + h * problem.predict(y, middle).eps))

    assert "my_midpoint" in solvers.names()
    assert solvers.make("Mine 2") == MyMidpoint()
    assert str(solvers.make("my_midpoint(where=0.5)")) == "my_midpoint"
    info = solvers.info("my_midpoint")
    assert (info.order, info.evaluations, info.kind, info.reference) == (2, 2, "ODE", "mine")
    assert measured_order(MyMidpoint(), VP)[0] == pytest.approx(2, abs=0.2)  # as conformance asks
    nodes = solvers.grid("logsnr", VP, 3)
    assert solvers.solve(solvers.make("my_midpoint"), Mixture(VP), torch.ones(1, 1), nodes).nfe.tolist() == [6]


def frozen(base=Solver, name="Other"):
    return dataclass(frozen=True)(type(name, (base,), {"__annotations__": {}}))


@pytest.mark.parametrize("name", ["heun", "em", "linear_multistep"])
def test_a_taken_name_is_refused(registry, name):
    with pytest.raises(InputError, match=f"the solver name '{name}' is taken"):
        solvers.register(name)(frozen())
    with pytest.raises(InputError, match=f"the solver name '{name}' is taken"):
        solvers.register("other", aliases=(name,))(frozen())
    assert "other" not in solvers.names()
    assert solvers.make("heun") == solvers.make("HeunDiscreteScheduler")


def test_a_class_may_be_registered_again_under_its_name(registry):
    first, again = frozen(), frozen()  # a notebook's cell, run twice
    solvers.register("other", order=1)(first)
    solvers.register("other", order=2)(again)
    assert solvers.info("other").cls is again
    assert solvers.info("other").order == 2


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (type("Bare", (Solver,), {}), r"Bare must be a dataclass\(frozen=True\) to be a solver"),
        (dataclass(type("Thawed", (Solver,), {})), r"Thawed must be a dataclass\(frozen=True\)"),
        (frozen(object, "Alien"), "Alien cannot be a solver: it does not derive from Solver"),
    ],
)
def test_what_is_no_solver_is_not_registered(registry, cls, message):
    with pytest.raises(InputError, match=message):
        solvers.register("other")(cls)
    assert "other" not in solvers.names()


def test_a_name_that_could_not_be_found_again_is_not_registered(registry):
    with pytest.raises(InputError, match="my_solver"):  # make("My Solver") looks for my_solver
        solvers.register("My Solver")(frozen())


def test_info_is_the_card():
    info = solvers.info("DPM++ 2M")
    assert (info.name, info.kind, info.order, info.evaluations) == ("dpmpp_2m", "ODE", 2, 1)
    assert (info.stochastic, info.linear, info.adaptive) == (False, True, False)
    assert info.reference.startswith("Lu et al. 2022")
    assert info.options == {"variant": "midpoint", "lower_order_final": False}
    assert info.summary == "DPM-Solver++(2M): two predictions of x0, interpolated linearly in lam."
    for name in solvers.names():
        card = solvers.info(name)
        assert card.name == name
        assert all((card.reference, card.formula, card.kind, card.summary))
        assert card.options.keys() == {
            field.metadata.get("option", field.name) for field in dataclasses.fields(card.cls)
        }


def test_facts_that_depend_on_options():
    assert not solvers.make("ddim").stochastic
    assert solvers.make("ddim(eta=0.1)").stochastic
    pc = solvers.make("pc(predictor=heun, corrector_steps=3)")
    assert (pc.order, pc.evaluations) == (1, 5)


class Point:
    loaded = 0

    def load(self):
        Point.loaded += 1
        solvers.register("from_a_plugin", order=1)(frozen(name="FromAPlugin"))


def test_plugins_are_loaded_when_they_are_first_needed(registry, monkeypatch):
    asked, Point.loaded = [], 0
    monkeypatch.setattr(registry, "_entry_points", "scoresde.solvers")
    monkeypatch.setattr(
        sys.modules["solvers.registry.registry"],
        "installed_entry_points",
        lambda group: asked.append(group) or [Point()],
    )
    assert str(solvers.make("heun")) == "heun"
    assert asked == []  # a name that is there needs no plug-in
    assert str(solvers.make("from_a_plugin")) == "from_a_plugin"
    assert "from_a_plugin" in solvers.names()
    assert asked == ["scoresde.solvers"]
    assert Point.loaded == 1


def test_an_import_of_everything_keeps_the_package_under_its_own_name():
    names = {}
    exec("import solvers\nfrom solvers import *", names)
    assert names["solvers"] is solvers
