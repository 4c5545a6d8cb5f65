"""Declaration and registry of rewards.

    @REWARDS.declare("color", "near a colour", "-mean squared distance", argument=Argument("COLOUR", read_color))
    def color(color: str) -> Color: ...

From it come ``--reward color:red``, the YAML key, `tilting.generate(reward="color:red")`, `tilting.rewards.color`, the list,
the check before anything is loaded, and the digest by which a run knows that a file of its reward is still the same. Another
package's reward stands in its own module, named by an entry point of the group ``tilting.rewards``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tilting.declare import Registry, paragraphs
from tilting.errors import TiltingError
from tilting.features.digest import weights_in
from tilting.features.packaged import POCKET_CLIP
from tilting.features.sources import Source


class Reads(NamedTuple):
    """What the value of a reward stands on besides the picture.

    Attributes:
        files: files, and folders of weights; those of a cache or the hub are not among them.
        clip: the CLIP, by the name that `tilting evaluate` has for one: "pocket-clip", a folder, a hub id. Who judges pictures
            asks for it, for a network that a reward reads is no judge of it.
    """

    files: tuple[Path, ...] = ()
    clip: str | None = None


POCKET = Reads((POCKET_CLIP,), "pocket-clip")


def clip_at(folder: str | None) -> Reads:
    """What a reward on a transformers CLIP reads: a folder or hub name; pocket-clip for None."""
    return Reads(weights_in(folder), folder) if folder else POCKET


def no_more(argument: str | None) -> Reads:
    """A reward that reads no files other than those its argument names."""
    return Reads()


@dataclass(frozen=True)
class Argument:
    """What may follow the colon of a reward.

    Attributes:
        metavar: it is called, such as FOLDER. check: text -> anything; raises TiltingError, before anything is loaded. convert:
            text -> what the factory is given. required: whether there is no reward without it. files: whether it may name files
            and folders, several with "#" between: whatever of it is there is read, and so digested.
    """

    metavar: str
    check: Callable[[str], object] = str
    convert: Callable[[str], Any] = str
    required: bool = False
    files: bool = True


@dataclass(frozen=True)
class RewardEntry:
    """What there is to know of a reward without loading it.

    Attributes:
        name: in a spec; with "_" for "-" it is the factory's in `tilting.rewards`.
        make: the function or class that gives the reward.
        about: one line.
        units: of its values; higher is better.
        differentiable: whether a gradient with respect to the images exists.
        argument: what may follow the colon, None when nothing may.
        reads: argument -> what its values stand on, beside the files that the argument names.
        weights: whether it needs weights that this package has not.
        together: whether the value of an image depends on those beside it in the batch.
        remote: whether pictures leave the machine.
        aliases: other names, which are still taken.
        options: keywords that ``make`` is called with.
        sources: of the weights that this package has not.
        extra: of this package that it needs, such as "ocr", with the modules that are there then.
    """

    name: str
    make: Callable[..., Any]
    about: str
    units: str
    differentiable: bool = False
    argument: Argument | None = None
    reads: Callable[[str | None], Reads] = no_more
    weights: bool = False
    together: bool = False
    remote: bool = False
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def factory(self) -> Callable[..., Any]:
        """What gives the reward, with its options."""
        return partial(self.make, **self.options) if self.options else self.make

    @property
    def usage(self) -> str:
        """How a spec of it is written, such as color:COLOUR."""
        return f"{self.name}:{self.argument.metavar}" if self.argument else self.name

    @property
    def told(self) -> list[str]:
        """The paragraphs of the factory's documentation."""
        return paragraphs(self.make)

    def build(self, argument: str | None) -> Any:
        """The reward of what followed the colon. Raises TiltingError if it does not load."""
        return self.factory() if argument is None or self.argument is None else self.factory(self.argument.convert(argument))

    @property
    def needs(self) -> list[str]:
        """Lines of what is to be downloaded or installed, and whether it is there."""
        lines = [source.told for source in self.sources]
        if self.extra:
            there = "not installed" if self.missing else "installed"
            lines.append(f"pip install 'tilting[{self.extra[0]}]' ({there})")
        return lines

    @property
    def missing(self) -> list[str]:
        """The modules of its extra that are not installed."""
        return [module for module in self.extra[1:] if find_spec(module) is None]

    def stands_on(self, argument: str | None) -> Reads:
        """What the reward of an argument reads. A file that the argument names cannot be forgotten."""
        files, clip = self.reads(argument)
        parts = argument.split("#") if argument and self.argument and self.argument.files else []
        ways = [Path("#".join(parts[i:j]).strip()) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)]
        named = [path for path in ways if path.exists() and path.name and path not in files]
        return Reads((*(file for path in named for file in weights_in(path)), *files), clip)


def installed(entry: RewardEntry) -> None:
    """Refuse a reward whose extra of this package is not installed, in a sentence that says how to get it."""
    if entry.missing:
        needs = f"the reward {entry.name!r} needs {' and '.join(entry.missing)}"
        raise TiltingError(f"{needs}: pip install 'tilting[{entry.extra[0]}]'")


REWARDS: Registry[RewardEntry] = Registry("reward", "tilting.rewards", RewardEntry)


def of_a_batch(reward: str) -> TiltingError:
    """The refusal of a reward that compares images with each other: pictures would depend on the batch size."""
    return TiltingError(
        f"{reward!r} compares the images of a batch, and no picture may depend on those beside it: it is for `tilting finetune`"
    )
