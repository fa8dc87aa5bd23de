"""Programs as JSON: the reader of docs/program_format.md runs what the library writes; the library refuses in one line
what cannot be run."""

import ast
import copy
import doctest
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import solvers
from solvers import InputError, Output, Program, SeededNoise
from solvers.conformance.problems import RECTIFIED_FLOW, VP, Mixture
from solvers.program import json_format
from solvers.program.instructions import Combine, Draw, Evaluate
from solvers.types.model_output import PREDICTS
from solvers.types.node import Node

pytestmark = pytest.mark.quick

PAGE = (Path(__file__).parent.parent / "docs" / "program_format.md").read_text(encoding="utf-8")
LINEAR = [name for name in solvers.names() if solvers.make(name).linear]
# (path, grid): one to sigma = 0 and one that stops before it
PLACES = [(VP, "karras"), (RECTIFIED_FLOW, "logsnr")]


def printed():
    """The source of the reader on the page."""
    block = re.search(r"## A reader in NumPy.*?```python\n(.*?)```", PAGE, re.DOTALL)[1]
    return "".join(found.source for found in doctest.DocTestParser().get_examples(block))


READER = {}
exec(printed(), READER)


def arrays(answer):
    """A function of tensors as one of arrays."""
    return lambda *given: answer(*(torch.tensor(v) if isinstance(v, np.ndarray) else v for v in given)).numpy()


def test_the_printed_reader_is_short_and_needs_numpy_alone():
    source = printed()
    assert 30 < len(source.splitlines()) <= 60
    tree = ast.walk(ast.parse(source))
    imported = {name for node in tree if isinstance(node, (ast.Import, ast.ImportFrom)) for name in modules(node)}
    assert imported == {"json", "collections", "numpy"}


def modules(node):
    return [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


@pytest.mark.parametrize(("path", "grid"), PLACES, ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_the_printed_reader_runs_every_linear_solver(name, path, grid):
    """Against ``solve``, with the network's output another one from solver to solver.

    1e-12 is the rounding of seven steps on numbers of size ten, in sums taken in another order.
    """
    nodes, problem = solvers.grid(grid, path, 7), Mixture(path)
    output = Output(list(PREDICTS)[LINEAR.index(name) % len(PREDICTS)])
    program = solvers.trace(name, nodes, path, output)
    noise, same = (SeededNoise(range(4), (3,), torch.float64) for _ in range(2))
    x = math.hypot(nodes[0].alpha, nodes[0].sigma) * noise.initial()

    def model(x, node):
        assert node.sigma > 0
        place = Node(*(math.nan if v is None else v for v in node))
        return output.of(problem.predict(x, place), x, place)

    expected = solvers.solve(solvers.make(name), problem, x, nodes, same).x.numpy()
    found = READER["run"](program.to_json(), arrays(model), x.numpy(), arrays(noise))
    assert abs(found - expected).max() < 1e-12 * max(1, abs(expected).max())


@pytest.mark.parametrize(("path", "grid"), PLACES, ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_a_file_holds_the_whole_program(name, path, grid):
    program = solvers.trace(name, solvers.grid(grid, path, 6), path, "v")
    text = program.to_json()
    again = Program.from_json(text)
    assert again == program
    assert again.to_json() == text
    assert json_format.write(program, "for people").count("\n") == text.count("\n") + 1
    assert Program.from_json(json_format.write(program, 'for "people"\n')) == program


@pytest.mark.parametrize("name", LINEAR)
def test_intervals_of_noise_do_not_overlap(name):
    """So that independent draws have the right law, as the page says."""
    program = solvers.trace(name, solvers.grid("karras", VP, 6), VP)
    nodes = program.nodes
    draws = [(nodes[i.t].ratio, nodes[i.s].ratio) for i in program.instructions if isinstance(i, Draw)]
    ends = sorted((min(pair), max(pair)) for pair in draws if pair[0] != pair[1])
    assert bool(draws) == solvers.make(name).stochastic
    for (_, high), (low, _) in pairwise(ends):
        assert low >= high * (1 - 1e-12)


@pytest.mark.parametrize("name", list(PREDICTS))
def test_the_printed_conversions_are_those_of_the_library(name):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    x0, eps = (cell.strip(" `") for cell in row.split("|")[3:5])
    node, x, out, sigma_data = Node(0.3, 0.7, 0.45, -1.1, 0.8), 1.3, -0.6, 0.35
    names = {"x": x, "out": out, "sigma_data": sigma_data, "r": node.ratio}
    names |= {key: getattr(node, key) for key in ("alpha", "sigma", "dalpha", "dsigma")}
    meant = Output(name, sigma_data).read(out, x, node)
    assert eval(x0, names) == pytest.approx(meant.x0, rel=1e-13)
    assert eval(eps, names) == pytest.approx(meant.eps, rel=1e-13)


def valid():
    """A program with every kind of row, as JSON's own values."""
    program = solvers.trace("dpmpp_2m_sde", solvers.grid("karras", VP, 3))
    assert {type(i) for i in program.instructions} == {Combine, Evaluate, Draw}
    return json.loads(program.to_json())


def changed(*path, to):
    """The valid file with another value at a place; ``to`` may be a function of the old one."""
    document = valid()
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to(place[path[-1]]) if callable(to) else to
    return json.dumps(document)


def without(*path):
    document = valid()
    place = document
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return json.dumps(document)


def refused(text):
    """The one short line with which the reader refuses a text."""
    with pytest.raises(InputError) as caught:
        Program.from_json(text)
    line = str(caught.value)
    assert len(line) < 200
    assert line.isprintable()
    return line


# rows of the valid file: 0 model, 1 noise, 2 sum, 3 model, 4 noise, 5 sum, 6 model, 7 sum; nodes 0 to 3
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("dpmpp_2m", "not JSON"),
        (json.dumps(valid())[:-1], "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 5000, "not"),
        ("[]", '"format": "scoresde-program"'),
        ('"scoresde-program"', '"format": "scoresde-program"'),
        ("null", '"format": "scoresde-program"'),
        (changed("format", to="onnx"), '"format": "scoresde-program"'),
        (changed("format", to=["scoresde-program"]), '"format": "scoresde-program"'),
        (without("version"), "version null"),
        (changed("version", to=2), "version 2; this library reads version 1"),
        (changed("version", to=True), "version true"),
        (changed("version", to=1.0), "version 1.0"),
        (changed("version", to="1"), 'version "1"'),
        (changed("version", to="1" * 1000), "..."),
        (changed("version", to=[[1]]), "a list of 1"),
        (json.dumps(valid()).replace('"version": 1', '"version": 1, "version": 1'), "twice"),
        (json.dumps(valid()).replace('"node": 0', '"node": 0, "node": 1'), "twice"),
        *((without(key), f"it has no {key}") for key in ("solver", "output", "sigma_data", "nodes", "rows", "states")),
        (changed("solver", to=5), "solver is 5, not a line of text"),
        (changed("solver", to="two\nlines"), "not a line of text"),
        (changed("solver", to="\ud800"), "not a line of text"),
        (changed("output", to="x1"), "no model output 'x1'; did you mean x0?"),
        (changed("output", to="z" * 10_000), "accepted: edm, eps"),
        (changed("output", to=None), "output is null"),
        (changed("output", to=[0]), "output is a list of 1"),
        (changed("sigma_data", to=0), "sigma_data must be positive"),
        (changed("sigma_data", to="0.5"), 'sigma_data has "0.5"'),
        (changed("sigma_data", to=math.inf), "sigma_data has Infinity"),
        (changed("sigma_data", to=math.nan), "sigma_data has NaN"),
        (changed("nodes", to={}), "nodes is an object of 0, not a list"),
        (changed("nodes", to=[]), "names the node 0; there are 0 nodes"),
        (changed("nodes", 1, to=lambda node: node[:4]), "node 1 is a list of 4, not a list of 5"),
        (changed("nodes", 1, to="abcde"), 'node 1 is "abcde", not a list'),
        (changed("nodes", 1, 0, to=math.nan), "node 1 has NaN"),
        (changed("nodes", 1, 1, to=None), "node 1 has null"),
        (changed("nodes", 1, 1, to=0), "node 1 has alpha=0"),
        (changed("nodes", 1, 1, to=1e-320), "node 1 has alpha=9.9"),
        (changed("nodes", 1, 2, to=-0.1), "sigma=-0.1"),
        (changed("nodes", 1, 3, to=math.inf), "node 1 has Infinity"),
        (changed("nodes", 1, 4, to="fast"), 'node 1 has "fast"'),
        (changed("nodes", 1, 0, to=10**400), "node 1 has 1000"),
        (changed("nodes", to=lambda nodes: [nodes[0], nodes[0], *nodes[2:]]), "nodes 0 and 1 of the grid coincide"),
        (changed("nodes", to=lambda nodes: [nodes[0], nodes[2], nodes[1], nodes[3]]), "nodes 1 and 2 of the grid"),
        (changed("rows", to=None), "rows is null, not a list"),
        (changed("rows", to=[]), "the rows make the registers 1 to 0"),
        (changed("rows", 2, to=[]), "row 2 is a list of 0, not a sum"),
        (changed("rows", 2, to={}), "row 2 is an object of 0, not a sum"),
        (changed("rows", 2, to={"product": [0, 1]}), "row 2 is an object of 1, not a sum"),
        (changed("rows", 2, to=lambda row: {**row, "noise": [0, 1]}), "row 2 is an object of 2, not a sum"),
        (changed("rows", 2, "sum", to=[]), "row 2 is an empty sum"),
        (changed("rows", 2, "sum", to=0), "row 2 is 0, not a list"),
        (changed("rows", 2, "sum", 1, to=[1]), "a term of row 2 is a list of 1, not a list of 2"),
        (changed("rows", 2, "sum", 1, 0, to=0), "row 2 is an empty sum or contains one register twice"),
        (changed("rows", 2, "sum", 1, 0, to=3), "row 2 reads the register 3, which is not made yet"),
        (changed("rows", 2, "sum", 1, 0, to=-1), "row 2 has -1 where an index is expected"),
        (changed("rows", 2, "sum", 1, 0, to=1.0), "row 2 has 1.0 where an index"),
        (changed("rows", 2, "sum", 1, 0, to=True), "row 2 has true where an index"),
        (changed("rows", 2, "sum", 1, 0, to=10**30), "row 2 reads the register 1000"),
        (changed("rows", 2, "sum", 1, 1, to=math.nan), "row 2 has NaN"),
        (changed("rows", 2, "sum", 1, 1, to="1"), 'row 2 has "1"'),
        (json.dumps(valid()).replace('"sum": [[7, 1.0', '"sum": [[7, 1e999'), "row 7 has Infinity"),
        (without("rows", 3, "node"), "row 3 is an object of 1"),
        (changed("rows", 3, "model", to=4), "row 3 reads the register 4, which is not made yet"),
        (changed("rows", 3, "node", to=4), "row 3 names the node 4; there are 4 nodes"),
        (changed("rows", 3, "node", to=3), "row 3 evaluates the model at sigma = 0"),
        (changed("rows", 4, "noise", to=[1]), "row 4 is a list of 1, not a list of 2"),
        (changed("rows", 4, "noise", 1, to=9), "row 4 names the node 9; there are 4 nodes"),
        (changed("states", to=[]), "0 states on 4 nodes"),
        (changed("states", 0, to=[3]), "state 0 is a list of 1"),
        (changed("states", 0, to=3), "state 0 is 3, not a list"),
        (changed("states", 0, 0, to=0), "state 0 is the register 0; the rows make the registers 1 to 8"),
        (changed("states", 2, 0, to=9), "state 2 is the register 9"),
        (changed("states", 1, 0, to=3), "state 1 is made before state 0"),
        (changed("states", 1, 1, to=3), "state 1 is at the node 3"),
        (changed("states", to=lambda states: [*states, [8, 4]]), "4 states on 4 nodes"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(text, words):
    assert words in refused(text)


def test_names_that_no_reader_knows_are_passed_over():
    program = Program.from_json(json.dumps(valid()))
    assert Program.from_json(json.dumps({"made_by": {"somebody": [1]}, **valid(), "note": None})) == program


def test_a_program_that_encodes_is_read():
    nodes = solvers.grid("logsnr", VP, 4)[::-1]
    program = solvers.trace("heun", nodes)
    assert Program.from_json(program.to_json()) == program
    assert program.end.ratio > program.start.ratio


SPOILT = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 12),
    st.integers(min_value=10**18),
    st.floats(-3, 3),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -0.0]),
    st.text(max_size=5),
    st.sampled_from(["x0", "eps", "sum", "model", "noise", "node", "scoresde-program"]),
    st.lists(st.integers(0, 9), max_size=3),
    st.lists(st.lists(st.one_of(st.integers(0, 9), st.floats(-2, 2)), max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["sum", "model", "noise", "node", "extra"]), st.integers(0, 9), max_size=3),
)


def alike(value):
    """Values of the same kind, which more often make a program: another number, an index nearby, other letters."""
    if isinstance(value, float):
        return st.floats(-3, 3)
    if isinstance(value, int):
        return st.integers(max(0, value - 3), value + 3)
    return st.text(max_size=5) if isinstance(value, str) else SPOILT


def places(value, path=()):
    """The path of every value inside another."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


@st.composite
def mutations(draw):
    """The valid file with a few values replaced, removed, doubled, moved, and perhaps letters lost or added."""
    document = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(document) if path]))
        place = document
        for key in path[:-1]:
            place = place[key]
        key = path[-1]
        kind = draw(st.sampled_from(["alike", "alike", "alike", "replace", "remove", "double", "swap"]))
        if kind == "remove":
            del place[key]
        elif kind == "double" and isinstance(place, list):
            place.insert(key, copy.deepcopy(place[key]))
        elif kind == "swap":
            other = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            place[key], place[other] = place[other], place[key]
        else:
            place[key] = draw(SPOILT if kind == "replace" else alike(place[key]))
    text = json.dumps(document)
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.text(max_size=3)) + text[start + draw(st.integers(0, 4)) :]
    return text


VALID = valid()


class Silent:
    """A problem and a noise source for programs that say anything at all."""

    def predict(self, x, node):
        return solvers.Prediction(0.5 * x, -0.5 * x)

    def __call__(self, t, s):
        return torch.ones(1, 2, dtype=torch.float64)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations())
@example(json.dumps(VALID))
def test_a_spoilt_file_is_refused_or_a_program_like_any_other(text):
    try:
        program = Program.from_json(text)
    except InputError:
        refused(text)
        return
    assert Program.from_json(program.to_json()) == program
    x = torch.ones(1, 2, dtype=torch.float64)
    with torch.no_grad():
        y = program.run(Silent(), x, Silent())
    kept = program.run(Silent(), x, Silent())
    # sums in place and sums of new tensors: the same but for rounding, whatever the coefficients
    assert torch.allclose(y, kept, rtol=1e-6, atol=1e-6 * float(y.abs().max()), equal_nan=True)
    assert torch.equal(x, torch.ones_like(x))
    if program.output.name == "x0":
        found = READER["run"](text, arrays(lambda x, node: 0.5 * x), x.numpy(), arrays(Silent()))
        assert np.allclose(found, y.numpy(), rtol=1e-6, atol=1e-6 * float(y.abs().max()), equal_nan=True)
