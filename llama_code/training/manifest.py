"""What a checkpoint's files must be: sizes and SHA-256, written last, so that a folder with a manifest is whole."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"
VERSION = 1


def write_manifest(folder: Path, step: int) -> dict[str, Any]:
    """Hash a folder's files, write the manifest, and have all of it on the disk before returning.

    Args:
        folder: with all the files that it is to have.
        step: the checkpoint's; a folder under another step's name is refused later.

    Returns:
        The manifest.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = _facts(folder, names, is_new=True)
    manifest: dict[str, Any] = {"version": VERSION, "step": step, "files": files}
    manifest["sha256"] = _own_digest(manifest)
    with (folder / MANIFEST_FILE).open("w") as file:
        file.write(json.dumps(manifest, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(path)
    return manifest


def damage(folder: Path, step: int) -> str | None:
    """Say what is wrong with a folder that should hold the checkpoint of a step; None where nothing is.

    Every byte of every file is read.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        version, stated_step, files = manifest["version"], manifest["step"], manifest["files"]
        stated_digest = manifest.pop("sha256")
    except FileNotFoundError:
        return f"it has no {MANIFEST_FILE}: it was not written whole, or by an earlier version"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST_FILE} cannot be read"
    if version != VERSION:
        return f"its {MANIFEST_FILE} is of version {version!r}, and this version reads {VERSION}"
    if _own_digest(manifest) != stated_digest:
        return f"its {MANIFEST_FILE} was changed after it was written"
    if stated_step != step:
        return f"it is of step {stated_step}"
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    sizes = {name: (folder / name).stat().st_size for name in files}
    for name, size in sizes.items():
        if size != files[name]["size"]:
            return f"{name} has {size:,} bytes instead of {files[name]['size']:,}"
    for name, facts in _facts(folder, list(files), is_new=False).items():
        if facts != files[name]:
            return f"{name} is not what was written: its SHA-256 differs"
    return None


def sync_folder(folder: Path) -> None:
    """Have a folder's entries on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _facts(folder: Path, names: list[str], is_new: bool) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file, of new ones after they are on the disk; hashing leaves Python's lock."""

    def read(name: str) -> dict[str, Any]:
        with (folder / name).open("rb") as file:
            if is_new:
                os.fsync(file.fileno())
            return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def _own_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
