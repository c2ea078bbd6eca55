"""Tables and rows say the same, and PostgreSQL could hold them as well."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from sqlalchemy import Boolean, Double, Integer, LargeBinary, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from controller.catalog.schema import METADATA, NUMBER, TABLES, TextTuple
from controller.catalog.sql import upsert
from controller.catalog.store import KEYS

KINDS = list(KEYS)
COLUMN_OF = {
    str: Text,
    int: type(NUMBER),
    bytes: LargeBinary,
    bool: Boolean,
    float: Double,
    tuple[str, ...]: TextTuple,
}


def plain(hint: Any) -> Any:
    """The type beneath a NewType."""
    return getattr(hint, "__supertype__", hint)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_field_of_a_row_has_its_column(kind: type) -> None:
    table = TABLES[kind]
    assert [column.name for column in table.columns] == [field.name for field in fields(kind)]
    hints = get_type_hints(kind)
    for column in table.columns:
        assert type(column.type) is COLUMN_OF[plain(hints[column.name])], column
        assert not column.nullable, column


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_key_of_a_row_is_the_primary_key(kind: type) -> None:
    table = TABLES[kind]
    assert tuple(column.name for column in table.primary_key) == KEYS[kind]
    assert all(column.autoincrement is False for column in table.primary_key)


def test_every_table_can_be_made_in_postgresql_with_64_bit_numbers() -> None:
    dialect = postgresql.dialect()
    for table in METADATA.sorted_tables:
        words = str(CreateTable(table).compile(dialect=dialect))
        numbers = [column for column in table.columns if type(column.type) is type(NUMBER)]
        assert words.count("BIGINT") == len(numbers)
        assert "SERIAL" not in words
        assert not any(type(column.type) is Integer for column in table.columns)
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=dialect))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_rows_are_put_in_alike_in_both_databases(kind: type) -> None:
    words = str(upsert(kind, "postgresql").compile(dialect=postgresql.dialect()))
    assert f"ON CONFLICT ({', '.join(KEYS[kind])}) DO UPDATE SET" in words
    names = [field.name for field in fields(kind) if field.name not in KEYS[kind]]
    assert words.count("excluded.") == len(names)


def test_every_table_and_its_key_are_documented() -> None:
    page = (Path(__file__).parents[4] / "docs" / "catalog.md").read_text()
    for table in METADATA.sorted_tables:
        key = ", ".join(f"`{column.name}`" for column in table.primary_key)
        assert f"| `{table.name}` | {key} |" in page
