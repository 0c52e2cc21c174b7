"""What only a server does: it is away, restarts, refuses passwords, and is written to by several at once."""

from __future__ import annotations

import sys
import threading
import traceback

import pytest
from sqlalchemy import Connection

from aligner_chain.errors import MissingExtraError
from bootstrap.errors import StoreError
from bootstrap.store import CorrectionStore


def message(url: str) -> str:
    """What a user sees when the store does not open; no password in it."""
    with pytest.raises(StoreError) as caught:
        CorrectionStore(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert "a%20secret" not in shown
    assert "a secret" not in shown
    assert "wrong one" not in shown
    return str(caught.value)


def test_a_wrong_password_is_named_and_not_shown(postgres):
    shown = message(postgres.url("postgres", password="wrong one"))
    assert f"postgresql://owner:***@127.0.0.1:{postgres.port}/postgres cannot be used" in shown
    assert f"psql --host=127.0.0.1 --port={postgres.port} --username=owner --dbname=postgres" in shown
    in_query = f"postgresql://owner@127.0.0.1:{postgres.port}/postgres?password=wrong%20one"
    assert "Check the user and the password" in message(in_query)


def test_a_missing_database_is_told_how_to_be_made(postgres):
    assert "createdb --encoding=UTF8" in message(postgres.url("nothing"))


def test_a_server_that_is_away_is_told_from_one_that_refuses(postgres):
    url = postgres.url("postgres").replace(f":{postgres.port}/", ":1/")
    assert "pg_isready --host=127.0.0.1 --port=1" in message(url)


def test_an_encoding_that_cannot_hold_every_text_is_refused(postgres):
    url = postgres.new_database("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    assert "is encoded in LATIN1" in message(url)


def test_a_user_who_may_not_write_is_told_so(postgres):
    url = postgres.new_database()
    CorrectionStore(url).close()
    postgres.execute("ALTER DATABASE " + url.rpartition("/")[2] + " SET default_transaction_read_only = on")
    store = CorrectionStore(url)
    assert store.count() == 0
    with pytest.raises(StoreError, match="may only read"):
        store.delete(ids=["a"])
    store.close()
    guest = postgres.new_database()
    postgres.execute("CREATE ROLE guest LOGIN PASSWORD 'a secret'")
    assert "GRANT CREATE" in message(guest.replace("owner:", "guest:"))


def test_a_restarted_server_is_no_error_and_a_stopped_one_is(postgres, make_correction):
    store = CorrectionStore(postgres.new_database())
    first, second = make_correction("a"), make_correction("b")
    store.append([first])
    postgres.stop()
    try:
        with pytest.raises(StoreError, match="pg_isready"):
            store.append([second])
    finally:
        postgres.start()
    assert store.append([first, second]) == 1
    assert list(store.corrections()) == [first, second]
    store.close()


def test_a_connection_that_is_lost_in_a_transaction_undoes_it(postgres, make_correction):
    store = CorrectionStore(postgres.new_database())

    def lose_it() -> None:
        with store.database.write() as connection:
            lose(connection)

    def lose(connection: Connection) -> None:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        connection.exec_driver_sql("INSERT INTO tombstones VALUES ('correction', 'a', 1)")
        postgres.execute(f"SELECT pg_terminate_backend({pid})")
        connection.exec_driver_sql("SELECT 1")

    with pytest.raises(StoreError, match="connection was lost"):
        lose_it()
    assert store.deleted(["a"]) == set()
    assert store.append([make_correction()]) == 1
    store.close()


def test_a_deletion_waits_for_appends_and_they_for_it(postgres, make_correction):
    store = CorrectionStore(postgres.new_database())
    gone = make_correction("a", subject="ann")
    deleting = threading.Thread(target=store.delete, kwargs={"subject": "ann"})
    with store.database.write(shared=True):
        assert store.append([gone]) == 1  # another shared writer does not wait
        deleting.start()
        deleting.join(0.2)
        assert store.count() == 1
    deleting.join()
    assert store.count() == 0
    store.close()


def test_writers_of_the_same_ids_in_other_orders_do_not_block_each_other(postgres, make_correction):
    store = CorrectionStore(postgres.new_database())
    batch = [make_correction(str(number)) for number in range(100)]
    failures: list[BaseException] = []

    def write(order: int) -> None:
        try:
            for _ in range(3):
                store.append(batch[::order])
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(order,)) for order in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.count() == 100
    store.close()


def test_two_collections_live_in_schemas_of_one_database(postgres, make_correction):
    url = postgres.new_database()
    postgres.execute("CREATE SCHEMA other", url)
    first, second = CorrectionStore(url), CorrectionStore(url + "?options=-csearch_path%3Dother")
    first.append([make_correction()])
    assert (first.count(), second.count()) == (1, 0)
    first.close()
    second.close()


def test_a_missing_psycopg_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"aligner-chain\[postgres\]"):
        CorrectionStore("postgresql://nobody@127.0.0.1/nothing")
