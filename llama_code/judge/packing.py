"""Messages between a caller, its worker, and the process of the tests: all trusted, of any length."""

import json
import struct
from typing import IO, Any

from llama_code.judge import wire
from llama_code.judge.task import Assertions, CallCases, StdinCases, Task, Tests

Message = dict[str, Any]

# Length and timeout before JSON: a worker passes tasks on without parsing them.
HEADER = struct.Struct("!Qd")
TEST_KINDS: dict[str, type[Tests]] = {kind.__name__: kind for kind in (Assertions, StdinCases, CallCases)}


def pack(message: Message, timeout: float = 0.0) -> bytes:
    """Return a message as bytes; `timeout` is in seconds."""
    data = json.dumps(message).encode("ascii")
    return HEADER.pack(len(data), timeout) + data


def read_packed(file: IO[bytes]) -> tuple[bytes, float] | None:
    """Read a packed message and the timeout in its header; None when the file has ended."""
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    length, timeout = HEADER.unpack(header)
    data = file.read(length)
    return (header + data, timeout) if len(data) == length else None


def unpack(packed: bytes) -> Message:
    """Parse what `read_packed` read."""
    return json.loads(packed[HEADER.size :])


def pack_task(task: Task, timeout: float) -> bytes:
    """Return a task as a worker reads it, with the seconds that it may take.

    Raises:
        wire.CannotCarry: a case of it holds something that is not data.
    """
    encoder = wire.Encoder(_refuse)
    references = [encoder.encode(part) for part in task.tests]
    message = {"program": task.program, "kind": type(task.tests).__name__, "timeout": timeout}
    return pack(message | {"tests": references, "nodes": encoder.nodes}, timeout)


def _refuse(value: Any) -> wire.Node:
    raise wire.CannotCarry(f"a case holds an object of class {type(value).__name__}, which is not data")


def unpack_task(packed: bytes) -> Task:
    """Parse what `pack_task` packed."""
    message = unpack(packed)
    tests = wire.Decoder(message["nodes"], {}).values(message["tests"])
    return Task(message["program"], TEST_KINDS[message["kind"]](*tests))
