"""report.html in a real browser, offline, on a telephone's and a desk's width. Skips where chromium is not installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from diagnoses import a_diagnosis
from gossamer.report.content import Content
from gossamer.report.diagnosis import render_diagnosis
from gossamer.report.page import render_page
from reports import HOSTILE, a_document

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
MEASURE = """<script>
const root = document.documentElement;
const drawn = [...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().width);
document.title = JSON.stringify({wide: root.scrollWidth - root.clientWidth, high: root.scrollHeight, drawn: drawn});
</script>"""


def measured(page: str, folder: Path, width: int) -> dict:
    """What a browser of that width says about the page; the policy that forbids scripts is lifted for this one."""
    path = folder / "page.html"
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    path.write_text(page.replace("</body>", f"{MEASURE}</body>"))
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
    # a headless window is never narrower than 500 pixels, a frame is
    lift = "<script>f.onload = () => document.title = f.contentDocument.title</script>"
    frame = folder / "frame.html"
    frame.write_text(f'<title>none</title><iframe id="f" src="page.html" style="border:0;width:{width}px;height:3000px"></iframe>{lift}')
    done = subprocess.run(
        [CHROMIUM, *arguments, "--allow-file-access-from-files", "--virtual-time-budget=2000", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found.group(1))


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("model", ["Small CNN", HOSTILE], ids=["plain", "hostile"])
def test_nothing_sticks_out(tmp_path, width, model):
    page = render_page(Content.from_dict(a_document() | {"model": model}))
    result = measured(page, tmp_path, width)
    assert result["wide"] <= 0
    assert result["high"] > 500
    assert result["drawn"]
    assert all(drawn > 0 for drawn in result["drawn"])  # wider than a telephone: it scrolls inside its own box


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_of_a_diagnosis_sticks_out(tmp_path, width):
    result = measured(render_diagnosis(a_diagnosis(), HOSTILE), tmp_path, width)
    assert result["wide"] <= 0
    assert len(result["drawn"]) == 1
    assert result["drawn"][0] > 0
