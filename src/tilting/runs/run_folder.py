"""The folder of a run while it is written: what its manifest says of it, and whether a run that is there is the same one.

    manifest = {version, argv, config, identities..., summary}

A command declares a `RunFolder` of its own: which `kind` of folder, what the manifest ``holds``, which options are ``free`` to
differ when a run goes on, and the `identities`, digests of everything else that its results stand on. Torch-free.
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
    """What a folder asks of a config."""

    @property
    def out(self) -> str | None: ...

    def mapping(self) -> dict[str, Any]: ...

    @classmethod
    def options(cls) -> dict[str, Field]: ...


Asked = TypeVar("Asked", bound=Request)


class RunFolder(Generic[Asked]):
    """A run's folder.

    Args:
        config: the request; ``out`` must be set.
        argv: what the manifest records as the command.

    Raises:
        TiltingError: a folder that cannot be written, holds another run, or a manifest that is corrupt. Nothing is made.
    """

    kind: ClassVar[Kind]
    """What the folder is known by."""
    holds: ClassVar[Mapping[str, type]] = {"config": dict, "summary": dict, "model": dict, "reward": list}
    """Keys of the manifest, and their types."""
    free: ClassVar[Sequence[str]] = ("out", "unused")
    """Options that may differ when a run goes on."""
    inside: ClassVar[str] = "."
    """The folder that `make` makes in it."""
    noun: ClassVar[str] = "run"
    """What refusals call it."""
    changed: ClassVar[str] = "had other weights or code"
    """What a refusal tells of an identity that differs."""
    parts: ClassVar[Registry | None] = None
    """Whose settings ``set`` holds."""

    def __init__(self, config: Asked, argv: Sequence[str] = ()):
        self.config, self.path = config, folder_of(config.out, self.kind)
        identities, now = self.identities(), self.config_now()
        before = self.read()
        if before is not None and not self.binds(before):
            before = None
        if before is not None:
            self._check_same(before, now, identities)
        self.before = before
        self.head = {"version": __version__, "argv": list(argv), "config": now, **identities}
        self.summary: dict[str, Any] = before["summary"] if before else {}

    def identities(self) -> dict[str, Any]:
        """What must not change while a run goes on, by key of the manifest: the model, and the rewards."""
        model: str = self.config.model  # type: ignore[attr-defined]
        return {"model": {"name": model, "sha256": files.digest(weights_of(find_model(model)))}, "reward": self.rewards()}

    def rewards(self) -> list[dict[str, Any]]:
        """Of each reward its name, and the digest of the weights (or of a user's file) behind it."""
        return []

    def defaults(self) -> dict[str, Any]:
        """What settings are by themselves, by the names that ``set`` has for them."""
        return {}

    def config_now(self) -> dict[str, Any]:
        """``config`` of the manifest."""
        return self.config.mapping()

    def read(self) -> dict[str, Any] | None:
        """The manifest that is there, if one is. Raises TiltingError if it is corrupt."""
        path = self.path / files.MANIFEST
        return files.parsed(path, lambda manifest: files.lacks(manifest, self.holds)) if path.exists() else None

    def binds(self, before: Mapping[str, Any]) -> bool:
        """Whether anything is kept of the run that is there: one that failed before its first picture binds nobody."""
        return True

    def may_differ(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        """Whether a run that differs in an option goes on."""
        return key in self.free

    def difference(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        """What to say of a run that differs in an option, and what to do about it."""
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
        """Make the folder, and its manifest before anything else is in it. Raises TiltingError."""
        try:
            (self.path / self.inside).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TiltingError(f"cannot write into --out {self.config.out!r}: {error.strerror}") from error
        if self.before is None or not (self.path / files.MANIFEST).exists():
            self.write()

    def write(self) -> None:
        """Replace the manifest."""
        files.write_manifest(self.path, self.manifest)

    @staticmethod
    def same_identity(key: str, before: Any, now: Any) -> bool:
        """Whether it is of the same files; rewards, as far as the older of the two knows its own, and of a user's file its
        code alone: a comment in it is no other reward."""
        if key != "reward" or len(before) != len(now):
            return before == now
        return all(
            b["name"] == n["name"] and (b["sha256"] in (None, n["sha256"]) or b.get("code", "") == n.get("code"))
            for b, n in zip(before, now, strict=True)
        )

    def _check_same(self, manifest: Mapping[str, Any], now: Mapping[str, Any], identities: Mapping[str, Any]) -> None:
        """Refuse to go on in a folder of another run; an option newer than it may be as it is by itself, and so may a setting.
        Raises TiltingError."""
        before, path = manifest["config"], str(self.path)
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
            if key == "metadata" and key not in before:  # a run from before prompts had some
                continue
            if before.get(key) != new and (before.get(key) or new) and not self.may_differ(key, before, now):
                raise TiltingError(f"{path!r} holds a {self.noun} {self.difference(key, before, now)}")
        for key, value in identities.items():
            if not self.same_identity(key, manifest.get(key), value):
                raise TiltingError(f"{path!r} holds a {self.noun} whose {key} {self.changed}: choose another --out")
