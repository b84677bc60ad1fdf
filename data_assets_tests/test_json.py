"""JSON: the fast lane of JSON lines against the exact one, the independent counts, paths into nested values.

Here: generated lines, read by both lanes; each kind of line that the pattern must not take; elements of arrays counted
on the bytes against what Python's decoder finds. Not here: what becomes of the values (test_ingest.py).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_assets import ingest
from data_assets.config import PipelineConfig
from data_assets.errors import SourceFileError
from data_assets.ingest import jsontext

HOME = dt.date(2024, 5, 5)
WIKITICKER = Path(__file__).parents[2] / "shared/data/real/wikiticker/wikiticker-2015-09-12-sampled.json.gz"
KEYS = ("user_id", "session_start", "event_type", "Extra")
GOOD = '{"user_id": 1, "session_start": "2024-01-01", "event_type": "a", "Extra": 1.50}'


def config(**source):
    return PipelineConfig(source={"required": [], "types": {"user_id": "string"}, **source})


def opened(folder, content, settings_, name="a.jsonl"):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return ingest.open_records(path, name, settings_, folder)


def exactly(folder, content, settings_):
    """The same lines by the exact lane: a NUL byte on a line of its own keeps the engine away from them."""
    end = b"" if not content or content.endswith(b"\n") else b"\n"
    records = opened(folder, content + end + b"\0", settings_)
    assert records.lane == "exact"
    return records


def rows(records):
    return records.frame.collect(engine="streaming")


def agree(tmp_path, content, settings_):
    """Both lanes read the same; returns the lane that was chosen."""
    chosen, slow = opened(tmp_path / "chosen", content, settings_), exactly(tmp_path / "exact", content, settings_)
    ours, theirs = rows(chosen), rows(slow)
    assert chosen.physical_rows == ours.height == theirs.height - 1 == slow.physical_rows - 1
    assert chosen.columns == slow.columns
    assert ours.select(theirs.columns).equals(theirs.head(-1))
    events = [ingest.classify(r, "a.jsonl", HOME, settings_).collect(engine="streaming") for r in (chosen, slow)]
    assert events[0].equals(events[1].head(-1))
    return chosen.lane


VALUE = st.sampled_from(
    [
        "1", "1.0", "1.50", "1e5", "-0", "12345678901234567890", '"x"', '""', "null", "true", "false", '"é"', '" "',
        '"2024-01-01"', '"null"', '"[1, 2]"',
    ]
)  # fmt: skip
ODD = st.sampled_from(
    [
        r'"a\"b"', r'"\ud800"', r'"\u0061"', "NaN", '{"b":1}', '{"b": [1, 2.50]}', "01", "1.", ".5", "+1", '"a\tb"',
        '"\ufffd"', '"x', "nul", "",
    ]
)  # fmt: skip
PLAIN_KEYS = st.just(KEYS)
GAP = st.sampled_from(["", "", " ", "\t", "  "])


@st.composite
def a_line(draw, keys=PLAIN_KEYS, value=VALUE):
    def gap():
        return draw(GAP)

    members = [f'"{k}"{gap()}:{gap()}{draw(value)}{gap()}' for k in draw(keys)]
    return gap() + "{" + gap() + ("," + gap()).join(members) + "}" + gap()


OTHER_KEYS = st.lists(st.sampled_from([*KEYS, "extra", " a", "__line", "a.b", "é"]), max_size=5)
JUNK = st.sampled_from(
    ["", "  ", "x", "{}", "[1]", "null", GOOD + GOOD, GOOD + ",", GOOD + "\r" + GOOD, "\ufeff" + GOOD, "//" + GOOD]
)
LINE = st.one_of(a_line(), a_line(), a_line(value=ODD | VALUE), a_line(OTHER_KEYS), JUNK)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(LINE, max_size=10),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from(["keep", "drop"]),
    st.sampled_from(["lower", "none"]),
)
@example([], "\n", True, "keep", "lower")
def test_both_lanes_read_every_line_alike(tmp_path_factory, lines, end, last, extra, naming):
    """The good lines before and between the others make sure that the fast lane is taken at all."""
    lines = [GOOD, *(x for line in lines for x in (GOOD, line))]
    content = (end.join(lines) + (end if last else "")).encode()
    settings_ = config(extra_columns=extra, column_naming=naming, columns={"value": "Extra", "metadata": "a.b"})
    assert agree(tmp_path_factory.mktemp("lanes"), content, settings_) != "exact"


@pytest.mark.parametrize(
    "line",
    [
        GOOD.replace('"a"', r'"\u0061"'), GOOD.replace('"a"', "NaN"), GOOD.replace('"a"', "{}"), GOOD + GOOD,
        GOOD.replace("{", '{"user_id":2,'), GOOD.replace('"event_type"', '"user_id"'), GOOD[:-1] + ',"new":1}',
        GOOD.replace('"a"', r'"\ud800"'), "", "{}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("extra", ["keep", "drop"])
def test_one_line_that_the_pattern_must_not_take(tmp_path, line, extra):
    content = "\n".join([GOOD, GOOD, line, GOOD]).encode()
    assert agree(tmp_path, content, config(extra_columns=extra)) == ("mixed" if line else "fast")


def test_a_byte_that_is_not_utf8_costs_its_line(tmp_path):
    content = b"\n".join([GOOD.encode(), GOOD.replace("a", "é").encode("latin-1"), GOOD.encode()])
    records = opened(tmp_path, content, config())
    assert rows(records)["__malformed"].to_list() == [False, True, False]
    assert records.lane == "mixed"
    assert records.reason.startswith("1 of 3 records")


def test_numbers_and_records_as_they_stood(tmp_path):
    records = opened(tmp_path, f" {GOOD}\t\r\n\n{GOOD}".replace(" {", "{", 1).encode(), config(extra_columns="keep"))
    frame = rows(records)
    assert (records.lane, records.reason) == ("fast", "")
    assert frame["extra"].to_list() == ["1.50", "1.50"]
    assert frame["__record"].to_list() == [GOOD, GOOD]
    assert frame["__line"].to_list() == [1, 3]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\n" + GOOD.encode(), "no object"), (GOOD.encode() + b"\n\0", "NUL"), (b'{"a\\"":1}\n', "unusual"),
        (b'{"a":1}\n{"b":1}\n{"c":1}\n', "differ"), (b'{"a":[1]}\n', "nested"), (b'{"A":1,"a":2}\n', "unusual"),
        (b"{}\n", "none"), (json.dumps(dict.fromkeys(map(str, range(100)))).encode(), "very many"),
    ],
)  # fmt: skip
def test_files_that_are_read_exactly_say_why(tmp_path, content, why):
    records = opened(tmp_path, content, config())
    assert records.lane == "exact"
    assert why in records.reason


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(LINE | a_line(OTHER_KEYS, ODD | VALUE), max_size=12),
    st.integers(1, 400),
    st.sampled_from(["keep", "drop"]),
)
def test_it_does_not_matter_how_many_records_are_put_together_at_a_time(tmp_path_factory, lines, size, extra):
    tmp_path = tmp_path_factory.mktemp("batches")
    content, settings_ = "\n".join(lines).encode(), config(extra_columns=extra, columns={"metadata": "a.b"})
    whole = exactly(tmp_path / "whole", content, settings_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsontext, "_BATCH", size)
        some = exactly(tmp_path / "some", content, settings_)
    assert (some.columns, some.physical_rows) == (whole.columns, whole.physical_rows)
    assert rows(some).equals(rows(whole).select(rows(some).columns))


def test_deep_values_are_kept_as_far_as_they_can_be_read(tmp_path):
    """Others cost their record, also among records that are read together."""
    lines = [f'{{"user_id":"{n}","metadata":{"[" * n}1.50{"]" * n}}}' for n in (1, 500, 200_000, 2)]
    records = opened(tmp_path, "\n".join(lines).encode(), config())
    frame = rows(records)
    assert frame["metadata"].to_list() == ["[1.50]", "[" * 500 + "1.50" + "]" * 500, None, "[[1.50]]"]
    assert frame["__malformed"].to_list() == [False, False, True, False]
    assert frame["__record"].to_list() == lines


def test_a_value_that_can_be_read_but_not_written_costs_its_record(tmp_path, monkeypatch):
    def nested(value):
        if value == ["deep"]:
            raise RecursionError
        return json.dumps(value)

    monkeypatch.setattr(jsontext, "_nested", nested)
    lines = ['{"user_id":"1","metadata":["x"]}', '{"user_id":"2","metadata":["deep"]}', '{"user_id":["deep"]}', "{}"]
    frame = rows(opened(tmp_path, "\n".join(lines).encode(), config()))
    assert frame.select("user_id", "metadata", "__malformed", "__empty").rows() == [
        ("1", '["x"]', False, False), (None, None, True, False), (None, None, True, False), (None, None, False, True),
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b'{"a":[1]}\n', b'[{"a":1}', b'[{"a":1},'])
def test_the_collector_of_cycles_works_again_afterwards(tmp_path, content):
    with contextlib.suppress(SourceFileError):
        opened(tmp_path, content, config(), "a.json")
    assert gc.isenabled()


@pytest.mark.skipif(not WIKITICKER.exists(), reason=f"{WIKITICKER} is absent")
def test_real_edits_in_both_lanes(tmp_path):
    content = gzip.decompress(WIKITICKER.read_bytes())
    assert agree(tmp_path, content, config(extra_columns="keep")) == "mixed"


# ---- counts -----------------------------------------------------------------------------------------------------

LEAF = st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\[]{},\n é'), max_size=6)
TREE = st.recursive(LEAF, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=3), x, max_size=4))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TREE, max_size=6), st.sampled_from([None, 1]), st.integers(1, 40))
@example(["\\\\", '"', []], None, 1)
def test_elements_are_counted_whatever_the_blocks(tmp_path_factory, elements, indent, block):
    path = tmp_path_factory.mktemp("count") / "a.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsontext, "_BLOCK", block)
        path.write_text(json.dumps(elements, indent=indent, ensure_ascii=False), encoding="utf-8-sig")
        assert jsontext._count_elements(path) == len(elements)
        objects = [e for e in elements if isinstance(e, dict)]
        path.write_text(" \n".join(json.dumps(e, indent=indent) for e in objects))
        assert jsontext._count_elements(path) == len(objects)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["", " \t", "\r", "x", "{}", "é", "\x0b"]), max_size=9), st.integers(1, 9))
def test_lines_are_counted_whatever_the_blocks(tmp_path_factory, lines, block):
    path = tmp_path_factory.mktemp("count") / "a.jsonl"
    path.write_bytes("\n".join(lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsontext, "_BLOCK", block)
        look = jsontext._look(path)
    assert look.records == sum(bool(x.strip(" \t\r")) for x in lines)
    assert look.lines == len("\n".join(lines).removesuffix("\n").split("\n")) - (not "\n".join(lines))


def test_a_reader_that_loses_an_element_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(jsontext, "_array", lambda window: iter([({"user_id": "1"}, 1, "{}")]))
    with pytest.raises(SourceFileError, match="holds 2 records, but 1 were read"):
        opened(tmp_path, b'[{"user_id":1},{"user_id":2}]', config(), "a.json")


# ---- paths ------------------------------------------------------------------------------------------------------


def test_paths_into_objects_and_arrays(tmp_path):
    lines = [{"items": [{"ID": 7}, 8], "k": {"0": "x"}}, {"items": [], "k": [5]}, {"items": None}, {"items": {"0": 1}}]
    columns = {"user_id": "items.0.id", "event_type": "k.0", "metadata": "items.1", "value": "items.x"}
    frame = ingest.classify(
        opened(tmp_path, "\n".join(map(json.dumps, lines)).encode(), config(columns=columns)),
        "a.jsonl", HOME, config(columns=columns),
    ).collect()  # fmt: skip
    assert frame["user_id"].to_list() == ["7", None, None, None]
    assert frame["event_type"].to_list() == ["x", "5", None, None]
    assert frame["metadata"].to_list() == ["8", None, None, None]
