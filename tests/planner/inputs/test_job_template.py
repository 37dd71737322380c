"""What `loraplex init` writes: a commented job file that works as it is."""

from pathlib import Path

import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.job_template import write_job_template
from loraplex.planner.inputs.load_jobs import load_jobs


def test_the_template_loads_and_its_adapters_differ_in_everything(tmp_path: Path) -> None:
    write_job_template(tmp_path / "mine.yaml")
    jobs = load_jobs(tmp_path / "mine.yaml").jobs
    for differing in (
        {job.lora.r for job in jobs},
        {job.lora.scaling() for job in jobs},
        {job.lora.lora_dropout for job in jobs},
        {job.lora.target_modules for job in jobs},
        {job.optimizer.learning_rate for job in jobs},
        {len(job.global_batches[0]) for job in jobs},
    ):
        assert len(differing) >= 2
    assert len(jobs) == 3


def test_the_sweep_in_its_last_comment_works(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    write_job_template(path)
    before, mark, after = path.read_text(encoding="utf-8").partition("#    grid:")
    assert mark
    # As the comment says: the grid stands instead of the adapter's own values.
    entries, word, words = before.partition("  - name: words\n")
    before = entries + word + words.replace("    r: 4\n", "").replace("    learning_rate: 1e-2\n", "")
    path.write_text(before + (mark + after).replace("#    ", "    "), encoding="utf-8")
    names = [job.name for job in load_jobs(path).jobs]
    sweep = ["words-r4-lr0.001", "words-r4-lr0.003", "words-r8-lr0.001", "words-r8-lr0.003"]
    assert names == ["arithmetic", "conversions", *sweep]


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(JobError, match=r"jobs\.yaml: exists already and is never overwritten"):
        write_job_template(path)
    assert path.read_text(encoding="utf-8") == "mine"
    with pytest.raises(JobError, match=r"cannot be written \(.*jobs\.yaml is a file\); name another place"):
        write_job_template(path / "jobs.yaml")


def test_the_folders_it_lies_in_are_made(tmp_path: Path) -> None:
    write_job_template(tmp_path / "new/folder/jobs.yaml")
    assert (tmp_path / "new/folder/jobs.yaml").read_text(encoding="utf-8").startswith("# Jobs of LoRAPlex")
