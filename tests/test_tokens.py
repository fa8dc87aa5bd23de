"""Tokens: texts, arrays, levels and the heartbeat as states of a discrete process; and the networks that take them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from scoresde.data import Condition, TokenOptions, load
from scoresde.models.networks import networks
from solvers import InputError

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
RHYME = "Möwen fliegen, Wellen ziehen,\nund am Strand die Kinder knien.\n" * 20


def tokens(data, path="", **options):
    given = {name: options.pop(name) for name in ("card", "labels", "classes", "seed") if name in options}
    return load(data, str(path), tokens=TokenOptions(**options), **given)


@pytest.fixture
def rhyme(tmp_path):
    path = tmp_path / "rhyme.txt"
    path.write_text(RHYME, encoding="utf-8")
    return path


# texts


def test_windows_of_a_text_are_the_text_and_its_end_is_held_out(rhyme):
    data = tokens("text", rhyme, length=32)
    cut = len(RHYME) - round(len(RHYME) / 6)
    train, test = data.train.first().x, data.test.first().x
    assert train.dtype == test.dtype == torch.int64
    assert data.card.texts(train) == [RHYME[i : i + 32] for i in range(cut - 31)]
    assert "".join(data.card.texts(test)) == RHYME[cut:][: len(test) * 32]
    assert len(test) == (len(RHYME) - cut) // 32
    assert data.card.symbols == "".join(sorted(set(RHYME)))
    assert (data.card.states, data.card.shape) == (len(set(RHYME)), (32,))
    # a window is a view: the windows that train need no memory of their own
    assert data.train.x.numbers.strides == (1, 1)


def test_bytes_are_tokens_of_any_file(tmp_path):
    content = RNG.integers(0, 256, 500, dtype=np.uint8).tobytes()
    (tmp_path / "any").write_bytes(content)
    data = tokens("bytes", tmp_path / "any", length=10)
    assert data.card.states == 256
    first = data.train.first(1)
    assert bytes(first.x[0].tolist()) == content[:10] == data.card.texts(first.x)[0].encode("latin-1")


def test_another_text_is_read_by_the_vocabulary_of_the_run(rhyme, tmp_path):
    card = tokens("text", rhyme, length=16).card
    other = tmp_path / "other.txt"
    other.write_text("die Wellen und die Kinder am Strand " * 4)  # fewer symbols
    read = tokens("text", other, length=16, card=card)
    assert read.card.symbols == card.symbols
    assert read.card.texts(read.train.first(1).x) == ["die Wellen und d"]
    other.write_text("die Wällen? ja, die Wällen " * 9)
    with pytest.raises(
        InputError, match=r"symbols that are not among the \d+ of the vocabulary: 'ä' \(18x\), '\?' \(9x\)"
    ):
        tokens("text", other, length=16, card=card)


def test_the_note_of_a_text_has_the_entropy_of_its_frequencies(rhyme):
    share = np.array([RHYME.count(c) for c in set(RHYME)]) / len(RHYME)
    assert f"entropy {-(share * np.log2(share)).sum():.4g} bits" in str(tokens("text", rhyme, length=16))


def test_a_card_tells_texts_apart(rhyme, tmp_path):
    card = tokens("text", rhyme, length=16).card
    assert card.differences(tokens("text", rhyme, length=16).card) == []
    changed = tmp_path / "changed.txt"
    # a letter in the middle of the part that trains: only windows contain it, never a first one
    changed.write_text(RHYME[:300] + ("e" if RHYME[300] != "e" else "n") + RHYME[301:], encoding="utf-8")
    other = tokens("text", changed, length=16).card
    assert other.fingerprints[0] != card.fingerprints[0]
    assert other.fingerprints[1] == card.fingerprints[1]
    changed.write_text(RHYME.replace("ö", "oe"), encoding="utf-8")
    assert "other symbols" in card.differences(tokens("text", changed, length=16).card)
    changed.write_text(RHYME.replace("ö", "e"), encoding="utf-8")
    fewer = tokens("text", changed, length=16).card
    assert "tokens of 24 values instead of tokens of 25 values" in card.differences(fewer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the text '.*' is empty$"),
        (b"ab" * 20, r"has 40 symbols, too few for windows of 32 to train and to test: lower data.length"),
        (b"abc\xff" * 40, r"is not UTF-8 \(byte 0xff at 3\): read it as data.name=bytes"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        tokens("text", path, length=32)
    assert "\n" not in str(error.value)


# arrays and levels


@pytest.mark.parametrize("shape", [(7,), (4, 3), (1, 8, 8), (2, 3, 4, 5)])
@pytest.mark.parametrize(("kind", "states", "stored"), [("u1", 4, "u1"), ("i8", 300, "i2"), (">i4", 40_000, "i4")])
def test_whole_numbers_of_any_shape_are_tokens(tmp_path, shape, kind, states, stored):
    x = RNG.integers(0, states, (30, *shape)).astype(kind)
    x.flat[0] = states - 1
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    for name in ("x.npy", "x.npz"):
        data = tokens("file", tmp_path / name, seed=3)
        assert (data.card.states, data.card.shape) == (states, shape)
        assert data.train.x.numbers.dtype == stored
        rows = torch.cat([data.train.tensor(), data.test.tensor()])
        assert sorted(rows.tolist()) == sorted(x.tolist())
        assert len(data.test) == 5


def test_the_number_of_states_may_be_stated():
    x = RNG.integers(0, 3, (30, 5))
    assert tokens(x).card.states == 3
    assert tokens(x, states=9).card.states == 9
    # data of a run need not contain its largest token
    assert tokens(np.minimum(x, 1), card=tokens(x).card).card.states == 3


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (RNG.random((9, 4)), {}, r"floats \(float64\), but a discrete process needs whole numbers"),
        (np.ones((9, 4)), {}, "floats"),  # whole floats are not tokens either
        (np.full((9, 4), -2), {}, "tokens are whole numbers from 0 on, got -2"),
        (np.full((9, 4), 5), {"states": 3}, "the token 5, where 3 values 0 to 2 are known"),
        (np.full((9, 4), 3), {"states": 3}, "the token 3, .* as the mask, which data must not have"),
        (np.zeros((9, 4), int), {}, "all tokens are 0"),
        (np.full((9, 4), 2**30), {}, "1,073,741,825 values of a token, more than"),
        (np.zeros((0, 4), int), {}, "empty"),
        (np.arange(9), {}, r"expected an array \(N, \*\)"),
        (np.arange(36).reshape(9, 4), {"levels": 99}, "levels of data .* cannot be joined"),
    ],
)
def test_numbers_that_are_no_tokens(x, options, message):
    with pytest.raises(InputError, match=message) as error:
        tokens(x, **options)
    assert "\n" not in str(error.value)


def test_options_that_do_not_suit_the_data(rhyme):
    for name, path, options, message in [
        ("digits", "", {"length": 5}, "data.length is for the data sets text, bytes and heartbeat"),
        ("digits", "", {"states": 18}, "tokens of 17 values; leave out data.states=18"),
        ("text", rhyme, {"levels": 2}, "data.levels=2: the symbols of .* cannot be joined"),
        ("text", rhyme, {"labels": "label"}, "a text has no column 'label'"),
        ("text", "", {}, "needs a path"),
        ("heartbeat", rhyme, {}, "takes no path"),
        ("heartbeat", "", {"period": 30}, "period must lie between 2 and the length 20, got 30"),
    ]:
        with pytest.raises(InputError, match=message):
            tokens(name, path, **options)
    with pytest.raises(InputError, match="these data are tokens, for discrete states"):
        load("text", str(rhyme))
    with pytest.raises(InputError, match="leave out bin_width"):
        load("digits", bin_width=0.1, tokens=TokenOptions())


def test_digits_have_seventeen_levels_which_may_be_joined():
    pytest.importorskip("sklearn")
    data, bits = tokens("digits", labels="label"), tokens("digits", levels=2, labels="label")
    assert (data.card.states, data.card.shape) == (17, (1, 8, 8))
    assert data.card.conditions == (Condition("label", "class", classes=10),)
    index = torch.tensor([5, 3])
    x, y = data.train.batch(index), bits.train.batch(index)
    # level k of 0 .. 16 becomes floor(2 k / 17): 0 to 8 are dark
    assert torch.equal(y.x, (x.x > 8).long())
    assert torch.equal(x.conditions["label"], y.conditions["label"])
    numbers = load("digits", labels="label").train.batch(index)  # the same split as of numbers
    assert torch.equal((numbers.x + 1) * 8, x.x.float())
    assert torch.equal(numbers.conditions["label"], x.conditions["label"])


def test_the_heartbeat_is_what_its_definition_says():
    data = tokens("heartbeat")
    assert sorted(data.train.tensor().tolist()) == sorted(
        [[int(i % 5 == k) for i in range(20)] for k in range(5)]
    ) == sorted(data.test.tensor().tolist())  # fmt: skip
    assert data.card.states == 2
    assert "entropy is 2.322 bits" in str(data)
    assert tokens("heartbeat", length=9, period=3).train.tensor().sum(1).tolist() == [3, 3, 3]


def test_unequal_parts_of_a_file_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", train=np.eye(4, dtype=int), test=np.eye(5, dtype=int))
    with pytest.raises(InputError, match=r"samples are \(4,\) in train but \(5,\) in test"):
        tokens("file", tmp_path / "x.npz")


# networks


def built(spec, shape=(6,), values=4, **given):
    torch.manual_seed(0)
    return networks.make(spec).build_tokens(shape, values, **given)


def stirred(module):
    """The module with random weights throughout: an untrained one returns 0."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module.eval()


SPECS = ("transformer(width=16, depth=2, heads=2)", "mlp(width=16, depth=1)")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 4, 4)])
def test_a_network_returns_a_number_for_each_value_of_each_token(spec, shape):
    module = built(spec, shape)
    x, t = torch.randint(0, 4, (5, *shape)), torch.rand(5)
    assert torch.equal(module(x, t), torch.zeros(5, *shape, 4))
    out = stirred(module)(x, t)
    assert out.shape == (5, *shape, 4)
    # every output depends on every token: the network sees both sides
    for place in range(math.prod(shape)):
        other = x.flatten(1).clone()
        other[:, place] = (other[:, place] + 1) % 4
        assert ((module(other.view_as(x), t) - out).abs().amax(-1) > 1e-4).all()
    assert (module(x, t + 0.3) - out).abs().max() > 1e-3


@pytest.mark.parametrize("spec", SPECS)
def test_a_network_without_time_is_called_without(spec):
    module = stirred(built(spec, time=False))
    x = torch.randint(0, 4, (5, 6))
    assert module(x).shape == (5, 6, 4)
    if spec.startswith("transformer"):
        assert module.time is None
        with pytest.raises(InputError, match="this transformer takes a time"):
            built(spec)(x)


def test_one_hot_channels_belong_to_the_values_of_their_tokens():
    class Doubled(nn.Module):
        def forward(self, x, label, /):
            assert x.shape[1:] == (8, 3, 3)  # 2 channels of 4 values
            return 2 * x

    from scoresde.models.networks import OneHot

    x = torch.randint(0, 4, (5, 2, 3, 3))
    out = OneHot(Doubled(), (2, 3, 3), 4)(x, torch.zeros(5))
    assert torch.equal(out, 2 * nn.functional.one_hot(x, 4).float())


@pytest.mark.parametrize("spec", SPECS)
def test_classes_enter_a_network_of_tokens(spec):
    module = stirred(built(spec, conditions=[Condition("label", "class", classes=3)]))
    x, t = torch.randint(0, 4, (1, 6)).expand(4, 6), torch.full((4,), 0.5)
    out = module(x, t, label=torch.arange(4))  # the last one is "no class"
    assert torch.pdist(out.flatten(1)).min() > 0.02  # 1e-6 is rounding
    with pytest.raises(InputError, match="label"):
        module(x, t)


def test_networks_of_tokens_and_of_numbers_are_not_mistaken():
    with pytest.raises(InputError, match=r"takes tokens, the states of a process"):
        networks.make("transformer").build((1, 8, 8))
    with pytest.raises(InputError, match="must be a multiple of heads=3"):
        networks.make("transformer(width=16, heads=3)")
    with pytest.raises(InputError, match="this transformer is for 6 tokens, got 5"):
        built(SPECS[0])(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2))
    with pytest.raises(InputError, match="conditions of the kinds class, vector; mask is of the kind image"):
        built(SPECS[0], (1, 4, 4), conditions=[Condition("mask", "image", (1, 4, 4))])


class Own(nn.Module):
    """A user's network of tokens."""

    def __init__(self, shape, values, time, width=8):
        super().__init__()
        self.facts = (shape, values, time, width)
        self.table = nn.Embedding(values, values)

    def forward(self, x, label=None):
        return self.table(x)


def own_of_numbers(shape, width=8):
    return nn.Linear(shape[-1], shape[-1])


def test_a_users_factory_makes_a_network_of_tokens():
    made = built(f"{__name__}:Own(width=4)", time=False)
    assert made.facts == ((6,), 4, False, 4)
    with pytest.raises(InputError, match="takes tokens"):
        networks.make(f"{__name__}:Own").build((6,))
    wrapped = built(f"{__name__}:own_of_numbers")  # gets tokens one-hot, (4, 6)
    assert (wrapped.network.in_features, wrapped.values) == (6, 4)


def test_a_network_learns_what_its_place_is():
    """A transformer without positions could not tell places apart: here a token is the parity of its place."""
    module = built("transformer(width=16, depth=1, heads=2)", time=False)
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    x, wanted = torch.full((8, 6), 3), torch.arange(6).expand(8, 6) % 2
    for _ in range(60):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(module(x).movedim(-1, 1), wanted)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05  # ln 2 = 0.69 without places


def test_the_time_and_conditions_do_not_hide_the_tokens():
    """Before training, what a transformer computes changes with the tokens as much as it does without a time.

    Embeddings of a time added to every token are of size 1 and those of tokens of size 0.02: a normalised sum then
    hardly depends on the tokens, and a model of uniform noise learned no more than frequencies from a text.
    """
    classes = (Condition("y", "class", classes=10),)
    x = torch.randint(4, (64, 6), generator=torch.Generator().manual_seed(0))
    other, label = (x + 1) % 4, torch.full((64,), 0.3)

    def share_that_changes(time, conditions):
        torch.manual_seed(0)
        recipe = networks.make("transformer(width=32, depth=2, heads=2)")
        module = recipe.build_tokens((6,), 4, conditions, time)
        module.leave = nn.Identity()
        module.norm = nn.LayerNorm(32, elementwise_affine=False)
        given = {"y": torch.zeros(64, dtype=torch.long)} if conditions else {}
        arguments = (label,) if time else ()
        size = 6 * 32
        first, second = (module(tokens, *arguments, **given).reshape(64, size) for tokens in (x, other))
        return float(((first - second).norm() / first.norm()).detach())

    alone = share_that_changes(False, ())
    assert alone > 0.5
    for time, conditions in ((True, ()), (False, classes), (True, classes)):
        assert share_that_changes(time, conditions) > 0.8 * alone
