"""The report: one self-contained HTML page about a run, without anything from the network."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from ..traces.counted import counted
from ..traces.files import write_atomically
from ..traces.run_folder import REPORT
from .actions import NAMES
from .compare import Comparison, compare
from .embed import MOST_SPANS, page_data
from .explain import explain_waits
from .metrics import Summary, summarize
from .pictures import Picture, run_pictures
from .report_tables import action_table, adapter_table, cards, legend, misfit, ranking_table, stage_table, system_table
from .run import Run, load_run
from .units import tokens_text

Progress = Callable[[str, float], None]
"""Told (what is being done, share done)."""


def write_report(folder: Path | str, *, output: Path | str | None = None, progress: Progress | None = None) -> Path:
    """Write the report of a run's folder, into the folder itself unless told otherwise, and return where.

    Raises TraceError or PlanError for a folder without a run or with a bad file.
    """
    tell = progress or (lambda task, share: None)
    tell("reading the run", 0.0)
    run = load_run(folder)
    page = render(run, progress=tell)
    target = Path(output) if output is not None else Path(folder) / REPORT
    write_atomically(target, page)
    tell("report written", 1.0)
    return target


def render(run: Run, *, progress: Progress) -> str:
    """The page of a run as text."""
    timelines = tuple(explain_waits(timeline) for timeline in run.timelines())
    # Times alone are simulated, so they say nothing about a measured run's slowdown.
    summaries = tuple(
        summarize(timeline, plan=run.plan, alone_ms=run.alone_ms())
        if timeline.source == "simulated"
        else summarize(timeline, plan=run.plan, last_steps=run.last_steps())
        for timeline in timelines
    )
    comparison = None
    if run.simulated is not None and run.measured is not None:
        comparison = compare(timelines[0], measured=timelines[1], plan=run.plan, last_steps=run.last_steps())
    drawn = []
    pictures = tuple(run_pictures(run, summaries))
    for number, picture in enumerate(pictures):
        progress(f"drawing {picture.title.lower()}", (1 + number) / (2 + len(pictures)))
        drawn.append(_figure(picture, number))
    assets = resources.files(__package__).joinpath("assets")
    return Template(assets.joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"LoRAPlex: {run.name}"),
        about=escape(_about(run)),
        headline=cards(summaries, comparison) + misfit(run.facts),
        legend=legend(run.plan, summaries),
        note=_note(run),
        body="\n".join(_body(run, summaries, comparison, drawn)),
        data=page_data(timelines, run.plan),
        css=assets.joinpath("report.css").read_text(encoding="utf-8"),
        script=assets.joinpath("report.js").read_text(encoding="utf-8"),
    )


def _about(run: Run) -> str:
    how = {"simulated": "with", "measured": "on"}
    origins = "; ".join(f"{timeline.source} {how[timeline.source]} {timeline.origin}" for timeline in run.timelines())
    if run.plan is None:
        return origins
    plan = run.plan
    used = sum(bool(batch.samples) for batch in plan.microbatches)
    parts = [
        f"{counted(len(plan.jobs), 'adapter')}",
        f"{tokens_text(plan.num_tokens())} tokens in {counted(used, 'microbatch')} of at most "
        f"{tokens_text(plan.microbatch_tokens)}",
        f"{counted(plan.num_stages, 'stage')}" + (f" x {plan.num_replicas} replicas" if plan.num_replicas > 1 else ""),
        f"schedule {plan.schedule}",
    ]
    return ", ".join(parts) + ". " + origins[:1].upper() + origins[1:]


def _note(run: Run) -> str:
    crowded = [timeline.source for timeline in run.timelines() if len(timeline.frame) > MOST_SPANS]
    if not crowded:
        return ""
    return f'<p class="help">Only the first {MOST_SPANS:,} spans of the {" and ".join(crowded)} timeline are shown.</p>'


def _figure(picture: Picture, number: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        picture.draw(Path(folder) / "picture")
        text = (Path(folder) / "picture.svg").read_text(encoding="utf-8")
    kind = ' class="wide"' if picture.wide else ""
    return (
        f'<figure{kind}><div class="scroll" tabindex="0" role="region" aria-label="{escape(picture.title)}">'
        f"{inline_svg(text, prefix=f'p{number}-', title=picture.title)}</div>"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def inline_svg(text: str, *, prefix: str, title: str) -> str:
    """An SVG file's text ready to stand inside a page: no prolog, no size of its own, ids that no other picture has."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    head, rest = body.split(">", 1)
    width = re.search(r'\swidth="([\d.]+)pt"', head)
    # Never so small that its texts cannot be read, nor so large that they shout.
    limits = f' style="min-width: {float(width[1]):.0f}px; max-width: {float(width[1]) * 1.6:.0f}px"' if width else ""
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    body = f'{head}{limits} role="img" aria-label="{escape(title)}">{rest}'
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", body)
    return re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', body)


def _body(run: Run, summaries: Sequence[Summary], comparison: Comparison | None, drawn: Sequence[str]) -> Iterator[str]:
    if run.plan is not None:
        yield "<h2>Adapters and waste</h2>"
        yield adapter_table(summaries)
    for ranking in run.rankings:
        yield "<h2>Adapters of the same data</h2>"
        yield f"<p>{escape('; '.join(filter(None, (ranking.title(), ranking.note))).capitalize())}.</p>"
        yield ranking_table(ranking)
    yield "<h2>Stages</h2>"
    for summary in summaries:
        yield stage_table(summary)
    if comparison is not None:
        yield "<h2>Prediction and reality</h2>"
        apart = ", evaluations apart" if comparison.num_evaluations else ""
        order = f"Every stage ran the same actions in the same order, span for span{apart}."
        if not comparison.same_order():
            order = f"The order differs: {comparison.first_difference}."
        notes = (f"{note[:1].upper()}{note[1:]}." for note in comparison.notes())
        yield f"<p>{escape(' '.join((order, *notes)))}</p>"
        yield action_table(comparison)
    if run.facts.get("systems"):
        yield "<h2>Systems on this workload</h2>"
        yield "<p>Same kernels and devices for all; speed-up over the first.</p>"
        yield system_table(run.facts["systems"])
    yield "<h2>Pictures</h2>"
    yield '<div class="pair">' + "\n".join(drawn) + "</div>"
    profile = run.facts.get("profile")
    if run.commands or isinstance(profile, dict):
        yield "<h2>How it was made</h2>"
    if run.commands:
        yield f"<pre>{escape(chr(10).join(run.commands))}</pre>"
    if isinstance(profile, dict):
        source = f"Costs: {profile.get('name')} ({profile.get('origin')}). {profile.get('source')}"
        yield f"<p>{escape(source)}</p>"
    yield _DEFINITIONS


_DEFINITIONS = f"""<h2>What the numbers mean</h2>
<dl>
<dt>makespan</dt><dd>From the first start to the last end of any computation.</dd>
<dt>bubble ratio</dt><dd>1 - sum of busy time / (stages x replicas x makespan). A stage is busy while it computes a
{NAMES["F"]}, {NAMES["B"]} or optimizer {NAMES["S"]}, never inside a receive.</dd>
<dt>steady bubble ratio</dt><dd>The same without each stage's warmup (up to its first backward) and cooldown (from its
last forward on).</dd>
<dt>tokens/s</dt><dd>Real tokens of the plan over the makespan; padding does not count.</dd>
<dt>waiting</dt><dd>warmup and cooldown: the pipeline fills and drains; imbalance: a neighbour was still computing;
dependency: forwards were held back for an optimizer step; transfer: the message was under way; reduce: gradients were
summed over the replicas; evaluate: validation losses were measured.</dd>
</dl>"""
