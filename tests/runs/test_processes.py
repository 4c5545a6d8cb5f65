"""Processes of a launcher make one folder: that of one process, in any number of processes, and after a kill of any of them.

Real processes over loopback (`support.pairs`); pictures are equal to the bit where groups are, and within 1 of 255 else. A
tenth of the write points is tried, another each day; `make crash` tries all of them.
"""

from __future__ import annotations

import pytest
import torch

from support.killing import part, prepare
from support.pairs import SAME, SHARDED
from support.paths import ROOT
from support.processes import begun
from tilting.errors import TiltingError
from tilting.generation.plan import Plan, identities
from tilting.method import Method
from tilting.presets import base
from tilting.runs.processes import Processes, process_device
from tilting.training.sharding import asked_for


def pairs(folder, *words) -> list[str]:
    """What `support.pairs` says."""
    process = begun(folder, *words, module="support.pairs", KILL_PART="/".join(map(str, part())))
    out, err = process.communicate(timeout=36_000)
    assert process.returncode == 0, out + err
    return out.splitlines()


@pytest.mark.slow
def test_processes_leave_what_one_leaves_and_go_on_after_a_kill(tmp_path, capfd):
    prepare(tmp_path)
    lines = pairs(tmp_path, *SAME, "refused", "killed", "shards")
    with capfd.disabled():
        print("\n" + "\n".join(lines))
    named = [line.partition(":")[0] for line in lines if not line.startswith("  ")]
    shards = [*(f"shards of {name}" for name in SHARDED), "shards of a reward that fails in one process"]
    assert named == [*SAME, "refused", "process 0", "process 1", *shards]
    assert "generate: 8 files, 5 of 5 pictures to the bit" in lines
    assert all(int(line.split()[2]) >= 10 for line in lines if line.startswith("process"))


@pytest.mark.parametrize(
    ("images", "batch", "particles"), [(3, 1, 1), (20, 16, 1), (64, 16, 1), (7, 16, 4), (1, 4, 8), (0, 4, 1)]
)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_even_and_together_all(images, batch, particles, count):
    who = identities(["a fox"], 0, images) if images else []
    plan = Plan(tuple(who), base(), 2, 1.0, 1.0, batch_size=batch, method=Method("x", particles=particles))
    shares = [plan.share(index, count) for index in range(count)]
    assert sorted((one for share in shares for one in share.who), key=who.index) == who
    assert all(share.group <= plan.group for share in shares) and len({share.group for share in shares}) == 1
    rounds = [-(-len(share.who) // share.group) for share in shares]
    assert max(rounds, default=0) - min(rounds, default=0) <= 1
    assert max(rounds) == -(-images // (count * plan.group))
    if count == 1:
        assert shares[0].who == plan.who


def test_one_process_has_nobody_to_ask():
    alone = Processes()
    assert alone.main and alone.all_gather({"a": 1}) == [{"a": 1}] and alone.all_gather_bytes(b"x") == [b"x"]
    x = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(alone.map_rows(lambda a: (2 * a,), x)[0], 2 * x)
    found = alone.map_items([1, 2, 3], lambda item: {"value": torch.tensor([item])})
    assert [one["value"].item() for one in found] == [1, 2, 3]
    with pytest.raises(TiltingError, match="no"):
        alone.agree(lambda: (_ for _ in ()).throw(TiltingError("no")))


def test_a_device_for_several_is_the_launchers():
    cpu = torch.device("cpu")
    assert (
        process_device("auto", torch.device("cuda", 3), 4) == torch.device("cuda", 3) and process_device("cpu", cpu, 4) == cpu
    )
    with pytest.raises(TiltingError, match="the launcher gives 2 processes their devices: leave --device cpu out"):
        process_device("cpu", torch.device("cuda", 0), 2)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_launchers_settings_are_read_by_accelerate(file):
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(file))
    assert found.distributed_type.value == ("FSDP" if file.stem == "fsdp" else "MULTI_GPU") and found.num_processes >= 2


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed: networks are sharded by FSDP 2 here"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "asks for FSDP 1: set fsdp_version to 2"),
    ],
)
def test_other_shards_are_refused(monkeypatch, env, said):
    assert asked_for(2) is None
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TiltingError, match=said):
        asked_for(2)
