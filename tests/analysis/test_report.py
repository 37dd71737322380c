"""The report's page, without a browser: what it holds, that it needs nothing else, and what bad folders are told.

`check_report_in_chromium.py` beside this file opens it in a real browser.
"""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from loraplex.analysis.embed import page_data
from loraplex.analysis.report import inline_svg, write_report
from loraplex.planner.errors import PlanError
from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.plan import Plan, microbatch
from loraplex.planner.plan_file import save_plan
from loraplex.traces.errors import TraceError
from loraplex.traces.timeline import Span, Timeline

from .conftest import MakeTimeline


class Page(HTMLParser):
    """Tags that opened and closed, ids, and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


@pytest.fixture
def folder(make_1f1b: MakeTimeline, tmp_path: Path) -> Path:
    """What a training run of two adapters on two stages leaves; one adapter has a name that HTML must not believe."""
    first = job_from_lengths(adapter=0, name="maths", lengths=[40, 10, 25], global_batch_size=1)
    second = job_from_lengths(adapter=1, name="<b>papers</b>", lengths=[30], global_batch_size=1)
    (a0,), (a1,), (a2,) = first.global_batches
    ((b0,),) = second.global_batches
    plan = Plan(
        jobs=(first, second),
        num_stages=2,
        microbatch_tokens=100,
        pad_multiple=8,
        microbatches=(microbatch([a0, b0]), microbatch([a1]), microbatch([a2])),
    )
    save_plan(plan, tmp_path / "plan.json")
    make_1f1b(num_stages=2, num_microbatches=3).save(tmp_path / "timeline-simulated.json")
    counters = pd.DataFrame({"replica": 0, "stage": [0, 1], "ms": [0.0, 1.0], "bytes": [2**30, 2**29]})
    measured = make_1f1b(num_stages=2, num_microbatches=3, backward_ms=2.5, source="measured")
    Timeline.from_frame(measured.frame, source="measured", origin="a laptop", num_stages=2, counters=counters).save(
        tmp_path / "timeline-measured.json"
    )
    lines = [json.dumps({"step": step, "loss": 2.0 - step / 5}) for step in range(3)]
    (tmp_path / "metrics-maths.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "command.txt").write_text('loraplex train jobs.yaml --note "a < b"\n')
    return tmp_path


def test_the_page_says_everything_the_run_left(folder: Path) -> None:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.open == []
    for text in (
        f"LoRAPlex: {folder.name}",
        "14.0 ms",  # measured makespan: (3 + 2 - 1) * (1 + 2.5)
        "-14.3 %",  # 12 ms were simulated
        "Adapters and waste",
        "<b>papers</b>",
        'loraplex train jobs.yaml --note "a < b"',
        "Every stage ran the same actions in the same order, span for span.",
        "1.00 GiB",
    ):
        assert any(text in found for found in page.texts), text


def test_evaluations_are_told_and_are_no_other_order(folder: Path, make_1f1b: MakeTimeline) -> None:
    run = make_1f1b(num_stages=2, num_microbatches=3).frame
    looks = run[run["microbatch"] == 2].assign(microbatch=3).query("action.str.contains('F')")
    frame = pd.concat([run, looks.assign(action=[f"{stage}E3" for stage in looks["stage"]])], ignore_index=True)
    Timeline.from_frame(frame, source="measured", origin="a laptop", num_stages=2).save(
        folder / "timeline-measured.json"
    )
    texts = Page(write_report(folder).read_text(encoding="utf-8")).texts
    assert (
        "Every stage ran the same actions in the same order, span for span, evaluations apart. Evaluations "
        "executed: 1 microbatch, 1.00 ms on the stage that had most of them; the simulation has none, and its "
        "makespan lacks their time."
    ) in texts


def test_what_only_the_simulator_knew_is_said_too(folder: Path) -> None:
    facts = {
        "profile": {"name": "tiny", "origin": "measured", "source": "a laptop <2026>"},
        "first_misfit": {"replica": 0, "stage": 1, "ms": 5.0, "needed_bytes": 2**31, "capacity_bytes": 2**30},
        "adapters": [{"name": "maths", "alone_ms": 6.0}],
        "systems": [
            {"system": "mlora", "about": "by turns", "schedule": "1f1b", "makespan_ms": 20.0, "tokens_per_s": 50.0}
            | {"speedup": 1.5, "bubble_ratio": 0.25}
        ],
    }
    (folder / "summary.json").write_text(json.dumps(facts))
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    for text in (
        "Does not fit into memory.",
        "Stage 1 would need 2.00 GiB at 5.00 ms; its device has 1.00 GiB.",
        "Costs: tiny (measured). a laptop <2026>",
        "mlora",
        "1.50x",
        "2.00x",  # maths: 12 ms simulated together, 6 alone
    ):
        assert any(text in found for found in page.texts), text
    facts["systems"][0]["speedup"] = "fast"  # type: ignore[index]
    (folder / "summary.json").write_text(json.dumps(facts))
    with pytest.raises(TraceError, match="speedup='fast' of system 'mlora' must be a number"):
        write_report(folder)


def test_every_id_is_there_once_and_every_reference_leads_somewhere(folder: Path) -> None:
    text = write_report(folder).read_text(encoding="utf-8")
    ids = Page(text).ids
    assert len(ids) == len(set(ids))
    assert {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)} <= set(ids)


def test_nothing_is_fetched_from_anywhere(folder: Path) -> None:
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#|\"?data:)", text)
    policy = [attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"]


def test_whoever_uses_a_keyboard_or_a_screen_reader_finds_a_name_and_a_way(folder: Path) -> None:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    (canvas,) = [attributes for tag, attributes in page.tags if tag == "canvas"]
    assert canvas["tabindex"] == "0"
    for name in ("aria-labelledby", "aria-describedby"):
        assert canvas[name] in page.ids
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    scrolled = [attributes for _, attributes in page.tags if attributes.get("class") == "scroll"]
    assert scrolled
    assert all((area["tabindex"], bool(area["aria-label"])) == ("0", True) for area in scrolled)


def unpacked(text: str, dtype: str) -> list[float]:
    return [float(value) for value in np.frombuffer(base64.b64decode(text), dtype=dtype)]


def test_the_embedded_spans_are_those_of_the_timeline() -> None:
    spans = [
        Span(stage=0, action="0F0", microbatch=0, start_ms=5.0, end_ms=6.0),
        Span(stage=0, kind="wait", action="0B0", microbatch=0, start_ms=6.0, end_ms=7.0, cause="warmup"),
        Span(stage=0, action="0B0", microbatch=0, start_ms=7.0, end_ms=9.0),
        Span(stage=0, kind="transfer", action="0B0", microbatch=0, start_ms=9.0, end_ms=9.5),
        Span(stage=1, action="1S2.7", start_ms=9.0, end_ms=9.25),
    ]
    timeline = Timeline.from_spans(spans, source="simulated", origin="</script>", num_stages=2)
    text = page_data([timeline], None)
    assert "<" not in text
    content = json.loads(text)
    (found,) = content["timelines"]
    assert (found["origin"], found["rows"], found["offsets"]) == ("</script>", ["stage 0", "stage 1"], [0, 3, 4])
    assert unpacked(found["start"], "<f8") == [0.0, 1.0, 2.0, 4.0]
    assert unpacked(found["length"], "<f4") == [1.0, 1.0, 2.0, 0.25]
    names = [*content["actions"], "wait"]
    codes = [int(code) for code in unpacked(found["code"], "u1")]
    assert [names[code] for code in codes] == ["forward", "wait", "backward", "step"]
    assert unpacked(found["first"], "<i4") == [0, 0, 0, 2]
    # A wait names what it waited for, a step its global batch.
    assert unpacked(found["second"], "<i4") == [-1, names.index("backward"), -1, 7]
    assert content["causes"][int(unpacked(found["cause"], "u1")[1])] == "warmup"


def test_a_hundred_thousand_spans_take_a_few_megabytes(tmp_path: Path) -> None:
    count = 100_000
    frame = pd.DataFrame(
        {
            "replica": 0,
            "stage": np.arange(count) % 8,
            "kind": "compute",
            "action": [f"{index % 8}F{index // 8}" for index in range(count)],
            "microbatch": np.arange(count) // 8,
            "start_ms": np.arange(count) // 8 * 2.0,
            "end_ms": np.arange(count) // 8 * 2.0 + 1.0,
            "bytes": 0,
            "cause": "",
        }
    )
    timeline = Timeline.from_frame(frame, source="measured", origin="many", num_stages=8)
    timeline.save(tmp_path / "timeline-measured.json")
    path = write_report(tmp_path, output=tmp_path / "elsewhere" / "page.html")
    assert path == tmp_path / "elsewhere" / "page.html"
    # Between its spans each stage waits, so 200,000 are shown.
    assert path.stat().st_size < 7e6


def test_what_does_not_fit_a_page_is_left_out_and_said(
    make_1f1b: MakeTimeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("embed", "report"):
        monkeypatch.setattr(f"loraplex.analysis.{module}.MOST_SPANS", 6)
    make_1f1b(num_stages=2, num_microbatches=3).save(tmp_path / "timeline-simulated.json")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Only the first 6 spans of the simulated timeline are shown." in text
    content = json.loads(text.split('id="spans">')[1].split("</script>")[0])
    assert content["timelines"][0]["offsets"][-1] == 6


def test_progress_is_told_from_start_to_end(folder: Path) -> None:
    told: list[tuple[str, float]] = []
    write_report(folder, progress=lambda task, share: told.append((task, share)))
    assert (told[0], told[-1]) == (("reading the run", 0.0), ("report written", 1.0))
    assert [share for _, share in told] == sorted(share for _, share in told)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("timeline-simulated.json", "{}", TraceError, "timeline-simulated.json"),
        ("plan.json", "{}", PlanError, "plan.json"),
        ("metrics-maths.jsonl", '{"step": 0, "loss": 1.0}\n{"step": 1}\n', TraceError, "metrics-maths.jsonl, line 2"),
        ("summary.json", "[1]", TraceError, "summary.json: must hold one object"),
        ("summary.json", "{", TraceError, "summary.json: is no JSON"),
        ("metrics-maths.jsonl", "oops\n", TraceError, "metrics-maths.jsonl, line 1: is no JSON"),
    ],
)
def test_a_bad_file_is_named(folder: Path, name: str, content: str, error: type[Exception], message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(error, match=re.escape(message)):
        write_report(folder)


def test_a_folder_without_a_run_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"neither timeline-simulated\.json nor timeline-measured\.json"):
        write_report(tmp_path)
    with pytest.raises(TraceError, match="is no folder"):
        write_report(tmp_path / "nowhere")


def test_a_picture_inside_a_page_gets_its_own_ids() -> None:
    svg = (
        '<?xml version="1.0"?>\n<svg width="72pt" height="36pt"><metadata>x</metadata><g id="a"/><use xlink:href="#a"/>'
    )
    svg += '<path clip-path="url(#a)"/></svg>'
    assert inline_svg(svg, prefix="p1-", title="A & B") == (
        '<svg style="min-width: 72px; max-width: 115px" role="img" aria-label="A &amp; B"><g id="p1-a"/>'
        '<use xlink:href="#p1-a"/><path clip-path="url(#p1-a)"/></svg>'
    )
