"""Fetching contents from an S3 endpoint on loopback that answers after 50 ms: one by one, and with 64 in flight.

Run alone on the machine: `python benchmarks/fetch_contents.py`. The objects are this Python's standard library,
compressed. The arms take turns, each time with an empty cache; the figures are medians of 3 turns.
"""

import asyncio
import gzip
import multiprocessing
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from hashlib import sha1
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from results import record

from llama_code.data.contents import NUM_IN_FLIGHT, Blob, fetch_contents, to_utf8
from llama_code.data.document import Document
from llama_code.data.filters import MAX_BYTES

LATENCY_SECONDS = 0.05
NUM_OBJECTS = {1: 100, NUM_IN_FLIGHT: 4000}
NUM_TURNS = 3


def standard_library(num: int) -> list[bytes]:
    """Contents of `num` distinct files in UTF-8; each round over the library's files adds a last line."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    contents = [file.read_bytes() for file in files if file.stat().st_size < MAX_BYTES]
    contents = [content for content in contents if isinstance(to_utf8(content, ""), bytes)]
    return [contents[i % len(contents)] + b"# %d\n" % i for i in range(num)]


class S3(asyncio.Protocol):
    """Answers GETs of one bucket's objects, each after a while, and knows no more of HTTP than that needs."""

    def __init__(self, responses: dict[bytes, bytes], latency: float) -> None:
        self._responses = responses
        self._latency = latency
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            blob_id = request.split(b" ", 2)[1].rpartition(b"/")[2]
            asyncio.get_running_loop().call_later(self._latency, self._transport.write, self._responses[blob_id])


def serve(contents: list[bytes], latency: float, pipe: Connection) -> None:
    """Serve `contents` and send the port through `pipe`."""
    responses = {}
    for content in contents:
        body = gzip.compress(content)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: binary/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
        responses[sha1(content).hexdigest().encode()] = head.encode() + body

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: S3(responses, latency), "127.0.0.1", 0, backlog=1000)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def with_server(contents: list[bytes], latency: float, measure: Callable[[], None]) -> None:
    """Call `measure` while a process of its own serves `contents`."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=serve, args=(contents, latency, sender), daemon=True)
    server.start()
    os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{receiver.recv()}"
    measure()
    server.terminate()
    server.join()


def fetch(contents: list[bytes], num_in_flight: int, cache: str) -> float:
    """Fetch `contents` with the cache in a folder and return the seconds that it took."""
    os.environ["LLAMA_CODE_CACHE"] = cache
    blobs = [Blob(Document("", "", None), sha1(content).hexdigest()) for content in contents]
    started = time.perf_counter()
    found = [document.content for document in fetch_contents(blobs, num_in_flight)]
    seconds = time.perf_counter() - started
    assert found == contents, "what came back is not what was served"
    return seconds


def main() -> None:
    """Measure and record."""
    contents = standard_library(max(NUM_OBJECTS.values()))
    seconds: dict[str, list[float]] = {}

    def turns() -> None:
        for _ in range(NUM_TURNS):
            for num_in_flight, num in NUM_OBJECTS.items():
                with tempfile.TemporaryDirectory() as cache:
                    name = f"{num_in_flight} in flight"
                    seconds.setdefault(name, []).append(fetch(contents[:num], num_in_flight, cache) / num)
                    if num_in_flight > 1:
                        seconds.setdefault("warm cache", []).append(fetch(contents[:num], num_in_flight, cache) / num)

    def without_latency() -> None:
        for _ in range(NUM_TURNS):
            with tempfile.TemporaryDirectory() as cache:
                each = fetch(contents, NUM_IN_FLIGHT, cache) / len(contents)
                seconds.setdefault(f"{NUM_IN_FLIGHT} in flight, no latency", []).append(each)

    with_server(contents, LATENCY_SECONDS, turns)
    with_server(contents, 0.0, without_latency)
    mean_bytes = sum(map(len, contents)) / len(contents)
    for arm, turn_seconds in seconds.items():
        rate = 1 / median(turn_seconds)
        print(f"{arm}: {rate:.0f} objects/s, {rate * mean_bytes / 1e6:.1f} MB/s of source")
        record("fetch_contents", arm, f"{mean_bytes:.0f} B each", "speed", rate, "objects/s")
        record("fetch_contents", arm, f"{mean_bytes:.0f} B each", "speed", rate * mean_bytes / 1e6, "MB/s")
    gain = median(seconds["1 in flight"]) / median(seconds[f"{NUM_IN_FLIGHT} in flight"])
    print(f"{NUM_IN_FLIGHT} in flight: {gain:.1f} times one by one")
    record("fetch_contents", f"{NUM_IN_FLIGHT} in flight", f"{mean_bytes:.0f} B each", "gain over 1", gain, "times")
    sys.exit(gain < 10)


if __name__ == "__main__":
    main()
