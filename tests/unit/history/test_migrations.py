"""The tables that the migrations make, from wherever the program is started."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from emberbox.errors import HistoryError
from emberbox.history.database import MIGRATIONS
from emberbox.history.schema import HEAD, metadata

from .conftest import History


def test_the_newest_migration_is_the_one_that_the_schema_names() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


async def test_migrations_make_the_tables_of_the_schema(tmp_path: Path) -> None:
    history = History(tmp_path)
    await history.open()
    await history.close()
    engine = create_engine(f"sqlite:///{tmp_path}/history.db")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


async def test_what_is_there_stays_at_the_next_open(tmp_path: Path) -> None:
    history = History(tmp_path)
    await history.open()
    ran = await history.run()
    await history.close()
    await history.open()
    assert await history.ids() == [ran]
    assert (await history.store.verify()).intact
    await history.close()


async def test_a_history_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    history = History(tmp_path)
    await history.open()
    await history.close()
    with sqlite3.connect(tmp_path / "history.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(HistoryError, match="version 9999") as error:
        await history.open()
    assert "newer Emberbox" in error.value.remediation


def test_it_works_from_any_directory_and_alembic_is_not_needed_twice(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, pathlib\n"
        "from emberbox.history.store import open_store\n"
        "from emberbox.models import HistoryConfig\n"
        f"store = asyncio.run(open_store(HistoryConfig(), None, pathlib.Path({str(tmp_path / 'a%b c')!r})))\n"
        "print('alembic' in sys.modules)"  # and it ends although nobody closed it
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=environment,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["True", "False"]
