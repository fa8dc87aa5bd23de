"""What is printed and drawn of a program is the program: coefficients to the printed digits, and the weights that a run
shows; and the command that does it, with its manners."""

import io
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

import scoresde
import solvers
from scoresde.cli.parser import main
from scoresde.io.result_files import write_figure
from scoresde.show import program_view
from solvers import Program
from solvers.conformance.problems import VP
from solvers.program.instructions import Combine, Evaluate
from solvers.types.model_output import PREDICTS

pytestmark = pytest.mark.quick

LINEAR = [name for name in solvers.names() if solvers.make(name).linear]


def traced(name, steps=5, output="x0", grid="karras"):
    return solvers.trace(name, solvers.grid(grid, VP, steps), VP, output)


def printed(text):
    """The rows of the table in turn, as (name, the rest); a row may take several lines."""
    joined = re.sub(r"\n {4,}", " ", text)
    return re.findall(r"^  (\w+) = (.+)$", joined, re.MULTILINE)


def terms(said):
    """{name: coefficient} of a printed sum."""
    found = re.findall(r"(^-?|[+-] )([\d.e+-]+ )?([a-zA-Z]\w*)", said)
    signs = [-1 if sign.startswith("-") else 1 for sign, _, _ in found]
    return {name: sign * float(c or 1) for sign, (_, c, name) in zip(signs, found, strict=True)}


def digits(value):
    return float(f"{value:.5g}")


@pytest.mark.parametrize("name", LINEAR)
def test_the_table_says_what_the_program_holds(name):
    program = traced(name, output=list(PREDICTS)[LINEAR.index(name) % len(PREDICTS)])
    text = program_view.text(program)
    rows = printed(text)
    names = ["xT", *(left for left, _ in rows)]
    assert len(rows) == len(program.instructions)
    assert len(set(names)) == len(names)
    for (_, said), instruction in zip(rows, program.instructions, strict=True):
        if isinstance(instruction, Combine):
            assert terms(said) == {names[register]: digits(c) for register, c in instruction.terms}
        elif isinstance(instruction, Evaluate):
            x, t = re.fullmatch(r"model\((\w+), t=(\S+)\)", said).groups()
            assert (x, float(t)) == (names[instruction.x], digits(program.nodes[instruction.node].t))
        else:
            ends = map(float, re.fullmatch(r"noise\(t=(\S+) -> (\S+)\)", said).groups())
            assert list(ends) == [digits(program.nodes[n].t) for n in instruction]
    assert [names[state.register] for state in program.states] == [f"x{k}" for k in range(1, 6)]
    for letter, count in (("m", program.nfe), ("z", program.draws)):
        assert [name for name in names if name[0] == letter] == [f"{letter}{k}" for k in range(1, count + 1)]
    assert max(map(len, text.splitlines())) <= 118


def test_every_step_says_where_it_ends():
    program = traced("heun", 4)
    said = re.findall(
        r"^(start|step \d+ +to) +t=(\S+) +alpha=(\S+) +sigma=(\S+) +lam=(\S+)$", program_view.text(program), re.M
    )
    assert [line[0].split()[:2] for line in said] == [["start"], *(["step", str(k)] for k in range(1, 5))]
    for (_, *numbers), node in zip(said, program.grid, strict=True):
        assert [float(v) for v in numbers] == [digits(v) for v in (node.t, node.alpha, node.sigma, node.lam)]
    assert said[-1][-1] == "inf"


def test_long_sums_are_broken_between_terms():
    document = json.loads(traced("ddim", 1).to_json())
    sum_of = [[r, (-1) ** r * (0.12345 + r)] for r in range(20)]
    document["rows"], document["states"] = [{"noise": [0, 1]}] * 19 + [{"sum": sum_of}], [[20, 1]]
    text = program_view.text(Program.from_json(json.dumps(document)))
    assert terms(printed(text)[-1][1]) == {"xT": 0.12345, **{f"z{r}": digits(c) for r, c in sum_of[1:]}}
    broken = text.splitlines()[-3:]
    assert re.match(r"  x1 = 0\.12345 xT \+ 18\.123 z18 - ", broken[0].replace("- 19.123 z19 ", ""))
    assert all(re.match(r" {7}[+-] \d+\.\d+ z\d+ ", line) for line in broken[1:])
    assert all(len(line) <= 118 for line in broken)


@pytest.mark.parametrize(
    ("name", "output", "most"),
    [
        ("ddim", "x0", 2),  # the state and the prediction
        ("dpmpp_2m", "x0", 3),  # and the prediction before
        ("ddpm", "x0", 3),  # and the noise
        ("ipndm", "eps", 5),  # the state and four predictions
        ("heun", "x0", 4),  # the state, the state between, and their predictions
        ("dpmpp_2m", "eps", 4),  # each x0 is of a state and its prediction
    ],
)
def test_registers_alive_at_once(name, output, most):
    program = traced(name, 8, output)
    later = [
        {
            r
            for i in program.instructions[k:]
            for r in ([i.x] if isinstance(i, Evaluate) else dict(getattr(i, "terms", ())))
        }
        for k in range(len(program.instructions) + 1)
    ]
    later[-1] = {program.states[-1].register}
    alive = [sum(r in later[k] for r in range(k + 1)) for k in range(len(later))]
    assert program_view.peak(program) == max(alive)
    assert f"at most {max(alive)} registers alive at once" in program_view.text(program)
    assert max(alive) == most


class Units:
    """A model and a noise source that answer with unit vectors, in the order in which they are asked."""

    def __init__(self, program):
        self.output, self.asked, self.drawn = program.output, 0, program.nfe
        self.eye = torch.eye(1 + program.nfe + program.draws, dtype=torch.float64)

    def raw(self, x, node):
        self.asked += 1
        return self.eye[self.asked : self.asked + 1].clone()

    def __call__(self, t, s):
        self.drawn += 1
        return self.eye[self.drawn : self.drawn + 1].clone()


@pytest.mark.parametrize("name", LINEAR)
def test_the_response_is_what_a_run_on_unit_vectors_gives(name):
    """1e-13 is the rounding of sums of numbers of size ten, taken in two orders."""
    program = traced(name, output=list(PREDICTS)[LINEAR.index(name) % len(PREDICTS)])
    units, ran = Units(program), []
    program.run(units, units.eye[:1], units, [lambda x, node: ran.append(x[0].clone())])
    (rows, columns), matrix = program_view._response(program)
    assert columns == ["xT", *(f"m{k + 1}" for k in range(program.nfe)), *(f"z{k + 1}" for k in range(program.draws))]
    assert units.asked == program.nfe
    found = [matrix[rows.index(f"x{k}")] for k in range(1, 6)]
    scale = np.abs(matrix).max()
    assert np.allclose(found, torch.stack(ran).numpy(), rtol=0, atol=1e-13 * scale)
    assert rows[-1] == "x5"


def test_the_response_of_euler_is_the_steps_in_sigma():
    nodes = solvers.grid("explicit(times=[8, 2, 0.5, 0.1])", scoresde.EDM())
    (rows, _), matrix = program_view._response(solvers.trace("euler", nodes, output="eps"))
    assert rows == ["x1", "x2", "x3"]
    assert np.allclose(matrix, [[1, -6, 0, 0], [1, -6, -1.5, 0], [1, -6, -1.5, -0.4]], rtol=0, atol=1e-14)


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


@pytest.mark.parametrize(("name", "steps"), [("dpmpp_2m", 8), ("heun", 3), ("dpmpp_2m_sde", 12), ("ddim", 1)])
def test_the_picture_shows_the_response(name, steps, tmp_path):
    program = traced(name, steps)
    (rows, columns), matrix = program_view._response(program)
    figure = program_view.picture(program, "a title")
    axes = figure.axes[0]
    drawn = axes.images[0].get_array()
    assert np.array_equal(drawn.filled(0.0), matrix)
    assert np.array_equal(drawn.mask, matrix == 0)
    cells = [text for text in axes.texts if text.get_text()]
    assert len(cells) == (np.count_nonzero(matrix) if steps <= 8 else 0)
    for text in cells:
        j, i = text.get_position()
        assert float(text.get_text()) == pytest.approx(matrix[i, j], rel=0.051)  # two digits, at least
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"${c[0]}_{{{c[1:]}}}$" for c in columns]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [re.match(r"\$(\w)_\{(\d+)\}\$", label).groups() for label in labels] == [(r[0], r[1:]) for r in rows]
    assert labels[-1].endswith("sigma=0")
    assert axes.get_title(loc="left").startswith("a title: ")
    write_figure(tmp_path / "a.png", figure)
    size = Image.open(tmp_path / "a.png").size
    assert size == tuple(int(130 * inches) for inches in program_view.size(program))


def test_the_picture_is_not_blank():
    """The least and the greatest coefficient of ``lms`` in eps have opposite signs: blue cells and red ones."""
    picture = pixels(program_view.picture(traced("lms", 6, "eps")))
    red, blue = picture[..., 0] - picture[..., 2], picture[..., 2] - picture[..., 0]
    assert (red > 80).mean() > 0.02  # one column of the start
    assert (blue > 80).mean() > 0.05
    grey = np.abs(picture - np.array([0xE4, 0xE6, 0xE9])).max(-1) == 0
    assert grey.mean() > 0.1  # what a state cannot depend on


def test_long_programs_have_fewer_labels():
    axes = program_view.picture(traced("ddim", 70)).axes[0]
    assert len(axes.get_yticklabels()) == 24  # every third
    assert not axes.texts


def test_a_state_that_is_the_models_own_output():
    """Of a file written by hand: the table keeps the name of the output, the response has the state."""
    document = json.loads(traced("ddim", 1).to_json())
    document["rows"], document["states"] = [{"model": 0, "node": 0}], [[1, 1]]
    program = Program.from_json(json.dumps(document))
    assert printed(program_view.text(program)) == [("m1", f"model(xT, t={VP.t_max:.5g})")]
    (rows, columns), matrix = program_view._response(program)
    assert (rows, columns, matrix.tolist()) == (["m1"], ["xT", "m1"], [[0.0, 1.0]])
    program_view.picture(program)


# the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_show_prints_the_table_and_draws_the_picture(folder, capsys):
    assert main(["solvers", "DPM++ 2M SDE Karras", "--steps=8", "--show"]) == 0
    out = capsys.readouterr().out
    program = solvers.trace("dpmpp_2m_sde", solvers.grid("karras", scoresde.VP(), 8))
    title = "dpmpp_2m_sde on karras of vp"
    assert out == f"{program_view.text(program, title)}\n\ndpmpp_2m_sde.png\n"
    size = Image.open(folder / "dpmpp_2m_sde.png").size
    assert size == tuple(int(130 * inches) for inches in program_view.size(program))
    assert [path.name for path in folder.iterdir()] == ["dpmpp_2m_sde.png"]


def test_the_options_choose_grid_path_output_and_file(folder, capsys):
    options = ["--grid=uniform", "--sde=rectified_flow", "--output=velocity", "--out=made/heun.png", "--json=heun.json"]
    (folder / "made").mkdir()
    assert main(["solvers", "heun", "--steps=3", "--show", *options]) == 0
    sde = scoresde.RectifiedFlow()
    program = solvers.trace("heun", solvers.grid("uniform", sde, 3), sde, "velocity")
    assert capsys.readouterr().out.startswith("heun on uniform of rectified_flow\n3 steps, 6 NFE, no noise, at most ")
    text = (folder / "heun.json").read_text()
    assert Program.from_json(text) == program
    assert json.loads(text)["note"].startswith("scoresde solvers heun --steps=3 --show --grid=uniform")
    assert (folder / "made" / "heun.png").read_bytes().startswith(b"\x89PNG")


def test_json_alone_is_a_program_on_the_screen(folder, capsys):
    assert (
        main(["solvers", "dpmpp_2m(variant=heun)", "--json=-", "--grid=explicit(times=[1, 0.4, 0.1], end=zero)"]) == 0
    )
    program = Program.from_json(capsys.readouterr().out)
    assert (program.solver, program.nfe, program.output.name) == ("dpmpp_2m(variant=heun)", 3, "x0")
    assert [node.t for node in program.grid[:-1]] == [1.0, 0.4, 0.1]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pc", "--steps=4", "--show"], "pc has no program: Langevin's step is set by the norms"),
        (["rk45", "--steps=4", "--json=a.json"], "rk45 has no program"),
        (["scipy", "--steps=4", "--show"], "another library takes the steps"),
        (["heun", "--steps=4"], "--steps needs a solver's program: add --show to print and draw it, or --json FILE"),
        (["heun", "--grid=uniform"], "add --show"),
        (["heun", "--sde=ve"], "add --show"),
        (["heun", "--output=eps"], "add --show"),
        (["heun", "--out=a.png"], "add --show"),
        (["--steps=4"], "add --show"),
        (["heun", "--show"], "add --steps"),
        (["--show", "--steps=4"], "scoresde solvers NAME"),
        (["heun", "--show", "--steps=0"], "--steps: must be a positive integer, got 0"),
        (["heun", "--show", "--steps=four"], "--steps: must be a positive integer, got four"),
        (["huen", "--show", "--steps=4"], "did you mean heun"),
        (["heun", "--show", "--steps=4", "--grid=karas"], "did you mean karras"),
        (["heun", "--show", "--steps=4", "--sde=vpp"], "no SDE 'vpp'"),
        (["heun", "--show", "--steps=4", "--output=noise"], "no prediction type 'noise'"),
        (["heun", "--show", "--steps=4", "--out=a.jpg"], "--out must be a PNG file, and needs --show; got a.jpg"),
        (["heun", "--json=-", "--steps=4", "--out=a.png"], "--out must be a PNG file, and needs --show"),
        (["heun", "--json=-", "--steps=4", "--show"], "give --json a file"),
        (["heun", "--json", "--steps=4"], "--json"),
        (["heun", "--show", "--steps=4", "--shows"], "--shows"),
    ],
)
def test_bad_arguments_end_with_one_line_and_no_file(folder, capsys, arguments, words):
    assert main(["solvers", *arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert list(folder.iterdir()) == []
    assert captured.out == ""


def test_a_folder_that_is_a_file(folder, capsys):
    (folder / "file").write_text("")
    assert main(["solvers", "heun", "--steps=2", "--json=file/heun.json"]) == 2
    assert "cannot write file/heun.json: there is no folder file" in capsys.readouterr().err


def test_without_options_the_card_and_the_table_stay(capsys):
    assert main(["solvers", "heun"]) == 0
    assert capsys.readouterr().out == scoresde.show.solver_cards.card("heun") + "\n"


def test_the_scale_of_an_empty_response():
    """All coefficients 0: nothing to draw but grey."""
    document = json.loads(traced("ddim", 1).to_json())
    document["rows"], document["states"] = [{"sum": [[0, 0.0]]}], [[1, 1]]
    program = Program.from_json(json.dumps(document))
    assert math.isfinite(pixels(program_view.picture(program)).mean())


def test_a_program_in_a_file_is_shown_on_its_own_nodes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["solvers", "dpmpp_2m", "--steps", "4", "--json", "mine.json"]) == 0
    capsys.readouterr()
    assert main(["solvers", "file:mine.json", "--show"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("file:mine.json\n4 steps, 4 NFE")
    assert (tmp_path / "mine.png").exists()
    assert main(["solvers", "file:mine.json", "--show", "--steps", "4"]) == 2
    assert "already fixes its nodes and its output: leave out --steps" in capsys.readouterr().err
