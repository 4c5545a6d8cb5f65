"""The folder of a run while it is written: what its manifest says of it, and whether a run that is there is the same one.

Torch-free.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from tilting.declare import Registry
from tilting.errors import TiltingError
from tilting.models.names import find_model
from tilting.runs import files
from tilting.runs.owner import Kind, folder_of
from tilting.version import __version__


class Request(Protocol):
    """What a folder asks of a config."""

    @property
    def out(self) -> str | None: ...

    @property
    def model(self) -> str: ...

    def mapping(self) -> dict[str, Any]: ...


Asked = TypeVar("Asked", bound=Request)


def other(key: str) -> str:
    """An option that differs, for people: "another seed", "other steps"."""
    return f"{'other' if key.endswith('s') else 'another'} {key}"


class RunFolder(ABC, Generic[Asked]):
    """A run's folder.

    Args:
        config: the request; ``out`` must be set.
        argv: what the manifest records as the command.

    Raises:
        TiltingError: a folder that cannot be written, holds another run, or a manifest that is corrupt. Nothing is made.
    """

    kind: ClassVar[Kind]
    """What the folder is known by."""
    free: ClassVar[Sequence[str]] = ("out", "unused")
    """Options that may differ when a run goes on."""
    inside: ClassVar[str]
    """The folder that `begin` makes in it."""
    parts: ClassVar[Registry | None] = None
    """Whose settings ``set`` holds."""

    def __init__(self, config: Asked, argv: Sequence[str] = ()):
        self.config, self.path = config, folder_of(config.out, self.kind)
        identities, now = self.identities(), self.config_now()
        before = self.read()
        if before is not None:
            self._check_same(before, now, identities)
        self.head = {"version": __version__, "argv": list(argv), "config": now, **identities}
        self.summary: dict[str, Any] = before["summary"] if before else {}

    def identities(self) -> dict[str, Any]:
        """``model`` and ``reward`` of the manifest, which must not change while a run goes on."""
        sha = files.digest(Path(find_model(self.config.model)))
        return {"model": {"name": self.config.model, "sha256": sha}, "reward": self.rewards()}

    @abstractmethod
    def rewards(self) -> list[dict[str, Any]]:
        """Of each reward its name, and the digest of the weights (or of a user's file) behind it."""

    def usual(self) -> dict[str, Any]:
        """What settings are unless told, by the names that ``set`` has for them."""
        return {}

    def config_now(self) -> dict[str, Any]:
        """``config`` of the manifest."""
        return self.config.mapping()

    @abstractmethod
    def read(self) -> dict[str, Any] | None:
        """The manifest that is there, if one is. Raises TiltingError if it is corrupt."""

    def difference(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        """What to say of a run that differs in an option, and what to do about it."""
        old, new = before.get(key), now.get(key)
        if key == "set" and isinstance(old, dict) and isinstance(new, dict):
            key = next((k for k in (*new, *old) if old.get(k) != new.get(k)), key)
            old, new = old.get(key), new.get(key)
        return f"with {other(key)} ({files.short(old)} there, {files.short(new)} now): choose another --out"

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds."""
        return {**self.head, "summary": self.summary}

    def make(self) -> None:
        """Make the folder. Raises TiltingError."""
        try:
            (self.path / self.inside).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TiltingError(f"cannot write into --out {self.config.out!r}: {error.strerror}") from error

    @staticmethod
    def _same_rewards(manifest: Mapping[str, Any], identities: Mapping[str, Any]) -> bool:
        """Whether rewards are of the same files, as far as the older of the two knows its own."""
        before, now = manifest["reward"], identities["reward"]
        return len(before) == len(now) and all(
            b["name"] == n["name"] and b["sha256"] in (None, n["sha256"]) for b, n in zip(before, now, strict=True)
        )

    def _check_same(self, manifest: Mapping[str, Any], now: Mapping[str, Any], identities: Mapping[str, Any]) -> None:
        """Refuse to go on in a folder of another run; an option newer than it may be unset, a setting as it is by itself.
        Raises TiltingError."""
        before, usual = manifest["config"], self.usual()
        known = before.get("set")
        if isinstance(known, dict) and isinstance(now.get("set"), dict):
            if self.parts is not None:
                known = {self.parts.current_key(key): value for key, value in known.items()}
                before = {**before, "set": known}
            newer = {name for name, value in now["set"].items() if name not in known and value == usual.get(name)}
            now = {**now, "set": {name: value for name, value in now["set"].items() if name not in newer}}
        for key in dict.fromkeys((*now, *before)):
            new = now.get(key)
            if key not in self.free and before.get(key) != new and (before.get(key) or new):
                raise TiltingError(f"{str(self.path)!r} holds a run {self.difference(key, before, now)}")
        for key, same in (
            ("model", manifest["model"] == identities["model"]),
            ("reward", self._same_rewards(manifest, identities)),
        ):
            if not same:
                raise TiltingError(
                    f"{str(self.path)!r} holds a run whose {key} had other weights or code: choose another --out"
                )
