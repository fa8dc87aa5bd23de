"""Registries: classes by name, and objects made from specs.

A registered class is a frozen dataclass; its fields are the options of its specs, see ``options``.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points as installed_entry_points
from typing import Any, Generic, TypeVar

from ..errors import InputError, near, shown, unknown
from . import outside
from . import spec as grammar
from .normalise import is_title, normalise
from .options import REGISTRIES, coerce, option_name, type_hints
from .spec import Spec

T = TypeVar("T")
C = TypeVar("C", bound=type)
log = logging.getLogger("solvers")
LONGEST_LABEL = 200  # characters of a name or a label


@dataclass(frozen=True)
class Info:
    """The card of a registered class. All but the first four fields are facts about solvers.

    Attributes:
        nonlinear: why a step is not linear in the state, the predictions and the noise; empty if it is linear.
        order: the order that the class promises with its default options.
        native: the quantity that the method interpolates or differences: x0, eps, score, ...
        equals: specs of methods with the same coefficients; a test proves each equality.
        shared: names of solvers of another space of states that mean this one in its own space.
        consistent: whether the samples follow the model's law in the limit of many steps.
        note: what a user should know beyond the other fields.
    """

    name: str
    cls: type
    aliases: tuple[str, ...] = ()
    reference: str = ""
    kind: str = ""
    order: float | None = None
    stochastic: bool = False
    nonlinear: str = ""
    adaptive: bool = False
    evaluations: int = 1
    formula: str = ""
    native: str = "eps"
    equals: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    consistent: bool = True
    note: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Option names and their defaults."""
        return {name: None if f.default is dataclasses.MISSING else f.default for name, f in self.fields.items()}

    @property
    def fields(self) -> dict[str, dataclasses.Field[Any]]:
        """The fields of the class by the names of their options."""
        return {option_name(field): field for field in dataclasses.fields(self.cls)}

    @property
    def positional(self) -> list[str]:
        """The options that may be given by position."""
        return [name for name, field in self.fields.items() if not field.kw_only]

    @property
    def linear(self) -> bool:
        """Whether a step is linear in the state, the predictions and the noise."""
        return not self.nonlinear

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.cls) or "").partition("\n")[0]


class Registry(Generic[T]):
    """Names for the subclasses of one base class.

    >>> from solvers import solvers
    >>> str(solvers.make("ddim(eta=1)"))
    'ddim(eta=1.0)'
    """

    def __init__(
        self,
        kind: str,
        base: type[T],
        entry_points: str | None = None,
        of_callable: Callable[[Any], type] | None = None,
    ) -> None:
        """A registry; ``of_callable`` makes a class of another callable that a spec names as ``module:name``."""
        self.kind, self.base, self._of_callable = kind, base, of_callable
        self._entry_points = entry_points
        self._infos: dict[str, Info] = {}
        self._aliases: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._titles: dict[str, str] = {}
        self._read_label: Callable[[str], str] = str
        self._told: set[str] = set()  # each spelling is logged once
        self.prefixes: set[str] = set()  # names that are read as ``name:TEXT``
        REGISTRIES[base] = self

    def register(
        self, name: str, *, aliases: tuple[str, ...] = (), prefix: bool = False, **facts: Any
    ) -> Callable[[C], C]:
        """Class decorator: registers a frozen dataclass under ``name`` and its aliases.

        Args:
            prefix: read ``name:TEXT`` as the class with TEXT, unparsed, as its first option.
            facts: further fields of ``Info``: kind, order, reference, stochastic, ...

        Raises:
            InputError: the name is not canonical or is taken, or the class is not a frozen dataclass derived from the
                base.
        """

        def decorate(cls: C) -> C:
            if normalise(name) != name:
                raise InputError(f"the {self.kind} name {name!r} is not canonical; use {normalise(name)!r}")
            for key in (name, *map(normalise, aliases)):
                holder = self._infos[key].cls if key in self._infos else None
                if (holder and holder.__qualname__ != cls.__qualname__) or self._aliases.get(key, name) != name:
                    raise InputError(f"the {self.kind} name {key!r} is taken")
            self._infos[name] = self._card(name, cls, aliases=aliases, **facts)
            self._aliases.update({normalise(alias): name for alias in aliases})
            if prefix:
                self.prefixes.add(name)
            return cls

        return decorate

    def add_labels(
        self,
        labels: Mapping[str, str],
        read: Callable[[str], str] | None = None,
        titles: Mapping[str, str] | None = None,
    ) -> None:
        """Adds other programs' labels for the registered classes; registered names and aliases take precedence.

        Args:
            labels: specs by label.
            read: a function that ``make`` applies to its text before parsing; it may replace a longer label.
            titles: specs by labels that take precedence where they are typed as a title, see ``is_title``.
        """
        self._titles.update({normalise(label): spec for label, spec in (titles or {}).items()})
        self._labels.update({normalise(label): spec for label, spec in labels.items()})
        self._read_label = read or self._read_label

    def _card(self, name: str, cls: type, **facts: Any) -> Info:
        if not issubclass(cls, self.base):
            raise InputError(f"{cls.__name__} cannot be a {self.kind}: it does not derive from {self.base.__name__}")
        if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise InputError(f"{cls.__name__} must be a dataclass(frozen=True) to be a {self.kind}")
        return Info(name=name, cls=cls, **facts)

    def names(self) -> list[str]:
        """Canonical names, sorted; without prefixes such as ``file``, which need a text after a colon."""
        self._load_plugins()
        return sorted(self._infos.keys() - self.prefixes)

    def info(self, name: str) -> Info:
        """The card of a name or alias.

        Raises:
            InputError: the name is unknown; the message lists the nearest matches.
        """
        if prefixed := self._prefixed(name):
            name = prefixed.name
        if ":" in name:
            return self._outside(name)
        key = self._find(name).name
        if normalise(name) != name and name not in self._told:
            self._told.add(name)
            log.info("%r -> %s", name, key)
        return self._infos[key]

    def knows(self, name: str) -> bool:
        """Whether a name, an alias or another program's label is known; plug-ins are loaded only if it is not."""
        return self._look_up(name) is not None or (self._load_plugins() and self._look_up(name) is not None)

    def read(self, text: str) -> Spec:
        """Parses a spec: makes the outer name canonical and adds options that a label implies and the text omits.

        Raises:
            InputError: the name is unknown, or the text is not a spec.
        """
        if prefixed := self._prefixed(text):
            return prefixed
        head = text.partition("(")[0]
        if ":" in head:
            return grammar.parse(text)
        label = self._find(head)
        return self._complete(label, grammar.parse(text, label=head))

    def _prefixed(self, text: str) -> Spec | None:
        """The spec of ``name:TEXT`` if that name is a prefix."""
        name, colon, rest = text.strip().partition(":")
        return Spec(name, (rest,)) if colon and name in self.prefixes else None

    def _complete(self, label: Spec, given: Spec) -> Spec:
        """``given`` under the name of ``label``, with the options of ``label`` that ``given`` omits."""
        positional = self._infos[label.name].positional
        taken = {key for key, _ in given.kwargs} | set(positional[: len(given.args)])
        added = tuple((key, value) for key, value in label.kwargs if key not in taken)
        return Spec(label.name, given.args, (*given.kwargs, *added))

    def _find(self, name: str) -> Spec:
        """The canonical name of a spelling, with the options that a label implies."""
        spec = self._look_up(name)
        if spec is None and self._load_plugins():
            spec = self._look_up(name)
        if spec is None:
            alike = near(normalise(name[:LONGEST_LABEL]), sorted(self._spellings()))
            if found := list(dict.fromkeys(str(self._look_up(k)) for k in alike)):
                raise InputError(f"no {self.kind} {name!r}; did you mean {', '.join(found)}?")
            raise unknown(self.kind, name, self.names())
        return spec

    def _spellings(self) -> set[str]:
        return {*self._infos, *self._aliases, *(k for k in self._labels if self._look_up(k, exactly=True))}

    def _look_up(self, name: str, exactly: bool = False) -> Spec | None:
        if len(name) > LONGEST_LABEL:
            return None
        key = normalise(name)
        alias, label = self._aliases.get(key), self._labels.get(key)
        if is_title(name) and key in self._titles:
            return grammar.parse(self._titles[key])
        if key in self._infos:
            return Spec(key)
        if alias:
            return Spec(alias)
        if label:
            spec = grammar.parse(label)
            return spec if spec.name in self._infos else None
        if not exactly:  # dpm++2m, EulerAncestral: the same letters with different word breaks
            letters = key.replace("_", "")
            alike = {self._look_up(k, exactly=True) for k in self._spellings() if k.replace("_", "") == letters}
            if len(alike) == 1:
                return alike.pop()
        return None

    def info_of(self, obj: T) -> Info:
        """The card of an object's class; for an unregistered class, a card without facts."""
        cls = type(obj)
        for info in self._infos.values():
            if info.cls is cls:
                return info
        return self._card(f"{cls.__module__}:{cls.__qualname__}", cls)

    def make(self, spec: str | Spec | T) -> T:
        """Makes the object that a spec names; returns an object of the base class unchanged.

        Raises:
            InputError: the name or an option is unknown, or an option has the wrong type or is outside its range.
        """
        if isinstance(spec, self.base):
            return spec
        if isinstance(spec, str):
            typed = self._read_label(spec)
            tree = self.read(typed)
            if ":" not in tree.name:
                self.info(typed.partition("(")[0])  # logs the spelling
            spec = tree
        elif isinstance(spec, Spec) and (prefixed := self._prefixed(spec.name)) and not (spec.args or spec.kwargs):
            spec = prefixed
        elif isinstance(spec, Spec) and ":" not in spec.name:
            spec = self._complete(self._find(spec.name), spec)
        if not isinstance(spec, Spec):
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise InputError(f"expected the spec of {article} {self.kind}, got {shown(spec)}")
        info = self.info(spec.name)
        fields, most = info.fields, len(info.positional)
        if len(spec.args) > most:
            raise InputError(f"{info.name} takes at most {most} options by position, got {len(spec.args)}")
        given = dict(zip(info.positional, spec.args, strict=False))
        for key, value in spec.kwargs:
            if key not in fields:
                raise unknown(f"option of {info.name}", key, fields)
            if key in given:
                raise InputError(f"{info.name} got the option {key!r} twice")
            given[key] = value
        for key, field in fields.items():
            if field.init and key not in given and field.default is field.default_factory is dataclasses.MISSING:
                raise InputError(f"{info.name} needs the option {key!r}: {info.name}({key}=...)")
        hints = type_hints(info.cls)
        values = {
            fields[key].name: coerce(value, hints[fields[key].name], f"option {key!r} of {info.name}")
            for key, value in given.items()
        }
        try:
            made: T = info.cls(**values)
        except TypeError as error:
            raise InputError(f"{info.name}: {error}") from None
        return made

    def format(self, obj: T) -> str:
        """The canonical spec of an object: its name, and the options that differ from their defaults."""
        info = self.info_of(obj)
        options = []
        for name, field in info.fields.items():
            value = getattr(obj, field.name)
            if value != field.default:
                options.append(f"{name}={grammar.write(value)}")
        return f"{info.name}({', '.join(options)})" if options else info.name

    def _outside(self, name: str) -> Info:
        outside.refuse_untyped(name)
        module, _, qualname = name.partition(":")
        try:
            cls = getattr(outside.import_named(module), qualname)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's module may raise any exception, or call exit
            raise InputError(f"cannot import the {self.kind} {name!r}: {str(error) or type(error).__name__}") from error
        if self._of_callable and callable(cls) and not (isinstance(cls, type) and issubclass(cls, self.base)):
            cls = self._of_callable(cls)
        if not isinstance(cls, type):
            raise InputError(f"{name!r} is not a class")
        return next((i for i in self._infos.values() if i.cls is cls), None) or self._card(name, cls)

    def _load_plugins(self) -> bool:
        """Loads the plug-ins on the first call; returns whether this call was the first one."""
        group, self._entry_points = self._entry_points, None
        with outside.installed_only():
            for point in installed_entry_points(group=group) if group else ():
                point.load()
        return group is not None


def outside_names(text: str) -> frozenset[str]:
    """The outside classes that the text of a spec names, such as "mine:Net"; quoted text names none.

    >>> sorted(outside_names("pc(predictor=mine:Heun, corrector=a.b:Langevin)")), sorted(outside_names("file:a.json"))
    (['a.b:Langevin', 'mine:Heun'], [])
    """
    prefixes = {prefix for registry in REGISTRIES.values() for prefix in registry.prefixes}
    if text.strip().partition(":")[0] in prefixes:
        return frozenset()
    return frozenset(name for name in grammar.outside_names(text) if name.partition(":")[0] not in prefixes)
