"""A caller of the judge as this user or as one without rights, and what its programs could have changed outside."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
UNPRIVILEGED_USER = 63999
SECRET = "hf_SecretOfTheCaller"
# where the shared adversarial set expects somebody to listen
PORT = 47123


def python_for(user: int) -> str | None:
    """Return a Python of 3.11 or newer that a user may run, None if there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(check, user=user, cwd="/", capture_output=True).returncode == 0:
                return python
        except OSError:  # not there, or not for this user
            continue
    return None


def processes_of(users: Sequence[int]) -> set[str]:
    """Return the processes of some users, and those of any judge."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                command = (folder / "cmdline").read_bytes()
                if folder.stat().st_uid in users or b"llama_code.judge" in command:
                    found.add(f"{folder.name} {command.decode(errors='replace')}")
    return found


class Outside:
    """What programs could reach if they were not isolated."""

    def __init__(self, folder: Path, user: int) -> None:
        self.folder = folder
        self.user = user
        self.connections = 0
        # those that the judge drops to as root, and the caller's own where that is not root
        self.users = [65534, *range(64000, 65000)] + [user] * (user != 0)
        self._listener = socket.create_server(("127.0.0.1", PORT))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._listener.accept()[0].close()
                self.connections += 1

    def state(self) -> dict[str, Any]:
        """Return all that must be the same after the programs as before."""
        return {
            "files": {
                str(path): path.read_bytes() if path.is_file() else None
                for path in sorted(self.folder.rglob("*"))
                if "__pycache__" not in str(path)
            },
            "tmp": sorted(os.listdir("/tmp")),
            "root": sorted(os.listdir("/")),
            "shm": sorted(os.listdir("/dev/shm")),
            "mounts": Path("/proc/self/mounts").read_text(),
            "connections": self.connections,
            "processes": processes_of(self.users),
        }

    def judge(self, level: str, tasks: Sequence[tuple[str, str]], timeout: float) -> dict[str, Any]:
        """Have a caller with something to lose judge programs; returns its answer."""
        python = python_for(self.user)
        if python is None:
            pytest.skip(f"user {self.user} may run no Python of 3.11 or newer on this machine")
        home = self.folder / "home"
        environment = {
            "HOME": str(home),
            "HF_TOKEN": SECRET,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        process = subprocess.run(
            [python, str(self.folder / "run_tasks.py")],
            input=json.dumps({"level": level, "tasks": tasks, "timeout": timeout}),
            capture_output=True,
            text=True,
            user=self.user,
            cwd=home,
            env=environment,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        answer = json.loads(process.stdout)
        if answer["refusal"] is not None:
            pytest.skip(answer["refusal"])
        return answer

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module", params=["this user", "an unprivileged user"])
def outside(request: pytest.FixtureRequest) -> Iterator[Outside]:
    """A folder with a caller's files, a listening socket, a copy of the judge."""
    user = os.getuid()
    if request.param == "an unprivileged user":
        if user != 0:
            pytest.skip("this user is unprivileged already, and only root can become another")
        user = UNPRIVILEGED_USER
    folder = Path(tempfile.mkdtemp(prefix="outside-"))
    try:
        shutil.copytree(REPOSITORY / "llama_code" / "judge", folder / "llama_code" / "judge")
        for path in (REPOSITORY / "llama_code").glob("*.py"):
            shutil.copy(path, folder / "llama_code")
        shutil.copy(Path(__file__).with_name("run_tasks.py"), folder)
        for name, text in {
            "anchors_canary/file": "alive",
            ".cache/huggingface/token": SECRET,
            ".netrc": SECRET,
        }.items():
            path = folder / "home" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
        subprocess.run(["chown", "-R", str(user), str(folder)], check=True)
        world = Outside(folder, user)
        yield world
        world.close()
    finally:
        shutil.rmtree(folder)
