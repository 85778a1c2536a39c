"""A page in a headless browser."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --enable-logging=stderr
"""
WATCH = "<script>const faults = []; addEventListener('error', e => faults.push(e.message));</script>"
# A window is at least 500 pixels wide, a frame is not.
FRAME = """
<!doctype html><iframe src="copy.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>onmessage = event => document.body.append(
  Object.assign(document.createElement("pre"), {{textContent: event.data}}))</script>
"""


def seen(page, script: str, *, width: int = 1200, media: str | None = None):
    """What a script, run at the end of a copy of a page, returns; and that nothing went wrong.

    Args:
        page: a file.
        script: body of an asynchronous function.
        width: of the window, in pixels; it is 900 high.
        media: a query of the page that holds, such as `print`.
    """
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    content = page.read_text("utf-8").replace("<title>", f"{WATCH}<title>")
    if media:
        content = content.replace(f"@media {media}", "@media all")
    answered = "found => parent.postMessage(JSON.stringify([found, faults]), '*')"
    failed = "error => parent.postMessage(JSON.stringify([null, [String(error)]]), '*')"
    tail = f"<script>(async () => {{ {script} }})().then({answered}, {failed})</script>"
    page.with_name("copy.html").write_text(content + tail, "utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width), "utf-8")
    profile = f"--user-data-dir={page.parent / 'chromium'}"
    command = [CHROMIUM, *FLAGS.split(), profile, "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [*command, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    answer = re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert answer, done.stdout
    found, faults = json.loads(html.unescape(answer[1]))
    assert faults == [], faults
    return found
