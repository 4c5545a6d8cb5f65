"""`python -m tilting.cli.demo --out demo`: what pocket draws by itself, and steered, on one grid. Resumable."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tilting.config.generate import GenerateConfig, resolve
from tilting.disk import make_folder, write_atomically
from tilting.errors import TiltingError
from tilting.generation.run import Parts, load_parts, run
from tilting.lazy import hush
from tilting.metrics.statistics import interval
from tilting.reports.grid import comparison_grid
from tilting.reports.words import TERMS
from tilting.rewards.spec import build
from tilting.runs.lock import exclusive
from tilting.runs.signals import exit_code, signals_handled

PROMPTS = ("a fox, noto style", "a sunflower on a blue background", "a castle, twemoji style", "a banana on a pink background")
IMAGES, STEPS, PARTICLES, SHOWN = 4, 25, 4, 2
RUNS = (
    *(("base", "clip"), ("bon", "clip"), ("code", "clip"), ("codex", "clip")),
    *(("base", "jpeg"), ("code", "jpeg")),
    *(("base", "warm"), ("codex", "warm")),
)
PAIRS = (
    *(("clip", "bon", "base"), ("clip", "code", "base"), ("clip", "codex", "base"), ("clip", "codex", "code")),
    *(("jpeg", "code", "base"), ("warm", "codex", "base")),
)
WARM = '''def warm(images, prompts):
    """How much more red than blue a picture has, from -1 to 1: a reward of one's own, whose gradient torch finds."""
    return (images[:, 0] - images[:, 2]).mean((1, 2))
'''
GLOSS = (
    "clip: how well picture and prompt match, a cosine; jpeg: minus the kB of its file; warm: red minus blue, -1 to 1",
    f"base: the model by itself; judge: {TERMS['judge'].short}",
)


def requests(out: Path, prompts: Sequence[str], images: int, steps: int) -> dict[tuple[str, str], GenerateConfig]:
    """The runs of the demo by (method, reward), all of the same seeds."""
    return {
        (method, reward): resolve(
            {
                "prompts": list(prompts),
                "method": method,
                "reward": [f"{out / 'warm.py'}:warm" if reward == "warm" else reward],
                "images": images,
                "steps": steps,
                "seed": 0,
                "particles": None if method == "base" else PARTICLES,
                "out": str(out / "runs" / f"{method}-{reward}"),
            }
        )
        for method, reward in RUNS
    }


def table(manifests: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Reward, judge, evaluations and seconds of every run, then paired differences with their intervals."""
    lines = [f"{'reward':8}{'method':8}{'mean ± sem':>20}{'judge':>9}{'evaluations':>13}{'seconds':>9}"]
    for (method, reward), manifest in manifests.items():
        s = manifest["summary"]
        judge = "-" if s["judge_mean"] is None else f"{s['judge_mean']:.2f}"
        mean = f"{s['reward_mean']:.4f}" + (f" ± {s['reward_sem']:.4f}" if s["reward_sem"] is not None else "")
        lines.append(f"{reward:8}{method:8}{mean:>20}{judge:>9}{s['evaluations']:>13}{s['seconds']:>9.1f}")
    over = "prompts" if len({r["prompt"] for m in manifests.values() for r in m["images"]}) > 1 else "images of the one prompt"
    lines += [f"sem: the standard error over {over}"]
    lines += ["", f"paired differences of the reward, same seeds: mean [95 % t interval over {over}]"]
    for reward, a, b in PAIRS:
        ours, theirs = ([r["reward"] for r in manifests[name, reward]["images"]] for name in (a, b))
        mean, low, high = interval(ours, theirs, [r["prompt"] for r in manifests[a, reward]["images"]])
        lines.append(f"{reward:8}{a + ' - ' + b:16}{mean:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if low is not None else ""))
    return "\n".join([*lines, "", *GLOSS])


def demo(out: Path, prompts: Sequence[str] = PROMPTS, images: int = IMAGES, steps: int = STEPS, quiet: bool = False) -> str:
    """Run what is missing, write ``grid.png``, ``grid-jpeg.png``, ``grid-warm.png`` and ``table.txt``, and return the table."""

    @cache
    def model_and_judge() -> Parts:
        return load_parts(configs["base", "clip"])

    def parts(config: GenerateConfig) -> Parts:
        shared = model_and_judge()
        return shared._replace(reward=build(config.specs())) if config.reward != ("clip",) else shared

    make_folder(out)
    write_atomically(out / "warm.py", WARM.encode())
    configs = requests(out, prompts, images, steps)
    manifests = {}
    for key, config in configs.items():
        argv = ["python", "-m", "tilting.cli.demo", "--out", str(out)]
        manifests[key] = run(config, argv, quiet=quiet, parts=parts)
    text = table(manifests)
    for name, reward in (("grid.png", "clip"), ("grid-jpeg.png", "jpeg"), ("grid-warm.png", "warm")):
        columns = [(method, config.out or "") for (method, r), config in configs.items() if r == reward]
        comparison_grid(columns, out / name, per_prompt=min(SHOWN, images))
    write_atomically(out / "table.txt", (text + "\n").encode())
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit codes as `tilting`'s."""
    parser = argparse.ArgumentParser(prog="python -m tilting.cli.demo", description=(__doc__ or "").split(":")[-1])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write, or to go on with")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    try:
        with signals_handled(), exclusive(str(options.out)):
            print(demo(options.out, quiet=options.quiet))
    except TiltingError as error:
        print(f"tilting: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tilting: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return exit_code()
    print(f"grid: {options.out / 'grid.png'}")
    print("a control of one label at three strengths, which takes minutes to train: sh examples/scientist.sh")
    return 0


if __name__ == "__main__":
    hush()
    sys.exit(main())
