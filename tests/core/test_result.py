"""A result stands in for its value: same answers as plain, ops and decisions recorded, loud where an edge would be lost."""

# ruff: noqa: TID251, PLC3002, FURB171, UP031, RUF005, SIM105, SIM118 # the forms these rules object to are what is tested

import collections
import collections.abc
import contextlib
import copy
import dataclasses
import enum
import functools
import json
import math
import numbers
import operator
import pickle
import typing
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import node_of, plain, record, trace
from trace_opt.errors import OpError, TraceError


@trace
def ident(x: Any) -> Any:
    return x


@trace
def boom(x: Any) -> Any:
    raise ValueError("no")


@dataclasses.dataclass
class Point:
    x: int
    value: int = 5
    name: str = "n"

    def shifted(self, by: int = 1) -> int:
        return self.x + by

    @property
    def double(self) -> int:
        return self.x * 2


Pair = collections.namedtuple("Pair", "a b")
Colour = enum.Enum("Colour", "RED BLUE")


def matched(x: Any) -> Any:
    match x:
        case [a, *rest]:
            return ("sequence", a, list(rest))
        case {"a": value, **rest}:
            return ("mapping", value, rest)
        case str():
            return "text"
        case int(n):
            return ("int", n)
        case Point(x=3, name=name):
            return ("point", name)
        case None:
            return "none"
    return "other"


def caught() -> Any:
    try:
        boom(1)
    except ValueError as error:
        return ident(str(error))


def entered() -> Any:
    with ident(contextlib.nullcontext(4)) as inside:
        return inside


def defaulted() -> Any:
    found = collections.defaultdict(list)
    found[ident("k")].append(1)
    return dict(found)


def text() -> Any:
    return ident("hello world")


def items() -> Any:
    return ident([3, 1, 2])


def table() -> Any:
    return ident({"a": 1, "b": [2]})


SAME: dict[str, Any] = {
    "chained comparison": lambda: 1 < ident(5) < 10,
    "sorted results": lambda: sorted([ident(3), ident(1)]),
    "sorted result": lambda: sorted(items()),
    "list.sort": lambda: (found := [ident(2), ident(1)], found.sort(), found)[2],
    "sum of results": lambda: sum([ident(3), ident(1)]),
    "sum of a result": lambda: sum(items()),
    "max": lambda: max([ident(3), ident(9)]),
    "max by key": lambda: max([ident("aa"), ident("b")], key=len),
    "min by an op": lambda: min(["bb", "a"], key=lambda x: ident(len(x))),
    "slice": lambda: items()[1:],
    "slice by a result": lambda: [1, 2, 3][: ident(2)],
    "index by a result": lambda: [1, 2, 3][ident(2)],
    "look-up by label": lambda: {"spam": 1, "ham": 2}[ident("ham")],
    "unpacking": lambda: (lambda a, b, c: (c, b, a))(*items()),
    "keyword unpacking": lambda: (lambda a, b: b)(**table()),
    "tuple assignment": lambda: [b for a, b in ident([(1, 2), (3, 4)])],
    "dict.get": lambda: (table().get("a"), table().get("z"), table().get("z", 7)),
    "dict.items": lambda: [(k, v) for k, v in table().items()],
    "dict.keys": lambda: (list(table().keys()), table().keys() & {"a"}),
    "dict.values": lambda: (list(table().values()), len(table().values())),
    "views": lambda: [
        isinstance(view, kind)
        for view in (table().items(), table().keys(), table().values())
        for kind in (collections.abc.ItemsView, collections.abc.KeysView, collections.abc.ValuesView)
    ],
    "in a result": lambda: (3 in items(), 9 in items(), "hell" in text(), "z" in table()),
    "a result in": lambda: (ident(5) in [1, 5], ident(5) in {1}, ident("a") in {"a": 1}),
    "bool": lambda: ["y" if ident(x) else "n" for x in (0, [], [0], "", None, {})],
    "and, or": lambda: (ident(0) or "d", ident(1) and "e", not ident(0)),
    "text methods": lambda: (text().upper(), text().split(), text().replace("hello", "x"), text().isalpha()),
    "a result as argument of its own kind's method": lambda: text().replace(ident("hello"), ident("x")),
    "join by a result": lambda: ident(",").join([ident("a"), "b"]),
    "format by a result": lambda: (ident("{} {x}").format(1, x=ident(2)), ident("%s-%d") % ("a", 3)),
    "number into %d": lambda: "%d" % ident(5),
    "concatenation": lambda: ("a" + text(), text() + "a", [1] + items(), items() + [1], (1,) + ident((2,))),
    "repetition": lambda: (3 * text(), text() * ident(2)),
    "conversions": lambda: (int(ident("7")), float(ident("7.5")), int(ident(7.9)), complex(ident("1j")), float(ident(2))),
    "rounding": lambda: (round(ident(2.567), 1), round(ident(2.5)), math.floor(ident(4.5)), math.ceil(ident(4.5))),
    "math": lambda: (math.sqrt(ident(4)), abs(ident(-3)), -ident(3), +ident(3), ~ident(3), math.trunc(ident(2.7))),
    "divmod": lambda: (divmod(ident(7), 2), divmod(7, ident(2))),
    "powers": lambda: (pow(ident(3), 2, 5), 2 ** ident(3), ident(2) ** 3),
    "in place": lambda: (operator.iadd(ident(5), 2), operator.iadd(items(), [2]), operator.iadd([0], items())),
    "range, enumerate, zip": lambda: (list(range(ident(3))), list(enumerate(items())), list(zip(items(), "abc"))),
    "filter, any, all": lambda: (list(filter(None, ident([0, 1]))), any(ident([0, 1])), all(ident([0, 1]))),
    "constructors": lambda: (list(items()), tuple(items()), set(items()), dict(table())),
    "display unpacking": lambda: ([*items(), 1], {**table(), "c": 1}),
    "letters": lambda: ([c for c in ident("abc")], text()[0], text()[-1]),
    "reversed": lambda: (list(reversed(items())), list(reversed(ident("ab")))),
    "len": lambda: (len(text()), len(items()), len(table())),
    "sets": lambda: (ident({1}) | {3}, {3} | ident({1}), {3}.union(ident({1})), ident({1, 2}) & {1}, ident({1}) <= {1}),
    "dicts": lambda: (ident({1: 2}) | {3: 4}, {3: 4} | ident({1: 2})),
    "list methods": lambda: ([0].__class__(items()), [1, 5].index(ident(5)), [1, 5].count(ident(5))),
    "vote by Counter": lambda: Counter(ident(x) for x in "abca").most_common(1)[0][0],
    "defaultdict": defaulted,
    "bytes": lambda: ident(b"ab").decode(),
    "copies": lambda: (copy.copy(items()), copy.deepcopy({"a": items()})),
    **{f"match {x!r}": functools.partial(lambda x: matched(ident(x)), x) for x in ([1, 2], (), {"a": 1, "b": 2}, {}, "s", 5, Point(3), None)},
    "data class": lambda: (ident(Point(3)).x, ident(Point(3)).shifted(4), ident(Point(3)).double, ident(Point(3)).name),
    "data class tools": lambda: (dataclasses.asdict(ident(Point(3))), dataclasses.replace(ident(Point(3)), x=4), dataclasses.is_dataclass(ident(Point(1)))),
    "data class that holds a result": lambda: trace(lambda d: d.shifted())(Point(ident(3))),
    "named tuple": lambda: (ident(Pair(1, 2)).a, ident(Pair(1, 2))[1], ident(Pair(1, 2))._replace(a=3)),
    "named tuple that holds a result": lambda: trace(lambda d: d.a + 1)(Pair(ident(3), 1)),
    "called": lambda: ident(lambda z: z + 1)(ident(4)),
    "a class": lambda: (ident(Point)(4).x, ident(Point).value, issubclass(ident(bool), int), issubclass(ident(int), int)),
    "callable": lambda: (callable(ident(5)), callable(ident(len)), callable(ident(Point))),
    "enum": lambda: (ident(Colour.RED).name, ident(Colour.RED).value, ident(Colour.RED) == Colour.RED),
    "enum class": lambda: (ident(Colour).RED, len(list(Colour))),
    "getattr": lambda: (getattr(text(), "zz", 4), hasattr(text(), "zz")),
    "isinstance": lambda: (isinstance(text(), str), isinstance(items(), list), isinstance(ident(5), bool), text().__class__ is str),
    "is None": lambda: (ident(None) is None, ident(0) is None),
    "except around an op": caught,
    "hash and ==": lambda: (hash(text()) == hash("hello world"), text() == "hello world", text() == "hello world", text() != "x"),
    "with": entered,
    "iterators": lambda: (list(ident(iter([1, 2]))), next(ident(iter([1, 2])))),
    "reduce": lambda: functools.reduce(lambda a, b: a + b, items()),
    "dir": lambda: dir(text()) == dir(""),
    "repr": lambda: (repr(text()), repr([items()])),
    "numpy on the left": lambda: (np.array([1.0, 2.0]) + ident(2.5), np.float64(2) * ident(2.5), np.int64(2) < ident(5)),
    "numpy on the right": lambda: (ident(2.5) + np.array([1.0, 2.0]), ident(2.5) * np.float64(2)),
    "ufuncs": lambda: (np.sqrt(ident(4.0)), np.add(ident([1.0, 2.0]), 1), np.add.reduce(ident(np.ones(2)))),
    "numpy functions": lambda: (np.mean(ident([1.0, 2.0])), np.stack([ident(np.ones(2)), ident(np.ones(2))]), np.argmax([ident(1), ident(2)])),
    "numpy conversion": lambda: (np.array(ident([1, 2])), np.array([ident(2.5), ident(5)]), np.asarray(ident(np.ones(2)))),
    "numpy indexing": lambda: (np.arange(6)[ident(2)], np.arange(6)[ident([2, 3])], ident(np.arange(6))[2], ident(np.arange(6))[1:3]),
    "numpy arrays": lambda: (ident(np.ones(2)).mean(), np.eye(2) @ ident(np.ones(2)), [x for x in ident(np.ones(2))], float(ident(np.array(2.0)))),
    "numpy where": lambda: np.where(ident(np.arange(3)) > 1, ident(np.arange(3)), 0),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_the_same_value_recorded_and_plain(case: str) -> None:
    with record():
        recorded = SAME[case]()
    assert repr(plain(recorded)) == repr(SAME[case]())


_operators = st.sampled_from([operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
                              operator.lt, operator.eq, operator.ge, divmod, operator.pow])  # fmt: skip
_leaves = st.one_of(st.integers(-9, 9), st.floats(-9, 9), st.booleans())
_expressions = st.recursive(
    st.tuples(st.just(None), _leaves, st.booleans()), lambda inner: st.tuples(_operators, inner, inner), max_leaves=8
)


def _evaluate(expression: Any, hand: Any) -> Any:
    made, left, right = expression
    if made is None:
        return hand(left) if right else left
    return made(_evaluate(left, hand), _evaluate(right, hand))


def _outcome(run: Any) -> str:
    try:
        return repr(plain(run()))
    except (ArithmeticError, TypeError) as error:
        return type(error).__name__


@given(_expressions)
def test_random_arithmetic_gives_the_same_recorded_and_plain(expression: Any) -> None:
    with record():
        recorded = _outcome(lambda: _evaluate(expression, ident))
    assert recorded == _outcome(lambda: _evaluate(expression, lambda x: x))


_ABCS = [getattr(collections.abc, name) for name in (
    "Sequence", "Mapping", "MutableSequence", "MutableMapping", "Set", "Iterable", "Iterator", "Hashable", "Sized", "Callable",
    "Container", "Collection", "Reversible", "Awaitable",
)] + [numbers.Number, numbers.Integral, numbers.Real, typing.SupportsInt, typing.SupportsFloat, typing.SupportsAbs, typing.SupportsIndex]  # fmt: skip


# text has SupportsInt and SupportsFloat as a stand-in: int("7") parses real text only, so it converts itself
@pytest.mark.parametrize(
    "value", ["a", 5, 2.5, [1], (1,), {"a": 1}, {1}, len, Point(1), iter([1]), b"x", True, Colour.RED, int], ids=str
)
def test_abstract_classes_answer_as_for_the_value(value: Any) -> None:
    with record():
        result = ident(value)
        kinds = _ABCS[:-4] if isinstance(value, (str, bytes)) else _ABCS
        assert [isinstance(result, kind) for kind in kinds] == [isinstance(value, kind) for kind in kinds]


@given(
    st.one_of(st.integers(), st.text(), st.lists(st.integers()), st.dictionaries(st.text(), st.integers())), st.data()
)
def test_hasattr_tells_the_truth_while_the_recording_is_open(value: Any, data: Any) -> None:
    names = [
        "value",
        "name",
        "op",
        "inputs",
        "upper",
        "append",
        "keys",
        "real",
        "__len__",
        "__iter__",
        "__call__",
        "__getitem__",
    ]
    name = data.draw(st.sampled_from(names))
    with record():
        assert hasattr(ident(value), name) is hasattr(value, name)


def test_a_closed_result_answers_for_its_node_where_the_value_has_no_such_attribute() -> None:
    with record():
        number, point = ident(5), ident(Point(3))
    assert (number.value, number.name, number.op.name, number.inputs) == (5, "ident_1", "ident", (5,))
    assert (point.value, point.name) == (5, "n")
    with pytest.raises(AttributeError):
        _ = number.nothing


def test_a_closed_result_converts_freely() -> None:
    with record() as graph:
        out = ident("hi")
    assert (f"{out}", str(out), "%s" % out, f"{out:>3}", out + "!", out.upper()) == (
        "hi",
        "hi",
        "hi",
        " hi",
        "hi!",
        "HI",
    )
    assert type(out + "!") is str
    assert len(graph) == 1


@pytest.mark.parametrize(
    "convert", [str, "{}".format, lambda x: f"{x}", lambda x: "%s" % x, print, lambda x: format(x, "")], ids=range(6)
)
def test_text_conversion_in_the_workflow_names_the_remedy(convert: Any) -> None:
    with pytest.raises(TraceError, match="decorated with @trace"), record():
        convert(ident(5))


def test_a_swallowed_text_conversion_is_raised_again_on_leaving() -> None:
    with pytest.raises(TraceError, match="text made"), record():
        try:
            str(ident(5))
        except TypeError:
            pass


@pytest.mark.parametrize(
    "insist", [json.dumps, lambda x: "".join([x]), lambda x: "a".startswith(x), lambda x: exec(x)], ids=range(4)
)
def test_code_that_insists_on_the_exact_type_fails_with_a_type_error(insist: Any) -> None:
    with pytest.raises(OpError) as caught, record():
        insist(ident("x"))
    assert type(caught.value.__cause__) is TypeError


def test_repr_is_safe_and_records_nothing() -> None:
    with record() as graph:
        assert repr(ident("a")) == "'a'"
    assert len(graph) == 1


MUTATIONS: dict[str, tuple[Any, Any]] = {
    "append": ([1], lambda x: x.append(2)),
    "sort": ([2, 1], lambda x: x.sort()),
    "item": ([1], lambda x: operator.setitem(x, 0, 2)),
    "item deleted": ({"a": 1}, lambda x: operator.delitem(x, "a")),
    "update": ({"a": 1}, lambda x: x.update(b=2)),
    "setdefault": ({"a": 1}, lambda x: x.setdefault("b", 2)),
    "add": ({1}, lambda x: x.add(2)),
    "attribute": (Point(1), lambda x: setattr(x, "x", 2)),
    "attribute deleted": (Point(1), lambda x: delattr(x, "x")),
    "deque": (collections.deque([1]), lambda x: x.appendleft(2)),
    "array": (np.ones(2), lambda x: operator.setitem(x, 0, 2)),
    "array sort": (np.ones(2), lambda x: x.sort()),
    "Counter": (Counter("ab"), lambda x: x.update("c")),
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_changing_a_recorded_result_in_place_is_refused(case: str) -> None:
    value, change = MUTATIONS[case]
    value = copy.deepcopy(value)
    before = repr(value)
    with pytest.raises(TraceError, match="would change the recorded value of 'ident'"), record():
        change(ident(value))
    assert repr(value) == before


def test_in_place_operators_record_the_binary_form() -> None:
    with record() as graph:
        first = out = ident([1])
        out += [2]
    assert (plain(first), plain(out), node_of(out).op.name) == ([1], [1, 2], "add")
    assert graph.names[node_of(out)] == "add_1"


def test_after_the_recording_a_result_may_be_changed() -> None:
    with record():
        out = ident([1])
    out.append(2)
    assert out == [1, 2]


def recorded_names(run: Any) -> list[str]:
    with record() as graph:
        run()
    return [name for name in graph.names.values() if not name.startswith("ident")]


DECISIONS: dict[str, Any] = {
    "bool": lambda: bool(ident(1)),
    "len": lambda: len(ident("ab")),
    "int": lambda: int(ident(2.5)),
    "float": lambda: float(ident(2)),
    "complex": lambda: complex(ident(2j)),
    "index": lambda: [1, 2][ident(1)],
    "hash": lambda: hash(ident("a")),
    "contains": lambda: 1 in ident([1]),
    "iter": lambda: list(ident({1: 2})),
    "none": lambda: ident(None),
    "plain": lambda: plain(ident(1)),
    "array": lambda: np.asarray(ident([1])),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_reading_a_concrete_value_in_the_workflow_is_a_decision(name: str) -> None:
    with record() as graph:
        DECISIONS[name]()
    node = graph[f"{name}_1"]
    assert node.kind == "decision"
    assert graph["ident_1"] in [parent for parent, _, _ in graph.parents(node)]


def test_keys_of_a_mapping_come_plain() -> None:
    with record():
        assert [type(key) for key in ident({"a": 1})] == [str]
        assert [type(key) for key in ident({"a": 1}).keys()] == [str]


def test_a_recording_with_every_kind_of_read_can_be_copied_and_pickled() -> None:
    with record() as graph:
        for run in DECISIONS.values():
            run()
        list(ident({"a": 1}).keys())
    assert pickle.loads(pickle.dumps(graph)).same_as(graph)
    assert copy.deepcopy(graph).same_as(graph)


def test_operators_attributes_and_methods_are_ops() -> None:
    def run() -> None:
        x = ident(Point(3))
        x.x + 1
        x.shifted(2)
        -ident(1)
        ident([1])[0]

    assert recorded_names(run) == ["getattr_1", "add_1", "shifted_1", "neg_1", "getitem_1"]


def test_a_body_that_meets_a_result_reads_it_like_a_parameter() -> None:
    with record() as graph:
        memory = [ident("a"), ident("b")]
        out = trace(lambda: f"{memory[0]}|{memory[1] + '!'}|{len(memory[1])}")()
    assert plain(out) == "a|b!|1"
    assert graph.parents(node_of(out)) == [(graph["ident_1"], "read", "read"), (graph["ident_2"], "read", "read")]


def test_a_result_pickles_with_its_graph() -> None:
    with record():
        out = ident([1])
    again = pickle.loads(pickle.dumps(out))
    assert again == [1]
    assert node_of(again).op.name == "ident"


# -- slices go through decisions ---------------------------------------------------------------------------------------


def reached(workflow: Any) -> set[str]:
    with record() as graph:
        out = workflow()
    slices = propagate(graph, graph.output(out), Feedback(1.0))
    return set(slices)


def test_a_routers_prompt_gets_a_slice_through_its_decision() -> None:
    prompts = {name: Parameter(name, name=name) for name in ("router", "sport", "other")}

    @trace
    def ask(name: str) -> str:
        return prompts[name].value

    def workflow() -> Any:
        if ask("router") == "router":
            return ask("sport")
        return ask("other")

    assert reached(workflow) == {"router", "sport"}


def test_a_routers_prompt_gets_a_slice_through_a_look_up() -> None:
    router, answer = Parameter("b", name="router"), Parameter("text", name="answer")
    pick = trace(lambda: router.value)
    assert reached(lambda: {"a": lambda: 1, "b": trace(lambda: answer.value)}[pick()]()) == {"router", "answer"}


def test_every_voter_of_a_counter_vote_gets_a_slice() -> None:
    voters = [Parameter(x, name=f"voter{i}") for i, x in enumerate("abacab")]
    vote = trace(lambda i: voters[i].value)
    winner = Counter(vote(i) for i in range(6))

    def workflow() -> Any:
        return Counter(vote(i) for i in range(6)).most_common(1)[0][0]

    assert winner.most_common(1)[0][0] == "a"
    assert reached(workflow) == {f"voter{i}" for i in range(6)}


def test_every_candidate_of_a_best_of_n_gets_a_slice() -> None:
    drafts = [Parameter("x" * i, name=f"draft{i}") for i in (2, 3, 1)]
    write, judge = trace(lambda i: drafts[i].value), trace(lambda text: len(text))

    def workflow() -> Any:
        return max([write(i) for i in range(3)], key=judge)

    assert reached(workflow) == {"draft1", "draft2", "draft3"}
    assert workflow() == "xxx"


def test_what_is_none_steers() -> None:
    p = Parameter(1, name="p")
    look = trace(lambda: None if p.value else 1)
    assert reached(lambda: ident("absent") if look() is None else ident("there")) == {"p"}


def test_a_caught_failure_steers() -> None:
    p = Parameter("x", name="p")

    @trace
    def parse() -> int:
        return int(p.value)

    def workflow() -> Any:
        try:
            return parse()
        except ValueError:
            return ident(0)

    assert reached(workflow) == {"p"}


def test_an_agent_that_keeps_results_works_the_same() -> None:
    p = Parameter("go", name="p")

    class Agent:
        def __init__(self) -> None:
            self.history: list[Any] = []

        @trace
        def act(self, x: int) -> str:
            return f"{p.value}{x}{[str(h) for h in self.history]}"

        def run(self) -> Any:
            for i in range(3):
                self.history.append(self.act(i))
            return self.history[-1]

    with record() as graph:
        out = Agent().run()
    assert plain(out) == Agent().run()
    assert [key for _, key, _ in graph.parents(node_of(out))] == ["read", "read", "read"]
    assert len(propagate(graph, graph.output(out), Feedback(1.0))["p"].path) == 4
