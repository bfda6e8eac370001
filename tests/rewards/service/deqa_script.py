"""The stand-alone server of servers/deqa, within the test's process and without weights."""

import contextlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parents[3] / "servers" / "deqa"
SCRIPT = FOLDER / "server.py"


def script() -> ModuleType:
    """The script as a module."""
    name = "deqa_server_script"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@contextlib.contextmanager
def served_script(
    limits: dict[str, Any] | None = None,
    token: str | None = None,
    model: Any = None,
    timeout: float = 600.0,
) -> Iterator[str]:
    """The address of such a server."""
    module = script()
    scorer = module.Scorer(model or module.Stub(), {}, timeout)
    server = module.Server(("127.0.0.1", 0), scorer, module.Limits(**(limits or {})), token)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
