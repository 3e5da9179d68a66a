"""The library stays thin, and the commands stay quick to start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LIBRARY = ["api", "content", "endpoints", "errors", "file_sink", "retry", "sources", "transport", "volume"]


def loaded_after(code: str) -> set[str]:
    """The top-level modules in a fresh interpreter that ran ``code``."""
    program = f"{code}\nimport sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_library_needs_only_aiohttp() -> None:
    code = "import aiohttp, sys; before = set(sys.modules)\n"
    code += "from client import Holdfast, Content, RetryPolicy, Volume, HoldfastError\n"
    code += "".join(f"import client.{module}\n" for module in LIBRARY)
    code += "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
    code += "assert new - set(sys.stdlib_module_names) <= {'client'}, new - set(sys.stdlib_module_names)"
    assert not loaded_after(code) & {"typer", "rich", "cluster", "node", "msgpack", "blake3", "click", "uvloop"}


@pytest.mark.parametrize("arguments", [["--help"], ["volume", "put", "--help"], ["dev", "kill", "--help"]])
def test_help_needs_neither_http_nor_tables(arguments: list[str]) -> None:
    code = f"import sys\nfrom client.cli import main\nsys.argv = ['holdfast', *{arguments!r}]\n"
    code += "import io, contextlib\ntry:\n    with contextlib.redirect_stdout(io.StringIO()): main()\nexcept SystemExit: pass"
    assert not loaded_after(code) & {"aiohttp", "rich", "cluster", "node"}


def test_unknown_names_are_attribute_errors() -> None:
    import client

    with pytest.raises(AttributeError, match="nonsense"):
        _ = client.nonsense
