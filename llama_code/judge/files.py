"""What a program may read: the standard library, what its extension modules link to, and packages that are allowed."""

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

# Installed packages are not for programs to see: among them are the benchmarks' solutions.
INSTALLED = ("site-packages", "dist-packages")

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_ZONES = ("/usr/share/zoneinfo", "/etc/localtime")
_LOADER_CACHE = ("/etc/ld.so.cache",)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random")


def standard_library() -> list[str]:
    """Return the folders of Python's standard library."""
    paths = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    # a virtual environment's platstdlib is in the environment, and empty but for installed packages
    return sorted(path for path in paths if os.path.isfile(os.path.join(path, "os.py")) or _has_extensions(path))


def _has_extensions(path: str) -> bool:
    return os.path.isdir(os.path.join(path, "lib-dynload"))


def libraries() -> list[str]:
    """Return the folders and files of shared libraries that extension modules may link to."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [os.path.join(path, multiarch) for path in _LIBRARIES if multiarch]
    folders += ["/lib64", "/usr/lib64"]
    own = Path(sys.base_prefix, "lib")
    files = [str(path) for path in own.glob("lib*.so*")] if own not in (Path("/usr/lib"), Path("/lib")) else []
    return [path for path in [*folders, *files, *_LOADER_CACHE] if os.path.exists(path)]


def zones() -> list[str]:
    """Return where time zones are described."""
    return [path for path in _ZONES if os.path.exists(path)]


def package_paths(packages: Sequence[str]) -> list[str]:
    """Return the folders of those of the packages that are installed, and of the libraries that they bring."""
    paths = []
    for name in packages:
        specification = importlib.util.find_spec(name)
        if specification is not None and specification.submodule_search_locations:
            folder = Path(specification.submodule_search_locations[0])
            paths += [path for path in (folder, folder.with_name(f"{name}.libs")) if path.is_dir()]
    return [str(path) for path in paths]


def readable_entries(folder: str) -> list[str]:
    """Return what is in a folder of the standard library, but for installed packages."""
    return [entry.path for entry in os.scandir(folder) if entry.name not in INSTALLED]


def readable_by_all(path: str) -> bool:
    """Whether every user may enter a folder and those above it."""
    return all(os.stat(folder).st_mode & 0o001 for folder in [path, *map(str, Path(path).parents)])


def make_folder() -> str:
    """Make a temporary folder for a program of the level that has no /tmp of its own."""
    import tempfile  # not at the top: see WARM in server

    return tempfile.mkdtemp(prefix="judge-")


def remove_folder(path: str) -> None:
    """Remove a program's folder with all that is in it."""
    import subprocess  # as above

    # not shutil.rmtree, which recurses: a program may leave thousands of folders inside each other
    subprocess.run(["rm", "-rf", "--", path], stderr=subprocess.DEVNULL, check=False)
