"""Contents fetched from an S3 endpoint on loopback: whole and in order, whatever the network does on the way."""

import gzip
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from llama_code.data import contents
from llama_code.data.contents import Blob, ContentCache, decompress, fetch_contents, to_utf8
from llama_code.data.document import Document
from llama_code.data.filters import MAX_BYTES
from llama_code.errors import UserError
from tests.data.s3_server import S3Server

FETCH = """
import sys
from llama_code.data.contents import Blob, fetch_contents
from llama_code.data.document import Document
ids = sys.stdin.read().split()
for document in fetch_contents(Blob(Document("", blob_id, None), blob_id) for blob_id in ids):
    assert document.content is not None
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An endpoint of our own, and attempts that follow each other quickly."""
    monkeypatch.setattr(contents, "FIRST_DELAY_SECONDS", 0.002)
    with S3Server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        yield server


def blob(blob_id: str, encoding: str = "") -> Blob:
    return Blob(Document("project", f"{blob_id[:6]}.py", None, "MIT"), blob_id, encoding)


def fetch(*blob_ids: str) -> list[bytes | str]:
    """The contents, or the problems."""
    documents = fetch_contents(blob(blob_id) for blob_id in blob_ids)
    return [document.problem if document.content is None else document.content for document in documents]


def test_moto(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain path against a server that others wrote, filled through AWS's own client."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setattr(contents, "FIRST_DELAY_SECONDS", 0.002)
        with pytest.raises(UserError, match=r"was refused with 404 NoSuchBucket; the bucket must be readable"):
            fetch("a" * 40)
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        client.create_bucket(Bucket=contents.BUCKET)
        ids = [f"{i:040x}" for i in range(20)]
        for blob_id in ids:
            body = gzip.compress(b"# " + blob_id.encode())
            client.put_object(Bucket=contents.BUCKET, Key=f"content/{blob_id}", Body=body, ACL="public-read")
        assert fetch(*ids, "f" * 40) == [b"# " + blob_id.encode() for blob_id in ids] + ["content missing"]
    finally:
        server.stop()


def test_order_and_documents_pass_through(server: S3Server) -> None:
    """Documents keep their place between blobs, and their fields; a slow response does not change the order."""
    server.slow_seconds = 0.2
    ids = [server.add(b"x = %d" % i, ["slow"] if i % 100 == 0 else []) for i in range(600)]
    plain = Document("p", "plain.py", b"y = 1")
    items: list[Document | Blob] = [plain, *map(blob, ids[:300]), plain, *map(blob, ids[300:]), plain]
    documents = list(fetch_contents(items))
    assert [document.content for document in documents[1:301]] == [b"x = %d" % i for i in range(300)]
    assert documents[0] == documents[301] == documents[-1] == plain
    assert documents[302] == Document("project", f"{ids[300][:6]}.py", b"x = 300", "MIT")


def test_documents_alone_need_no_endpoint_and_no_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A data set that has its text is not delayed, and leaves nothing on disk."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "no URL")
    document = Document("p", "a.py", b"x = 1")
    assert next(fetch_contents(iter([document]))) == document
    assert not (cache / "contents.sqlite").exists()


def test_many_in_flight_and_bounded_look_ahead(server: S3Server) -> None:
    """As many requests at once as said, and items are read no further ahead than said."""
    server.latency = 0.05
    ids = [server.add(b"x = %d" % i) for i in range(640)]
    read = 0

    def items() -> Iterator[Blob]:
        nonlocal read
        for blob_id in ids:
            read += 1
            yield blob(blob_id)

    started = time.monotonic()
    documents = fetch_contents(items())
    next(documents)
    assert read == contents.LOOK_AHEAD
    assert len(list(documents)) == 639
    assert time.monotonic() - started < 640 * server.latency / 10


@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "reset", "cut", "slow"])
def test_failures_for_now_are_tried_again(fault: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails three times is there in the end, and nothing else is asked for twice."""
    if fault == "slow":
        monkeypatch.setattr(contents, "TIMEOUT", urllib3.Timeout(connect=5, read=0.5))
        server.slow_seconds = 0.6
    ids = [server.add(b"x = %d" % i, [fault] * 3 if i % 10 == 0 else []) for i in range(100)]
    assert fetch(*ids) == [b"x = %d" % i for i in range(100)]
    assert Counter(server.log) == Counter({blob_id: 4 if i % 10 == 0 else 1 for i, blob_id in enumerate(ids)})


@pytest.mark.parametrize(
    "fault, reason", [("503", "the answer was 503 SlowDown"), ("cut", "IncompleteRead"), ("reset", "Connection")]
)
def test_failing_always_stops_the_run(fault: str, reason: str, server: S3Server) -> None:
    """One sentence, after a bounded number of attempts; what was fetched before is kept."""
    good, bad = server.add(b"good"), server.add(b"bad", [fault, "..."])
    documents = fetch_contents([blob(good), blob(bad)])
    assert next(documents).content == b"good"
    message = rf"{server.url}/.*/{bad} could not be fetched in {contents.NUM_ATTEMPTS} attempts .*{reason}.*is kept"
    with pytest.raises(UserError, match=message):
        next(documents)
    assert Counter(server.log) == {good: 1, bad: contents.NUM_ATTEMPTS}
    server.faults.clear()
    assert fetch(good, bad) == [b"good", b"bad"]
    assert server.log.count(good) == 1


def test_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there."""
    monkeypatch.setattr(contents, "FIRST_DELAY_SECONDS", 0.002)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unused.getsockname()[1]}/")
        with pytest.raises(UserError, match=r"could not be fetched in 8 attempts \(.*refused.*\); check the network"):
            fetch(*(f"{i:040x}" for i in range(200)))


def test_response_that_never_ends(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that trickles is given up, though each read brings something."""
    monkeypatch.setattr(contents, "MAX_RESPONSE_SECONDS", 0.0)
    monkeypatch.setattr(contents, "NUM_ATTEMPTS", 2)
    with pytest.raises(UserError, match=r"in 2 attempts \(no whole response in 0 seconds\)"):
        fetch(server.add(b"x"))


@pytest.mark.parametrize("status, answer", [("403", "403 AccessDenied"), ("404", "404 NoSuchBucket"), ("301", "301")])
def test_refused(status: str, answer: str, server: S3Server) -> None:
    """Another attempt would not help: the user has to do something."""
    with pytest.raises(UserError, match=f"was refused with {answer}.*; .*check AWS_ENDPOINT_URL_S3 and"):
        fetch(server.add(b"x", [status, "..."]))
    assert len(server.log) == 1


def test_failures_for_good_are_problems(server: S3Server) -> None:
    """Each has a reason; the documents around them are not touched."""
    noise = os.urandom(MAX_BYTES + 2**13)
    good = server.add(b"good")
    bad = {
        "f" * 40: "content missing",
        "../secret": "content id is not 40 hex digits",
        server.add(b"plain", compressed=b"plain text"): "content is no gzip",
        server.add(b"page", compressed=b"<html>"): "content is no gzip",
        server.add(b"empty", compressed=b""): "content cut off",
        server.add(b"short", compressed=gzip.compress(b"short" * 99)[:-9]): "content cut off",
        server.add(b"crc", compressed=gzip.compress(b"crc")[:-8] + bytes(8)): "content is no gzip",
        server.add(b"flipped", compressed=gzip.compress(b"flipped")[:10] + b"\xff" * 20): "content is no gzip",
        server.add(noise): "content larger than 1 MiB",
        server.add(b"bomb", compressed=gzip.compress(bytes(2**26))): "content larger than 1 MiB",
    }
    assert fetch(good, *bad, good) == [b"good", *bad.values(), b"good"]
    asked = len(server.log)
    assert fetch(good, *bad) == [b"good", *bad.values()]  # not remembered: they may be mended
    assert len(server.log) == asked + len(bad) - 1


def test_largest_content(server: S3Server) -> None:
    """Exactly 1 MiB is fetched, compressible or not; and an empty file is a file."""
    noise, zeros = os.urandom(MAX_BYTES), bytes(MAX_BYTES)
    assert [decompress(gzip.compress(content)) for content in (noise, zeros)] == [noise, zeros]
    documents = fetch_contents([blob(server.add(noise), "latin-1"), blob(server.add(b""))])
    assert [document.content for document in documents] == [noise.decode("latin-1").encode(), b""]


@pytest.mark.parametrize("encoding", ["", "UTF-8", "ISO-8859-1", "windows-1252", "UTF-16", "EUC-KR", "GB18030"])
def test_encodings(encoding: str, server: S3Server) -> None:
    """Contents come as UTF-8, whatever they are kept in."""
    text = {"EUC-KR": "# 한국어\n", "GB18030": "# 汉字\n", "windows-1252": "# “é”\n"}.get(encoding, "# é\n")
    (document,) = fetch_contents([blob(server.add(text.encode(encoding or "utf-8")), encoding)])
    assert document.content == text.encode()


@pytest.mark.parametrize(
    "content, encoding",
    [
        (b"\xff", ""),
        (b"\xff", "ascii"),
        (b"\x81", "windows-1252"),
        (b"\x00\xd8\x00", "utf-16"),
        (b"+2AA-", "utf-7"),  # a lone surrogate, which UTF-8 has no place for
        (b"x", "klingon"),
        (b"x", "hex"),
        (b"x", "utf\0-8"),
    ],
)
def test_content_not_in_its_encoding(content: bytes, encoding: str) -> None:
    """Bytes that are not in it, and names that name none."""
    assert to_utf8(content, encoding) == "content not in its encoding"


def test_same_content_is_fetched_once(server: S3Server) -> None:
    """In many rows, at once and again."""
    server.latency = 0.02
    one, two = server.add(b"one"), server.add(b"two")
    assert fetch(*[one, two] * 300) == [b"one", b"two"] * 300
    assert fetch(one, two) == [b"one", b"two"]
    assert Counter(server.log) == {one: 1, two: 1}


def test_killed_and_resumed(server: S3Server) -> None:
    """kill -9 loses nothing but what was being fetched, and two processes may share what is kept."""
    server.latency = 0.02
    ids = [server.add(b"x = %d" % i) for i in range(1500)]
    command, text = [sys.executable, "-c", FETCH], "\n".join(ids).encode()
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(text)
    process.stdin.close()
    while len(server.log) < 700 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = len(server.log)
    assert before < len(ids)
    others = [threading.Thread(target=subprocess.run, args=(command,), kwargs={"input": text}) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    counts = Counter(server.log)
    assert counts.keys() == set(ids)
    # The two fetch the same side by side, but nothing that was kept before: what the killed one had yielded at least.
    assert not [blob_id for blob_id in ids[: before - contents.LOOK_AHEAD] if counts[blob_id] > 1]
    asked = len(server.log)
    assert fetch(*ids) == [b"x = %d" % i for i in range(1500)]
    assert len(server.log) == asked


def test_kept_content_that_is_damaged_is_fetched_again(server: S3Server, cache: Path) -> None:
    """What is kept is checked by its checksum when it is used."""
    good = server.add(b"good")
    assert fetch(good) == [b"good"]
    with sqlite3.connect(cache / "contents.sqlite") as connection:
        connection.execute("UPDATE contents SET compressed = x'1f8b08'")
    assert fetch(good, good) == [b"good", b"good"]
    assert server.log == [good, good]


def test_writes_of_many_threads(tmp_path: Path) -> None:
    """Each thread's content is kept when its call returns, though they are written together."""
    kept = ContentCache(tmp_path / "contents.sqlite")

    def put_and_get(i: int) -> None:
        kept.put(f"{i:040x}", b"%d" % i).result()
        found.append(kept.get(f"{i:040x}") == b"%d" % i)

    found: list[bool] = []
    threads = [threading.Thread(target=put_and_get, args=(i,)) for i in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept.close()
    assert found == [True] * 200


def test_cache_that_cannot_be_used(server: S3Server, cache: Path) -> None:
    """A damaged file, and a folder that is none."""
    (cache / "contents.sqlite").write_bytes(b"no database" * 999)
    with pytest.raises(UserError, match=r"contents.sqlite' cannot be used \(file is not a database\); make room"):
        fetch(server.add(b"x"))
    with pytest.raises(UserError, match=r"cannot be used \(.*exists.*\); make room there"):
        ContentCache(cache / "contents.sqlite" / "below")


def test_stopping_early_ends_the_threads(server: S3Server) -> None:
    """A consumer that goes away leaves no request behind, though there is more to fetch."""
    server.latency = 0.05
    documents = fetch_contents(blob(server.add(b"x = %d" % i)) for i in range(1000))
    next(documents)
    documents.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]
    assert len(server.log) <= contents.LOOK_AHEAD


def test_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS unless the environment says otherwise; S3's own variable before the general one."""
    for name in contents.ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert contents.bucket_url() == "https://softwareheritage.s3.amazonaws.com"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://mirror/")
    assert contents.bucket_url() == "https://mirror/softwareheritage"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:9000")
    with pytest.raises(UserError, match=r"AWS_ENDPOINT_URL_S3 is 'localhost:9000'; give a URL that begins with http"):
        contents.bucket_url()


def test_proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names is asked instead of the endpoint."""
    monkeypatch.setattr(contents, "NUM_ATTEMPTS", 1)
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://mirror.invalid")
    assert urllib.request.getproxies()["http"] == server.url
    assert fetch("a" * 40) == ["content missing"]
    assert server.log == [f"http://mirror.invalid/softwareheritage/content/{'a' * 40}"]
