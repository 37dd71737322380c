"""docs/jobs.md says what the schema says: its tables, its examples and what it claims they turn into."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from loraplex.planner.build_program import schedule_names
from loraplex.planner.inputs.jobfile import AdapterEntry, DatasetEntry, Grid, JobFile, PipelineEntry
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.inputs.shown_sample import shown_samples

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")
NAMES = {"DatasetEntry": "list of datasets", "AdapterEntry": "list of adapters", "Grid": "lists, see below"}


def kind(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(kind(part) for part in schema["anyOf"])
    if "$ref" in schema:
        return NAMES.get(schema["$ref"].rpartition("/")[2], "fields, see below")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return NAMES.get(schema["items"].get("$ref", "").rpartition("/")[2], "name or list of names")
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true`, `false`",
        "null": "`null`",
        "object": "fields of an adapter",
    }[schema["type"]]
    bounds = [
        f"{sign} {schema[name]:,.10g}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        # 2^63 is what a seed is stored in: nobody needs to read it.
        if name in schema and schema[name] < 2**62
    ]
    return " ".join([words, ", ".join(bounds)]).strip()


def default(name: str, model: type[BaseModel]) -> str:
    """A field's default as one would write it in YAML."""
    field = model.model_fields[name]
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, (BaseModel, dict)):
        return "-"
    return f"`{'all-linear' if value == ('all-linear',) else str(value).lower() if isinstance(value, bool) else value}`"


def table(model: type[BaseModel]) -> str:
    """The fields of a model as a Markdown table."""
    rows = [
        f"| `{name}` | {kind(schema)} | {default(name, model)} | {model.model_fields[name].description} |"
        for name, schema in model.model_json_schema()["properties"].items()
    ]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows])


@pytest.mark.parametrize("model", [JobFile, PipelineEntry, AdapterEntry, DatasetEntry])
def test_each_table_is_the_schemas(model: type[BaseModel]) -> None:
    assert table(model) in DOCUMENT


def test_every_field_is_explained() -> None:
    for model in (JobFile, PipelineEntry, AdapterEntry, DatasetEntry, Grid):
        assert [name for name, field in model.model_fields.items() if not (field.description or "").endswith(".")] == []


def test_the_fields_of_a_grid_are_listed() -> None:
    listed = ", ".join(f"`{name}`" for name in Grid.model_fields)
    assert listed in DOCUMENT.replace("\n", " ")


def test_every_schedule_is_listed() -> None:
    assert f"The schedules: {', '.join(f'`{name}`' for name in schedule_names())}." in DOCUMENT.replace("\n", " ")


def examples() -> list[tuple[str, str, str, str]]:
    """(type, file ending, records, what is shown) of each example of a format."""
    pattern = r"### `(\w+)`.*?```(\w+)\n(.*?)```.*?```text\n(.*?)\n```"
    return re.findall(pattern, DOCUMENT.partition("## Datasets")[2], flags=re.DOTALL)


def test_every_format_has_an_example() -> None:
    formats = DatasetEntry.model_json_schema()["properties"]["type"]["enum"]
    assert ["auto", *(name for name, _, _, _ in examples()), "lengths"] == formats


@pytest.mark.parametrize(("name", "ending", "records", "shown"), examples())
def test_each_example_becomes_what_the_document_says(
    tmp_path: Path, name: str, ending: str, records: str, shown: str
) -> None:
    (tmp_path / f"a.{ending}").write_text(records, encoding="utf-8")
    for data_type in ("auto", name):
        (tmp_path / "jobs.yaml").write_text(
            f"base_model: tiny\nadapters: [{{name: a, datasets: [{{path: a.{ending}, type: {data_type}}}]}}]\n",
            encoding="utf-8",
        )
        (sample,) = shown_samples(load_jobs(tmp_path / "jobs.yaml"))
        assert "".join(f"⟦{piece.text}⟧" if piece.learned else piece.text for piece in sample.pieces) == shown


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", DOCUMENT, flags=re.DOTALL))
def test_each_job_file_in_the_document_loads(tmp_path: Path, block: str) -> None:
    (tmp_path / "jobs.yaml").write_text(block, encoding="utf-8")
    assert load_jobs(tmp_path / "jobs.yaml").jobs
