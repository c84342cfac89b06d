"""What runs inside the program's process: executes it, and does with its objects what the tests ask for.

Nothing here is trusted: the program shares this memory and can change all of it. It can make its own answers wrong,
and no more: the other side (`proxy`) takes nothing but data.

The module threading is not imported here or in `server`: what it does after a fork takes a tenth of a program's start.
"""

import atexit
import copy
import operator
import os
import sys
import types
from _thread import get_ident
from collections.abc import Callable
from typing import Any, NoReturn

from llama_code.judge import wire

Message = dict[str, Any]
Value = Any

BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
UNARY = ("neg", "pos", "invert", "abs")

# What the tests can do with an object of the program; `proxy.Remote` asks for these by name.
OPERATIONS: dict[str, Callable[..., Value]] = {
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "len": len,
    "iter": iter,
    "next": next,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "bool": bool,
    "str": str,
    "repr": repr,
    "format": format,
    "int": int,
    "float": float,
    "index": operator.index,
    "hash": hash,
    "round": round,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager, *error: type(manager).__exit__(manager, *error),
    **{name: getattr(operator, name) for name in (*BINARY, *COMPARE, *UNARY)},
}


def serve(descriptor: int) -> NoReturn:
    """Answer requests on a socket until it closes, then leave the process.

    Args:
        descriptor: the socket; standard input and output are descriptors 0 and 1.
    """
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # type: ignore[misc]
    sys.argv = ["program.py"]
    try:
        Agent(descriptor).answer_until_return()
    finally:
        os._exit(1)


class Agent:
    """The program's objects that the tests hold, and the connection over which they ask."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._module = types.ModuleType("candidate")
        self._handles: dict[int, int] = {}
        self._objects: list[Value] = []
        self._thread = get_ident()
        self._imports = {"own": self._own, "callback": self._callback, "iterator": self._iterator}

    def answer_until_return(self) -> Message:
        """Answer requests until one is the outcome of a callback, and return that."""
        while True:
            request = self._receive()
            if request["op"] == "return":
                return request
            self._send(self._answer(request))

    def _receive(self) -> Message:
        length = wire.message_length(self._read(4))
        return wire.unpack(self._read(length))

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = os.read(self._descriptor, min(count, 2**20))
            if not part:
                os._exit(0)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _answer(self, request: Message) -> bytes:
        arguments = wire.Decoder(request.get("nodes", []), self._imports)
        before = [
            (index, value, _parts(value))
            for index, value in enumerate(arguments.objects)
            if type(value) in wire.SHELLS
        ]
        known = {id(value): [-1 - index] for index, value, _ in before}
        encoder = wire.Encoder(self._export, known)
        raised = None
        try:
            try:
                result, as_data = self._perform(request, arguments)
            finally:
                _flush(sys.stdout)
            reply = {"ok": encoder.encode(result) if as_data else encoder.export(result)}
        # whatever the program raises, SystemExit and KeyboardInterrupt too, is the tests' to judge
        except BaseException as error:
            raised = error
            encoder = wire.Encoder(self._export, known)
            reply = {"error": self._describe(error, encoder, error.args)}
        changed = []
        try:
            changed = [(index, value) for index, value, parts in before if not _same(parts, _parts(value))]
            reply["mutated"] = [[index, encoder.encode_contents(value)] for index, value in changed]
            return wire.pack(reply | {"nodes": encoder.nodes})
        except wire.CannotCarry as error:
            if raised is None or changed:
                return wire.pack({"too_large": str(error)})
            return self._pack_error(raised)
        except MemoryError as error:
            return self._pack_error(error)

    def _perform(self, request: Message, arguments: wire.Decoder) -> tuple[Value, bool]:
        """Do what a request asks for; returns the result and whether it goes over as data."""
        name = request["op"]
        values = arguments.values(request.get("values", []))
        if name == "load":
            self._load(*values)
            return None, True
        if name == "name":
            # an absent name is told apart from a name bound to None
            if values[0] not in vars(self._module):
                return [], True
            value = vars(self._module)[values[0]]
            return [value, _origin(value)], True
        if name == "data":
            return values[0], True
        if name != "call":
            return OPERATIONS[name](*values), True
        keywords = request.get("keywords", [])
        positional = values[1 : len(values) - len(keywords)]
        function = values[0]
        result = function(*positional, **dict(zip(keywords, values[len(values) - len(keywords) :], strict=True)))
        # an instance that the tests make keeps its methods, though its class may derive from list
        instance = isinstance(function, type) and function not in wire.TYPE_NAMES and type(result) is function
        return result, not instance

    def _load(self, source: str, name: str) -> None:
        module = self._module = types.ModuleType(name)
        sys.modules[name] = module
        try:
            code = compile(source, "<program>", "exec", dont_inherit=True)
        except BaseException as error:
            error.while_compiling = True  # type: ignore[attr-defined]
            raise
        if name != "__main__":
            exec(code, vars(module))
            return
        # as an interpreter ends: programs write what they have gathered in a handler of atexit
        try:
            exec(code, vars(module))
            if threading := sys.modules.get("threading"):
                for thread in threading.enumerate():
                    if thread is not threading.current_thread() and not thread.daemon:
                        thread.join()
        finally:
            atexit._run_exitfuncs()
            if sys.stdout is not sys.__stdout__:
                _flush(sys.__stdout__)

    def _pack_error(self, error: BaseException) -> bytes:
        """Return a reply that tells of an exception without its arguments, which may be what was too large."""
        encoder = wire.Encoder(self._export)
        return wire.pack({"error": self._describe(error, encoder, ()), "nodes": encoder.nodes})

    def _describe(self, error: BaseException, encoder: wire.Encoder, held: Value) -> Message:
        """Return what the tests' side needs to raise its own exception of the same kind."""
        try:
            text = str(error)[: 2**16]
            arguments = encoder.encode(held)
            attributes = encoder.encode(dict(vars(error)) if held else {})
        except BaseException as second:
            text = f"a {type(second).__name__} in place of the message"
            arguments, attributes = encoder.encode(()), encoder.encode({})
        return {
            "class": encoder.encode(type(error)),
            "arguments": arguments,
            "attributes": attributes,
            "text": text,
            "while_compiling": hasattr(error, "while_compiling"),
        }

    def _export(self, value: Value) -> wire.Node:
        if isinstance(value, type) and issubclass(value, BaseException):
            # the class and its bases up to the first that both sides have
            own = [base for base in value.__mro__ if base not in wire.TYPE_NAMES]
            nearest = next(base for base in value.__mro__ if base in wire.TYPE_NAMES)
            return ["exception", [[base.__name__, self._handle(base)] for base in own], wire.TYPE_NAMES[nearest]]
        return ["remote", self._handle(value)]

    def _handle(self, value: Value) -> int:
        if id(value) not in self._handles:
            self._handles[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._handles[id(value)]

    def _own(self, handle: int) -> Value:
        return self._objects[handle]

    def _callback(self, identity: int) -> Callable[..., Value]:
        def call_the_tests(*arguments: Value, **keywords: Value) -> Value:
            return self._ask("callback", identity, [*arguments, *keywords.values()], list(keywords))

        return call_the_tests

    def _iterator(self, identity: int) -> Any:
        while True:
            outcome = self._ask("step", identity, [], [])
            if not outcome:
                return
            yield outcome[0]

    def _ask(self, what: str, identity: int, values: list[Value], keywords: list[str]) -> Value:
        """Ask the tests' side something in the middle of a request."""
        if get_ident() != self._thread:
            raise RuntimeError("functions of the tests can be called from the main thread only")
        encoder = wire.Encoder(self._export)
        references = [encoder.encode(value) for value in values]
        message = {"ask": what, "id": identity, "values": references, "keywords": keywords, "nodes": encoder.nodes}
        self._send(wire.pack(message))
        outcome = self.answer_until_return()
        answer = wire.Decoder(outcome.get("nodes", []), self._imports)
        if "error" in outcome:
            kind, arguments = answer.values(outcome["error"])
            raise kind(*arguments)
        return answer.value(outcome["ok"])


def _flush(file: Any) -> None:
    try:
        file.flush()
    except ValueError:  # it is closed
        pass


def _origin(value: Value) -> tuple[str, str] | None:
    """Return the module that a module, class or function is of, and its name there ("" for a module itself)."""
    if isinstance(value, types.ModuleType):
        return value.__name__, ""
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        # C accelerators: functools.reduce says that it is of _functools
        return str(value.__module__).removeprefix("_"), value.__qualname__
    return None


def _parts(value: Value) -> list[Value] | bytes:
    return bytes(value) if type(value) is bytearray else list(wire.parts_of(value, type(value)))


def _same(before: list[Value] | bytes, after: list[Value] | bytes) -> bool:
    """Whether an argument holds the very objects that it held: asks no `__eq__` of the program."""
    if isinstance(before, bytes):
        return before == after
    return len(before) == len(after) and all(map(operator.is_, before, after))
