"""What crosses between the tests and the program comes back equal and of the same exact type, or not at all."""

import datetime
import math
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from llama_code.judge import wire


def refuse(value):
    raise wire.CannotCarry(type(value).__name__)


def carry(value):
    encoder = wire.Encoder(refuse)
    reference = encoder.encode(value)
    message = wire.unpack(wire.pack({"value": reference, "nodes": encoder.nodes})[4:])
    return wire.Decoder(message["nodes"], {}).value(message["value"])


VALUES = [
    None,
    True,
    0,
    -(2**63),
    2**63,
    -(2**5000),
    1.5,
    -0.0,
    math.inf,
    5e-324,
    "text \0 \ud800 \N{SNOWMAN}",
    b"\0\xff",
    bytearray(b"ab"),
    1 - 2j,
    ...,
    NotImplemented,
    int,
    type(None),
    ZeroDivisionError,
    [],
    [1, [2, (3, [4])], {5: {6: (7,)}}],
    (),
    ((), ((),), frozenset({((),)})),
    {1, (2, frozenset({3}))},
    {"a": 1, (1, 2): [3], None: {}},
    range(3),
    range(2**70, 0, -(2**69)),
    Counter("abca"),
    OrderedDict([("b", 1), ("a", 2)]),
    defaultdict(list, {1: [2]}),
    deque([1, 2, 3], maxlen=4),
    Decimal("1.500"),
    Decimal("NaN"),
    Fraction(-1, 3),
    datetime.date(2020, 2, 29),
    datetime.datetime(2020, 2, 29, 1, 2, 3, 4, tzinfo=datetime.UTC),
    datetime.time(1, 2),
    datetime.timedelta(days=-1, microseconds=5),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{str(value)[:20]!a}")
def test_data_comes_back_as_it_was(value):
    result = carry(value)
    assert type(result) is type(value)
    assert repr(result) == repr(value)
    if isinstance(value, defaultdict):
        assert result.default_factory is value.default_factory
    if isinstance(value, deque):
        assert result.maxlen == value.maxlen


def test_views_of_dictionaries_keep_their_kind():
    data = {"a": [1], "b": (2,)}
    assert carry(data.keys()) == data.keys()
    assert list(carry(data.values())) == list(data.values())
    assert list(carry(data.items())) == list(data.items())


class Odd(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class Liar(list):
    def __iter__(self):
        return iter([99])

    def __len__(self):
        return 99


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Odd(5), 5),
        ([Odd(5)], [5]),
        (Odd(2**70), 2**70),
        (Liar([1, 2]), [1, 2]),
        (type("Text", (str,), {"__str__": lambda self: "lie"})("truth"), "truth"),
        (type("Number", (float,), {"__float__": lambda self: 0.0})(2.5), 2.5),
        (type("Pair", (tuple,), {"__iter__": lambda self: iter(())})((1, 2)), (1, 2)),
        (type("Map", (dict,), {"items": lambda self: []})(a=1), {"a": 1}),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_subclasses_come_as_the_data_of_their_base(value, expected):
    result = carry(value)
    assert type(result) is type(expected)
    assert result == expected


def test_one_object_stays_one_and_cycles_survive():
    inner = [1]
    first, second = carry([inner, inner])
    assert first is second
    loop: list = []
    loop.append((loop, {"loop": loop}))
    result = carry(loop)
    assert result[0][0] is result
    assert result[0][1]["loop"] is result


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {0: inner}])
def test_depth_needs_no_recursion(wrap):
    value = wrap(0)
    for _ in range(30_000):
        value = wrap(value)
    result = carry(value)
    depth = 0
    while result != 0 if type(result) is int else True:
        result = result[0]
        depth += 1
    assert depth == 30_001


def test_what_is_too_large_is_refused(monkeypatch):
    with pytest.raises(wire.CannotCarry, match="too large to carry"):
        carry("x" * wire.MAX_MESSAGE_BYTES)
    monkeypatch.setattr(wire, "MAX_NODES", 100)
    with pytest.raises(wire.CannotCarry, match="too large to carry"):
        carry([[] for _ in range(wire.MAX_NODES)])
    with pytest.raises(wire.Malformed):
        wire.message_length(b"\xff\xff\xff\xff")


def test_what_is_no_data_is_left_to_export():
    with pytest.raises(wire.CannotCarry, match="function"):
        carry([1, carry])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"nul",
        b'{"a":' * 10**5,
        b"[" * (wire.MAX_NODES + 1),
        b'{"a": 1' + b"1" * 5000 + b"}",
    ],
    ids=range(8),
)
def test_bytes_that_are_no_message_are_malformed(data):
    with pytest.raises(wire.Malformed):
        wire.unpack(data)


@pytest.mark.parametrize(
    ("nodes", "reference"),
    [
        (None, 1),
        ([[]], [0]),
        ([["unknown", 1]], [0]),
        ([["list"]], [0]),
        ([["list", 5]], [0]),
        ([["list", [[1]]]], [0]),
        ([["list", [{}]]], [0]),
        ([["tuple", [[0]]]], [0]),
        ([["tuple", [[1]]], ["tuple", []]], [0]),
        ([["set", [[1]]], ["list", []]], [0]),
        ([["dict", [1]]], [0]),
        ([["dict", [[1], 1]], ["list", []]], [0]),
        ([["int", 5]], [0]),
        ([["int", "xyz"]], [0]),
        ([["bytes", "0"]], [0]),
        ([["complex", "1", 2]], [0]),
        ([["range", [1, 2, 0]]], [0]),
        ([["range", ["a"]]], [0]),
        ([["Fraction", [1, 0]]], [0]),
        ([["Fraction", [1]]], [0]),
        ([["Decimal", "one"]], [0]),
        ([["datetime", 5]], [0]),
        ([["timedelta", 10**12, 0, 0]], [0]),
        ([["type", "os"]], [0]),
        ([["type", ["int"]]], [0]),
        ([["defaultdict", "os", []]], [0]),
        ([["deque", -1, []]], [0]),
        ([["bytearray", [1]]], [0]),
        ([["remote", 0]], [0]),
        ([[["list"], []]], [0]),
        ([], [0]),
        ([], [-1]),
        ([], []),
        ([], [0.0]),
        ([], [True]),
        ([], {}),
    ],
    ids=str,
)
def test_nodes_that_cannot_be_built_are_malformed(nodes, reference):
    with pytest.raises(wire.Malformed):
        wire.Decoder(nodes, {}).value(reference)


def test_an_object_of_the_request_is_answered_by_itself():
    sent = [1, 2]
    encoder = wire.Encoder(refuse, known={id(sent): [-1]})
    reference = encoder.encode((sent, [sent]))
    decoder = wire.Decoder(encoder.nodes, {}, known=[sent])
    result = decoder.value(reference)
    assert result[0] is sent
    assert result[1][0] is sent
    decoder.refill(sent, [3])
    assert sent == [3]
    with pytest.raises(wire.Malformed):
        decoder.refill(sent, 3)
