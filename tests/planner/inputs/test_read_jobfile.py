"""From jobs.yaml to checked fields: defaults, sweeps, and complaints that name line and field."""

from pathlib import Path

import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.jobfile import AdapterEntry, DatasetEntry, JobFile, PipelineEntry
from loraplex.planner.inputs.read_jobfile import ReadJobFile, read_jobfile


def read(tmp_path: Path, text: str) -> ReadJobFile:
    path = tmp_path / "jobs.yaml"
    path.write_text(text, encoding="utf-8")
    return read_jobfile(path)


def complaints(tmp_path: Path, text: str) -> list[str]:
    """What is wrong, one line each, without the folder."""
    with pytest.raises(JobError) as error:
        read(tmp_path, text)
    return [line.removeprefix(f"{tmp_path}/") for line in str(error.value).split("\n")]


SMALLEST = """\
base_model: tiny
adapters:
  - name: a
    datasets: [{path: a.jsonl}]
"""


def test_the_smallest_file_is_filled_with_defaults(tmp_path: Path) -> None:
    read_file = read(tmp_path, SMALLEST)
    adapter = AdapterEntry(name="a", datasets=(DatasetEntry(path="a.jsonl"),))
    assert read_file.fields == JobFile(base_model="tiny", adapters=(adapter,))
    assert read_file.adapters == (adapter,)
    assert (adapter.r, adapter.lora_alpha, adapter.target_modules, adapter.seed) == (16, 32.0, ("all-linear",), None)
    assert (read_file.fields.sequence_len, read_file.fields.pipeline) == (2048, PipelineEntry(stages=1, replicas=1))


def test_every_field_is_read(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """\
base_model: models/base
sequence_len: 4096
long_samples: truncate
chat_template: chat.jinja
microbatch_tokens: 8192
output_dir: out
seed: 3
pipeline: {stages: 4, replicas: 2, schedule: 1f1b-wide}
adapters:
  - name: all.of_it-1
    r: 8
    lora_alpha: 16
    lora_dropout: 0.1
    target_modules: [q_proj, v_proj]
    use_rslora: true
    datasets:
      - {path: a.csv, type: text}
      - {path: b.parquet, type: messages}
    global_batch_size: 4
    max_steps: 100
    learning_rate: 1e-4
    lr_scheduler: cosine
    warmup_ratio: 0.1
    weight_decay: 0.01
    max_grad_norm: null
    adam_beta1: 0.8
    adam_beta2: 0.95
    adam_epsilon: 1e-7
    seed: 5
    val_split: 0.2
    weight: 2
    deadline_ms: 1000
""",
    )
    adapter = AdapterEntry(
        name="all.of_it-1",
        r=8,
        lora_alpha=16.0,
        lora_dropout=0.1,
        target_modules=("q_proj", "v_proj"),
        use_rslora=True,
        datasets=(DatasetEntry(path="a.csv", type="text"), DatasetEntry(path="b.parquet", type="messages")),
        global_batch_size=4,
        max_steps=100,
        learning_rate=1e-4,
        lr_scheduler="cosine",
        warmup_ratio=0.1,
        weight_decay=0.01,
        max_grad_norm=None,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-7,
        seed=5,
        val_split=0.2,
        weight=2.0,
        deadline_ms=1000.0,
    )
    assert found.fields == JobFile(
        base_model="models/base",
        sequence_len=4096,
        long_samples="truncate",
        chat_template="chat.jinja",
        microbatch_tokens=8192,
        output_dir="out",
        seed=3,
        pipeline=PipelineEntry(stages=4, replicas=2, schedule="1f1b-wide"),
        adapters=(adapter,),
    )


def test_defaults_hold_where_an_adapter_is_silent(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """\
base_model: tiny
defaults: {r: 4, max_steps: 9, learning_rate: 1e-3, datasets: [{path: shared.json}]}
adapters:
  - {name: silent}
  - {name: own, r: 2, num_epochs: 3, datasets: [{path: own.json}]}
""",
    )
    assert found.adapters == (
        AdapterEntry(name="silent", r=4, max_steps=9, learning_rate=1e-3, datasets=(DatasetEntry(path="shared.json"),)),
        AdapterEntry(name="own", r=2, num_epochs=3, learning_rate=1e-3, datasets=(DatasetEntry(path="own.json"),)),
    )


def test_a_grid_becomes_adapters_that_remember_their_entry(tmp_path: Path) -> None:
    found = read(tmp_path, SMALLEST + "    grid: {r: [2, 4]}\n  - name: b\n    datasets: [{path: b.jsonl}]\n")
    assert [adapter.name for adapter in found.adapters] == ["a-r2", "a-r4", "b"]
    assert found.positions == (0, 0, 1)
    assert found.adapter_place(2, "datasets") == f"{tmp_path}/jobs.yaml:7: adapters[1].datasets"


def test_one_target_needs_no_list(tmp_path: Path) -> None:
    assert read(tmp_path, SMALLEST + "    target_modules: q_proj\n").adapters[0].target_modules == ("q_proj",)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("r: 0", "adapters[0].r: input should be greater than or equal to 1, not 0"),
        ("r: 257", "adapters[0].r: input should be less than or equal to 256, not 257"),
        ("r: true", "adapters[0].r: input should be a valid integer, not True"),
        ("r: '8'", "adapters[0].r: input should be a valid integer, not '8'"),
        ("r: 8.0", "adapters[0].r: input should be a valid integer, not 8.0"),
        ("lora_alpha: 0", "adapters[0].lora_alpha: input should be greater than 0, not 0"),
        ("lora_dropout: 1", "adapters[0].lora_dropout: input should be less than 1, not 1"),
        ("learning_rate: -1e-4", "adapters[0].learning_rate: input should be greater than 0, not -0.0001"),
        ("learning_rate: .inf", "adapters[0].learning_rate: input should be a finite number, not inf"),
        (
            "lr_scheduler: step",
            "adapters[0].lr_scheduler: input should be 'constant', 'linear' or 'cosine', not 'step'",
        ),
        ("global_batch_size: 0", "adapters[0].global_batch_size: input should be greater than or equal to 1, not 0"),
        ("val_split: 1.0", "adapters[0].val_split: input should be less than 1, not 1.0"),
        ("max_grad_norm: 0", "adapters[0].max_grad_norm: input should be greater than 0, not 0"),
        ("target_modules: []", "adapters[0].target_modules: is empty; give at least one entry"),
        ("target_modules: 3", "adapters[0].target_modules: must be a list, not 3"),
        ("grid: 3", "adapters[0].grid: must hold fields of its own, not 3"),
        ("grid: {r: []}", "adapters[0].grid: r: [] must hold at least one value, each once"),
        ("grid: {r: [2, 2]}", "adapters[0].grid: r: [2, 2] must hold at least one value, each once"),
        ("grid: {r: [2, 0]}", "adapters[0].grid.r[1]: input should be greater than or equal to 1, not 0"),
        ("grid: {name: [x]}", "adapters[0].grid.name: no such field; the fields here are global_batch_size, "),
        ("learning_rte: 1", "adapters[0].learning_rte: no such field; did you mean learning_rate?"),
        ("lora-alpha: 1", "adapters[0].lora-alpha: no such field; did you mean lora_alpha?"),
        ("lora_rank: 1", "adapters[0].lora_rank: no such field; it is called r here"),
        ("num_train_epochs: 1", "adapters[0].num_train_epochs: no such field; it is called num_epochs here"),
        ("micro_batch_size: 1", "adapters[0].micro_batch_size: no such field; give global_batch_size, the samples of "),
        ("optimizer: adamw", "adapters[0].optimizer: no such field; it is always AdamW; remove it"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path: Path, line: str, complaint: str) -> None:
    found = complaints(tmp_path, f"{SMALLEST}    {line}\n")
    assert len(found) == 1
    assert found[0].startswith(f"jobs.yaml:5: {complaint}")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("base_modell: x", "base_modell: no such field; did you mean base_model?"),
        ("cutoff_len: 5", "cutoff_len: no such field; it is called sequence_len here"),
        (
            "learning_rate: 1e-4",
            "learning_rate: no such field; it belongs to an adapter: write it under adapters, or under defaults for "
            "all of them",
        ),
        ("pipeline: {stage: 2}", "pipeline.stage: no such field; did you mean stages?"),
        ("pipeline: 2", "pipeline: must hold fields of its own, not 2"),
        ("defaults: []", "defaults: must hold fields of its own"),
        ("defaults: {name: x}", "defaults.name: each adapter needs a name of its own; move it there"),
        ("defaults: {r: 0}", "defaults.r: input should be greater than or equal to 1, not 0"),
        ("long_samples: drop", "long_samples: input should be 'error', 'truncate' or 'skip', not 'drop'"),
    ],
)
def test_a_wrong_field_of_the_whole_file_too(tmp_path: Path, line: str, complaint: str) -> None:
    assert complaints(tmp_path, f"{SMALLEST}{line}\n") == [f"jobs.yaml:5: {complaint}"]


@pytest.mark.parametrize(("bare", "read"), [("yes", "True"), ("12", "12"), ("1e5", "100000.0")])
def test_a_bare_word_that_yaml_takes_for_something_else_wants_quotes(tmp_path: Path, bare: str, read: str) -> None:
    found = complaints(tmp_path, SMALLEST.replace("name: a", f"name: {bare}"))
    assert found == [f"jobs.yaml:3: adapters[0].name: must be text, not {read}; put it into quotes"]


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".hidden", "-flag", "", "a b", "ä", "x" * 101, "a\n"])
def test_names_that_are_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace("\n", "\\n")
    found = complaints(tmp_path, SMALLEST.replace("name: a", f'name: "{quoted}"'))
    assert [line.partition(": a name becomes a folder")[0] for line in found] == ["jobs.yaml:3: adapters[0].name"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("a", "another adapter has that name"),
        ("A", "'a' would share its folder where upper and lower case are alike"),
    ],
)
def test_names_differ_in_more_than_case(tmp_path: Path, other: str, why: str) -> None:
    found = complaints(tmp_path, f"{SMALLEST}  - name: {other}\n    datasets: [{{path: a.jsonl}}]\n")
    assert found == [f"jobs.yaml:5: adapters[1].name: '{other}': {why}; adapter names must differ, choose another"]


def test_a_name_made_by_a_grid_may_not_meet_another(tmp_path: Path) -> None:
    text = SMALLEST + "    grid: {r: [2]}\n  - name: a-r2\n    datasets: [{path: a.jsonl}]\n"
    assert complaints(tmp_path, text)[0].startswith("jobs.yaml:6: adapters[1].name: 'a-r2': another adapter has")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            SMALLEST + "    r: 8\n    grid: {r: [2, 4]}\n",
            "jobs.yaml:5: adapters[0].r: adapter 'a' gives r as 8 and again in its grid; ",
        ),
        (
            SMALLEST + "    max_grad_norm: null\ndefaults: {grid: {max_grad_norm: [1, null]}}\n",
            "jobs.yaml:5: adapters[0].max_grad_norm: adapter 'a' gives max_grad_norm as None and again in the grid of "
            "defaults; ",
        ),
        (
            SMALLEST + "defaults: {seed: 3, grid: {seed: [1, 2]}}\n",
            "jobs.yaml:5: defaults.seed: 3 is given, and so is defaults.grid.seed; ",
        ),
    ],
)
def test_a_field_stands_in_an_adapter_or_in_its_grid(tmp_path: Path, text: str, complaint: str) -> None:
    assert complaints(tmp_path, text) == [f"{complaint}keep one: a list in grid makes an adapter of each value"]


def test_a_default_gives_way_to_a_grid(tmp_path: Path) -> None:
    found = read(tmp_path, SMALLEST + "    grid: {r: [2, 4]}\ndefaults: {r: 8}\n")
    assert [adapter.r for adapter in found.adapters] == [2, 4]


@pytest.mark.parametrize("extra", ["", "    grid: {max_steps: [1, 2]}\n"])
def test_epochs_and_steps_exclude_each_other(tmp_path: Path, extra: str) -> None:
    steps = extra or "    max_steps: 3\n"
    assert complaints(tmp_path, f"{SMALLEST}    num_epochs: 1\n{steps}") == [
        "jobs.yaml:3: adapters[0]: num_epochs and max_steps are both given and each decides the length; keep one"
    ]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("eval_steps: 2", "eval_steps is given but val_split keeps no samples to evaluate on; give both"),
        (
            "early_stopping_patience: 2",
            "early_stopping_patience is given but nothing is evaluated during training; give eval_steps too",
        ),
        (
            "load_best_model_at_end: true",
            "load_best_model_at_end is given but nothing is evaluated during training; give eval_steps too",
        ),
    ],
)
def test_what_follows_from_evaluations_needs_some(tmp_path: Path, lines: str, complaint: str) -> None:
    assert complaints(tmp_path, f"{SMALLEST}    {lines}\n") == [f"jobs.yaml:3: adapters[0]: {complaint}"]


def test_all_complaints_come_at_once_and_a_default_is_blamed_once(tmp_path: Path) -> None:
    text = """\
base_model: 7
defaults: {lora_alpha: -1}
adapters:
  - {name: a, datasets: [{path: a.json}], r: 0}
  - {name: b, datasets: [{type: tex}]}
  - 3
"""
    assert complaints(tmp_path, text) == [
        "jobs.yaml:1: base_model: must be text, not 7; put it into quotes",
        "jobs.yaml:4: adapters[0].r: input should be greater than or equal to 1, not 0",
        "jobs.yaml:2: defaults.lora_alpha: input should be greater than 0, not -1",
        "jobs.yaml:5: adapters[1].datasets[0].path: is missing; give it, `loraplex init` writes an example",
        "jobs.yaml:5: adapters[1].datasets[0].type: input should be 'auto', 'prompt_completion', 'messages', 'alpaca', "
        "'text' or 'lengths', not 'tex'",
        "jobs.yaml:6: adapters[2]: must hold fields of its own, not 3",
    ]


def test_a_flood_of_complaints_is_cut(tmp_path: Path) -> None:
    text = SMALLEST + "".join(f"    wrong{number}: 1\n" for number in range(20))
    found = complaints(tmp_path, text)
    assert len(found) == 9
    assert found[-1] == "and 12 more"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- 1\n", "jobs.yaml: holds a list, not fields such as base_model and adapters"),
        ("base_model: tiny\nadapters: []\n", "jobs.yaml:2: adapters: is empty; give at least one entry"),
        ("base_model: tiny\nadapters: {a: 1}\n", "jobs.yaml:2: adapters: must be a list"),
        ("base_model: tiny\n", "jobs.yaml:1: adapters: is missing; give it, `loraplex init` writes an example"),
    ],
)
def test_a_file_of_another_shape(tmp_path: Path, text: str, complaint: str) -> None:
    assert complaints(tmp_path, text) == [complaint]


def test_yaml_that_refers_to_itself_ends_in_a_complaint(tmp_path: Path) -> None:
    assert complaints(tmp_path, "base_model: tiny\nadapters: &a [*a]\n")[0].startswith("jobs.yaml:2: adapters[0]")
    bomb = "x0: &x0 [y, y]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40))
    assert complaints(tmp_path, bomb + SMALLEST.replace("name: a", "name: *x39"))[0].startswith("jobs.yaml:43: ")
