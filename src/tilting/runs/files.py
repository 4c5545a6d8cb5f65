"""Files of a run folder: JSON, digests, and the manifest with its image records, validated before use. Torch-free.

Writes go through `tilting.disk.write_atomically`; `tilting.runs.lock.exclusive` guards a whole folder.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tilting import foreign
from tilting.disk import unique_beside, write_atomically
from tilting.errors import TiltingError
from tilting.features.digest import DIGITS, digest, digest_of_code
from tilting.features.picture import open_rgb
from tilting.rewards.spec import Spec

MANIFEST = "manifest.json"
IMAGES = "images.jsonl"
"""Records of a run's images, one JSON line each, in the order in which they were drawn. The manifest's ``images`` names this
file; in older runs it holds the records themselves."""
SPENT = "spent"
"""Key of the last record of a batch: the run's cost so far, which the summary repeats at the end."""
GRID = "grid.png"
TRACE, TRACE_TOLD, TRACE_SHEET = "trace", "trace/{:05d}.json", "trace/{:05d}.webp"
"""Files of --trace: the folder, and by image number its data and its sheet of pictures."""
SWEEP = "sweep.json"
"""The file of a folder of runs at several strengths of a control."""
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "gif": ".gif", "mp4": ".mp4"}
"""File suffixes by format of images and videos."""


def image_name(number: int, kind: str | None = None) -> str:
    """Path of image ``number`` within the run folder; a PNG unless another format is named."""
    return f"images/{number:05d}{SUFFIXES[kind or 'png']}"


def digests_of(specs: Sequence[Spec]) -> list[dict[str, Any]]:
    """Name and digest of each reward; see `named_digest`."""
    return [named_digest(spec.text, spec.reads.files) for spec in specs]


def named_digest(name: str, paths: Sequence[Path]) -> dict[str, Any]:
    """A name with the digest of its files (None without any), and for a lone Python file the digest of its code."""
    code = digest_of_code(paths[0]) if len(paths) == 1 and paths[0].suffix == ".py" else None
    return {"name": name, "sha256": digest_of(paths)} | ({"code": code} if code else {})


def digest_of(paths: Iterable[Path]) -> str | None:
    """One digest of the files and folders that exist: that of a single one, a hash of the digests of several, None of none."""
    known = [one for one in map(digest, paths) if one is not None]
    return known[0] if len(known) == 1 else hashlib.sha256(" ".join(known).encode()).hexdigest()[:DIGITS] if known else None


def write_json(path: Path, value: Any, allow_nan: bool = False) -> None:
    """Write a value as indented JSON, keys in their order. Raises ValueError for a NaN unless ``allow_nan``."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=allow_nan)
    write_atomically(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises TiltingError naming the file."""
    try:
        return foreign.read_json(path, "it")
    except TiltingError as error:
        raise TiltingError(f"{str(path)!r} is corrupt ({error}): move it away, or choose another --out") from None


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the folder's manifest."""
    write_json(folder / MANIFEST, manifest, allow_nan=True)


def check_writable(out: str) -> Path:
    """The folder, if it exists or can be created, and is writable; leaves nothing behind. Raises TiltingError."""
    folder = Path(out)
    try:
        if folder.exists() and not folder.is_dir():
            raise TiltingError(f"--out {out!r} is a file, not a folder")
        if folder.is_symlink() and not folder.exists():
            raise TiltingError(f"--out {out!r} is a link that leads nowhere")
        parent = folder
        while not parent.exists():
            parent = parent.absolute().parent
        if not parent.is_dir():
            raise TiltingError(f"--out {out!r} cannot be made: {str(parent)!r} is a file")
        tried = unique_beside(parent / (folder.absolute().name or "out"))
        tried.mkdir()
        with suppress(FileNotFoundError):  # a command that starts now has removed it
            tried.rmdir()
    except (OSError, ValueError) as error:
        if isinstance(error, TiltingError):
            raise
        raise TiltingError(f"cannot write into --out {out!r}: {getattr(error, 'strerror', None) or error}") from None
    return folder


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder with the records of its images, or None without a manifest.

    Raises:
        TiltingError: naming a file that is corrupt, or images without a manifest.
    """
    path = folder / MANIFEST
    if not path.exists():
        images = folder / "images"
        if images.is_dir() and any(images.iterdir()):
            raise TiltingError(f"{str(images)!r} holds pictures and there is no {MANIFEST} beside it: choose another --out")
        if (folder / GRID).exists():
            raise TiltingError(f"{str(folder / GRID)!r} is not of a run, for there is no {MANIFEST}: choose another --out")
        return None
    manifest = with_records(folder, read_json(path))
    _check(path, _what_is_wrong(manifest))
    return manifest


def with_records(folder: Path, manifest: Any) -> Any:
    """The manifest with its image records read in, and with the run's cost so far in its summary.

    A line torn by a power cut is left out. What is not a manifest is returned unchanged.
    """
    if not isinstance(manifest, dict) or manifest.get("images") != IMAGES:
        return manifest
    records, spent = _records(folder / IMAGES)
    summary = manifest.get("summary")
    known: Any = {**summary, **spent} if isinstance(summary, dict) and isinstance(spent, dict) else summary
    whole = {str(record.get("file")) for record in records}
    for part in parts(folder):
        more, paid = _records(part)
        if any(str(record.get("file")) in whole for record in more):  # merged already; a kill came before it was removed
            continue
        records += more
        if isinstance(known, dict) and isinstance(paid, dict):
            known |= {key: _sum(known.get(key), value) for key, value in paid.items()}
    return {**manifest, "images": sorted(records, key=_place), "summary": known}


def _records(path: Path) -> tuple[list[dict[str, Any]], Any]:
    """The records of a file, and the cost so far according to the last record that has one."""
    records, spent = [], {}
    for line in read_lines(path):
        spent = line.pop(SPENT, spent)
        records.append(line)
    return records, spent


def _sum(a: Any, b: Any) -> Any:
    return a + b if isinstance(a, int | float) and isinstance(b, int | float) else b


def part_of(index: int) -> str:
    """The file in which a process writes its records; rank 0 merges those of the others at the end."""
    return f"images.{index}.jsonl" if index else IMAGES


def parts(folder: Path) -> list[Path]:
    """Record files that processes other than rank 0 have left in a folder."""
    return sorted(path for path in folder.glob("images.*.jsonl") if path.name.split(".")[1].isdigit())


def records_of(folder: Path) -> list[Path]:
    """All files of a folder that hold image records."""
    return [folder / IMAGES, *parts(folder)]


def _place(record: Mapping[str, Any]) -> tuple[int, str]:
    """Sort key: an image's place in its run, whenever it was drawn."""
    name = str(record.get("file"))
    return len(name), name


def read_lines(path: Path, torn: bool = True) -> list[dict[str, Any]]:
    """The mappings in a JSON-lines file; none if it does not exist.

    Args:
        path: the file.
        torn: skip a broken line; if false, stop at the first one.
    """
    found = []
    for line in foreign.read_text(path).split("\n") if path.is_file() else ():  # not splitlines: JSON may hold U+2028
        try:
            row = foreign.parse_json(line, "it")
        except TiltingError:
            row = None
        if isinstance(row, dict):
            found.append(row)
        elif not torn:
            break
    return found


def line(row: Mapping[str, Any]) -> str:
    """One line of a JSON-lines file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def stale(manifest: Mapping[str, Any]) -> bool:
    """Whether the run was killed between its last image and its summary."""
    return manifest["summary"].get("images", len(manifest["images"])) < len(manifest["images"])


def parsed(path: Path, wrong: Callable[[Any], str | None]) -> dict[str, Any]:
    """A manifest validated by ``wrong``, which returns a reason or None. Raises TiltingError naming the file."""
    manifest = read_json(path)
    _check(path, wrong(manifest))
    return manifest


def _check(path: Path, reason: str | None) -> None:
    if reason:
        raise TiltingError(f"{str(path)!r} is corrupt ({reason}): move it away, or choose another --out")


def lacks(manifest: Any, kinds: Mapping[str, type]) -> str | None:
    """The first key that a manifest lacks, or that has another type; None if it has all."""
    if not isinstance(manifest, dict):
        return "not a mapping"
    return next((f"no {key}" for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)), None)


def _what_is_wrong(manifest: Any) -> str | None:
    lacking = lacks(manifest, {"config": dict, "images": list, "summary": dict, "model": dict, "reward": list})
    if lacking:
        return lacking
    for record in manifest["images"]:
        kinds = {"file": str, "prompt": str, "index": int, "seed": int, "rewards": dict}
        if not isinstance(record, dict) or not all(isinstance(record.get(k), kind) for k, kind in kinds.items()):
            return "a broken entry under images"
        for key in ("reward", "judge"):
            if key not in record or not isinstance(record[key], int | float | None):
                return f"an image without {key}"
    for key in ("evaluations", "decodes", "reward_calls", "seconds"):
        if not isinstance(manifest["summary"].get(key), int | float):
            return f"no {key} under summary"
    if not isinstance(manifest["summary"].get("images", 0), int):
        return "no number of images under summary"
    config = manifest["config"]
    seeds = seeds_of(config)
    if not isinstance(config.get("prompts") or [], list) or not all(
        isinstance(n, int) for n in (config.get("images") or 1, *seeds)
    ):
        return "no prompts, images and seeds under config"
    return None


def keys_of(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """(prompt, number within the prompt) of every image: its index if the run has one seed, else its place among the prompt's
    by seed and index, whatever their order."""
    records = list(records)
    if len({record.get("seed") for record in records}) < 2:
        return [(record["prompt"], record["index"]) for record in records]
    places: dict[str, list[tuple[int, int]]] = {}
    for record in records:
        places.setdefault(record["prompt"], []).append((record["seed"], record["index"]))
    number = {prompt: {one: i for i, one in enumerate(sorted(held))} for prompt, held in places.items()}
    return [(record["prompt"], number[record["prompt"]][record["seed"], record["index"]]) for record in records]


def seeds_of(config: Mapping[str, Any]) -> list[int]:
    """The seeds of a manifest's config."""
    seed = config.get("seed", 0)
    return list(seed) if isinstance(seed, list | tuple) else [seed]


def short(value: object) -> str:
    """A value as JSON, cut at 60 characters."""
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def whole(path: Path) -> bool:
    """Whether an image file is complete and decodes. A file torn by a power cut is not; of a PNG every chunk's CRC is checked,
    so a flipped bit is found too."""
    try:
        data = path.read_bytes()
        if path.suffix == ".mp4":
            return _has_boxes(data)
        open_rgb(path)
        if path.suffix != ".png":
            riff = data[:4] == b"RIFF" and len(data) == 8 + int.from_bytes(data[4:8], "little")
            gif = data[:4] == b"GIF8" and data[-1:] == b";"
            return riff or gif or (data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9")
        if not data.startswith(PNG_HEAD):
            return False
        at, kind = len(PNG_HEAD), b""
        while at < len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4], "big")
            kind, check = data[at + 4 : at + 8], data[end : end + 4]
            if len(check) < 4 or zlib.crc32(data[at + 4 : end]) != int.from_bytes(check, "big"):
                return False
            at = end + 4
    except (OSError, TiltingError):
        return False
    return kind == b"IEND"


def _has_boxes(data: bytes) -> bool:
    """Whether an mp4 ends with its last box and has the boxes ftyp, mdat and moov."""
    at, kinds = 0, set()
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kinds.add(data[at + 4 : at + 8])
        at += max(size, 8)
    return at == len(data) and {b"ftyp", b"mdat", b"moov"} <= kinds


def finished(folder: Path, manifest: Mapping[str, Any] | None) -> dict[int, dict]:
    """Records of the images that exist and are whole, by number. Runs older than `IMAGES` wrote non-finite images as black: a
    black image of one is drawn again."""
    done, unknown = {}, not (folder / IMAGES).exists()
    for record in (manifest or {}).get("images", []):
        stem, path = Path(record["file"]).stem, folder / record["file"]
        ours = stem.isdigit() and record["file"] in {image_name(int(stem), kind) for kind in SUFFIXES}
        if ours and whole(path) and not (unknown and open_rgb(path).getbbox() is None):
            done[int(stem)] = record
    return done
