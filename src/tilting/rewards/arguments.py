"""What follows the colon of a reward, read and refused without torch: colours, files, labels, addresses."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from tilting.errors import TiltingError, nearest
from tilting.features.schema import Schema, read_schema

MIRRORS = ("lr", "ud", "both")
HEX = re.compile(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})")


def read_color(text: str) -> tuple[tuple[float, float, float], bool]:
    """A colour and whether the mean of the image is meant: NAME, #rgb or #rrggbb, with ",mean" or nothing after it.

    Returns:
        Three numbers in [0, 1], and True for the mean.

    Raises:
        TiltingError: no such colour, or another word after the comma.
    """
    from PIL.ImageColor import colormap, getrgb

    name, comma, rest = text.partition(",")
    if comma and rest != "mean":
        raise TiltingError(f"after the colour in {text!r} only ',mean' may stand, not {rest!r}")
    if name.startswith("#") and not HEX.fullmatch(name):
        raise TiltingError(f"the colour {name!r} must be #rgb or #rrggbb in hexadecimal digits, such as #ff8800")
    if not name.startswith("#") and name.lower() not in colormap:
        near = nearest(name, colormap)
        raise TiltingError(f"there is no colour {name!r}{near if 'did you mean' in near else '; write red, or #ff8800'}")
    red, green, blue = getrgb(name)[:3]
    return (red / 255, green / 255, blue / 255), bool(comma)


def read_files(name: str, text: str, what: tuple[str, str]) -> tuple[Path, Path | None]:
    """FILE or FILE#SECOND: both must exist.

    Args:
        name: the reward that needs them.
        text: what followed the colon.
        what: what the two files are, for the refusal.

    Raises:
        TiltingError: naming the file that is not there.
    """
    first, mark, second = text.partition("#")
    for file, kind in ((first, what[0]), (second, what[1])):
        if (file or mark) and not Path(file).is_file():
            raise TiltingError(f"there is no file {file!r}, the {kind} of the reward {f'{name}:{text}'!r}")
    return Path(first), Path(second) if mark else None


def read_likelihood(text: str) -> tuple[Path, Schema, str]:
    """FOLDER#LABEL=VALUE of a fitted classifier.

    Returns:
        The folder, what its classifier knows, and the value as written.

    Raises:
        TiltingError: another form, no classifier there, a label that is not its own, or a value it does not know.
    """
    folder, mark, asked = text.rpartition("#")
    label, equals, value = asked.partition("=")
    if not (mark and folder and label and equals and value):
        raise TiltingError(f"the reward 'likelihood:{text}' must be likelihood:FOLDER#LABEL=VALUE")
    schema = read_schema(Path(folder))
    if label != schema.label:
        raise TiltingError(f"the classifier in {folder!r} tells {schema.label!r}, not {label!r}")
    schema.target(value)
    return Path(folder), schema, value


def read_queries(text: str) -> tuple[tuple[str, int], ...]:
    """What to look for: "cat,-dog" -> (("cat", 1), ("dog", -1)), -1 to remove it.

    Raises:
        TiltingError: a query is empty or given twice.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        query = part.strip().removeprefix("-").strip()
        if not query:
            raise TiltingError(f"a query of the reward {f'detect:{text}'!r} is empty; write detect:cat or detect:cat,-dog")
        if query in found:
            raise TiltingError(f"the query {query!r} is given twice in the reward {f'detect:{text}'!r}")
        found[query] = -1 if part.strip().startswith("-") else 1
    return tuple(found.items())


def read_classifier(text: str) -> tuple[str, str]:
    """FOLDER#LABEL -> the classifier, a folder or a name on the hub, and the label; raises TiltingError."""
    folder, _, label = text.rpartition("#")
    if not (folder.strip() and label.strip()):
        raise TiltingError(f"the reward {f'classify:{text}'!r} must be classify:FOLDER#LABEL")
    return folder.strip(), label.strip()


def check_url(text: str) -> str:
    """The address of a remote scorer: http or https, a host, and no password, for it stands in manifests. Else TiltingError."""
    try:
        parts = urlsplit(text)
        right = (
            parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        right = False
    if not right or re.search(r"[\s\x00-\x1f\x7f]", text) or not text.isascii():
        raise TiltingError(f"the address {text!r} must be http://HOST[:PORT]/PATH, or https")
    return text


def check(name: str, kind: str, text: str) -> None:
    """Refuse a wrong argument of a reward whose `tilting.rewards.spec.Entry.argument` is ``kind``; others pass."""
    if kind == "colour":
        read_color(text)
    elif kind == "lr|ud|both" and text not in MIRRORS:
        raise TiltingError(f"there is no mirror {text!r}{nearest(text, MIRRORS)}")
    elif kind == "image[#vgg16]":
        read_files(name, text, ("picture", "weights of VGG16"))
    elif kind == "vgg16[#lpips]":
        read_files(name, text, ("weights of VGG16", "weights of LPIPS"))
    elif kind == "folder#label=value":
        read_likelihood(text)
    elif kind == "query[,query]":
        read_queries(text)
    elif kind == "folder#label":
        read_classifier(text)
    elif kind == "//host/path":
        check_url(f"{name}:{text}")
