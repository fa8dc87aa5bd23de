"""Entropy-bounded steps, decoders, and sharpened laws: exact where they are consistent, otherwise marked."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from discrete_problems import dirichlet, end_error, marginal

import scoresde
import solvers
from scoresde.models.discrete import DiscreteDenoiser, DiscreteEmpirical
from scoresde.models.problem import Diffusion
from scoresde.paths.discrete import Absorbing, Uniform
from scoresde.show import solver_cards
from solvers import InputError
from solvers.conformance.discrete import LEVEL, p_value
from solvers.conformance.kernels import all_states, kernel
from solvers.discrete.decode import Decode
from solvers.discrete.entropy_bounded import within
from solvers.noise.uniform import UniformNoise

PROCESS = Absorbing(2)
TARGET = dirichlet(0.5, 2, 3)
HEARTBEAT = DiscreteEmpirical(torch.stack([((torch.arange(20) - k) % 5 == 0).long() for k in range(5)]))
MASKED = torch.full((1, 3), PROCESS.mask)


def decoded_error(spec, steps):
    """The total variation between the law of a decoder's samples and that of the data, by exact kernels."""
    solver, problem = solvers.make(spec), Diffusion(TARGET.denoiser(PROCESS))
    nodes = solvers.grid("uniform", PROCESS, steps)
    carry, law = solver.init(problem, MASKED, nodes), marginal(TARGET, PROCESS, nodes[0])
    for t, s in pairwise(nodes):
        law = law @ kernel(lambda x, t=t, s=s: solver.moves(problem, x, t, s, carry), all_states(3, 3), 3)
    return 0.5 * float((law - marginal(TARGET, PROCESS, nodes[-1])).abs().sum())


def test_entropy_bounded_steps_are_exact_without_a_budget():
    errors = {
        budget: end_error(
            solvers.make(f"entropy_bounded(budget={budget})"), TARGET, PROCESS, solvers.grid("uniform", PROCESS, 1)
        )
        for budget in (0, 0.1, 0.5, 10)
    }
    assert errors[0] < 1e-14
    assert errors[0] <= errors[0.1] <= errors[0.5] < errors[10]
    one_step = solvers.grid("uniform", PROCESS, 1)
    assert errors[10] == pytest.approx(end_error(solvers.make("tweedie"), TARGET, PROCESS, one_step), rel=1e-12)
    # on any grid, and at times between
    nodes = PROCESS.nodes([1.0, 0.6, 0.3])
    assert end_error(solvers.make("entropy_bounded(budget=0)"), TARGET, PROCESS, nodes) < 1e-14


def test_the_budget_bounds_the_entropy_without_its_largest_part():
    def law(*p):
        return torch.tensor([[[q, 1 - q] for q in p]]).double()

    entropies = torch.special.entr(law(0.5, 0.9, 0.99, 1.0)).sum(-1)[0]  # falling
    waiting = torch.ones(1, 4, dtype=torch.bool)
    assert within(law(0.5, 0.9, 0.99, 1.0), waiting, 0.0).tolist() == [[False, False, True, True]]
    middle = float(entropies[2]) + 1e-9
    assert within(law(0.5, 0.9, 0.99, 1.0), waiting, middle).tolist() == [[False, True, True, True]]
    assert within(law(0.5, 0.9, 0.99, 1.0), waiting, float(entropies[1]) + middle).all()
    waiting[0, 2] = False
    assert within(law(0.5, 0.9, 0.99, 1.0), waiting, 0.0).tolist() == [[False, True, False, True]]


def test_entropy_bounded_draws_are_those_of_the_law_and_need_few_evaluations():
    model = TARGET.denoiser(PROCESS)
    drawn = scoresde.sample(model, seeds=20000, solver="entropy_bounded(budget=0)")
    assert p_value(drawn.x, marginal(TARGET, PROCESS, PROCESS(0.0)), 3) > LEVEL
    # one token of a heartbeat that beats, or five of a gap, fix the other tokens
    beats = scoresde.sample(HEARTBEAT.denoiser(PROCESS), seeds=200, solver="entropy_bounded(budget=0)", steps=None)
    assert bool(torch.isfinite(HEARTBEAT.log_prob(beats.x)).all())
    assert int(beats.nfe_per_sample.max()) <= 6
    assert torch.equal(beats.accepted, beats.nfe_per_sample)


@pytest.mark.parametrize(
    "options",
    [
        "order=entropy",
        "order=margin, commit=linear",
        "order=left_to_right",
        "order=left_to_right, commit=linear, block=2",
        "block=1",  # the order within a block of one token means nothing
    ],
)
def test_a_decoder_whose_order_does_not_see_the_candidates_is_exact_one_by_one(options):
    assert decoded_error(f"decode({options})", 6) < 1e-14
    assert decoded_error(f"decode({options})", 1) > 0.1


def test_random_order_is_exact_one_by_one():
    drawn = scoresde.sample(TARGET.denoiser(PROCESS), seeds=20000, solver="decode(order=random)", steps=6)
    assert p_value(drawn.x, marginal(TARGET, PROCESS, PROCESS(0.0)), 3) > LEVEL
    assert drawn.nfe == 3  # an evaluation for each token, however many steps


def test_confidence_prefers_likely_samples_at_any_number_of_steps():
    assert [decoded_error("decode", n) for n in (3, 6, 12)] == pytest.approx([0.335] * 3, abs=2e-3)
    assert [decoded_error("decode(order=entropy, commit=all)", n) for n in (1, 6)] == pytest.approx([0.223] * 2, 1e-2)
    consistent = {"order=entropy": True, "order=random, block=4": True, "order=margin, commit=all": False}
    consistent |= {"": False, "order=random, remask=random": False}
    assert {text: solvers.make(f"decode({text})").consistent for text in consistent} == consistent


# of ten tokens gamma(1 - k / 4) ten are masked after k steps, rounded down: 7.5, 5, 2.5; 9.2, 7.07, 3.8
@pytest.mark.parametrize(("commit", "known"), [("linear", [3, 5, 8, 10]), ("cosine", [1, 3, 7, 10])])
def test_a_step_keeps_as_many_tokens_as_its_schedule_says(commit, known):
    seen = []

    def watch(x, node):
        seen.append((x != 2).sum(1).unique().tolist())

    target = dirichlet(1.0, 2, 10)
    scoresde.sample(target.denoiser(PROCESS), seeds=8, solver=f"decode(commit={commit})", steps=4, hooks=watch)
    assert seen == [[count] for count in known]


def test_blocks_are_filled_from_left_to_right():
    states = []
    target = dirichlet(1.0, 2, 6)
    scoresde.sample(
        target.denoiser(PROCESS),
        seeds=8,
        solver="decode(block=2, commit=linear)",
        steps=6,
        hooks=lambda x, node: states.append(x != 2),
    )
    for k, known in enumerate(states):
        assert known.sum(1).tolist() == [k + 1] * 8
        assert bool(known[:, : 2 * ((k + 1) // 2)].all())
        assert not bool(known[:, 2 * (k // 2 + 1) :].any())


@pytest.mark.parametrize("remask", ["random", "confidence"])
def test_tokens_are_taken_back_and_given_ones_stay(remask):
    target, changed = dirichlet(0.5, 2, 8), []
    given = torch.full((32, 8), 2)
    given[:, 3] = torch.arange(32) % 2
    states = [given]

    def watch(x, node):
        both = (x != 2) & (states[-1] != 2)
        changed.append(bool((both & (x != states[-1])).any()))
        states.append(x)

    spec = f"decode(remask={remask}, share=0.5, commit=linear)"
    drawn = scoresde.sample(target.denoiser(PROCESS), x_init=given, solver=spec, steps=7, hooks=watch)
    assert torch.equal(drawn.x[:, 3], given[:, 3])
    assert any(changed)
    assert [(x != 2).sum(1).unique().tolist() for x in states] == [[k] for k in range(1, 9)]


SIX = dirichlet(0.3, 2, 6)


def others_law(x):
    """The exact law of each token given the others, as a network may learn it that does not see its own token."""
    found = torch.zeros(*x.shape, 2, dtype=torch.float64)
    for i in range(x.shape[1]):
        at = x.clone()
        at[:, i] = PROCESS.mask
        found[:, i] = SIX.predict(at, PROCESS, PROCESS(0.5)).x0[:, i, :2]
    return found


NETWORK = DiscreteDenoiser(lambda x: others_law(x).log(), PROCESS, time=False, shape=(6,))


@dataclass(frozen=True)
class OtherPlan(Decode):
    """A planner of its own: it likes a token that equals its left neighbour."""

    def plan(self, problem, y, found):
        return neighbours(y)


def neighbours(y):
    same = torch.where(y.roll(1, 1) == 0, 0.9, 0.1).double()
    return torch.stack([same, 1 - same, torch.zeros_like(same)], -1)


def path_planned(steps, eta, given, numbers, plan):
    """P2 as published: of the candidates and the known tokens those of the lowest scores are masked, one by one."""
    x, states = given.clone(), []
    for k in range(1, steps + 1):
        law, (_, second) = others_law(x), next(numbers)
        y, score = x.clone(), torch.zeros(x.shape, dtype=torch.float64)
        for i, j in torch.cartesian_prod(torch.arange(len(x)), torch.arange(x.shape[1])).tolist():
            if x[i, j] == 2:
                y[i, j] = int(second[i, j] >= law[i, j, 0])
                score[i, j] = law[i, j, y[i, j]].log()
        planned = law if plan is None else plan(y)
        known = (x != 2) & (given == 2)
        scores = torch.where(known, eta * planned.gather(-1, x.clamp_max(1)[..., None])[..., 0].log(), score)
        for i in range(len(x)):
            free = [j for j in range(x.shape[1]) if given[i, j] == 2]
            lowest = sorted(free, key=lambda j: (float(scores[i, j]), -j))[: int(len(free) * (1 - k / steps) + 1e-9)]
            x[i] = torch.where(x[i] == 2, y[i], x[i])
            x[i, lowest] = 2
        states.append(x.clone())
    return states


@pytest.mark.parametrize(("make", "plan"), [(Decode, None), (OtherPlan, neighbours)])
@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_planned_remasking_is_as_published(make, plan, eta):
    given = torch.full((40, 6), 2)
    given[:20, 2] = 1
    solver, states, changed = make(commit="linear", remask="planned", eta=eta), [], 0
    nodes = solvers.grid("uniform", PROCESS, 5)
    noise, again = (UniformNoise(range(40), (6,)) for _ in range(2))
    problem, x = Diffusion(NETWORK), given
    carry = solver.init(problem, x, nodes)
    for t, s in pairwise(nodes):
        x, carry = solver.step(problem, x, t, s, carry, noise)[:2]
        states.append(x)
    wanted = path_planned(5, eta, given, ((again(t, s), again(t, s)) for t, s in pairwise(nodes)), plan)
    for found, right in zip(states, wanted, strict=True):
        assert torch.equal(found, right)
    changed = sum(int(((a != 2) & (a != b)).sum()) for a, b in pairwise(states))
    assert changed > 10
    assert torch.equal(x[:20, 2], given[:20, 2])


@pytest.mark.parametrize("order", ["confidence", "margin", "random"])
def test_nothing_is_taken_back_without_a_weight_of_known_tokens_or_a_network_that_doubts_them(order):
    """At eta=0, and of exact models, for which a token that is not masked is certain."""
    wanted = scoresde.sample(NETWORK, seeds=64, solver=f"decode(order={order})", steps=4)
    planned = f"decode(order={order}, remask=planned, eta=0)"
    assert torch.equal(scoresde.sample(NETWORK, seeds=64, solver=planned, steps=4).x, wanted.x)
    exact = scoresde.sample(SIX.denoiser(PROCESS), seeds=64, solver=f"decode(order={order})", steps=4)
    if order != "random":  # a random order knows no doubt
        planned = f"decode(order={order}, remask=planned)"
        assert torch.equal(scoresde.sample(SIX.denoiser(PROCESS), seeds=64, solver=planned, steps=4).x, exact.x)


def test_planned_tokens_stay_in_their_blocks_and_samples_alone():
    states = []
    spec = "decode(commit=linear, remask=planned, block=3, eta=3)"
    batch = scoresde.sample(NETWORK, seeds=32, solver=spec, steps=6, hooks=lambda x, node: states.append(x))
    for k, x in enumerate(states):
        assert (x != 2).sum(1).tolist() == [k + 1] * 32
        assert bool((x[:, :3] != 2).all()) == (k >= 2)
        assert k < 2 or torch.equal(x[:, :3], states[2][:, :3])
    alone = scoresde.sample(NETWORK, seeds=[9], solver=spec, steps=6)
    assert torch.equal(alone.x[0], batch.x[9])
    assert not solvers.make("p2").consistent
    with pytest.raises(
        InputError, match=r"^decode: remask=planned compares logarithms .* order=entropy has not: use con"
    ):
        solvers.make("decode(order=entropy, remask=planned)")


def test_sundae_redraws_a_share_of_the_tokens_and_stops():
    process = Uniform(2)
    network = HEARTBEAT.denoiser(process)
    model = DiscreteDenoiser(lambda x: network.predict(x, process(0.5)).x0.log(), process, time=False, shape=(20,))
    states = []
    made = scoresde.sample(model, seeds=100, solver="sundae", steps=80, hooks=lambda x, node: states.append(x))
    assert all(int((a != b).sum(1).max()) <= 6 for a, b in pairwise(states))  # 0.3 of 20
    assert float(torch.isfinite(HEARTBEAT.log_prob(made.x)).double().mean()) > 0.9
    assert int(made.nfe_per_sample.max()) < 80
    assert made.solver == str(solvers.make("sundae"))
    surest = scoresde.sample(model, seeds=100, solver="decode(commit=all, remask=confidence, share=0.3)", steps=40)
    assert float(torch.isfinite(HEARTBEAT.log_prob(surest.x)).double().mean()) > 0.9


def test_sharpened_laws_are_those_of_their_definition():
    law = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)

    def changed(options):
        return solvers.make(f"sharpened({options})").law(law)

    assert torch.allclose(changed("temperature=0.5"), law**2 / (law**2).sum())
    assert torch.equal(changed("temperature=0"), torch.tensor([0.0, 1, 0, 0]).double())
    assert torch.allclose(changed("top_k=2"), torch.tensor([0, 4, 0, 3]).double() / 7)
    assert torch.allclose(changed("top_p=0.65"), torch.tensor([0, 4, 0, 3]).double() / 7)
    assert torch.allclose(changed("top_p=0.75"), torch.tensor([0, 4, 2, 3]).double() / 9)
    assert torch.allclose(changed("top_k=3, top_p=0.75"), torch.tensor([0, 4, 0, 3]).double() / 7)
    assert torch.allclose(changed("top_k=4"), law)


def test_a_sharpened_solver_is_the_solver_of_the_changed_model():
    nodes = solvers.grid("uniform", PROCESS, 4)
    plain, same = (end_error(solvers.make(spec), TARGET, PROCESS, nodes) for spec in ("tweedie", "sharpened"))
    assert plain == pytest.approx(same, rel=1e-12)
    assert end_error(solvers.make("sharpened(temperature=0.5)"), TARGET, PROCESS, nodes) > 0.15
    greedy = scoresde.sample(TARGET.denoiser(PROCESS), seeds=50, solver="sharpened(solver=decode, temperature=0)")
    assert len(greedy.x.unique(dim=0)) == 1
    assert solvers.make("sharpened(solver=psi)").consistent
    assert not solvers.make("sharpened(top_p=0.9)").consistent


@pytest.mark.parametrize(
    ("spec", "process"),
    [
        ("entropy_bounded(budget=0.3)", Absorbing(2)),
        ("maskgit", Absorbing(2)),
        ("decode(order=random, remask=random, block=5)", Absorbing(2)),
        ("decode(order=entropy, remask=confidence, commit=linear, share=0.3)", Absorbing(2)),
        ("sundae", Uniform(2)),
        ("sharpened(solver=entropy_bounded, top_k=1)", Absorbing(2)),
    ],
)
def test_a_sample_depends_on_its_seed_alone(spec, process):
    model = HEARTBEAT.denoiser(process)
    steps = None if solvers.make(spec).adaptive else 7
    batch = scoresde.sample(model, seeds=range(16), solver=spec, steps=steps)
    for seed in (0, 7, 15):
        alone = scoresde.sample(model, seeds=[seed], solver=spec, steps=steps)
        assert torch.equal(alone.x[0], batch.x[seed])
        assert alone.nfe == int(batch.nfe_per_sample[seed])
    parts = scoresde.sample(model, seeds=range(16), solver=spec, steps=steps, batch_size=5)
    assert torch.equal(parts.x, batch.x)


def test_a_network_with_time_is_asked_at_the_time_of_its_masks():
    asked = []

    def network(x, t):
        asked.append(((x == 2).double().mean(1), t))
        return torch.zeros(*x.shape, 2)

    model = DiscreteDenoiser(network, PROCESS, shape=(8,))
    for spec, steps in (("decode", 5), ("entropy_bounded(budget=1)", None)):
        scoresde.sample(model, seeds=4, solver=spec, steps=steps)
    for share, t in asked:  # alpha = 1 - t
        assert torch.allclose(share.float(), t)


def test_cards_and_table_say_what_is_no_consistent_sampler():
    for spec in ("decode", "maskgit", "sundae", "sharpened(top_k=5)", "psi(per=step)"):
        assert solver_cards.INCONSISTENT in " ".join(solver_cards.card(spec).split())
    for spec in ("decode(order=entropy)", "psi", "tweedie", "sharpened"):
        assert solver_cards.INCONSISTENT not in " ".join(solver_cards.card(spec).split())
    groups = {row.name: row.group for row in solver_cards.rows(["decode", "sharpened", "psi", "entropy_bounded"])}
    assert groups == {"decode": "decoder", "sharpened": "decoder", "psi": "discrete", "entropy_bounded": "discrete"}


@pytest.mark.parametrize(
    ("spec", "process", "message"),
    [
        ("decode", Uniform(2), "fills in masked tokens, which .* does not have: use commit=all with remask=random"),
        ("maskgit", Uniform(2), "fills in masked tokens"),
        ("p2", Uniform(2), "fills in masked tokens"),
        ("entropy_bounded", Uniform(2), "^entropy_bounded unmasks tokens, which .* does not mask: use tweedie$"),
    ],
)
def test_processes_that_have_no_masks(spec, process, message):
    with pytest.raises(InputError, match=message):
        scoresde.sample(HEARTBEAT.denoiser(process), seeds=2, solver=spec)


def test_bad_options():
    with pytest.raises(
        InputError, match=r"^sharpened changes laws of tokens: give it a solver of discrete states, got"
    ):
        solvers.make("sharpened(solver=heun)")
    with pytest.raises(InputError, match=r"^sharpened: top_p must lie in \(0, 1\], got 0$"):
        solvers.make("sharpened(top_p=0)")
    with pytest.raises(InputError, match="sure"):
        solvers.make("decode(order=sure)")
    with pytest.raises(InputError, match=r"orders tokens by random numbers: it has no exact kernel$"):
        decoded_error("decode(order=random)", 2)
