"""A page opened in a real browser without a window, and what a script saw while it clicked."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def play(page: Path, script: str, width: int = 1300) -> Any:
    """Run JavaScript once the page is loaded.

    Args:
        page: an HTML file; a copy of it, beside it, is opened.
        script: the body of an async function; what it returns is passed on as JSON.
        width: of the window.
    """
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed, which opens the page and clicks")
    played = page.with_name("played.html")
    hook = (
        "<script>addEventListener('load', async () => { let said;"
        f"try {{ said = await (async () => {{ {script} }})(); }} catch (e) {{ said = String(e); }}"
        "const out = document.createElement('pre'); out.id = 'said';"
        "out.textContent = JSON.stringify(said); document.body.append(out); });</script></body>"
    )
    content = page.read_text(encoding="utf-8")
    assert content.count("</body>") == 1
    played.write_text(content.replace("</body>", hook), encoding="utf-8")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={page.parent / 'browser'}", f"--window-size={width},900"]
    command += ["--virtual-time-budget=20000", "--dump-dom", played.as_uri()]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="said">(.*?)</pre>', answer.stdout, re.DOTALL)
    assert found is not None, answer.stderr[-2000:]
    return json.loads(html.unescape(found[1]))
