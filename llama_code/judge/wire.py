"""Values on their way between the tests and the program: JSON that can only become data of exact builtin types.

A message holds references and a flat table of nodes. None, booleans, integers of 64 bits, floats and strings stand for
themselves; everything else is `[i]`, node i of this message, or `[-1 - j]`, node j of the request that is being
answered. Since nesting is by reference, depth costs no recursion, an object that occurs twice stays one object, and
cycles survive. Whoever decodes trusts nothing: a message that breaks the format raises `Malformed`.

Subclasses of builtin types are carried as their base: what `==` of the base would compare. What is not data
(functions, instances, generators) is left to the `export` function of the sender and the `imports` of the receiver.
"""

import builtins
import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from typing import Any

Value = Any
Reference = Any
Node = list[Any]

MAX_MESSAGE_BYTES = 8 * 2**20
# JSON of the smallest nodes grows 30-fold in memory: 2**20 of them take about 100 MB.
MAX_NODES = 2**20

TYPES = {name: value for name, value in vars(builtins).items() if isinstance(value, type) and name != "__loader__"} | {
    "NoneType": type(None)
}
TYPE_NAMES = {value: name for name, value in reversed(TYPES.items())}

KEYS: type = type({}.keys())
VALUES: type = type({}.values())
ITEMS: type = type({}.items())


# made once: json.dumps makes a new encoder a call where separators are given
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Malformed(Exception):
    """A message that no honest sender would send."""


class CannotCarry(Exception):
    """A value that has no place in a message; the text says why."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message, its length (4 bytes, big endian) first.

    Raises:
        CannotCarry: it is longer than `MAX_MESSAGE_BYTES` or has more than `MAX_NODES` nodes.
    """
    data = _encode(message).encode("ascii")
    if len(data) > MAX_MESSAGE_BYTES or data.count(b"[") > MAX_NODES:
        raise CannotCarry(f"a value of {len(data)} bytes is too large to carry; the most is {MAX_MESSAGE_BYTES}")
    return len(data).to_bytes(4, "big") + data


def message_length(header: bytes) -> int:
    """Return the length that the first 4 bytes of a packed message promise.

    Raises:
        Malformed: no message is that long.
    """
    length = int.from_bytes(header, "big")
    if length > MAX_MESSAGE_BYTES:
        raise Malformed(f"a message of {length} bytes")
    return length


def unpack(data: bytes) -> dict[str, Any]:
    """Parse what follows a message's length.

    Raises:
        Malformed: it is no JSON object, or has too many nodes.
    """
    if data.count(b"[") > MAX_NODES:
        raise Malformed("a message of too many nodes")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed("a message that is no JSON") from error
    if not isinstance(message, dict):
        raise Malformed("a message that is no object")
    return message


# Kinds by the exact type that they carry. Shells are made empty and filled later, so that they may hold themselves.
SHELLS: dict[type, str] = {
    list: "list",
    dict: "dict",
    set: "set",
    deque: "deque",
    Counter: "Counter",
    OrderedDict: "OrderedDict",
    defaultdict: "defaultdict",
    bytearray: "bytearray",
}
MAPPINGS = (dict, Counter, OrderedDict, defaultdict)
CONTAINERS: dict[type, str] = {
    tuple: "tuple",
    frozenset: "frozenset",
    KEYS: "dict_keys",
    VALUES: "dict_values",
    ITEMS: "dict_items",
    Fraction: "Fraction",
    range: "range",
}
LEAVES: dict[type, tuple[str, Callable[[Any], list[Any]]]] = {
    int: ("int", lambda value: [hex(int.__int__(value))]),
    bytes: ("bytes", lambda value: [bytes.hex(value)]),
    complex: ("complex", lambda value: [value.real, value.imag]),
    Decimal: ("Decimal", lambda value: [Decimal.__str__(value)]),
    datetime: ("datetime", lambda value: [datetime.isoformat(value)]),
    date: ("date", lambda value: [date.isoformat(value)]),
    time: ("time", lambda value: [time.isoformat(value)]),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    type(...): ("Ellipsis", lambda value: []),
    type(NotImplemented): ("NotImplemented", lambda value: []),
}
_DATA_TYPES = frozenset((str, float, *SHELLS, *CONTAINERS, *LEAVES))


def data_type(kind: type) -> type | None:
    """Return the exact type as which instances of `kind` are carried, None for what is not data."""
    return next((base for base in kind.__mro__ if base in _DATA_TYPES), None)


def parts_of(value: Value, kind: type) -> Iterable[Value]:
    """Iterate over what a container holds, by the methods of its exact type `kind`."""
    if kind in MAPPINGS:
        return chain.from_iterable(kind.items(value))  # type: ignore[attr-defined]
    if kind is Fraction:
        return value.numerator, value.denominator
    if kind is range:
        return value.start, value.stop, value.step
    return kind.__iter__(value)  # type: ignore[attr-defined]


class Encoder:
    """Builds the node table of one message.

    Args:
        export: returns the node of a value that is not data, or raises `CannotCarry`.
        known: references by `id()` of objects that the receiver has.
    """

    def __init__(self, export: Callable[[Value], Node], known: Mapping[int, Reference] | None = None) -> None:
        self.nodes: list[Node] = []
        # What each node stands for. They live as long as this does: a later object at the address of one that is gone
        # would be taken for it. The same for the temporary objects inside containers.
        self.objects: list[Value] = []
        self._export = export
        self._references: dict[int, Reference] = dict(known or {})
        self._unfilled: list[tuple[Node, Value, type]] = []
        self._alive: list[Value] = []

    def encode(self, value: Value) -> Reference:
        """Return the reference of `value`, its nodes added to the table."""
        reference = self._reference(value)
        self._fill()
        return reference

    def encode_contents(self, value: Value) -> Any:
        """Return what the node of a mutable object of exact type says of its contents."""
        payload = self._contents(value, type(value))
        self._fill()
        return payload

    def _fill(self) -> None:
        while self._unfilled:
            node, shell, kind = self._unfilled.pop()
            node.append(self._contents(shell, kind))

    def export(self, value: Value) -> Reference:
        """Return the reference of `value` as something that is not data, whatever its type."""
        return self._add(value, self._export(value))

    def _contents(self, value: Value, kind: type) -> Any:
        if kind is bytearray:
            return bytes(value).hex()
        return [self._reference(part) for part in parts_of(value, kind)]

    def _add(self, value: Value, node: Node) -> Reference:
        reference = [len(self.nodes)]
        self.nodes.append(node)
        self._references[id(value)] = reference
        self.objects.append(value)
        return reference

    def _reference(self, value: Value) -> Reference:
        kind = type(value)
        if value is None or kind is bool or kind is str or kind is float:
            return value
        if kind is int and -(2**63) <= value < 2**63:
            return value
        if (reference := self._references.get(id(value))) is not None:
            return reference
        if kind is tuple or kind in CONTAINERS:
            return self._container(value)
        return self._other(value)

    def _other(self, value: Value) -> Reference:
        if isinstance(value, type):
            name = TYPE_NAMES.get(value)
            return self._add(value, self._export(value) if name is None else ["type", name])
        exact = type(value)
        kind = data_type(exact)
        if kind is None:
            scalar = _scalar(value)
            return self._add(value, self._export(value)) if scalar is value else self._reference(scalar)
        if kind is str:
            return str.__str__(value)
        if kind is float:
            return float.__float__(value)
        if kind in SHELLS:
            node: Node = [SHELLS[kind]]
            if kind is deque:
                node.append(value.maxlen)
            elif kind is defaultdict:
                node.append(TYPE_NAMES.get(value.default_factory))
            self._unfilled.append((node, value, kind))
            return self._add(value, node)
        if kind in CONTAINERS:
            return self._container(value)
        if kind is int and -(2**63) <= (number := int.__int__(value)) < 2**63:
            return number
        name, payload = LEAVES[kind]
        return self._add(value, [name, *payload(value)])

    def _container(self, value: Value) -> Reference:
        """Add an immutable container after all immutable containers in it, without recursion."""
        stack = [self._open(value)]
        while stack:
            current, kind, held, unseen = stack[-1]
            for part in unseen:
                if data_type(type(part)) in CONTAINERS and id(part) not in self._references:
                    stack.append(self._open(part))
                    break
            else:
                stack.pop()
                self._add(current, [CONTAINERS[kind], [self._reference(part) for part in held]])
        return self._references[id(value)]

    def _open(self, value: Value) -> tuple[Value, type, list[Value], Iterator[Value]]:
        kind = data_type(type(value))
        assert kind is not None
        held = list(parts_of(value, kind))
        self._alive.append(held)
        return value, kind, held, iter(held)


def _scalar(value: Value) -> Value:
    """Return the Python number of a numpy scalar, and anything else as it is."""
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        number = value.item()
        return value if type(number) is type(value) else number
    return value


def _pairs(parts: list[Value]) -> Iterable[tuple[Value, Value]]:
    if len(parts) % 2:
        raise Malformed("a mapping with a key too many")
    return zip(parts[::2], parts[1::2], strict=True)


_BUILD_CONTAINER: dict[str, Callable[[list[Value]], Value]] = {
    "tuple": tuple,
    "frozenset": frozenset,
    "dict_keys": lambda parts: dict.fromkeys(parts).keys(),
    "dict_values": lambda parts: dict(enumerate(parts)).values(),
    "dict_items": lambda parts: dict(parts).items(),
    "Fraction": lambda parts: Fraction(exact(parts[0], int), exact(parts[1], int)),
    "range": lambda parts: range(*(exact(part, int) for part in parts)),
}
_BUILD_LEAF: dict[str, Callable[..., Value]] = {
    "int": lambda text: int(exact(text, str), 16),
    "bytes": lambda text: bytes.fromhex(exact(text, str)),
    "complex": lambda real, imag: complex(exact(real, float), exact(imag, float)),
    "Decimal": lambda text: Decimal(exact(text, str)),
    "datetime": lambda text: datetime.fromisoformat(exact(text, str)),
    "date": lambda text: date.fromisoformat(exact(text, str)),
    "time": lambda text: time.fromisoformat(exact(text, str)),
    "timedelta": lambda days, seconds, micros: timedelta(exact(days, int), exact(seconds, int), exact(micros, int)),
    "Ellipsis": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "type": lambda name: TYPES[name],
}
_BUILD_SHELL: dict[str, Callable[..., Value]] = {
    "list": list,
    "dict": dict,
    "set": set,
    "deque": lambda maxlen: deque(maxlen=maxlen if maxlen is None else exact(maxlen, int)),
    "Counter": Counter,
    "OrderedDict": OrderedDict,
    "defaultdict": lambda factory: defaultdict(None if factory is None else TYPES[factory]),
    "bytearray": bytearray,
}


def exact(value: Value, kind: type) -> Any:
    """Return `value`, if its type is just `kind`.

    Raises:
        Malformed: it is not.
    """
    if type(value) is not kind:
        raise Malformed(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


class Decoder:
    """Rebuilds the values of one message.

    Args:
        nodes: the message's table.
        imports: for each kind of node that is not data, a function that takes the node's payload.
        known: the objects of the request that the message answers, by index.

    Raises:
        Malformed: the table breaks the format.
    """

    def __init__(self, nodes: Any, imports: Mapping[str, Callable[..., Value]], known: Sequence[Value] = ()) -> None:
        self._known = known
        try:
            self.objects: list[Value] = [_UNBUILT] * len(exact(nodes, list))
            shells = []
            for index, node in enumerate(nodes):
                if node[0] in _BUILD_SHELL:
                    self.objects[index] = _BUILD_SHELL[node[0]](*node[1:-1])
                    shells.append((self.objects[index], node[-1]))
            for index, (kind, *payload) in enumerate(nodes):
                if kind in _BUILD_CONTAINER:
                    self.objects[index] = _BUILD_CONTAINER[kind](self.values(payload[0]))
                elif kind in _BUILD_LEAF:
                    self.objects[index] = _BUILD_LEAF[kind](*payload)
                elif kind in imports:
                    self.objects[index] = imports[kind](*payload)
                elif kind not in _BUILD_SHELL:
                    raise Malformed("a node of an unknown kind")
            for shell, payload in shells:
                self._fill(shell, payload)
        except _BUILD_ERRORS as error:
            raise Malformed(f"a node that cannot be built: {type(error).__name__}") from error

    def value(self, reference: Reference) -> Value:
        """Return what a reference stands for."""
        if type(reference) is not list:
            if type(reference) is dict:
                raise Malformed("an object where a reference belongs")
            return reference
        if len(reference) != 1 or type(reference[0]) is not int:
            raise Malformed("a reference that is none")
        index = reference[0]
        if not -len(self._known) <= index < len(self.objects):
            raise Malformed("a reference to nothing")
        value = self.objects[index] if index >= 0 else self._known[-1 - index]
        if value is _UNBUILT:
            raise Malformed("a reference to a later node")
        return value

    def values(self, references: Any) -> list[Value]:
        """Return what a list of references stands for."""
        return [self.value(reference) for reference in exact(references, list)]

    def refill(self, shell: Value, payload: Any) -> None:
        """Put into a mutable object what a node's payload says, in place of what it holds.

        Raises:
            Malformed: it cannot hold that.
        """
        try:
            shell.clear()
            self._fill(shell, payload)
        except _BUILD_ERRORS as error:
            raise Malformed(f"contents that do not fit: {type(error).__name__}") from error

    def _fill(self, shell: Value, payload: Any) -> None:
        if type(shell) is bytearray:
            shell.extend(bytes.fromhex(exact(payload, str)))
        elif type(shell) in MAPPINGS:
            for key, value in _pairs(self.values(payload)):
                shell[key] = value
        elif type(shell) is set:
            shell.update(self.values(payload))
        else:
            shell.extend(self.values(payload))


_UNBUILT = object()
_BUILD_ERRORS = (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError)
