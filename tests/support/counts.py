"""What every preset costs an image, told by its own arithmetic."""

from __future__ import annotations

from tilting import presets

STEPS = 12
WINDOW = len([i for i in range(STEPS) if 0.3 - 1e-9 <= 1 - i / STEPS <= 0.7 + 1e-9])  # steps inside t/T of .7 to .3


# (preset, evaluations per image, decodes and reward calls per image), T = 12, gates of 2
PER_IMAGE = {
    "base": (presets.base(), STEPS, 0),
    "bon": (presets.bon(3), 3 * STEPS, 3),
    "code": (presets.code(3, block=2), 3 * STEPS, 3 * 5 + 3),
    "code-beams": (presets.code(4, block=2, beams=2), 4 * STEPS, 4 * 5 + 4),
    "svdd": (presets.svdd(3), 3 * STEPS, 3 * (STEPS - 1)),
    "smc": (presets.smc(3, block=2), 3 * STEPS, 3 * 5 + 3),
    "fk": (presets.fk(3, block=4), 3 * STEPS, 3 * 2 + 3),
    "codex": (presets.codex(3, block=2, gradient_block=3, window=(1, 0)), 3 * (STEPS + 3), 3 * (5 + 3) + 3),
    "codex-probes": (
        presets.codex(3, block=2, gradient_block=3, window=(1, 0), probes=4),
        3 * (STEPS + 3 * (1 + 8)),
        3 * (5 + 3 * (1 + 8)) + 3,
    ),
    "codex-medoid": (
        presets.codex(4, block=2, gradient_block=3, window=(1, 0), gradient_on="medoid"),
        4 * STEPS + 2 * 3,
        4 * 5 + 2 * 3 + 4,
    ),
    "codex-winner": (presets.codex(4, block=3, window=(1, 0), gradient_on="winner"), 4 * STEPS + 3 * 2, 4 * 3 + 3 + 4),
    "codex-schedule": (  # selections at 3, 6, 9 take up 2 -> 4 (second half); 2 particles for 6 steps and the look at 6, then 4
        presets.codex(4, block=3, gradient_block=12, schedule=(2, 4)),
        2 * 7 + 4 * 5,
        2 * 2 + 4 + 4,
    ),
    "dps": (presets.dps(), STEPS, STEPS),
    "dps-score": (presets.dps(form="score", particles=2), 2 * STEPS, 2 * STEPS + 2),
    "mpgd": (presets.mpgd(), STEPS, WINDOW),
    "freedom": (presets.freedom(repeat=3), STEPS + 2 * WINDOW, 3 * WINDOW),
    "ug": (presets.ug(backward=2, repeat=2), 2 * STEPS, 2 * STEPS * 3),
    "lgd": (presets.lgd(samples=4), STEPS, 4 * STEPS),
    "tfg": (presets.tfg(steps=3, samples=2, radius=0.2), STEPS, STEPS * 2 * (1 + 3)),
    "tds": (presets.tds(3), 3 * STEPS, 3 * STEPS + 3),
    "das": (presets.das(3), 3 * STEPS, 3 * STEPS + 3),
    "das-probes": (presets.das(3, probes=2), 3 * STEPS * 5, 3 * STEPS * 5 + 3),
    # the chain's last look is the one that the first step is made from
    "psi": (presets.psi(3, moves=2), 3 * (2 + STEPS), 3 * (2 + STEPS) + 3),
    "fkc": (presets.fkc(3), 3 * STEPS, 3 * (STEPS - 1) + 3),
    "fkc-alone": (presets.fkc(3, None), 3 * STEPS, 0),
    "reno": (presets.reno(iterations=2), (2 * 2 - 1) * STEPS, 2),
    "doodl": (presets.doodl(iterations=3), (2 * 3 - 1) * STEPS, 3),
    "doodl-probes": (presets.doodl(iterations=3, probes=4), (2 * 3 - 1) * STEPS, 3 + 2 * 2 * 4),
    "zo": (presets.zo(3, iterations=2), (1 + 2 * 3) * STEPS, 1 + 2 * 3),
    # drawn to step 2; rounds from 1 to 4, 3 to 6, 5 to 8, 7 to 10 and 9 to 12
    "paths": (presets.paths(2, branches=3, forward=1, backward=3), 2 * 2 + 5 * 6 * 3, 5 * 6 + 2),
    "lidar": (presets.lidar(2, samples=5, lookahead=4), 5 * 4 + 2 * STEPS, 5 + 2),
    "prompt": (presets.prompt("{};{}, {}"), 2 * STEPS, 2),
}
