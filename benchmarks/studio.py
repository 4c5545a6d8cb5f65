"""Seconds before the studio's first picture, and before the next, on a quiet machine with chromium.

    python benchmarks/studio.py

Printed are seconds from the start of the process until its address, until the page can be used, and until the picture of
Draw's own defaults is there; then, warm, from a press of the button until the first estimates, and until the picture.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time

from playwright.sync_api import sync_playwright


def main() -> None:
    with tempfile.TemporaryDirectory() as workspace, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        command = [sys.executable, "-m", "tilting", "studio", "--workspace", workspace, "--port", "0"]
        begun = time.perf_counter()
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[1]
            print(f"load {os.getloadavg()[0]:.1f} over one minute")
            print(f"address              {time.perf_counter() - begun:6.2f} s")
            page = browser.new_page()
            page.set_default_timeout(600_000)
            page.goto(address)
            page.wait_for_selector("#draw-go")
            print(f"page                 {time.perf_counter() - begun:6.2f} s")
            for name in ("first", "second"):
                pressed = time.perf_counter()
                page.click("#draw-go")
                page.wait_for_function("!document.querySelector('#draw-status').innerText.includes('drawn')")
                page.wait_for_selector("#draw-live .particles img")
                seen = time.perf_counter() - pressed
                page.wait_for_function("document.querySelector('#draw-status').innerText.includes('1 of 1 pictures drawn')")
                whole = time.perf_counter()
                since = f", {whole - begun:.2f} s after the start" if name == "first" else ""
                print(f"{name:6} picture: estimates after {seen:.2f} s, whole after {whole - pressed:.2f} s{since}")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
