"""Operators against the identities that define them, and against sums written out."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from scoresde import InputError, operators
from scoresde.operators import Blur, Custom, Downsample, Gray, Inpaint, Matrix, Operator, Phase, Quantise, Sense, Tanh
from solvers import generator

pytestmark = pytest.mark.quick


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


MASK = torch.tensor([[True, False, True, True], [False, False, True, False]])
SINGULAR = normal(5, 2) @ normal(2, 6, seed=1)  # of rank 2
LINEAR = [
    (Inpaint(MASK), (2, 4)),
    (Inpaint(MASK), (3, 2, 4)),
    (Inpaint(torch.tensor([True, False, True])), (3,)),
    (Downsample(2), (8,)),
    (Downsample(3), (2, 9)),
    (Downsample(2), (3, 4, 6)),
    (Blur(width=0.8), (11,)),
    (Blur(normal(3)), (2, 8)),
    (Blur(normal(3, 5)), (2, 6, 7)),
    (Blur(torch.ones(1, 3) / 3), (1, 4, 6)),  # its transform is 0 at a third of the frequencies
    (Gray(), (3, 4, 5)),
    (Gray(), (2, 7)),
    (Matrix(normal(3, 8)), (2, 4)),
    (Matrix(normal(8, 3)), (3,)),
    (Matrix(SINGULAR), (6,)),
    (Sense(5, seed=3), (2, 4)),
    (Sense(6), (6,)),
]
NONLINEAR = [
    (Phase(), (7,)),
    (Phase(oversample=2), (2, 4, 5)),
    (Tanh(3, scale=4.0, seed=1), (2, 4)),
    (Quantise(4), (2, 3)),
    (Custom(lambda x: x.flatten(1)[:, :3] ** 2), (2, 4)),
]
each_linear = pytest.mark.parametrize(("operator", "shape"), LINEAR, ids=lambda v: str(v))
every = pytest.mark.parametrize(("operator", "shape"), LINEAR + NONLINEAR, ids=lambda v: str(v))


def moore_penrose(a, plus):
    """The largest error of the four equations that define the pseudo-inverse."""
    left, right = a @ plus, plus @ a
    return max(
        float((p - q).abs().max()) for p, q in ((left @ a, a), (right @ plus, plus), (left, left.T), (right, right.T))
    )


@every
def test_the_identities(operator, shape):
    errors = operators.check(operator, shape)
    assert len(errors) == (8 if operator.linear else 0)
    assert all(error < 1e-10 for error in errors.values())


@each_linear
def test_adjoint_pseudo_inverse_and_decomposition_are_those_of_the_matrix(operator, shape):
    a = operator.matrix(shape)
    m = len(a)
    observed = operator.shape(shape)
    units = torch.eye(m, dtype=torch.float64).view(m, *observed)
    # rounding of sums of at most 60 numbers of size 1, times the condition number, which is below 100
    assert torch.allclose(operator.adjoint(units, shape).flatten(1), a, rtol=0, atol=1e-13)
    assert moore_penrose(a, operator.pinv(units, shape).flatten(1).T) < 1e-11
    svd = operator.svd(shape)
    exact = torch.linalg.svdvals(a)
    rank = int((exact > 1e-9 * exact[0]).sum())
    assert torch.allclose(svd.values.sort(descending=True).values, exact[:rank], rtol=1e-11)


@each_linear
def test_the_defaults_are_what_the_faster_forms_return(operator, shape):
    """A linear operator of which only A is known has the same adjoint, pseudo-inverse and singular values."""

    class Bare(Operator):
        linear = True

        def shape(self, shape):
            return operator.shape(shape)

        def __call__(self, x):
            return operator(x)

    bare = Bare()
    y = normal(3, *operator.shape(shape))
    assert torch.allclose(bare.adjoint(y, shape), operator.adjoint(y, shape), rtol=0, atol=1e-13)
    assert torch.allclose(bare.pinv(y, shape), operator.pinv(y, shape), rtol=0, atol=1e-11)
    assert torch.allclose(bare.svd(shape).values, operator.svd(shape).values.sort(descending=True).values, rtol=1e-11)


def test_a_mask_of_the_last_dimensions_holds_for_every_channel():
    x = normal(2, 3, 2, 4)
    assert torch.equal(Inpaint(MASK)(x), torch.cat([x[:, c][:, MASK] for c in range(3)], 1))


def test_blocks_are_averaged():
    x = normal(2, 3, 4, 6)
    assert torch.allclose(Downsample(2)(x), torch.nn.functional.avg_pool2d(x, 2), rtol=0, atol=1e-15)
    assert torch.allclose(Downsample(3)(x[:, 0, 0]), x[:, 0, 0].view(2, 2, 3).mean(2), rtol=0, atol=1e-15)
    assert torch.allclose(Gray()(x), x.mean(1, keepdim=True), rtol=0, atol=1e-15)


def test_blur_is_the_circular_convolution():
    kernel, x = normal(3, 5), normal(2, 1, 6, 7)
    exact = sum(
        kernel[i, j] * x.roll((i - 1, j - 2), (2, 3)) for i in range(3) for j in range(5)
    )  # y(p) = sum_o k(o) x(p - o), offsets o counted from the centre
    assert torch.allclose(Blur(kernel)(x), exact, rtol=0, atol=1e-13)
    # a Gaussian of width 0.8 sampled at integers has sum 1 and variance 0.64, but for aliasing: by Poisson's sum, of
    # relative size 2 (2 pi)^2 0.64 exp(-2 pi^2 0.64) = 1.6e-4
    point = torch.zeros(1, 25, dtype=torch.float64)
    point[0, 12] = 1
    spread = Blur(width=0.8)(point)[0]
    offsets = torch.arange(-12, 13, dtype=torch.float64)
    assert float(spread.sum()) == pytest.approx(1, abs=1e-14)
    assert float((spread * offsets**2).sum()) == pytest.approx(0.64, abs=2e-4)


def test_sensing_vectors_are_uniform():
    """The mean of the first coordinate of the first vector over seeds is 0 and its square 1/d, within 4 errors."""
    first = torch.stack([Sense(1, seed=s).matrix((4,))[0] for s in range(400)])
    assert first.mean(0).abs().max() < 4 * 0.5 / 20
    assert (first.square().mean(0) - 0.25).abs().max() < 4 * (0.125 - 0.0625) ** 0.5 / 20  # E u^4 = 3 / (d (d + 2))
    assert torch.equal(Sense(2, seed=5).matrix((4,)), Sense(4, seed=5).matrix((4,))[:2])


def test_nonlinear_ones_are_their_formulas():
    x = normal(3, 2, 4)
    f = torch.fft.fft(torch.cat([x, torch.zeros_like(x)], 2), norm="ortho").abs()
    assert torch.allclose(Phase(oversample=2)(x), f, rtol=0, atol=1e-14)
    assert torch.allclose(Phase()(x), Phase()(-x.roll(1, 2)), rtol=0, atol=1e-14)
    b = Sense(3, seed=2).matrix((2, 4))
    assert torch.allclose(Tanh(3, scale=4.0, seed=2)(x), torch.tanh(4 * x.flatten(1) @ b.T), rtol=0, atol=1e-14)
    values = torch.tensor([[-2.0, -0.7, -0.6, 0.4, 0.68, 5.0]])  # the levels are -1, -1/3, 1/3, 1
    assert Quantise(4)(values)[0].tolist() == pytest.approx([-1, -1, -1 / 3, 1 / 3, 1, 1])


@every
def test_rows_do_not_depend_on_their_batch(operator, shape):
    """Bit for bit, of every map and of gradients, in both float types."""
    for dtype in (torch.float32, torch.float64):
        x = normal(9, *shape).to(dtype)
        y = operator(x)
        maps = [(lambda v: operator(v), x)]
        if operator.linear:
            svd = operator.svd(shape)
            maps += [(lambda v: operator.adjoint(v, shape), y), (lambda v: operator.pinv(v, shape), y)]
            maps += [(svd.right, x), (svd.from_right, svd.right(x)), (svd.left, y), (svd.from_left, svd.left(y))]
        maps.append((lambda v: gradient(operator, v), x))
        for function, argument in maps:
            whole = function(argument)
            assert whole.dtype == dtype
            for rows in (slice(0, 1), slice(4, 5), slice(3, 8)):
                assert torch.equal(function(argument[rows]), whole[rows])


def gradient(operator, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((operator(x) ** 2).sum(), x)[0]


@every
def test_gradients(operator, shape):
    if not operator.differentiable:
        assert not gradient(operator, normal(2, *shape)).any()
        return
    x = normal(2, *shape).requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,), fast_mode=True)
    if operator.linear:
        y = normal(2, *operator.shape(shape)).requires_grad_()
        assert torch.autograd.gradcheck(lambda y: operator.adjoint(y, shape), (y,), fast_mode=True)


def test_the_likelihood_and_the_measurement():
    operator, x = Matrix(normal(3, 4), sigma=0.3), normal(5, 4)
    noise = normal(5, 3, seed=7)
    y = operators.measure(operator, x, noise)
    assert torch.equal(y, operator(x) + 0.3 * noise)
    exact = Normal(operator(x), 0.3).log_prob(y).sum(1)
    assert torch.allclose(operators.log_likelihood(operator, y, x), exact, rtol=1e-13)
    assert torch.allclose(
        operators.log_likelihood(operator, y[:1], x)[1:], Normal(operator(x), 0.3).log_prob(y[0]).sum(1)[1:]
    )
    assert torch.equal(operators.measure(operator, x, 4), operators.measure(operator, x, generator(4)))
    assert torch.equal(operators.measure(Matrix(normal(3, 4)), x), Matrix(normal(3, 4))(x))  # sigma = 0: no noise
    drawn = operators.measure(Inpaint(torch.tensor([True]), sigma=0.5), torch.zeros(20000, 1), 1)
    assert float(drawn.std()) == pytest.approx(0.5, abs=4 * 0.5 / 200)  # 4 standard errors


def test_specs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("mask.npy", MASK.numpy())
    np.save("a.npy", SINGULAR.numpy())
    made = operators.make("inpaint(mask=mask.npy, sigma=0.05)")
    assert torch.equal(made(normal(2, 2, 4)), normal(2, 2, 4)[:, MASK])
    assert made.sigma == 0.05
    assert str(made) == "inpaint(mask='mask.npy', sigma=0.05)"
    assert operators.make(made) is made
    assert torch.equal(operators.make("matrix(a.npy)").matrix((6,)), SINGULAR)
    assert torch.equal(operators.make(str(operators.make("sense(3, seed=2)"))).matrix((6,)), Sense(3, 2).matrix((6,)))
    assert str(Matrix(SINGULAR, sigma=1.0)) == "matrix(values=<5 x 6>, sigma=1.0)"


BAD = [
    (lambda: Inpaint(torch.ones(2, 4)), "mask must be boolean, True where a number is seen; got numbers"),
    (lambda: Inpaint(torch.zeros(2, 4, dtype=torch.bool)), "shows nothing"),
    (lambda: Inpaint(MASK).shape((4, 2)), r"mask has the shape \(2, 4\), which is neither that of the samples, \(4, 2"),
    (lambda: Inpaint(MASK)(normal(3, 5)), "neither"),
    (lambda: operators.make("inpaint(mask=gone.npy)"), "cannot read the mask 'gone.npy'"),
    (lambda: operators.make("inpaint"), r"inpaint needs the option 'mask': inpaint\(mask=...\)"),
    (lambda: Downsample(2).shape((3, 5, 4)), r"factor 2 does not divide samples of shape \(3, 5, 4\)"),
    (lambda: Downsample(1), "factor must be an integer of at least 2"),
    (lambda: Blur(torch.ones(2, 3)), r"odd lengths, with its centre; got \(2, 3\)"),
    (lambda: Blur(), "either a kernel or the width"),
    (lambda: Blur(torch.ones(3), width=1.0), "either a kernel or the width"),
    (lambda: Blur(width=0.0), "width must be positive"),
    (lambda: Blur(torch.ones(3, 3)).shape((2, 8)), r"kernel of shape \(3, 3\) does not fit samples of shape \(2, 8\)"),
    (lambda: Blur(torch.ones(9)).shape((8,)), "does not fit"),
    (lambda: Gray().shape((8,)), "samples need channels"),
    (lambda: Matrix(torch.ones(3)), "must have 2 dimensions, got the shape"),
    (lambda: Matrix(torch.tensor([[1.0, float("nan")]])), "finite real numbers"),
    (lambda: Matrix(torch.ones(2, 3)).shape((2, 2)), r"matrix: 2 x 3 does not apply to samples of shape \(2, 2\)"),
    (lambda: operators.make("matrix(gone.npy)"), "cannot read the matrix 'gone.npy'"),
    (lambda: Sense(7).shape((6,)), "m=7 is more than the 6 numbers"),
    (lambda: Sense(7).shape((6000,)), "at most 4096"),
    (lambda: Sense(2, sigma=-1.0), "sense: sigma must be at least 0, got -1"),
    (lambda: operators.make("sense(2, sigma=-0.1)"), "sigma must be at least 0"),
    (lambda: Quantise(4, low=1.0, high=0.0), "low must be below high"),
    (lambda: Quantise(1), "levels must be an integer of at least 2"),
    (lambda: Tanh(2).adjoint(normal(1, 2), (4,)), r"tanh\(m=2\) is not linear: it has no adjoint"),
    (lambda: Phase().pinv(normal(1, 4), (4,)), "not linear"),
    (lambda: Phase().svd((4,)), "not linear"),
    (lambda: Sense(2).adjoint(normal(1, 3), (4,)), r"in the shape \(2,\); got observations of shape \(3,\)"),
    (lambda: Gray().pinv(normal(1, 3, 2), (3, 2)), "got observations of shape"),
    (lambda: Custom(3), "must be a function"),
    (
        lambda: Custom(lambda x: x.sum()).shape((3,)),
        r"one observation per sample, \(1, \*\), got a tensor of shape \(\)",
    ),
    (lambda: operators.make("inpant(mask=m.npy)"), "did you mean inpaint"),
    (lambda: operators.log_likelihood(Sense(2), normal(1, 2), normal(1, 4)), "sigma above 0"),
    (lambda: operators.log_likelihood(Sense(2, sigma=1.0), normal(1, 3), normal(1, 4)), "got observations of shape"),
    (lambda: operators.measure(Sense(2), normal(1, 4), normal(1, 3)), "got observations of shape"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input_is_one_clear_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


class Wrong(Matrix):
    """A matrix with one fault."""

    fault = ""

    def __call__(self, x):
        y = super().__call__(x)
        return {"mean": y + x.flatten(1).mean(), "curve": y + 0.01 * y**2, "shape": y[:, 1:]}.get(self.fault, y)

    def adjoint(self, y, shape):
        return super().adjoint(y, shape) * (1 + 1e-6 * (self.fault == "adjoint"))

    def pinv(self, y, shape):
        return super().pinv(y, shape) * (1 + 1e-6 * (self.fault == "pinv"))

    def svd(self, shape):
        svd = super().svd(shape)
        factor = 1 + 1e-6
        return {
            "values": svd._replace(values=svd.values * factor),
            "right": svd._replace(right=lambda x: svd.right(x) * factor),
            "left": svd._replace(left=lambda y: svd.left(y) * factor),
        }.get(self.fault, svd)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("mean", "depends on the other samples"),
        ("shape", "observations have the shape"),
        ("curve", "A x \\+ A y fails"),
        ("adjoint", "<A x, y> = <x, A\\^T y> fails.*relative error"),
        ("pinv", "A A\\^\\+ A = A fails"),
        ("values", "A = U S V\\^T fails|A A"),
        ("right", "V V\\^T = I fails"),
        ("left", "U U\\^T = I fails|A A"),
    ],
)
def test_the_check_finds_each_fault(fault, message):
    wrong = Wrong(normal(3, 6))
    assert len(operators.check(wrong, (6,))) == 8
    object.__setattr__(wrong, "fault", fault)
    with pytest.raises(InputError, match=message):
        operators.check(wrong, (6,))
