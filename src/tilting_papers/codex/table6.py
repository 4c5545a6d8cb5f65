"""Table 6 of the CoDeX thesis: a black-box reward, the size of the JPEG file. CoDe, best-of-N, and CoDeX with zero-order
gradients of N' = 1, 10, 50 antithetic pairs, every fifth step as there (so that N' = 50 can be afforded)."""

from __future__ import annotations

from tilting_papers.codex.table import LATE, THESIS, Claim, Row, Size, Table
from tilting_papers.prompts import ANIMALS


def _zero_order(probes: int) -> Row:
    name, settings = f"codex-zo{probes}", {"window": LATE, "gradient_block": 5, "probes": probes}
    return Row(name, "codex", 4, settings, published=name)


TABLE6 = Table(
    name="codex-table6",
    about="a black-box reward, JPEG size: CoDe, best-of-N, and CoDeX with zero-order gradients",
    paper=f"{THESIS}, Table 6",
    title="a black-box reward: small JPEG files",
    after=f"Table 6 of {THESIS} (compressibility)",
    prompts=ANIMALS,
    reward=("jpeg",),
    units={"jpeg": "-kB"},
    size=Size(20, 3, 20, 0),
    rows=(
        Row("base", "base", published="base"),
        Row("bon-4", "bon", 4),
        Row("bon-40", "bon", 40),
        Row("code-4", "code", 4, published="code-4"),
        Row("code-40", "code", 40, published="code-40"),
        *map(_zero_order, (1, 10, 50)),
        Row("code-equal", "code", equal="codex-zo10"),
    ),
    against=("base", "code-4"),
    published=("codex-table6", "-kB at 512 x 512"),
    claims=(
        Claim("code-4", ("base", "bon-4"), "CoDe (N = 4) makes smaller files than best of 4"),
        Claim("code-equal", ("codex-zo10",), "CoDe makes smaller files than zero-order CoDeX of as many evaluations"),
        Claim("codex-zo50", ("code-4", "codex-zo10", "codex-zo1"), "more probes help"),
    ),
    notes=(
        "jpeg is -kB at quality 95 of a 64 x 64 picture (1 kB = 1000 bytes); the published one is of 512 x 512.",
        "Probes are of .1 of the noise level here; the published code leaves them at 1 for every level.",
    ),
)
