"""Planning from token lengths alone."""

from pathlib import Path

import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.lengths_jobs import fitted_lengths, jobs_from_lengths
from loraplex.traces.errors import TraceError


def csv_of(folder: Path, name: str, lengths: list[int]) -> str:
    (folder / f"{name}.csv").write_text("num_tokens\n" + "\n".join(map(str, lengths)) + "\n", encoding="utf-8")
    return f"{name}={folder / name}.csv"


def test_one_size_for_all_and_the_whole_file(tmp_path: Path) -> None:
    sources = [csv_of(tmp_path, "poems", [5, 6, 7]), csv_of(tmp_path, "mails", [8])]
    jobs = jobs_from_lengths(sources, global_batch_sizes=[2], num_batches=[], microbatch_tokens=10)
    assert [job.name for job in jobs] == ["poems", "mails"]
    assert [[[sample.num_tokens for sample in batch] for batch in job.global_batches] for job in jobs] == [
        [[5, 6], [7]],
        [[8]],
    ]


def test_sizes_and_counts_per_adapter(tmp_path: Path) -> None:
    sources = [csv_of(tmp_path, "poems", [5, 6, 7]), csv_of(tmp_path, "mails", [8, 9])]
    jobs = jobs_from_lengths(sources, global_batch_sizes=[1, 2], num_batches=[2, 1], microbatch_tokens=10)
    assert [[len(batch) for batch in job.global_batches] for job in jobs] == [[1, 1], [2]]


def test_longer_samples_are_cut_left_out_or_refused() -> None:
    assert fitted_lengths([5, 12, 10], limit=10, overlong="truncate", where="poems") == (5, 10, 10)
    assert fitted_lengths([5, 12, 10], limit=10, overlong="skip", where="poems") == (5, 10)
    message = r"poems: 1 of 3 samples exceed microbatch_tokens=10, the longest 12 \(sample 1\)"
    with pytest.raises(JobError, match=message):
        fitted_lengths([5, 12, 10], limit=10, overlong="error", where="poems")
    with pytest.raises(JobError, match="no sample of 2 has at most 10 tokens"):
        fitted_lengths([11, 12], limit=10, overlong="skip", where="poems")
    with pytest.raises(JobError, match="overlong='cut' is unknown; choose one of error, truncate, skip"):
        fitted_lengths([5], limit=10, overlong="cut", where="poems")


@pytest.mark.parametrize(
    ("source", "sizes", "counts", "message"),
    [
        ("poems.csv", [2], [], r"--lengths 'poems.csv' must be NAME=FILE.csv"),
        ("=poems.csv", [2], [], "must be NAME=FILE.csv"),
        ("poems=", [2], [], "must be NAME=FILE.csv"),
        ("{poems}", [0], [], "--global-batch-size 0 must be at least 1"),
        ("{poems}", [2], [0], "--num-batches 0 must be at least 1"),
        ("{poems}", [2, 2], [], "--global-batch-size is given 2 times for 1 --lengths"),
        ("a/b=poems.csv", [2], [], "--lengths 'a/b=poems.csv': 'a/b': a name becomes a folder: 1 to 100 letters"),
        ("{poems}", [2], [5], "adapter 'poems': 5 batches of 2 need 10 samples; .* has 3"),
    ],
)
def test_bad_options(tmp_path: Path, source: str, sizes: list[int], counts: list[int], message: str) -> None:
    poems = csv_of(tmp_path, "poems", [5, 6, 7])
    with pytest.raises(JobError, match=message):
        jobs_from_lengths(
            [source.format(poems=poems)], global_batch_sizes=sizes, num_batches=counts, microbatch_tokens=10
        )


def test_a_bad_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "poems.csv").write_text("num_tokens\n5\nNaN\n", encoding="utf-8")
    with pytest.raises(TraceError, match=r"poems.csv, line 3: num_tokens='NaN'"):
        jobs_from_lengths([f"poems={tmp_path}/poems.csv"], global_batch_sizes=[1], num_batches=[], microbatch_tokens=10)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("poems", "another adapter has that name"),
        ("Poems", "'poems' would share its folder where upper and lower case are alike"),
    ],
)
def test_names_differ_as_in_a_job_file(tmp_path: Path, name: str, why: str) -> None:
    poems = csv_of(tmp_path, "poems", [5])
    sources = [poems, f"{name}={tmp_path}/poems.csv"]
    with pytest.raises(JobError, match=f": '{name}': {why}; choose another name"):
        jobs_from_lengths(sources, global_batch_sizes=[2], num_batches=[], microbatch_tokens=10)
