"""The options of `tilting studio`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self

from annotated_types import Ge, Le
from typing_extensions import Doc

from tilting.config.base import BaseConfig
from tilting.declare import Check, Metavar
from tilting.errors import TiltingError


def _folders(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        _folder(name, one)
    return value


def _folder(name: str, value: str) -> str:
    if not Path(value).is_dir():
        raise TiltingError(f"there is no folder {value!r} for --{name}")
    return value


def _host(name: str, value: str) -> str:
    try:
        ip_address(value)
    except ValueError:
        if value != "localhost":
            raise TiltingError(f"--{name} is an address of this machine such as 127.0.0.1 or 0.0.0.0, not {value!r}") from None
    return value


def _token(name: str, value: str) -> str:
    if len(value) < 8 or not value.isalnum() or not value.isascii():
        raise TiltingError(f"--{name} must be at least 8 letters and digits")
    return value


@dataclass(frozen=True)
class StudioConfig(BaseConfig):
    """A checked request for a page."""

    workspace: Annotated[
        str, Metavar("DIR"), Check(_folder), Doc("Folder of runs; the page reads and writes nothing outside of it.")
    ] = "."
    read: Annotated[
        tuple[str, ...],
        Metavar("DIR"),
        Check(_folders),
        Doc("Another folder that the page may read, such as models, repeatable."),
    ] = ()
    host: Annotated[
        str, Metavar("ADDRESS"), Check(_host), Doc("Address to listen at; one that other machines can reach needs --token.")
    ] = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65535), Doc("Port to listen at; 0 takes a free one.")] = 7860
    token: Annotated[str | None, Metavar("WORD"), Check(_token), Doc("Password of the page, ADDRESS/?token=WORD.")] = None
    upload: Annotated[int, Ge(1), Le(4096), Doc("Maximum size of an upload in MB.")] = 64

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Validate options by name. Raises TiltingError, also for a page that other machines can reach without a token."""
        config = super().resolve(options)
        if not config.loopback and config.token is None:
            raise TiltingError(f"at {config.host} others can reach the page, and run what it runs: give it a --token")
        return config

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the page."""
        return self.host == "localhost" or ip_address(self.host).is_loopback
