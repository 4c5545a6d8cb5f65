"""The parts of the page that are made when it opens, asked for side by side as a browser does."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import pytest

from tilting.config.studio import StudioConfig
from tilting.studio import forms, serve
from tilting.studio.jobs import Jobs
from tilting.studio.page import Studio
from tilting.studio.resident import Resident
from tilting.studio.workspace import Workspace

pytestmark = pytest.mark.slow


def test_parts_are_made_one_after_the_other(tmp_path, monkeypatch):
    """Two at once broke on dicts that they share, which left a page without its Draw button."""
    making, alone, plain = threading.Lock(), [], forms.weights

    def slow(*asked):
        alone.append(making.acquire(blocking=False))
        time.sleep(0.2)
        making.release()
        return plain(*asked)

    monkeypatch.setattr(forms, "weights", slow)
    studio = Studio(Workspace(tmp_path, (), 1 << 20), Resident(tmp_path, tmp_path), Jobs(tmp_path, tmp_path / "jobs"))
    transport = httpx.ASGITransport(serve.app_of(StudioConfig.resolve({"workspace": str(tmp_path)}), studio))

    async def opened() -> tuple[dict, list[httpx.Response]]:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            config = (await client.get("/config")).json()
            values = {one["id"]: one["props"].get("value") for one in config["components"]}
            asks = [
                {"data": [values[i] for i in one["inputs"]], "fn_index": one["id"], "session_hash": "one"}
                for one in config["dependencies"]
                if one["api_name"].startswith("apply")
            ]
            return config, await asyncio.gather(*(client.post("/gradio_api/run/predict", json=ask) for ask in asks))

    config, answers = asyncio.run(opened())
    assert [one.status_code for one in answers] == [200] * 3
    assert alone == [True, True]  # Draw's and Train's
    assert not config["connect_heartbeat"]
