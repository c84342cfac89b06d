"""A stand-in for the Hub on this machine, which refuses, hangs or fails, and then does what is asked of it."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fault_runs import Run, events_named, same_weights

REPO = "someone/tiny"
PAST = {"name": "someone", "type": "user", "auth": {"type": "access_token"}}


class StandIn(ThreadingHTTPServer):
    """What `hf upload` needs of the Hub.

    Attributes:
        fault: hanging, never answering, failing or empty, which is none.
        commits: files of each commit.
    """

    daemon_threads = True

    def __init__(self, fault: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.fault = fault
        self.commits: list[list[str]] = []
        self.num_requests = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def end(self) -> None:
        """Listen no longer."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        if self.path.startswith("/api/whoami"):
            self._answer(200, PAST)
        elif self.path.startswith(f"/api/models/{REPO}"):
            self._answer(200, {"id": REPO, "sha": "0" * 40, "siblings": [], "private": False})
        else:
            self._answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        self.server.num_requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.fault in ("hanging", "never answering"):
            time.sleep(3_600)
        if self.path.startswith("/api/repos/create"):
            self._answer(200, {"url": f"{self.server.url}/{REPO}", "name": REPO, "id": REPO})
        elif "/preupload/" in self.path:
            files = [{**x, "uploadMode": "regular", "shouldIgnore": False} for x in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        elif "/commit/" in self.path:
            if self.server.fault == "failing":
                self._answer(500, {"error": "midway"})
                return
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.commits.append([line["value"]["path"] for line in lines if line["key"] == "file"])
            url = f"{self.server.url}/{REPO}/commit/{'0' * 40}"
            self._answer(200, {"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None, "success": True})
        else:
            self._answer(200, {})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def hub_faults(scratch: Path, argv: list[str], reference: Path) -> dict[str, tuple[bool, bool]]:
    """Train beside a Hub that fails, and later does not; or never answers.

    Returns:
        By fault: whether the run ended as it should, and whether the model was pushed, or, where the Hub never
        answers, how to push it was said.
    """
    outcomes = {}
    for fault in ("refusing", "failing", "hanging", "never answering"):
        server = StandIn(fault)
        address = server.server_address
        if fault == "refusing":
            server.end()
        environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HOME": str(scratch / "home")}
        folder = scratch / f"hub-{fault}"
        options = ["--push_to_hub", "true", "--hub_model_id", REPO, "--hub_token", "hf_x"]
        run = Run(folder, [*argv, *options], environment=environment)
        run.wait_until(lambda folder=folder: bool(events_named(folder, "push_failed")))
        if fault == "refusing":
            server = StandIn("", address[1])
        elif fault != "never answering":
            server.fault = ""
        code = run.wait()
        server.end()
        is_alike = code == 0 and same_weights(folder, reference)
        said = [event["command"] for event in events_named(folder, "not_pushed")]
        is_pushed = any("model.safetensors" in files for files in server.commits)
        pushes = [event["folder"] for event in events_named(folder, "push")]
        reason = events_named(folder, "push_failed")[0]["reason"]
        print(f"  {fault}: exit code {code}, {reason!r}, then pushed {pushes} {said}", flush=True)
        outcomes[fault] = (is_alike, bool(said) if fault == "never answering" else is_pushed and not said)
    return outcomes
