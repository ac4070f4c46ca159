"""The table in docs/error_handling.md against the tests that there are."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import table
from rows import KEPT_BY, ROWS


def test_the_table_has_every_row_and_exactly_the_tests_that_exist() -> None:
    """A row without a test is a claim, and a test nobody finds a row without evidence."""
    existing = table.existing_tests()
    missing = [row.number for row in ROWS if row.number not in existing]
    if missing:  # until every row has its tests
        pytest.xfail(f"rows without a test: {missing}")
    written = table.tests_in(table.PAGE.read_text("utf-8"))
    assert list(written) == [row.number for row in ROWS]
    assert written == existing, "run `make faults-table`"
    assert [row.number for row in ROWS if row.number not in KEPT_BY] == []


def test_rows_are_57_and_in_order() -> None:
    """Everybody speaks of them by number."""
    assert [row.number for row in ROWS] == list(range(1, 58))


def test_the_guards_of_the_rows_are_where_the_table_says() -> None:
    """Whoever takes the table's word for it looks in a module that is not there."""
    assert [name for name in KEPT_BY.values() if find_spec(f"jmcache.{name}") is None] == []
