"""How the package was installed, for the line that installs what is missing."""

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

__all__ = ["pip_line"]

NAME = "timm-mobilevit-zoo"


def pip_line(extra: str) -> str:
    """Return the command that adds an extra to the package as it was installed: from a checkout, a file, an index.

    Args:
        extra: One of those in pyproject.toml.
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {_local(checkout, extra)}"
    origin = _origin()
    url = str(origin.get("url", ""))
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    if url.startswith("file:"):
        path = Path(url2pathname(unquote(urlsplit(url).path)))
        if path.exists():
            return f"pip install {_local(path, extra)}"
    elif url:
        return f"pip install {shlex.quote(f'{NAME}[{extra}] @ {url}')}"
    return f"pip install '{NAME}[{extra}]'"


def _local(path: Path, extra: str) -> str:
    """Return a path with an extra, quoted for a shell."""
    return shlex.quote(f"{'.' if path == Path.cwd() else path}[{extra}]")


def _origin() -> dict[str, Any]:
    """Return what pip noted of where the package came from: nothing of one from an index."""
    try:
        noted = metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return {}
    return json.loads(noted or "{}")
