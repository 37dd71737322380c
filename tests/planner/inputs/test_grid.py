"""Sweeps: one adapter for each combination of the grid's values."""

from loraplex.planner.inputs.grid import expand
from loraplex.planner.inputs.jobfile import AdapterEntry, DatasetEntry, Grid

PLAIN = AdapterEntry(name="x", r=3, weight_decay=0.1, datasets=(DatasetEntry(path="x.json"),))


def swept(grid: Grid) -> list[AdapterEntry]:
    return list(expand(PLAIN.model_copy(update={"grid": grid})))


def made(**changes: object) -> AdapterEntry:
    return PLAIN.model_copy(update=changes)


def test_without_a_grid_an_entry_stands_for_itself() -> None:
    assert expand(PLAIN) == (PLAIN,)


def test_every_combination_once_the_last_field_running_fastest() -> None:
    assert swept(Grid(learning_rate=(1e-4, 1e-5), r=(4, 8))) == [
        made(name="x-r4-lr0.0001", r=4, learning_rate=1e-4),
        made(name="x-r4-lr1e-05", r=4, learning_rate=1e-5),
        made(name="x-r8-lr0.0001", r=8, learning_rate=1e-4),
        made(name="x-r8-lr1e-05", r=8, learning_rate=1e-5),
    ]


def test_each_kind_of_value_has_a_readable_name() -> None:
    assert swept(Grid(use_rslora=(True,), lr_scheduler=("cosine",), max_grad_norm=(None,), lora_alpha=(1e20,))) == [
        made(
            name="x-alpha1e20-rslora_true-cosine-clip_none",
            use_rslora=True,
            lr_scheduler="cosine",
            max_grad_norm=None,
            lora_alpha=1e20,
        )
    ]


def test_names_say_which_field_each_value_belongs_to() -> None:
    grid = Grid(
        lora_dropout=(0.1,), global_batch_size=(4,), max_steps=(5,), warmup_ratio=(0.2,), weight_decay=(0.3,), seed=(6,)
    )
    assert [entry.name for entry in swept(grid)] == ["x-dropout0.1-batch4-steps5-warmup0.2-decay0.3-seed6"]
    assert [entry.name for entry in swept(Grid(num_epochs=(2,)))] == ["x-epochs2"]
