"""What the value of a reward stands on besides the picture: files, and a CLIP. Torch-free: nothing is loaded.

A run remembers the digests of the files, so that it does not go on with another reward under the same name; who judges pictures
asks for the CLIP, for a network that a reward reads is no judge of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tilting.features.packaged import POCKET_CLIP
from tilting.features.schema import FILE, read_config
from tilting.rewards.arguments import read_classifier, read_files, read_likelihood
from tilting.rewards.spec import Spec

Reads = tuple[tuple[Path, ...], str | None]
"""Files and folders, and the CLIP by the name that `tilting evaluate` has for one: "pocket-clip", a folder, a hub id."""
POCKET = "pocket-clip"


def files_of(spec: Spec) -> tuple[Path, ...]:
    """Files, and folders of weights, on which a reward's values depend; weights from a cache or the hub are not among them."""
    return _reads(spec)[0]


def files_of_classifier(place: str) -> tuple[Path, ...]:
    """What p(y | x) stands on: the folder of a fit, and the frozen network under its head; or a user's file of FILE.py:NAME."""
    return (Path(place.rpartition(":")[0]),) if ".py:" in place else _classifier(Path(place))[0]


def clip_of(spec: Spec) -> str | None:
    """The CLIP that a reward reads, None where it reads none."""
    return _reads(spec)[1]


def _reads(spec: Spec) -> Reads:
    if spec.is_file:
        return (Path(spec.name),), None
    find = _BY_NAME.get(spec.name)
    return find(spec.argument) if find else ((), None)


def _weights(place: str) -> tuple[Path, ...]:
    """A file, or a folder and the weights in it that are no safetensors, which a digest of a folder does not cover."""
    folder = Path(place)
    return (folder, *sorted(p for p in folder.rglob("*") if p.suffix in (".pt", ".pth", ".bin")))


def _clip(argument: str | None) -> Reads:
    return (_weights(argument), argument) if argument else ((POCKET_CLIP,), POCKET)


def _style(argument: str | None) -> Reads:
    return (POCKET_CLIP,), POCKET


def _gram(argument: str | None) -> Reads:
    picture, weights = read_files("gram", argument or "", ("picture", "weights of VGG16"))
    return ((picture, weights), None) if weights else ((picture, POCKET_CLIP), POCKET)


def _diversity(argument: str | None) -> Reads:
    if not argument:
        return (POCKET_CLIP,), POCKET
    first, second = read_files("diversity", argument, ("weights of VGG16", "weights of LPIPS"))
    return ((first, second) if second else (first,)), None


def _likelihood(argument: str | None) -> Reads:
    return _classifier(read_likelihood(argument or "")[0])


def _classifier(folder: Path) -> Reads:
    network, own = read_config(folder)["network"], (folder, folder / FILE)
    if network.get("name") == "mlp":
        files, name = _clip(network.get("embedder"))
        return (*own, *files), name
    return (*own, *(_weights(network["folder"]) if network.get("folder") else ())), None


def _classify(argument: str | None) -> Reads:
    return _weights(read_classifier(argument or "")[0]), None


def _given(clip: str | None = None) -> Callable[[str | None], Reads]:
    """Of a reward whose argument is the place of its weights."""
    return lambda argument: (_weights(argument) if argument else (), clip)


_BY_NAME: dict[str, Callable[[str | None], Reads]] = {
    "clip": _clip, "style": _style, "gram": _gram, "diversity": _diversity, "likelihood": _likelihood, "classify": _classify,
    "aesthetic": _given("openai/clip-vit-large-patch14"), "pickscore": _given("yuvalkirstain/PickScore_v1"),
    "hpsv2": _given(), "imagereward": _given(),
}  # fmt: skip
