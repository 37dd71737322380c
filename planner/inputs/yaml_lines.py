"""Safe YAML that remembers where everything stood, so that an error can name its line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import JobError

# YAML 1.1, which PyYAML follows, reads 1e-4 as text for want of a dot; everyone means the number.
_BARE_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
_FROM_INIT = "`loraplex init` writes a jobs.yaml to start from"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class YamlText:
    """A parsed YAML file: its plain data, and the nodes that know their lines."""

    path: Path
    data: Any
    root: yaml.Node

    def line(self, keys: Sequence[str | int]) -> int:
        """The line, counted from 1, of the entry that `keys` lead to, or of the last one on the way that exists."""
        node, line = self.root, self.root.start_mark.line + 1
        for key in keys:
            found = _child(node, key)
            if found is None:
                break
            line, node = found
        return line


def read_yaml(path: Path) -> YamlText:
    """The YAML file at `path`, loaded safely. Raises JobError naming file and line."""
    read = _parsed(path, mend=_FROM_INIT)
    if read is None:
        raise JobError(f"{path}: the file is empty; {_FROM_INIT}")
    return read


def read_plain_yaml(path: Path, *, mend: str) -> Any:
    """What stands in a YAML file that is no job file, by the same rules; None where nothing does.

    `mend` is what to do where it cannot be read. Raises JobError naming file and line.
    """
    read = _parsed(path, mend=mend)
    return None if read is None else read.data


def _parsed(path: Path, *, mend: str) -> YamlText | None:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); {mend}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return None if root is None else YamlText(path=path, data=loader.construct_document(root), root=root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        problem = str(error.problem or error.context)
        raise JobError(f"{place}: {problem}; {_mend(problem)}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise JobError(f"{path}: not readable as YAML ({error}); only plain YAML is read") from error
    finally:
        loader.dispose()


def _mend(problem: str) -> str:
    if "'\\t'" in problem:
        return "indent with spaces, YAML allows no tabs there"
    if problem.endswith("is given twice"):
        return "keep one"
    return "only plain YAML is read"


class _Loader(yaml.SafeLoader):
    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0] and _BARE_EXPONENT.fullmatch(value):
            return "tag:yaml.org,2002:float"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return node


def _child(node: yaml.Node, key: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        # Own keys stand behind merged ones (`<<`) and win.
        for name, value in reversed(node.value):
            if name.value == str(key):
                return name.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark.line + 1, node.value[key]
    return None
