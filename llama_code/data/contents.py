"""Contents that a data set only names: The Stack v2's files, from Software Heritage's public bucket on S3.

The object `content/<blob_id>` holds a file, gzip-compressed, in the encoding that the data set's row tells. The bucket
is public, so an unsigned GET over urllib3 is all that is needed: per request it costs a third of boto3's time. As for
AWS's own clients, `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` name another endpoint (a mirror, a test) and
`AWS_CA_BUNDLE` its certificates; `HTTPS_PROXY` and `NO_PROXY` hold too.

What fails for now is tried again, and in the end stops the run: documents are never lost to the network. What fails
for good is a problem of that document, to be counted.
"""

import gzip
import io
import os
import random
import re
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import urllib3

from llama_code.data.cache import cache_dir
from llama_code.data.document import Document
from llama_code.data.filters import MAX_BYTES
from llama_code.errors import UserError

BUCKET = "softwareheritage"
BUCKET_URL = f"https://{BUCKET}.s3.amazonaws.com"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
NUM_IN_FLIGHT = 64
LOOK_AHEAD = 4 * NUM_IN_FLIGHT  # so that one slow response does not keep the others waiting
NUM_ATTEMPTS = 8
FIRST_DELAY_SECONDS = 0.5  # doubles with each attempt: a minute at most before the last one
TIMEOUT = urllib3.Timeout(connect=10, read=20)
MAX_RESPONSE_SECONDS = 60.0
MAX_COMPRESSED_BYTES = MAX_BYTES + 2**12  # what does not compress grows a little
MAX_ERROR_BYTES = 2**12
READ_BYTES = 2**16
LOCK_SECONDS = 600.0

MISSING = "content missing"
TOO_LARGE = "content larger than 1 MiB"
NO_GZIP = "content is no gzip"
CUT_OFF = "content cut off"
NOT_IN_ENCODING = "content not in its encoding"
BAD_ID = "content id is not 40 hex digits"


class Blob(NamedTuple):
    """A document whose content is still to be fetched.

    Attributes:
        document: all but its content.
        blob_id: the content's name in the bucket, 40 hex digits.
        src_encoding: the encoding of the content; empty for UTF-8.
    """

    document: Document
    blob_id: str
    src_encoding: str = ""


class Passing(Exception):
    """A failure that another attempt may not meet."""


class Fetched(NamedTuple):
    """A content, or the problem that it has for good; and what is done once the content is on disk."""

    content: bytes | str
    kept: Future[None] | None = None


def fetch_contents(items: Iterable[Document | Blob], num_in_flight: int = NUM_IN_FLIGHT) -> Iterator[Document]:
    """Yield the documents of `items` in their order, with what blobs name fetched, as UTF-8, and kept on disk.

    Args:
        items: documents, which pass through, and blobs. They are read up to `LOOK_AHEAD` ahead.
        num_in_flight: requests at once.

    Raises:
        UserError: the contents cannot be had (network, access), or cannot be kept on disk.
    """
    window: deque[Document | tuple[Blob, Future[Fetched]]] = deque()
    fetcher: Fetcher | None = None

    def next_document() -> Document:
        item = window.popleft()
        if isinstance(item, Document):
            return item
        assert fetcher is not None
        return _document(item[0], fetcher.finish(item[0].blob_id, item[1]))

    try:
        for item in items:
            if isinstance(item, Blob):
                fetcher = fetcher or Fetcher(num_in_flight)
                window.append((item, fetcher.start(item.blob_id)))
            elif window:
                window.append(item)
            else:
                yield item
            if len(window) >= LOOK_AHEAD:
                yield next_document()
        while window:
            yield next_document()
    finally:
        if fetcher:
            fetcher.close()


def _document(blob: Blob, content: bytes | str) -> Document:
    if isinstance(content, bytes):
        content = to_utf8(content, blob.src_encoding)
    if isinstance(content, bytes):
        return blob.document._replace(content=content)
    return blob.document._replace(content=None, problem=content)


def to_utf8(content: bytes, encoding: str) -> bytes | str:
    """Return `content`, which is in `encoding` (empty for UTF-8), as UTF-8, or the problem with it."""
    try:
        return content.decode(encoding or "utf-8").encode()
    except (LookupError, ValueError):  # an unknown encoding; bytes that are not in it; a name with a NUL in it
        return NOT_IN_ENCODING


def decompress(compressed: bytes) -> bytes | str:
    """Return the content of a gzip file, whole by its checksum and at most `MAX_BYTES`, or the problem with it."""
    if not compressed:
        return CUT_OFF
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(compressed)).read(MAX_BYTES + 1)
    except EOFError:
        return CUT_OFF
    except (gzip.BadGzipFile, zlib.error):
        return NO_GZIP
    return content if len(content) <= MAX_BYTES else TOO_LARGE


class Fetcher:
    """Fetches contents from the bucket, or from the disk where they have been fetched before."""

    def __init__(self, num_in_flight: int = NUM_IN_FLIGHT) -> None:
        self._url = bucket_url()
        self._http = _http(self._url, num_in_flight)
        self._cache = ContentCache(cache_dir() / "contents.sqlite")
        self._threads = ThreadPoolExecutor(num_in_flight, thread_name_prefix="fetch")
        self._closed = threading.Event()
        self._pending: dict[str, Future[Fetched]] = {}

    def start(self, blob_id: str) -> Future[Fetched]:
        """Start fetching a content, unless it is being fetched."""
        if blob_id not in self._pending:  # equal files have one id
            self._pending[blob_id] = self._threads.submit(self._fetch, blob_id)
        return self._pending[blob_id]

    def finish(self, blob_id: str, started: Future[Fetched]) -> bytes | str:
        """Return the content, which then is on disk, or the problem that it has for good."""
        content, kept = started.result()
        if kept:
            kept.result()
        self._pending.pop(blob_id, None)
        return content

    def close(self) -> None:
        """Give up what has not begun, and wait for the rest."""
        self._closed.set()
        self._threads.shutdown(cancel_futures=True)
        self._http.clear()
        self._cache.close()

    def _fetch(self, blob_id: str) -> Fetched:
        if not re.fullmatch("[0-9a-f]{40}", blob_id):
            return Fetched(BAD_ID)
        cached = self._cache.get(blob_id)
        content = decompress(cached) if cached is not None else None
        if isinstance(content, bytes):
            return Fetched(content)
        compressed = self._download(f"{self._url}/content/{blob_id}")
        if isinstance(compressed, str):
            return Fetched(compressed)
        content = decompress(compressed)
        if isinstance(content, bytes):
            return Fetched(content, self._cache.put(blob_id, compressed))
        # Only what is whole is kept. What is missing or broken now may be there after the bucket or a mirror is
        # mended, and asking again costs little.
        return Fetched(content)

    def _download(self, url: str) -> bytes | str:
        """Return the bytes at `url`, or the problem that it has for good; try again what fails for now."""
        for attempt in range(NUM_ATTEMPTS):
            try:
                return self._get(url)
            except (Passing, urllib3.exceptions.HTTPError, OSError) as error:
                failure = error
            # Random, so that the requests that were refused together do not come back together.
            last = attempt == NUM_ATTEMPTS - 1
            if last or self._closed.wait(FIRST_DELAY_SECONDS * 2**attempt * random.uniform(0.5, 1)):
                break
        raise UserError(
            f"{url} could not be fetched in {attempt + 1} attempts ({_reason(failure)}); check the network and "
            f"{ENDPOINT_VARIABLES[0]}, then run the same command again: what has been fetched is kept"
        ) from failure

    def _get(self, url: str) -> bytes | str:
        deadline = time.monotonic() + MAX_RESPONSE_SECONDS
        response = self._http.request(
            "GET", url, retries=False, redirect=False, timeout=TIMEOUT, preload_content=False, decode_content=False
        )
        try:
            if response.status != 200:
                return _refusal(url, response.status, response.read(MAX_ERROR_BYTES))
            body = bytearray()
            while chunk := response.read1(READ_BYTES):
                body += chunk
                if len(body) > MAX_COMPRESSED_BYTES:
                    return TOO_LARGE
                if time.monotonic() > deadline:
                    raise Passing(f"no whole response in {MAX_RESPONSE_SECONDS:g} seconds")
            return bytes(body)
        finally:
            response.close()  # what has been read to its end has returned its connection before


def bucket_url() -> str:
    """Where the bucket is: on AWS, or below the endpoint that the environment names.

    Raises:
        UserError: the endpoint is no URL.
    """
    for name in ENDPOINT_VARIABLES:
        endpoint = os.environ.get(name)
        if endpoint:
            if not re.match("https?://[^/]", endpoint):
                raise UserError(
                    f"{name} is {endpoint!r}; give a URL that begins with http:// or https://, or unset it"
                )
            return f"{endpoint.rstrip('/')}/{BUCKET}"
    return BUCKET_URL


def _http(url: str, num_connections: int) -> urllib3.PoolManager:
    scheme, host = urlsplit(url)[:2]
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    certificates = os.environ.get("AWS_CA_BUNDLE") or certifi.where()
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=num_connections, ca_certs=certificates)
    return urllib3.PoolManager(maxsize=num_connections, ca_certs=certificates)


def _refusal(url: str, status: int, body: bytes) -> str:
    """What a response other than 200 means: the content's problem, or an exception."""
    code = re.search(rb"<Code>(\w+)</Code>", body)
    answer = f"{status} {code[1].decode()}" if code else str(status)
    if status in (408, 429) or status >= 500:
        raise Passing(f"the answer was {answer}")
    if status == 404 and not (code and code[1] == b"NoSuchBucket"):
        return MISSING
    raise UserError(
        f"{url} was refused with {answer}; the bucket must be readable without credentials there: check "
        f"{' and '.join(ENDPOINT_VARIABLES)}, and that no proxy or firewall answers in its place"
    )


def _reason(error: Exception) -> str:
    """A short sentence of an exception: urllib3's begin with the object's address."""
    return re.sub(r"^<[^>]*>: |^\w+\([^)]*\): ", "", str(error)) or type(error).__name__


class ContentCache:
    """Compressed contents on disk by id, in one SQLite database: tens of millions of small files would be slow.

    Processes may share the file, also those of several machines where the file system's locks hold across them, as
    NFS 4's do: hence SQLite's rollback journal, since its write-ahead log needs shared memory. A commit waits for the
    disk, so a thread of its own writes what has come during the commit before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="keep")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, LOCK_SECONDS, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS contents (blob_id BLOB UNIQUE NOT NULL, compressed BLOB NOT NULL)"
            )
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def get(self, blob_id: str) -> bytes | None:
        """Return the compressed content, or None where it has not been put."""
        query = "SELECT compressed FROM contents WHERE blob_id = ?"
        try:
            with self._lock:
                row = self._connection.execute(query, (bytes.fromhex(blob_id),)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return row[0] if row else None

    def put(self, blob_id: str, compressed: bytes) -> Future[None]:
        """Keep a compressed content; once the result is there it survives the end of the process and the machine."""
        self._waiting.append((bytes.fromhex(blob_id), compressed))
        return self._writer.submit(self._write)

    def close(self) -> None:
        """Write what is waiting and close the file."""
        self._writer.shutdown()
        self._connection.close()

    def _write(self) -> None:
        rows = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not rows:  # written together with an earlier one
            return
        try:
            with self._lock:
                self._connection.execute("BEGIN IMMEDIATE")
                with self._connection:  # commits, or rolls back
                    self._connection.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"the contents kept in {str(self._path)!r} cannot be used ({error}); make room there, remove the file if "
            "it is damaged, or set LLAMA_CODE_CACHE to another folder"
        )
