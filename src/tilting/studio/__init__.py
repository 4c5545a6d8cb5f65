"""`tilting studio`: a page on this machine to draw, compare, train and look in, all of it made from the declarations.

Only this file is imported before a page is asked for: gradio takes seconds, and is in an extra of its own.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tilting.errors import TiltingError

if TYPE_CHECKING:
    from tilting.config.studio import StudioConfig

NEEDS = ("gradio", "fastapi", "uvicorn", "psutil")
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),  # of a table of all events that nobody reads, by pandas, after each of them
    "GRADIO_SHARE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""The environment in which nothing is told to anybody."""


def open_page(config: StudioConfig, quiet: bool = False) -> None:
    """Serve the page until Ctrl-C; commands that it started go on.

    Args:
        config: from `StudioConfig.resolve`.
        quiet: its address is not printed.

    Raises:
        TiltingError: the extra is not installed, the port is taken, or a studio is open for this workspace.
    """
    os.environ.update(QUIET)
    missing = [module for module in NEEDS if find_spec(module) is None]
    if missing:
        raise TiltingError(f"the studio needs {' and '.join(missing)}: pip install 'tilting[studio]'")
    import_module("tilting.studio.serve").serve(config, quiet)
