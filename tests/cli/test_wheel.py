"""The wheel holds all that the package needs: unpacked elsewhere, it finds its model and its commands."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

from support.paths import ROOT


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("tilting-*.whl")
    assert wheel.stat().st_size < 46e6
    home = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(home)
    names = {str(p.relative_to(home)) for p in home.rglob("*")}
    for part in (
        "pocket/unet/diffusion_pytorch_model.safetensors",
        "pocket-clip/model.safetensors",
        "pocket-judge/model.safetensors",
        "pocket-bright/control.json",
        "pocket-bright/lora/pytorch_lora_weights.safetensors",
    ):
        assert f"tilting/assets/{part}" in names
    assert any(n.endswith("licenses/NOTICE") for n in names)
    code = (
        "import tilting as tl; method = tl.presets.bon(particles=2); "
        "out = tl.generate(tl.load('pocket'), 'a fox', tl.rewards.clip(), method, steps=2); "
        "print(tl.__file__, out.manifest['summary']['evaluations'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(home)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == [str(home / "tilting" / "__init__.py"), "4"]
