"""Sources of published weights. Torch-free.

A weight file is the one the user names, else the one under ``~/.cache/tilting/<reward>/``, else the hub's (its own cache first,
then the network).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tilting.errors import TiltingError
from tilting.features.digest import digest
from tilting.features.hub import online
from tilting.features.packaged import POCKET_CLIP

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
"""Suffixes of files of weights."""


@dataclass(frozen=True)
class Source:
    """Where the weights of one reward come from.

    Attributes:
        reward: its name.
        repo: their name on the hub.
        files: names the weight file may have, the one asked for first; none for a whole transformers folder.
        address: where a person gets them, the hub's page by default.
        part: what of the reward they are, for the sentence.
        size: about how much is downloaded.
        licence: of the weights.
    """

    reward: str
    repo: str
    files: tuple[str, ...] = ()
    address: str = ""
    part: str = "weights"
    size: str = ""
    licence: str = ""

    @property
    def folder(self) -> Path:
        """The directory of the user's that is looked at."""
        return Path.home() / ".cache" / "tilting" / self.reward

    @property
    def told(self) -> str:
        """What a person reads of it: what, how large, from where, its licence, and whether it is already there."""
        what = f"{self.part}: {self.files[0] if self.files else 'a folder'}"
        facts = ", ".join(filter(None, (self.size, self.address or f"{self.repo} on the Hugging Face hub", self.licence)))
        return f"{what} ({facts}); {f'found in {there}' if (there := self.found) else f'not in {self.folder}'}"

    @property
    def found(self) -> Path | None:
        """Where it is on this machine, in the user's directory or in the hub's cache; the network is not asked."""
        if any((self.folder / name).is_file() for name in self.files or ("config.json",)):
            return self.folder
        return cached(self.repo, self.files[-1] if self.files else "config.json")

    def wanted(self, into: Path | None = None) -> str:
        """The sentence for a user who has no weights: what to get, where, and the directory where to put it."""
        what = self.files[0] if self.files else "config.json, model.safetensors and the other small files"
        where = self.address or f"{self.repo} on the Hugging Face hub"
        return (
            f"the {self.part} of {self.reward!r} cannot be found: get {what} from {where} and put it into {into or self.folder}"
        )


def cached(repo: str, file: str = "config.json") -> Path | None:
    """The folder of a name on the hub in the hub's cache, if a file of it is there; the network is not asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        there = try_to_load_from_cache(repo, file)
    except ValueError:  # no name of the hub
        return None
    return Path(there).parent if isinstance(there, str) else None


def identity(name: str) -> frozenset[str]:
    """What tells a network from others: the digests of its files of weights where it is on this machine, under a path or in
    the hub's cache; else its name. Two are one where these meet."""
    folder = POCKET_CLIP if name == "pocket-clip" else Path(name).expanduser()
    folder = folder if folder.exists() else cached(name) or folder
    files = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
    found = {digest(file) for file in files if file.is_file() and (file == folder or file.suffix in WEIGHTS)}
    return frozenset(filter(None, found)) or frozenset({str(folder.resolve()) if folder.is_dir() else name})


def find_file(source: Source, place: str | Path | None = None) -> Path:
    """The weight file of a source.

    Args:
        source: whose; it has at least one file name.
        place: the file, or a folder that holds one of its names; by default the user's cache, then the hub.

    Raises:
        TiltingError: there is none; the sentence names the file, its address and the directory where to put it.
    """
    if place is not None:
        path = Path(place).expanduser()
        if path.is_file():
            return path
        if not path.is_dir():
            raise TiltingError(f"there is no file or folder {str(place)!r} with the weights of {source.reward!r}")
        found = [path / name for name in source.files if (path / name).is_file()]
        if not found:
            raise TiltingError(
                f"the folder {str(place)!r} has no {' or '.join(source.files)}, the weights of {source.reward!r}"
            )
        return found[0]
    for name in source.files:
        if (source.folder / name).is_file():
            return source.folder / name
    from huggingface_hub import hf_hub_download

    with explained(source, source.repo):
        # the newest of what the user names; safetensors, and pickles by weights_only
        return Path(hf_hub_download(source.repo, source.files[-1], local_files_only=not online()))  # nosec B615


def find_folder(
    source: Source, place: str | Path | None = None, holds: Sequence[str] = ("config.json",), beside: Path | None = None
) -> str | Path:
    """The transformers folder of a source, or its name on the hub.

    Args:
        source: whose.
        place: a folder or a name that the user gave, returned as it is.
        holds: files of which a folder must have one to be taken.
        beside: the folder to look at before the user's cache.
    """
    if place is not None:
        path = Path(place).expanduser()
        return path if path.is_dir() else place
    places = [source.folder] if beside is None else [beside, source.folder]
    return next((at for at in places if any((at / name).is_file() for name in holds)), source.repo)


def here(folder: str | Path) -> tuple[str | Path, bool]:
    """What transformers is to read, and whether it is local: a folder as it is; a name on the hub too, but its folder in
    the hub's cache while the hub is off or does not answer.

    Raises:
        OSError: the hub does not answer and its cache has nothing of that name.
    """
    from huggingface_hub import snapshot_download

    if Path(folder).is_dir() or not online():
        found = folder if Path(folder).is_dir() else snapshot_download(str(folder), local_files_only=True)  # nosec B615: no network
        return found, True
    return folder, False


@contextmanager
def explained(source: Source, folder: str | Path, into: Path | None = None) -> Iterator[None]:
    """Whatever fails inside, when ``folder`` is the hub's own name, becomes the sentence of the missing weights.

    Args:
        source: whose.
        folder: what is read inside.
        into: the directory the sentence names, the user's cache by default.
    """
    try:
        yield
    except (OSError, TiltingError) as error:
        if str(folder) != source.repo:
            raise
        raise TiltingError(source.wanted(into)) from error
