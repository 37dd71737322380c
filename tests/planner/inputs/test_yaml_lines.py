"""Safe YAML with line numbers."""

from pathlib import Path

import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.yaml_lines import YamlText, read_yaml


def read(tmp_path: Path, text: str) -> YamlText:
    path = tmp_path / "jobs.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def test_plain_data_comes_back(tmp_path: Path) -> None:
    found = read(tmp_path, "a: 1\nb: [x, 2.5, true, null]\nc: {d: é}\n")
    assert found.data == {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": "é"}}


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2E5", 2e5), ("-3e+2", -300.0), ("'1e-4'", "1e-4")])
def test_a_number_with_an_exponent_needs_no_dot(tmp_path: Path, text: str, value: object) -> None:
    assert read(tmp_path, f"learning_rate: {text}").data == {"learning_rate": value}


def test_every_entry_knows_its_line(tmp_path: Path) -> None:
    found = read(tmp_path, "# a comment\na: 1\nb:\n  - c: 2\n\n  - d: 3\n    e: [4,\n      5]\n")
    assert found.line(()) == 2
    assert found.line(("a",)) == 2
    assert found.line(("b",)) == 3
    assert found.line(("b", 1)) == 6
    assert found.line(("b", 1, "e")) == 7
    assert found.line(("b", 1, "e", 1)) == 8


def test_what_is_not_there_has_the_line_of_what_is_around_it(tmp_path: Path) -> None:
    found = read(tmp_path, "a: 1\nb:\n  - c: 2\n")
    assert found.line(("b", 0, "missing")) == 3
    assert found.line(("b", 7, "c")) == 2


def test_merged_fields_have_the_line_where_they_are_written(tmp_path: Path) -> None:
    found = read(tmp_path, "base: &base\n  r: 1\n  s: 2\nuser:\n  <<: *base\n  s: 3\n")
    assert found.data["user"] == {"r": 1, "s": 3}
    assert found.line(("user", "r")) == 2
    assert found.line(("user", "s")) == 6


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "jobs.yaml: the file is empty"),
        ("# nothing\n", "jobs.yaml: the file is empty"),
        ("a: 1\nb: [2", "jobs.yaml:2: expected ',' or ']'"),
        ("a: 1\n\tb: 2", "jobs.yaml:2: found character '\\t' that cannot start any token; indent with spaces"),
        ("a: 1\nb: 2\na: 3\n", "jobs.yaml:3: the key 'a' is given twice; keep one"),
        ("a: *nowhere", "jobs.yaml:1: found undefined alias"),
        ("? [a]\n: 1\n", "jobs.yaml:1: found unhashable key"),
        ("a: !!python/object/apply:os.getcwd []", "jobs.yaml:1: could not determine a constructor"),
        ("a: !!python/name:os.system x", "jobs.yaml:1: could not determine a constructor"),
        ("[" * 3000, "jobs.yaml: not readable as YAML"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(JobError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/{complaint}")


def test_unreadable_files_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(JobError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: \xe9t\xe9".encode("latin-1"))
    with pytest.raises(JobError, match=r"latin\.yaml: byte 6 is not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
