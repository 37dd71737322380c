"""What `loraplex data show` shows."""

import json
from pathlib import Path

import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.inputs.loaded_jobs import LoadedJobs
from loraplex.planner.inputs.shown_sample import Piece, ShownSample, samples_as_json, samples_as_text, shown_samples

JOBS = """\
base_model: tiny
adapters:
  - {name: talk, num_epochs: 2, datasets: [{path: talk.jsonl}]}
  - {name: text, datasets: [{path: text.json}]}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedJobs:
    (tmp_path / "jobs.yaml").write_text(JOBS, encoding="utf-8")
    turns = [("user", "Hi"), ("assistant", "Hé"), ("user", "[b]?"), ("assistant", "!")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "talk.jsonl").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "text.json").write_text('[{"text": "all"}]', encoding="utf-8")
    return load_jobs(tmp_path / "jobs.yaml")


def talk(tmp_path: Path, index: int) -> ShownSample:
    return ShownSample(
        adapter="talk",
        place=f"{tmp_path}/talk.jsonl:1",
        global_batch=index,
        index=index,
        num_tokens=17,
        num_target_tokens=6,
        pieces=(
            Piece(text="<bos><|user|>Hi<|assistant|>", learned=False, num_tokens=5),
            Piece(text="Hé<eos>", learned=True, num_tokens=4),
            Piece(text="<|user|>[b]?<|assistant|>", learned=False, num_tokens=6),
            Piece(text="!<eos>", learned=True, num_tokens=2),
        ),
    )


def test_a_sample_of_each_adapter_in_pieces(tmp_path: Path, loaded: LoadedJobs) -> None:
    text = ShownSample(
        adapter="text",
        place=f"{tmp_path}/text.json, record 1",
        global_batch=0,
        index=0,
        num_tokens=4,
        num_target_tokens=3,
        pieces=(Piece(text="all<eos>", learned=True, num_tokens=4),),
    )
    assert shown_samples(loaded) == (talk(tmp_path, 0), text)
    assert shown_samples(loaded, adapter="text") == (text,)


def test_an_adapter_with_fewer_samples_is_left_out(tmp_path: Path, loaded: LoadedJobs) -> None:
    assert shown_samples(loaded, index=1) == (talk(tmp_path, 1),)


def test_what_there_is_not_is_named(tmp_path: Path, loaded: LoadedJobs) -> None:
    with pytest.raises(JobError, match=r"adapter 'x' is not in .*jobs\.yaml; it has talk, text"):
        shown_samples(loaded, adapter="x")
    with pytest.raises(JobError, match="sample 1 does not exist: they count from 0 to 0"):
        shown_samples(loaded, adapter="text", index=1)
    with pytest.raises(JobError, match="sample -1 does not exist"):
        shown_samples(loaded, index=-1)


def test_as_text_the_learned_parts_stand_between_marks(tmp_path: Path, loaded: LoadedJobs) -> None:
    assert samples_as_text(loaded, shown_samples(loaded, adapter="talk")).plain == (
        "talk  2 samples in 2 steps, 34 tokens (1 read, 0 skipped, 0 truncated, 0 kept for validation)\n"
        f"sample 0 of step 0: {tmp_path}/talk.jsonl:1, 17 tokens, 6 of them targets\n"
        "<bos><|user|>Hi<|assistant|>⟦Hé<eos>⟧<|user|>[b]?<|assistant|>⟦!<eos>⟧\n\n"
        f"Between ⟦ and ⟧ is what is learned. Data fingerprint {loaded.fingerprint[:12]}."
    )


def test_as_json_counts_stand_beside_the_samples(tmp_path: Path, loaded: LoadedJobs) -> None:
    found = samples_as_json(loaded, shown_samples(loaded, adapter="text"))
    counts = {"num_read": 1, "num_truncated": 0, "num_skipped": 0, "num_validation": 0}
    assert json.loads(json.dumps(found)) == {
        "job_file": f"{tmp_path}/jobs.yaml",
        "data_fingerprint": loaded.fingerprint,
        "adapters": [
            {"name": "talk", **counts, "num_samples": 2, "num_steps": 2, "num_tokens": 34},
            {"name": "text", **counts, "num_samples": 1, "num_steps": 1, "num_tokens": 4},
        ],
        "samples": [
            {
                "adapter": "text",
                "place": f"{tmp_path}/text.json, record 1",
                "global_batch": 0,
                "index": 0,
                "num_tokens": 4,
                "num_target_tokens": 3,
                "pieces": [{"text": "all<eos>", "learned": True, "num_tokens": 4}],
            }
        ],
    }
