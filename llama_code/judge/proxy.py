"""The tests' end of the connection: objects of the program that are reached by asking its process.

What the tests get is data that `wire` rebuilt here, or a `Remote`. A `Remote` passes on calls, attributes, items,
iteration and conversions, each of which the program could as well have answered with data. Comparison and arithmetic
with data are never passed on: an object that says it equals everything equals nothing here. Between two objects of the
program (`Pair(1, 2) == Pair(1, 2)`) only the program can know, and it is asked.
"""

import operator
import os
import select
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from llama_code.judge import wire
from llama_code.judge.agent import BINARY, COMPARE, UNARY

Message = dict[str, Any]
Value = Any

# Tests that call the program that calls the tests: what an honest program needs is a few.
MAX_CALLBACK_DEPTH = 50
MAX_OUTPUT_BYTES = 8 * 2**20


# Names with two underscores that the tests may ask for, beside the methods of `Remote`.
ANSWERED = ("__name__", "__qualname__", "__doc__")


class ServerLost(Exception):
    """The server of programs is gone or cannot start them; the text says what is known."""


class Stop(BaseException):
    """The program cannot be asked any more; `Connection.failure` says why. No handler of the tests should catch it."""


class FromProgram(NamedTuple):
    """Marks an exception that the program raised.

    Attributes:
        text: its message.
        while_compiling: whether compile() raised it.
    """

    text: str
    while_compiling: bool


class Remote:
    __slots__ = ("_connection", "_handle")

    def __init__(self, connection: "Connection", handle: int) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_handle", handle)

    def __call__(self, *arguments: Value, **keywords: Value) -> Value:
        values = (self, *arguments, *keywords.values())
        return self._connection.ask("call", *values, keywords=list(keywords))

    def __getattr__(self, name: str) -> Value:
        # What libraries look for by such names they trust: numpy takes a memory address from `__array_interface__`.
        if name == "_as_parameter_" or (name.startswith("__") and name not in ANSWERED):
            raise AttributeError(f"the judge does not ask an object of the program for {name!r}")
        return self._connection.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Value) -> None:
        self._connection.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._connection.ask("delattr", self, name)

    def __deepcopy__(self, memo: dict[int, Value]) -> Value:
        return self._connection.ask("deepcopy", self)

    def __format__(self, specification: str) -> str:
        return self._connection.ask("format", self, specification)

    def __instancecheck__(self, instance: Value) -> bool:
        return type(instance) is Remote and self._connection.ask("isinstance", instance, self) is True

    def __subclasscheck__(self, subclass: Value) -> bool:
        return type(subclass) is Remote and self._connection.ask("issubclass", subclass, self) is True

    def __exit__(self, *error: Value) -> Value:
        return self._connection.ask("exit", self, *(part if type(part) is Remote else None for part in error))


def _passed_on(name: str) -> Callable[..., Value]:
    def method(self: Remote, *arguments: Value) -> Value:
        return self._connection.ask(name, self, *arguments)

    return method


def _comparison(name: str) -> Callable[[Remote, Value], Value]:
    compare = getattr(operator, name)

    def method(self: Remote, other: Value) -> Value:
        if type(other) is Remote:
            return self._connection.ask(name, self, other)
        data = self._connection.ask("data", self)
        return NotImplemented if type(data) is Remote else compare(data, other)

    return method


def _between_remotes(name: str) -> Callable[[Remote, Value], Value]:
    def method(self: Remote, other: Value) -> Value:
        return self._connection.ask(name, self, other) if type(other) is Remote else NotImplemented

    return method


for _name in "len iter next getitem setitem delitem bool str repr int float index hash round copy enter".split():
    setattr(Remote, f"__{_name}__", _passed_on(_name))
for _name in UNARY:
    setattr(Remote, f"__{_name}__", _passed_on(_name))
for _name in COMPARE:
    setattr(Remote, f"__{_name}__", _comparison(_name))
for _name in BINARY:
    setattr(Remote, f"__{_name.rstrip('_')}__", _between_remotes(_name))


class Connection:
    """The conversation with one program.

    Args:
        channel: the socket to its process.
        stdout: the read end of its standard output.
        stdin: the write end of its standard input.
        death: tells reason and detail of the process's end, once it has closed the channel.

    Attributes:
        failure: reason and detail of what ended the conversation for good; None while it goes on.
        output: what it printed and nobody has taken, up to `MAX_OUTPUT_BYTES`.
        stop_expected: whether the tests may mean a StopIteration that something else than `next()` raises. Where they
            do not, it must not end a loop of theirs (`all(map(f, cases))`) as if all were done: it comes as a
            RuntimeError.
        muted: set when only the verdict is left to be worded: nothing is asked of the program any more.
    """

    def __init__(self, channel: socket.socket, stdout: int, stdin: int, death: Callable[[], tuple[str, str]]) -> None:
        self.failure: tuple[str, str] | None = None
        self.output = bytearray()
        self.stop_expected = False
        self.muted = False
        self._channel = channel
        self._stdout = stdout
        self._stdin = stdin
        self._death = death
        self._unread = b""
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(stdout, select.POLLIN)
        self._buffer = bytearray()
        self._depth = 0
        self._remotes: dict[int, Remote] = {}
        self._exceptions: dict[int, type[BaseException]] = {}
        self._exported: list[Value] = []
        self._imports: dict[str, Callable[..., Value]] = {"remote": self._remote, "exception": self._exception}

    def feed(self, text: str) -> None:
        """Write `text` to the program's standard input, while it runs, and close it."""
        self._unread = text.encode("utf-8", "surrogatepass")
        if self._unread:
            os.set_blocking(self._stdin, False)
            self._poll.register(self._stdin, select.POLLOUT)
        else:
            self._close_stdin()

    def ask(self, operation: str, *values: Value, keywords: Sequence[str] = ()) -> Value:
        """Have the program's process do something.

        Args:
            operation: "load", "name", "data", "call", or one of `agent.OPERATIONS`.
            values: what it is done with; mutable ones are changed in place as the program changed them.
            keywords: names of the last so many values.

        Returns:
            The result: data, or a `Remote`.

        Raises:
            Stop: the conversation has ended.
            BaseException: what the program raised, as an exception of the same kind, with a `FromProgram` in its
                attribute `from_program`.
        """
        if self.muted:
            return "an object of the program"
        if self.failure:
            raise Stop
        try:
            encoder = wire.Encoder(self._export)
            references = [encoder.encode(value) for value in values]
            request = {"op": operation, "values": references, "keywords": keywords, "nodes": encoder.nodes}
            self._send(wire.pack(request))
            while "ask" in (reply := self._receive()):
                self._send(self._answer(reply))
            if "too_large" in reply:
                self._fail("too large", str(reply["too_large"]))
            decoder = wire.Decoder(reply.get("nodes"), self._imports, encoder.objects)
            error = self._finish(reply, decoder, encoder.objects)
        except wire.Malformed as problem:
            self._fail("crashed", f"its process sent {problem}")
        except wire.CannotCarry as problem:
            self._fail("too large", str(problem))
        except (MemoryError, RecursionError) as problem:
            self._fail("too large", f"{type(problem).__name__} while carrying a value")
        if isinstance(error, StopIteration) and operation != "next" and not self.stop_expected:
            raise RuntimeError("the program raised StopIteration") from error
        if error is not None:
            raise error
        return decoder.value(reply["ok"])

    def _finish(self, reply: Message, decoder: wire.Decoder, sent: list[Value]) -> BaseException | None:
        """Check a reply as a whole, and apply to what was sent what the program did to it."""
        changes = []
        for change in wire.exact(reply.get("mutated", []), list):
            index, payload = wire.exact(change, list)
            if type(index) is not int or not 0 <= index < len(sent) or type(sent[index]) not in wire.SHELLS:
                raise wire.Malformed("a change of something that cannot change")
            changes.append((sent[index], payload))
        for value, payload in changes:
            decoder.refill(value, payload)
        self.drain()
        if self.output:
            # Tests may have redirected it; otherwise it goes nowhere.
            sys.stdout.write(self.output.decode("utf-8", "replace"))
            self.output.clear()
        if "error" in reply:
            return self._error(wire.exact(reply["error"], dict), decoder)
        if "ok" not in reply:
            raise wire.Malformed("an answer to nothing")
        decoder.value(reply["ok"])
        return None

    def _error(self, error: Message, decoder: wire.Decoder) -> BaseException:
        kind = decoder.value(error.get("class"))
        arguments = wire.exact(decoder.value(error.get("arguments")), tuple)
        text = wire.exact(error.get("text"), str)
        attributes = wire.exact(decoder.value(error.get("attributes")), dict)
        if not isinstance(kind, type) or not issubclass(kind, BaseException) or issubclass(kind, BaseExceptionGroup):
            kind = Exception
        try:
            raised = kind(*arguments)
        except (TypeError, ValueError):  # a class that wants other arguments than it keeps in args
            raised = kind.__new__(kind)
            raised.args = arguments
        for name, value in attributes.items():
            if type(name) is str and not name.startswith("__"):
                setattr(raised, name, value)
        raised.from_program = FromProgram(text, error.get("while_compiling") is True)  # type: ignore[attr-defined]
        return raised

    def _answer(self, question: Message) -> bytes:
        """Do what the program asks in the middle of a request: call a function of the tests, or step an iterator."""
        if self._depth >= MAX_CALLBACK_DEPTH:
            self._fail("exception", "RecursionError: the program and the tests call each other too deeply")
        decoder = wire.Decoder(question.get("nodes"), self._imports)
        identity = wire.exact(question.get("id"), int)
        if not 0 <= identity < len(self._exported):
            raise wire.Malformed("a call of something that was not passed")
        keywords = [wire.exact(name, str) for name in wire.exact(question.get("keywords"), list)]
        values = decoder.values(question.get("values"))
        if len(keywords) > len(values):
            raise wire.Malformed("a call with more names than values")
        cut = len(values) - len(keywords)
        encoder = wire.Encoder(self._export)
        outcome: Message = {"op": "return"}
        self._depth += 1
        try:
            function = self._exported[identity]
            if question["ask"] == "step":
                result = [item for _, item in zip(range(1), function, strict=False)]
            else:
                result = function(*values[:cut], **dict(zip(keywords, values[cut:], strict=True)))
            outcome["ok"] = encoder.encode(result)
        # the tests' own exception goes through the program, which may handle it
        except Exception as error:
            encoder = wire.Encoder(self._export)
            kind = next(base for base in type(error).__mro__ if base in wire.TYPE_NAMES)
            texts = [part if isinstance(part, (str, int)) else str(part) for part in error.args]
            outcome["error"] = [encoder.encode(kind), encoder.encode(texts)]
        finally:
            self._depth -= 1
        return wire.pack(outcome | {"nodes": encoder.nodes})

    def _export(self, value: Value) -> wire.Node:
        if type(value) is Remote:
            return ["own", value._handle]
        if isinstance(value, type) and "_handle" in vars(value):
            return ["own", vars(value)["_handle"]]
        if hasattr(type(value), "__next__"):
            return ["iterator", self._hand_out(value)]
        if callable(value):
            return ["callback", self._hand_out(value)]
        raise TypeError(f"the tests pass an object of class {type(value).__name__}, which the judge cannot carry")

    def _hand_out(self, value: Value) -> int:
        self._exported.append(value)
        return len(self._exported) - 1

    def _remote(self, handle: int) -> Remote:
        wire.exact(handle, int)
        return self._remotes.setdefault(handle, Remote(self, handle))

    def _exception(self, own: list[list[Value]], nearest: str) -> type[BaseException]:
        kind = wire.TYPES[nearest]
        if not issubclass(kind, BaseException):
            raise wire.Malformed("an exception that is none")
        for name, handle in reversed(wire.exact(own, list)):
            wire.exact(handle, int)
            if handle not in self._exceptions:
                body = {"_handle": handle, "__str__": _text_of}
                # a second pair of bases, as in `class E(A, B)`, becomes a chain
                self._exceptions[handle] = type(wire.exact(name, str), (kind,), body)
            kind = self._exceptions[handle]
        return kind

    def _send(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except OSError:
            self._fail(*self._death())

    def _receive(self) -> Message:
        while True:
            if len(self._buffer) >= 4:
                length = wire.message_length(bytes(self._buffer[:4]))
                if len(self._buffer) >= 4 + length:
                    data = bytes(self._buffer[4 : 4 + length])
                    del self._buffer[: 4 + length]
                    return wire.unpack(data)
            ready = dict(self._poll.poll())
            if self._stdin in ready and self._unread:
                self._feed_more()
            if self._stdout in ready and not self._take_output():
                self._poll.unregister(self._stdout)
            if self._channel.fileno() in ready:
                part = self._receive_part()
                if not part:
                    self._fail(*self._death())
                self._buffer += part

    def _receive_part(self) -> bytes:
        try:
            return self._channel.recv(2**18)
        except ConnectionError:
            return b""

    def _feed_more(self) -> None:
        try:
            written = os.write(self._stdin, self._unread[: 2**16])
        except BrokenPipeError:  # the program has closed it
            written = len(self._unread)
        self._unread = self._unread[written:]
        if not self._unread:
            self._poll.unregister(self._stdin)
            self._close_stdin()

    def _close_stdin(self) -> None:
        os.close(self._stdin)
        self._stdin = -1

    def _take_output(self) -> bool:
        data = os.read(self._stdout, 2**16)
        self.output += data[: MAX_OUTPUT_BYTES - len(self.output)]
        return bool(data)

    def close(self) -> None:
        """Close this end."""
        self._channel.close()
        os.close(self._stdout)
        if self._stdin >= 0:
            os.close(self._stdin)

    def drain(self) -> None:
        """Take what the program has printed so far."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        while len(self.output) < MAX_OUTPUT_BYTES and poll.poll(0) and self._take_output():
            pass

    def _fail(self, reason: str, detail: str) -> NoReturn:
        self.failure = self.failure or (reason, detail)
        raise Stop


def _text_of(error: BaseException) -> str:
    from_program: FromProgram | None = getattr(error, "from_program", None)
    return ", ".join(map(str, error.args)) if from_program is None else from_program.text
