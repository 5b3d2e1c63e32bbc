"""The Markdown page about the contracts, generated from the schemas: ``python -m preceptor.contracts_doc``."""

from __future__ import annotations

import pyarrow as pa

from preceptor.contracts import ACTIONS, CONTRACTS, NUM_GRADES, OVERALL, SPLITS

_HEAD = f"""# Contracts

Generated from `pipeline/preceptor/contracts.py` by `make contracts`; change it there.

Every table that crosses a room is Parquet in one of these schemas. `conform` checks names, types and nulls when a table
is read and before it is written. It never casts, and it drops columns that the contract does not name.

Grades run from 0 to {NUM_GRADES - 1}; `{OVERALL}` is the aggregated dimension. Splits: {", ".join(SPLITS)}.
Actions: {", ".join(ACTIONS)}.
"""


def render() -> str:
    """docs/contracts.md as one string: a section for each contract with a table of its columns."""
    return "\n".join([_HEAD, *(_section(name, schema) for name, schema in CONTRACTS.items())])


def _section(name: str, schema: pa.Schema) -> str:
    header = ["| column | type | null | what |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {name}", "", _about(schema.metadata), "", *header, *map(_row, schema), ""])


def _row(field: pa.Field) -> str:
    null = "yes" if field.nullable else "no"
    return f"| {field.name} | `{_type_name(field.type)}` | {null} | {_about(field.metadata)} |"


def _type_name(kind: pa.DataType) -> str:
    """`kind` in short: item names and nullability inside lists and maps are left out."""
    if pa.types.is_fixed_size_list(kind):
        return f"list<{_type_name(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_list(kind):
        return f"list<{_type_name(kind.value_type)}>"
    if pa.types.is_map(kind):
        return f"map<{_type_name(kind.key_type)}, {_type_name(kind.item_type)}>"
    return str(kind)


def _about(metadata: dict[bytes, bytes]) -> str:
    return metadata[b"about"].decode()


if __name__ == "__main__":
    print(render(), end="")
