"""Columns of texts read like lists, whatever they hold, and are looked up as a dictionary does."""

import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hoarfrost.features.columns.lookup
import hoarfrost.features.columns.texts
from hoarfrost.features.columns.lookup import Lookup
from hoarfrost.features.columns.texts import TextIndex, Texts, TextsBuilder, lists_to_texts
from tests.support.labelled import NOT_UTF8

letters = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["a", "b", "", NOT_UTF8, "ü/ü.png"])
columns = st.lists(letters, max_size=40)


pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short columns cross the borders of blocks as long ones do."""
    for name, size in (("BLOCK_TEXTS", 7), ("BLOCK_BYTES", 5), ("MAX_SHARED", 6)):
        monkeypatch.setattr(hoarfrost.features.columns.texts, name, size)
    monkeypatch.setattr(hoarfrost.features.columns.lookup, "BLOCK_ROWS", 3)


@settings(max_examples=200, deadline=None)
@given(columns)
def test_a_column_is_the_list_that_it_was_made_of(texts: list[str]) -> None:
    column = Texts.of(texts)
    assert list(column) == texts
    assert column == texts
    assert len(column) == len(texts)
    assert [column[i] for i in range(-len(texts), len(texts))] == texts + texts
    assert column[2:9] == texts[2:9]
    assert column[::-1] == texts[::-1]
    assert column.encoded() == [os.fsencode(text) for text in texts]
    assert column.lengths.tolist() == [len(os.fsencode(text)) for text in texts]
    assert column.counts() == Counter(texts)
    assert set(column.values()) == set(texts)
    with pytest.raises(IndexError):
        column[len(texts)]


@settings(max_examples=100, deadline=None)
@given(columns, columns)
def test_columns_are_equal_where_the_lists_are(one: list[str], other: list[str]) -> None:
    assert (Texts.of(one) == Texts.of(other)) == (one == other)
    assert Texts.of(one) == Texts.joined([Texts.of([text]) for text in one])
    assert Texts.joined([Texts.of(one), Texts.of(other)]) == one + other
    assert Texts.of(one) != None  # noqa: E711 - equality with what is no column is what is tested


@settings(max_examples=100, deadline=None)
@given(columns, st.data())
def test_rows_are_taken_replaced_and_mapped_as_in_a_list(texts: list[str], data: st.DataObject) -> None:
    rows = np.array(
        data.draw(st.lists(st.integers(0, max(0, len(texts) - 1)), max_size=9) if texts else st.just([])), int
    )
    column = Texts.of(texts)
    assert column.take(rows) == [texts[row] for row in rows]
    places = np.unique(rows)
    expected = [f"new {i}" if i in places else text for i, text in enumerate(texts)]
    assert column.replaced(places, Texts.of(f"new {i}" for i in places)) == expected
    assert column.mapped(str.upper) == [text.upper() for text in texts]
    assert column.rows_of_length(0, 0).tolist() == [i for i, text in enumerate(texts) if not text]
    assert column.rows_of_length(3).tolist() == [i for i, text in enumerate(texts) if len(os.fsencode(text)) >= 3]


@settings(max_examples=100, deadline=None)
@given(columns, columns)
def test_texts_are_found_as_a_dictionary_finds_them(stored: list[str], asked: list[str]) -> None:
    first = {text: i for i, text in reversed(list(enumerate(stored)))}
    index = TextIndex(Texts.of(stored))
    assert index.find(Texts.of(asked)).tolist() == [first.get(text, -1) for text in asked]
    assert index.firsts().tolist() == [first[text] for text in stored]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30), st.lists(st.integers(0, 6), max_size=30))
def test_what_shares_a_number_is_told_apart_all_the_same(stored: list[int], asked: list[int]) -> None:
    # Numbers modulo 2 stand for hashes that collide all the time.
    here, there = np.array(asked, np.int64), np.array(stored, np.int64)
    lookup = Lookup((there % 2).astype(np.uint64))
    found = lookup.find((here % 2).astype(np.uint64), lambda rows, places: there[rows] == here[places])
    assert found.tolist() == [stored.index(value) if value in stored else -1 for value in asked]
    firsts = lookup.firsts(lambda rows, places: there[rows] == there[places])
    assert firsts.tolist() == [stored.index(value) for value in stored]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab./\\:ü#", max_size=9), max_size=30))
def test_rows_with_marks_are_those_that_hold_them_and_few_others(texts: list[str]) -> None:
    column, pairs = Texts.of(texts), [b"//", b"/."]
    assert column.rows_with(b"\\:").tolist() == [i for i, t in enumerate(texts) if "\\" in t or ":" in t]
    assert column.rows_with(bytes(range(128, 256))).tolist() == [i for i, t in enumerate(texts) if not t.isascii()]
    certain = {i for i, t in enumerate(texts) if "//" in t or "/." in t}
    possible = {i for i, t in enumerate(texts) if t.endswith("/")}
    same = {text for i, text in enumerate(texts) if i in certain | possible}  # equal texts may share their bytes
    found = set(column.rows_with(b"", pairs).tolist())
    assert certain <= found <= {i for i, text in enumerate(texts) if text in same}
    first, last = column.edges()
    assert first.tolist() == [os.fsencode(text)[0] if text else 0 for text in texts]
    assert last.tolist() == [os.fsencode(text)[-1] if text else 0 for text in texts]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text("aPN.g/ü", max_size=14) | st.sampled_from(["a.png", "x/.png", ".png", "b.PNG", "c.jpeg"]), max_size=20
    )
)
def test_suffixes_are_those_of_splitext(texts: list[str]) -> None:
    suffixes = {".png", ".g", ".jpeg"}
    names = [text for text in texts if not os.path.basename(text).startswith("..")]
    expected = [os.path.splitext(name)[1].lower() in suffixes for name in names]
    assert Texts.of(names).have_suffix(suffixes).tolist() == expected


def test_equal_texts_share_their_bytes() -> None:
    builder = TextsBuilder()
    for _ in range(5):
        builder.add(["a label of some length"] * 100)
    column = builder.built()
    assert len(column._content) == len("a label of some length")
    assert column == ["a label of some length"] * 500


def test_a_sparse_column_is_empty_but_for_some_rows() -> None:
    assert Texts.sparse(5, {3: "x", 1: "y"}) == ["", "y", "", "x", ""]
    assert Texts.sparse(2, {}) == ["", ""]
    assert Texts.repeated("z", 3) == ["z"] * 3


def test_columns_of_a_table_may_be_given_as_lists() -> None:
    class Table:
        def __init__(self) -> None:
            self.names, self.attributes, self.other = ["a", "b"], {"site": ["x", "y"]}, 7

    table = Table()
    lists_to_texts(table)
    assert isinstance(table.names, Texts)
    assert isinstance(table.attributes["site"], Texts)
    assert (table.names, table.attributes, table.other) == (["a", "b"], {"site": ["x", "y"]}, 7)
