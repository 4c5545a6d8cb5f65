"""A run folder being written: its manifest, and the check that a run which is resumed is the same run.

    manifest = {version, argv, config, identities..., summary}

A command subclasses `RunFolder`: which `kind` of folder, which keys the manifest ``holds``, which options are ``free`` to
change on resume, and the `identities`, digests of everything else that its results depend on. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from tilting.declare import Field, Registry, plain
from tilting.errors import TiltingError
from tilting.models.families import weights_of
from tilting.models.names import find_model
from tilting.runs import files
from tilting.runs.owner import Kind, folder_of
from tilting.version import __version__


class Request(Protocol):
    """The part of a config that a run folder uses."""

    @property
    def out(self) -> str | None: ...

    def mapping(self) -> dict[str, Any]: ...

    @classmethod
    def options(cls) -> dict[str, Field]: ...


Asked = TypeVar("Asked", bound=Request)


class RunFolder(Generic[Asked]):
    """A run folder. Creating the object reads and checks; `make` writes.

    Args:
        config: the request; ``out`` must be set.
        argv: the command, which the manifest records.

    Raises:
        TiltingError: a folder that cannot be written, holds another run, or has a corrupt manifest.
    """

    kind: ClassVar[Kind]
    """How the folder is recognised."""
    holds: ClassVar[Mapping[str, type]] = {"config": dict, "summary": dict, "model": dict, "reward": list}
    """Keys of the manifest, and their types."""
    free: ClassVar[Sequence[str]] = ("out", "unused")
    """Options that may differ on resume."""
    inside: ClassVar[str] = "."
    """The subfolder that `make` creates."""
    noun: ClassVar[str] = "run"
    """Its name in error messages."""
    changed: ClassVar[str] = "had other weights or code"
    """What an error message says of an identity that differs."""
    parts: ClassVar[Registry | None] = None
    """The registry whose settings ``set`` holds."""

    def __init__(self, config: Asked, argv: Sequence[str] = ()):
        self.config, self.path = config, folder_of(config.out, self.kind)
        identities, now = self.identities(), self.config_now()
        before = self.read()
        if before is not None and not self.binds(before):
            before = None
        if before is not None:
            self._check_same(before, now, identities, str(self.path))
        self.before = before
        self.head = {"version": __version__, "argv": list(argv), "config": now, **identities}
        self.summary: dict[str, Any] = before["summary"] if before else {}

    def identities(self) -> dict[str, Any]:
        """What must not change on resume, by manifest key: digests of the model and the rewards."""
        model: str = self.config.model  # type: ignore[attr-defined]
        return {"model": {"name": model, "sha256": files.digest(weights_of(find_model(model)))}, "reward": self.rewards()}

    def rewards(self) -> list[dict[str, Any]]:
        """Name of each reward, and digest of its weights (or of a user's file)."""
        return []

    def defaults(self) -> dict[str, Any]:
        """Default values of the settings in ``set``."""
        return {}

    def config_now(self) -> dict[str, Any]:
        """``config`` of the manifest."""
        return self.config.mapping()

    def read(self) -> dict[str, Any] | None:
        """The existing manifest, or None. Raises TiltingError if it is corrupt."""
        path = self.path / files.MANIFEST
        return files.parsed(path, lambda manifest: files.lacks(manifest, self.holds)) if path.exists() else None

    def binds(self, before: Mapping[str, Any]) -> bool:
        """Whether the existing run has results to keep: one that failed before its first image may be replaced."""
        return True

    def may_differ(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        """Whether a run may be resumed with another value of this option."""
        return key in self.free

    def difference(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        """The error message for an option that differs."""
        old, new = before.get(key), now.get(key)
        if key == "set" and isinstance(old, dict) and isinstance(new, dict):
            key = next((k for k in (*new, *old) if old.get(k) != new.get(k)), key)
            old, new = old.get(key), new.get(key)
        another = f"{'other' if key.endswith('s') else 'another'} {key}"
        return f"with {another} ({files.short(old)} there, {files.short(new)} now): choose another --out"

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds."""
        return {**self.head, "summary": self.summary}

    def make(self) -> None:
        """Create the folder, with its manifest first. Raises TiltingError."""
        try:
            (self.path / self.inside).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TiltingError(f"cannot write into --out {self.config.out!r}: {error.strerror}") from error
        if self.before is None or not (self.path / files.MANIFEST).exists():
            self.write()

    def write(self) -> None:
        """Replace the manifest."""
        files.write_manifest(self.path, self.manifest)

    def check(self, manifest: Mapping[str, Any], path: str) -> None:
        """Refuse a manifest of another request that lies elsewhere, at ``path``. Raises TiltingError."""
        told = {key: value for key, value in self.head.items() if key not in ("version", "argv", "config")}
        self._check_same(manifest, self.head["config"], told, path)

    @staticmethod
    def same_identity(key: str, before: Any, now: Any) -> bool:
        """Whether two identities are of the same files. Rewards whose digest an older run did not know pass, and of a user's
        file only the code counts: another comment is no other reward."""
        if key != "reward" or len(before) != len(now):
            return before == now
        return all(
            b["name"] == n["name"] and (b["sha256"] in (None, n["sha256"]) or b.get("code", "") == n.get("code"))
            for b, n in zip(before, now, strict=True)
        )

    def _check_same(
        self, manifest: Mapping[str, Any], now: Mapping[str, Any], identities: Mapping[str, Any], path: str
    ) -> None:
        """Refuse to resume another run. Options and settings that are newer than the run pass at their defaults.
        Raises TiltingError."""
        before = manifest["config"]
        known, default = before.get("set"), self.defaults()
        if isinstance(known, dict) and isinstance(now.get("set"), dict):
            if self.parts is not None:  # settings had other names once
                known = {self.parts.current_key(key): value for key, value in known.items()}
                before = {**before, "set": known}
            newer = {name for name, value in now["set"].items() if name not in known and value == default.get(name)}
            now = {**now, "set": {name: value for name, value in now["set"].items() if name not in newer}}
        asked = type(self.config).options()
        for key in dict.fromkeys((*now, *before)):
            new = now.get(key)
            if key not in before and key in asked and new == plain(asked[key].default):  # an option newer than the run
                continue
            if before.get(key) != new and (before.get(key) or new) and not self.may_differ(key, before, now):
                raise TiltingError(f"{path!r} holds a {self.noun} {self.difference(key, before, now)}")
        for key, value in identities.items():
            if not self.same_identity(key, manifest.get(key), value):
                raise TiltingError(f"{path!r} holds a {self.noun} whose {key} {self.changed}: choose another --out")


def costs_told(summary: Mapping[str, Any], call: Mapping[str, Any] | None) -> list[str]:
    """What a run has cost, for people; where some of it was there already (``call``), what this call has paid first."""
    whole = [f"{summary['evaluations']} evaluations", f"{summary['seconds']:.1f} s"]
    if not call or not call.get("already"):
        return whole
    return [f"{call['evaluations']} evaluations and {call['seconds']:.1f} s now ({' and '.join(whole)} in all)"]
