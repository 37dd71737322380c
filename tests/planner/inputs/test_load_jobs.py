"""load_jobs: from jobs.yaml and texts to Jobs, tokens and a fingerprint."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.base_model import find_base_model
from loraplex.planner.inputs.job_template import DEMO_JOBS
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.inputs.loaded_jobs import DataCounts, JobSettings, LoadedJobs
from loraplex.planner.jobs import Job, LoraSettings, OptimizerSettings, Sample
from loraplex.traces.errors import InputError

EOS = 258
TWO_ADAPTERS = """\
base_model: tiny
sequence_len: 16
microbatch_tokens: 32
output_dir: out
seed: 3
pipeline: {stages: 2, replicas: 1, schedule: 1f1b}
defaults: {global_batch_size: 2}
adapters:
  - name: first
    r: 4
    lora_alpha: 8
    lora_dropout: 0.1
    use_rslora: true
    target_modules: [v_proj, q_proj]
    learning_rate: 1e-3
    lr_scheduler: cosine
    warmup_ratio: 0.1
    weight_decay: 0.2
    max_grad_norm: null
    adam_beta1: 0.8
    adam_beta2: 0.9
    adam_epsilon: 1e-6
    weight: 2
    deadline_ms: 50
    num_epochs: 2
    datasets: [{path: a.jsonl}]
  - name: second
    seed: 4
    max_steps: 1
    val_split: 0.4
    datasets: [{path: a.jsonl}]
"""
COMPLETIONS = ("a", "bb", "ccc")


def write(folder: Path, jobs: str = TWO_ADAPTERS, completions: tuple[str, ...] = COMPLETIONS) -> Path:
    folder.mkdir(exist_ok=True)
    records = [json.dumps({"prompt": "p", "completion": completion}) for completion in completions]
    (folder / "a.jsonl").write_text("\n".join(records), encoding="utf-8")
    (folder / "jobs.yaml").write_text(jobs, encoding="utf-8")
    return folder / "jobs.yaml"


def texts(loaded: LoadedJobs) -> list[list[list[str]]]:
    """The completions that each adapter trains on, by global batch."""
    return [
        [
            [
                bytes(token for token in loaded.tokens(sample)[1].tolist() if 0 <= token < 256).decode()
                for sample in batch
            ]
            for batch in job.global_batches
        ]
        for job in loaded.jobs
    ]


def sample(global_batch: int, index: int, text: str, *, adapter: int = 0) -> Sample:
    """A sample of a one-token prompt, this completion, and <eos>."""
    return Sample(
        adapter=adapter,
        global_batch=global_batch,
        index=index,
        num_tokens=len(text) + 2,
        num_target_tokens=len(text) + 1,
    )


def test_jobs_hold_what_the_file_says(tmp_path: Path) -> None:
    loaded = load_jobs(write(tmp_path))
    (a, b), (c,), (d, e), (f,) = texts(loaded)[0]
    assert {a, b, c} == {d, e, f} == set(COMPLETIONS)
    assert loaded.jobs == (
        Job(
            name="first",
            global_batches=(
                (sample(0, 0, a), sample(0, 1, b)),
                (sample(1, 2, c),),
                (sample(2, 3, d), sample(2, 4, e)),
                (sample(3, 5, f),),
            ),
            lora=LoraSettings(
                r=4, lora_alpha=8.0, lora_dropout=0.1, target_modules=("q_proj", "v_proj"), use_rslora=True
            ),
            optimizer=OptimizerSettings(
                learning_rate=1e-3,
                lr_scheduler="cosine",
                warmup_ratio=0.1,
                weight_decay=0.2,
                max_grad_norm=None,
                betas=(0.8, 0.9),
                eps=1e-6,
            ),
            seed=3,
            weight=2.0,
            deadline_ms=50.0,
        ),
        Job(
            name="second",
            global_batches=(
                tuple(sample(0, index, text, adapter=1) for index, text in enumerate(texts(loaded)[1][0])),
            ),
            lora=LoraSettings(
                target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
            ),
            seed=4,
        ),
    )


def test_settings_are_complete_and_paths_lie_beside_the_job_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load_jobs(path).settings == JobSettings(
        job_file=path,
        base_model=find_base_model("tiny", relative_to=tmp_path),
        sequence_len=16,
        num_stages=2,
        num_replicas=1,
        schedule="1f1b",
        microbatch_tokens=32,
        recompute="auto",
        output_dir=tmp_path / "out",
        seed=3,
        report_to=(),
        on_nonfinite="quarantine",
    )
    assert (
        load_jobs(write(tmp_path, TWO_ADAPTERS.replace("microbatch_tokens: 32\n", ""))).settings.microbatch_tokens == 16
    )


def test_tokens_are_found_through_samples(tmp_path: Path) -> None:
    loaded = load_jobs(write(tmp_path))
    for job in loaded.jobs:
        for batch in job.global_batches:
            for entry in batch:
                token_ids, labels = loaded.tokens(entry)
                assert (token_ids.dtype, labels.dtype) == (np.dtype(np.int64), np.dtype(np.int64))
                assert len(token_ids) == len(labels) == entry.num_tokens
                assert int((labels[1:] != -100).sum()) == entry.num_target_tokens
                assert token_ids[0] == ord("p")
                assert token_ids[-1] == EOS
                line = COMPLETIONS.index(bytes(token_ids[1:-1].tolist()).decode()) + 1
                assert loaded.place(entry) == f"{tmp_path}/a.jsonl:{line}"


def test_validation_samples_are_kept_apart(tmp_path: Path) -> None:
    loaded = load_jobs(write(tmp_path))
    assert loaded.validation(0) == ()
    ((token_ids, labels),) = loaded.validation(1)
    kept = bytes(token_ids[1:-1].tolist()).decode()
    assert labels.tolist() == [-100, *kept.encode(), EOS]
    assert sorted([kept, *texts(loaded)[1][0]]) == sorted(COMPLETIONS)
    assert loaded.counts == (
        DataCounts(num_read=3, num_truncated=0, num_skipped=0, num_validation=0),
        DataCounts(num_read=3, num_truncated=0, num_skipped=0, num_validation=1),
    )


def test_adapters_of_the_same_files_share_their_tokens(tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    loaded = load_jobs(write(tmp_path), progress=lambda label, share: heard.append((label, share)))
    assert loaded.tables[0] is loaded.tables[1]
    assert heard == [("tokenising a.jsonl", 1.0)]


def test_the_order_of_an_adapter_does_not_depend_on_the_others(tmp_path: Path) -> None:
    alone = (
        TWO_ADAPTERS[: TWO_ADAPTERS.index("  - name: first")] + TWO_ADAPTERS[TWO_ADAPTERS.index("  - name: second") :]
    )
    assert texts(load_jobs(write(tmp_path, alone)))[0] == texts(load_jobs(write(tmp_path)))[1]


def test_the_fingerprint_knows_tokens_masks_and_order_and_nothing_else(tmp_path: Path) -> None:
    original = load_jobs(write(tmp_path)).fingerprint
    assert len(original) == 64

    def changed(jobs: str = TWO_ADAPTERS, completions: tuple[str, ...] = COMPLETIONS, folder: str = "x") -> str:
        return load_jobs(write(tmp_path / folder, jobs, completions)).fingerprint

    same = {
        "another folder": changed(),
        "another learning rate": changed(TWO_ADAPTERS.replace("1e-3", "2e-3")),
        "another name": changed(TWO_ADAPTERS.replace("name: first", "name: other")),
        "another rank": changed(TWO_ADAPTERS.replace("r: 4", "r: 5")),
    }
    different = {
        "another text": changed(completions=("a", "bb", "ccd")),
        "another order of the file": changed(completions=("bb", "a", "ccc")),
        "another seed": changed(TWO_ADAPTERS.replace("seed: 3", "seed: 5")),
        "fewer epochs": changed(TWO_ADAPTERS.replace("num_epochs: 2", "num_epochs: 1")),
        "another validation split": changed(TWO_ADAPTERS.replace("val_split: 0.4", "val_split: 0.7")),
    }
    assert {name for name, fingerprint in same.items() if fingerprint != original} == set()
    assert {name for name, fingerprint in different.items() if fingerprint == original} == set()


def test_the_fingerprint_knows_the_mask(tmp_path: Path) -> None:
    # The same tokens, once all learned, once only the end: plain text against prompt and completion.
    jobs = "base_model: tiny\nadapters: [{name: a, datasets: [{path: b.jsonl}]}]\n"
    path = write(tmp_path, jobs)
    (tmp_path / "b.jsonl").write_text('{"text": "pq"}', encoding="utf-8")
    plain = load_jobs(path)
    (tmp_path / "b.jsonl").write_text('{"prompt": "p", "completion": "q"}', encoding="utf-8")
    masked = load_jobs(path)
    assert plain.tables[0].token_ids.tolist() == masked.tables[0].token_ids.tolist()
    assert plain.fingerprint != masked.fingerprint


def test_the_fingerprint_knows_the_validation_samples(tmp_path: Path) -> None:
    jobs = "base_model: tiny\nadapters: [{name: a, val_split: 0.4, datasets: [{path: a.jsonl}]}]\n"
    original = load_jobs(write(tmp_path, jobs))
    ((token_ids, _),) = original.validation(0)
    kept = bytes(token_ids[1:-1].tolist()).decode()
    changed = load_jobs(write(tmp_path, jobs, tuple("z" if text == kept else text for text in COMPLETIONS)))
    assert texts(changed) == texts(original)
    assert changed.fingerprint != original.fingerprint


def test_the_demo_loads_from_anywhere(tmp_path: Path) -> None:
    shutil.copy(DEMO_JOBS, tmp_path / "jobs.yaml")
    loaded = load_jobs(tmp_path / "jobs.yaml")
    assert [(job.name, job.num_samples(), len(job.global_batches)) for job in loaded.jobs] == [
        ("arithmetic", 960, 60),
        ("conversions", 900, 114),
        ("words", 786, 66),
    ]
    assert loaded.fingerprint == load_jobs(DEMO_JOBS).fingerprint


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("stages: 2", "stages: 5", "jobs.yaml:6: pipeline.stages: 5 stages exceed the 4 layers of tiny"),
        (
            "schedule: 1f1b",
            "schedule: zigzag",
            "jobs.yaml:6: pipeline.schedule: 'zigzag' is unknown; choose one of 1f1b",
        ),
        ("sequence_len: 16", "sequence_len: 9999", "jobs.yaml:3: microbatch_tokens: 32 cannot hold a sample of"),
        (
            "sequence_len: 16\nmicrobatch_tokens: 32\n",
            "sequence_len: 9999\n",
            "jobs.yaml:2: sequence_len: 9999 exceeds the 4096 positions of tiny",
        ),
        ("base_model: tiny", "base_model: none", "jobs.yaml:1: base_model: 'none' is no folder below"),
        ("[v_proj, q_proj]", "[qq]", "jobs.yaml:14: adapters[0].target_modules: qq matches no linear of tiny"),
        (
            "datasets: [{path: a.jsonl}]\n  -",
            "datasets: [{path: none.jsonl}]\n  -",
            "jobs.yaml:26: adapters[0].datasets[0].path: there is no file",
        ),
        ("val_split: 0.4", "val_split: 0.9", "jobs.yaml:30: adapters[1].val_split: 0.9 keeps all 3 samples"),
        (
            "max_steps: 1",
            "max_steps: 100000000000",
            "jobs.yaml:29: adapters[1].max_steps: 200000000000 samples to train",
        ),
        ("num_epochs: 2", "num_epochs: 9999999", "jobs.yaml:25: adapters[0].num_epochs: 29999997 samples to train on"),
        ("sequence_len: 16", "sequence_len: 4", "a.jsonl:3: 5 tokens, the most of 1 in 3 samples that exceed"),
        ("seed: 3", "chat_template: none.jinja", "jobs.yaml:5: chat_template: "),
    ],
)
def test_bad_settings_name_file_line_and_field(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in TWO_ADAPTERS
    with pytest.raises(JobError) as error:
        load_jobs(write(tmp_path, TWO_ADAPTERS.replace(old, new, 1)))
    assert str(error.value).startswith(f"{tmp_path}/{complaint}")


def test_a_broken_chat_template_is_blamed_itself(tmp_path: Path) -> None:
    path = write(tmp_path, TWO_ADAPTERS.replace("seed: 3", "chat_template: t.jinja", 1))
    (tmp_path / "t.jinja").write_text("{% for m in messages %}\n{{ m.content ", encoding="utf-8")
    with pytest.raises(JobError) as error:
        load_jobs(path)
    assert str(error.value).startswith(f"{tmp_path}/jobs.yaml:5: chat_template: {tmp_path}/t.jinja:2: not readable as")


def test_paths_that_are_no_files_are_told_apart(tmp_path: Path) -> None:
    for given, complaint in (
        ("texts", "texts is a folder; name a file of it"),
        ("demo:wrods.json", "demo:wrods.json is not built in; choose one of demo:arithmetic.csv, demo:"),
    ):
        (tmp_path / "texts").mkdir(exist_ok=True)
        jobs = f"base_model: tiny\nadapters:\n  - name: a\n    datasets: [{{path: '{given}'}}]\n"
        with pytest.raises(JobError) as error:
            load_jobs(write(tmp_path, jobs))
        place, _, reason = str(error.value).partition("datasets[0].path: ")
        assert place.endswith("jobs.yaml:4: adapters[0].")
        assert reason.removeprefix(f"{tmp_path}/").startswith(complaint)


def test_a_fault_in_defaults_is_placed_there(tmp_path: Path) -> None:
    jobs = TWO_ADAPTERS.replace("defaults: {", "defaults: {target_modules: [qq], ")
    with pytest.raises(JobError, match=r"jobs\.yaml:7: defaults\.target_modules: qq matches no linear"):
        load_jobs(write(tmp_path, jobs))


def test_a_chat_template_of_ones_own(tmp_path: Path) -> None:
    jobs = "base_model: tiny\nchat_template: chat.jinja\nadapters: [{name: a, datasets: [{path: b.jsonl}]}]\n"
    path = write(tmp_path, jobs)
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    (tmp_path / "chat.jinja").write_text(
        "{% for message in messages %}{{ '*' if message.role == 'user' else '>' }}{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}",
        encoding="utf-8",
    )
    loaded = load_jobs(path)
    token_ids, labels = loaded.tokens(loaded.jobs[0].global_batches[0][0])
    assert bytes(token_ids.tolist()) == b"*x>y"
    assert labels.tolist() == [-100, -100, -100, ord("y")]


LENGTHS = """\
base_model: tiny
sequence_len: 100
adapters: [{name: a, global_batch_size: 2, datasets: [{path: l.csv, type: lengths}]}]
"""


def write_lengths(folder: Path, *lengths: int, jobs: str = LENGTHS) -> Path:
    path = write(folder, jobs)
    (folder / "l.csv").write_text("\n".join(["num_tokens", *map(str, lengths)]), encoding="utf-8")
    return path


def test_lengths_alone_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Planning from lengths is for machines without a tokenizer, too.
    monkeypatch.setitem(sys.modules, "transformers", None)
    loaded = load_jobs(write_lengths(tmp_path, 30, 10, 20), allow_lengths=True)
    (batches,) = [[[entry.num_tokens for entry in batch] for batch in job.global_batches] for job in loaded.jobs]
    assert [len(batch) for batch in batches] == [2, 1]
    assert sorted(length for batch in batches for length in batch) == [10, 20, 30]
    entries = [entry for batch in loaded.jobs[0].global_batches for entry in batch]
    assert [entry.num_target_tokens for entry in entries] == [entry.num_tokens for entry in entries]
    assert loaded.fingerprint == ""
    assert loaded.place(entries[0]).startswith(f"{tmp_path}/l.csv, record ")
    with pytest.raises(JobError, match=r"l\.csv, record \d: is a length alone, without text"):
        loaded.tokens(entries[0])


def test_lengths_keep_to_the_rules_of_texts(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"l\.csv, record 2: 200 tokens, the most of 1 in 3 samples that exceed"):
        load_jobs(write_lengths(tmp_path, 30, 200, 20), allow_lengths=True)
    cut = load_jobs(write_lengths(tmp_path, 30, 200, 20, jobs=LENGTHS + "long_samples: truncate\n"), allow_lengths=True)
    assert sorted(entry.num_tokens for batch in cut.jobs[0].global_batches for entry in batch) == [20, 30, 100]
    with pytest.raises(InputError, match=r"l\.csv, line 3: num_tokens=0 must be at least 1"):
        load_jobs(write_lengths(tmp_path, 30, 0), allow_lengths=True)


def test_lengths_are_refused_where_texts_are_needed_or_mixed(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"jobs\.yaml:3: adapters\[0\]\.datasets\[0\]\.type: lengths can be planned"):
        load_jobs(write_lengths(tmp_path, 30))
    mixed = LENGTHS.replace("type: lengths}", "type: lengths}, {path: a.jsonl}")
    with pytest.raises(JobError, match=r"l\.csv: lengths and texts cannot be mixed in one adapter"):
        load_jobs(write_lengths(tmp_path, 30, jobs=mixed), allow_lengths=True)


def test_one_adapter_of_lengths_leaves_the_whole_without_fingerprint(tmp_path: Path) -> None:
    both = LENGTHS.replace("[{name", "[{name: b, datasets: [{path: a.jsonl}]}, {name")
    loaded = load_jobs(write_lengths(tmp_path, 30, jobs=both), allow_lengths=True)
    assert (loaded.fingerprint, [job.name for job in loaded.jobs]) == ("", ["b", "a"])
