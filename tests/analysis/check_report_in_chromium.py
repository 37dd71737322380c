"""The report in a real browser: `python -m pytest tests/analysis/check_report_in_chromium.py`.

Not part of `make test`, since it needs Chromium (Debian: `apt-get install chromium`) on the path; without one it fails.
A script at the end of the page plays the reader: it presses keys, moves the pointer, and writes what it saw.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from loraplex.analysis.report import write_report
from loraplex.planner.plan import Plan
from loraplex.planner.plan_file import save_plan
from loraplex.traces.timeline import Timeline

from .conftest import MakeTimeline

# Errors are caught from the first line on; frames are drawn at once, since a headless page that is dumped draws none.
BEFORE = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("securitypolicyviolation", (event) => problems.push("policy: " + event.violatedDirective));
window.requestAnimationFrame = (draw) => draw();
</script>"""
READER = """<pre id="seen"></pre><script>
const canvas = document.getElementById("timeline"), details = document.getElementById("details");
const press = (key) => {
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  return [key, details.textContent, document.getElementById("range").textContent];
};
const box = canvas.getBoundingClientRect();
const point = (type, x, y, more) =>
  canvas.dispatchEvent(new PointerEvent(type, { clientX: box.left + x, clientY: box.top + y, bubbles: true, ...more }));
const pixels = () => new Set(new Uint32Array(
  canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
const seen = { colours: pixels() };
seen.keys = KEYS.map(press);
point("pointermove", box.width / 2, 40, { pointerId: 1 });
seen.tip = [...document.getElementById("tip").children].map((row) => row.textContent);
press("0");
const turn = (deltaY, ctrlKey) => {
  const where = { clientX: box.left + 300, clientY: box.top + 40 };
  const event = new WheelEvent("wheel", { deltaY, ctrlKey, ...where, bubbles: true, cancelable: true });
  canvas.dispatchEvent(event);
  return event;
};
const wheel = turn(-300, true);
seen.wheel = [wheel.defaultPrevented, document.getElementById("range").textContent];
seen.scrolls = !turn(300, false).defaultPrevented;
press("+"); press("+");
const before = document.getElementById("range").textContent;
point("pointerdown", 600, 40, { pointerId: 2 });
for (const x of [590, 500, 400]) point("pointermove", x, 40, { pointerId: 2 });
point("pointerup", 400, 40, { pointerId: 2 });
seen.dragged = [before, document.getElementById("range").textContent];
for (const button of document.querySelectorAll("button[data-move]")) button.click();
seen.afterButtons = document.getElementById("range").textContent;
const began = performance.now();
press("0");
seen.drawMs = performance.now() - began;
seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.problems = problems;
document.getElementById("seen").textContent = JSON.stringify(seen);
</script>"""


def read(page: Path, *, keys: list[str], width: int = 1280) -> dict[str, Any]:
    """What the reader saw in a window of this width (the page lies in a frame, since windows are not that narrow)."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "no Chromium on the path; install one (Debian: apt-get install chromium)"
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + BEFORE, 1)
    play = READER.replace("KEYS", json.dumps(keys))
    # The frame hands what the reader saw to the page around it, which is dumped.
    tell = '<script>parent.postMessage(document.getElementById("seen").textContent, "*")</script>'
    page.with_name("played.html").write_text(text.replace("</body>", play + tell + "</body>"), encoding="utf-8")
    around = page.with_name("around.html")
    around.write_text(
        '<body><pre id="seen"></pre><script>addEventListener("message", (event) => '
        '{ document.getElementById("seen").textContent = event.data; });</script>'
        f'<iframe src="played.html" style="border: 0; width: {width}px; height: 900px"></iframe></body>',
        encoding="utf-8",
    )
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000")
    done = subprocess.run(
        [browser, *options, "--virtual-time-budget=20000", "--dump-dom", around.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (found,) = re.findall(r'<pre id="seen">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    seen: dict[str, Any] = json.loads(html.unescape(found))
    return seen


@pytest.fixture
def page(make_1f1b: MakeTimeline, two_adapters: Plan, tmp_path: Path) -> Path:
    save_plan(two_adapters, tmp_path / "plan.json")
    make_1f1b(num_stages=2, num_microbatches=3).save(tmp_path / "timeline-simulated.json")
    make_1f1b(num_stages=2, num_microbatches=3, source="measured").save(tmp_path / "timeline-measured.json")
    return write_report(tmp_path)


def test_a_reader_with_a_keyboard_gets_everywhere(page: Path) -> None:
    seen = read(page, keys=["ArrowRight", "ArrowRight", "ArrowDown", "End", "ArrowUp", "Home", "+", "-", "0", "Escape"])
    assert seen["problems"] == []
    first = "forward of microbatch 0 · maths: 40 tokens · papers: 30 tokens · together 70 tokens"
    whole = "showing 0 ms to 12 ms of 12 ms"
    assert seen["keys"] == [
        ["ArrowRight", f"{first} · stage 0, simulated · from 0 ms, for 1 ms", whole],
        [
            "ArrowRight",
            "forward of microbatch 1 · papers: 90 tokens · stage 0, simulated · from 1 ms, for 1 ms",
            whole,
        ],
        ["ArrowDown", f"{first} · stage 1, simulated · from 1 ms, for 1 ms", whole],
        [
            "End",
            "waiting: cooldown · until backward of microbatch 2 · stage 1, simulated · from 10 ms, for 2 ms",
            whole,
        ],
        ["ArrowUp", "backward of microbatch 2 · maths: 10 tokens · stage 0, simulated · from 10 ms, for 2 ms", whole],
        ["Home", f"{first} · stage 0, simulated · from 0 ms, for 1 ms", whole],
        ["+", f"{first} · stage 0, simulated · from 0 ms, for 1 ms", "showing 250 µs to 6.25 ms of 12 ms"],
        ["-", f"{first} · stage 0, simulated · from 0 ms, for 1 ms", whole],
        ["0", f"{first} · stage 0, simulated · from 0 ms, for 1 ms", whole],
        ["Escape", "No bar is chosen.", whole],
    ]


def test_pointer_wheel_and_buttons(page: Path) -> None:
    seen = read(page, keys=[])
    assert seen["problems"] == []
    assert seen["tip"][0].split(" of ")[0] in ("forward", "backward", "waiting: warmup", "waiting: imbalance")
    assert seen["wheel"][0] is True
    assert seen["wheel"][1] != "showing 0 ms to 12 ms of 12 ms"
    assert seen["scrolls"] is True
    assert seen["afterButtons"] == "showing 0 ms to 12 ms of 12 ms"
    assert seen["colours"] > 8
    assert seen["dragged"][0] != seen["dragged"][1]


@pytest.mark.parametrize("width", [1280, 400])
def test_no_width_makes_the_page_scroll_sideways(page: Path, width: int) -> None:
    assert read(page, keys=[], width=width)["overflow"] == 0


def test_a_hundred_thousand_spans(tmp_path: Path) -> None:
    count = 100_000
    place = np.arange(count) // 8
    frame = pd.DataFrame({"replica": 0, "stage": np.arange(count) % 8, "kind": "compute", "microbatch": place})
    frame = frame.assign(
        action=[f"{index % 8}F{index // 8}" for index in range(count)], start_ms=place * 2.0, end_ms=place * 2.0 + 1.0
    ).assign(bytes=0, cause="")
    Timeline.from_frame(frame, source="measured", origin="many", num_stages=8).save(tmp_path / "timeline-measured.json")
    seen = read(write_report(tmp_path), keys=["ArrowRight", *["+"] * 12, "ArrowRight"])
    assert seen["problems"] == []
    assert seen["keys"][-1][1].startswith("waiting: ")
    print(f"a redraw of the whole run took {seen['drawMs']:.0f} ms")
