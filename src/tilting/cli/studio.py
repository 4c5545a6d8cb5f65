"""`tilting studio`."""

from __future__ import annotations

from tilting.cli.command import Call, takes
from tilting.config.studio import StudioConfig
from tilting.studio import open_page


@takes(StudioConfig, writes=False)
def studio(config: StudioConfig, call: Call) -> None:
    """Open a web page on this machine. Draw and watch, compare, train, make controls, look at runs."""
    open_page(config, call.quiet)
