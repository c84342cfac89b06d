"""Where prepared data is kept."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder that keeps prepared data: `$LLAMA_CODE_CACHE`, or `~/.cache/llama_code`."""
    return Path(os.environ.get("LLAMA_CODE_CACHE") or Path.home() / ".cache" / "llama_code")
