"""Outputs that are too large for a notebook, and for memory: cut in view, whole in the journal."""

from __future__ import annotations

import base64
import gc
import json
import re
import weakref
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from bulk import bulk, piece, result
from hypothesis import given
from hypothesis import strategies as st
from page import data, kernel
from test_display import FOOTER, Screen, Strip
from test_journal import queued

from notebook_ext import excerpts, profiles, render
from notebook_ext.cell import TerminalCell
from notebook_ext.display import JobDisplay, TerminalDisplay
from notebook_ext.errors import ConfigurationError, JobFailed, JournalError
from notebook_ext.excerpts import TEXT, Beginning, beginning, size
from notebook_ext.journal import Journal
from notebook_ext.keeping import FULL
from notebook_ext.session import Session
from notebook_ext.streamed import HELD, Streamed, weight
from notebook_ext.types import Job, JobStatus, StreamChunk
from notebook_ext.view import Reading

MEGABYTE = 1_000_000
LARGE = {"chunks": 300, "size": 8_000}
"""What a job is told to stream that does not stay in memory."""


@pytest.fixture(scope="module")
def url():
    with bulk() as url:
        yield url


@pytest.fixture
def session(tmp_path):
    session = Session(journal=str(tmp_path / "sizes.db"))
    yield session
    session.close()


def connected(session, url):
    return session.connect("ep", "ep", provider=url)


def sent(asked) -> str:
    return "".join(piece(number, asked["size"]) for number in range(asked["chunks"]))


# ---------------------------------------------------------------------------------- what is shown of a text

TEXTS = st.text(st.sampled_from("ab \n\r.äß€😀\ud83d"), max_size=60)


@given(TEXTS, st.integers(0, 80))
def test_a_beginning_has_as_many_bytes_as_it_may(text, most):
    found = beginning(text, most)
    assert text.startswith(found)
    assert size(found) <= most
    if size(text) <= most:
        assert found == text
    elif "\n" not in text:  # not one character more would have fitted
        assert size(text[: len(found) + 1]) > most


@given(st.lists(TEXTS, max_size=8), st.integers(0, 80))
def test_pieces_are_shown_up_to_a_place_and_counted_from_there(pieces, most):
    cut, text = Beginning(most), "".join(pieces)
    shown = "".join(map(cut.take, pieces))
    assert text.startswith(shown)
    assert size(shown) <= most
    assert cut.is_cut == (shown != text)
    assert cut.left_out == size(text) - size(shown)
    assert text.endswith(cut.ending)


def test_a_text_is_cut_after_a_line_and_its_last_lines_are_known():
    cut = Beginning(100)
    assert cut.take("x" * 90 + "\nmore " * 5) == "x" * 90 + "\nmore \n"[:6] + "\n"
    cut.take("y" * excerpts.ENDING + "\nthe last line\nand another")
    assert cut.ending == "the last line\nand another"


@pytest.mark.parametrize("format", ["auto", "markdown", "text", "code", "raw"])
def test_of_a_long_text_the_beginning_is_shown_and_how_the_rest_is_had(format):
    value = piece(0, 3 * MEGABYTE)
    shown, rest = render.outputs(value, format, number=17)
    text = repr(value) if format == "raw" else value
    assert MEGABYTE / 10 < size(shown["text/plain"]) <= TEXT
    assert text.startswith(shown["text/plain"])
    assert len(json.dumps(shown)) < 3 * TEXT
    more = excerpts.in_words(size(text) - size(shown["text/plain"]))
    assert f"… {more} more: `%endpoint export @17 output.txt` writes the whole" in rest["text/plain"]
    assert rest["text/plain"].endswith(text[-20:])
    assert render.outputs(value[:1000], format, number=17) == render.outputs(value[:1000], format)
    assert len(render.outputs(value, format)) == 1


def test_what_is_left_out_is_escaped():
    payload = "<img src=x onerror=alert(1)>\n"
    _, rest = render.outputs(payload * 20_000, "text", number=17)
    assert "<img" not in rest["text/html"]
    assert "&lt;img" in rest["text/html"]


@pytest.mark.parametrize("value", [result("json", 2 * MEGABYTE), json.dumps(result("json", 2 * MEGABYTE))])
def test_of_large_json_the_beginning_is_shown(value):
    shown, rest = render.outputs(value, number=17)
    assert size(shown["text/plain"]) <= TEXT
    assert json.dumps(result("json", 2 * MEGABYTE), indent=2).startswith(shown["text/plain"])
    assert re.match(r"… and more, [12]\.\d MB of JSON in all: `%endpoint export", rest["text/plain"])


def test_a_table_has_its_first_rows_and_cells_that_are_too_large_are_json():
    rows = result("table", MEGABYTE)
    shown, rest = render.outputs(rows, number=17)
    assert len(shown["text/plain"].splitlines()) == 101
    assert (
        rest["text/plain"]
        == f"… {len(rows) - 100} more rows: `%endpoint export @17 output.txt` writes the whole"
    )
    wide = [{"cell": "word " * MEGABYTE}]
    shown, rest = render.outputs(wide, number=17)
    assert shown["text/plain"].startswith("[\n")
    assert size(shown["text/plain"]) <= TEXT
    assert "5.0 MB of JSON" in rest["text/plain"]


@pytest.mark.parametrize(
    ("kind", "mime", "ending"), [("image", "image/png", "png"), ("audio", "audio/wav", "wav")]
)
def test_a_large_picture_is_not_put_into_a_notebook_unless_it_is_asked_for(kind, mime, ending):
    value = result(kind, 12 * MEGABYTE)
    (told,) = render.outputs(value, number=17)
    assert told["text/plain"] == (
        f"{mime}, 9.0 MB, is not put into the notebook: `%endpoint export @17 output.{ending}` writes it to a "
        f"file, `%endpoint show @17 -f {kind}` shows it here"
    )
    assert value[kind] in "".join(render.outputs(value, kind, number=17)[0].values())
    assert len(json.dumps(render.outputs(result(kind, 9 * MEGABYTE), number=17))) > 9 * MEGABYTE


def test_of_many_pictures_as_many_are_shown_as_fit_together():
    value = {"images": [result("image", 4 * MEGABYTE)["image"]] * 3}
    shown = render.outputs(value, number=17)
    assert ["image/png" in bundle for bundle in shown] == [True, True, False]


# ---------------------------------------------------------------------------------- what is live


def test_what_is_left_out_stands_below_the_text_whatever_the_end():
    notice, last = {"text/plain": "more comes"}, {"text/plain": "99 MB more"}
    for options in ({"owns_cell": True}, {"owns_cell": False}, {"owns_cell": True, "is_live": False}):
        screen = Screen()
        display = JobDisplay(screen, screen.loop, strip=Strip(), **options)
        for n in range(30):
            display.add(f"word {n}\n\n" * 10)
        display.leave_out(notice)
        is_live = options.get("is_live", True)
        assert (screen.bundles[-1] == notice) if is_live else (screen.bundles == [])
        screen.loop.go_to(60)
        display.leave_out(last)
        display.finish([], FOOTER)
        display.leave_out(notice)
        assert screen.bundles[-2:] == [last, FOOTER]
        assert notice not in screen.bundles
        assert "word 29" in screen.text


def test_a_terminal_says_what_is_left_out_in_a_line_of_its_own(capsys):
    display = TerminalDisplay(TerminalCell())
    display.add("the text")
    display.leave_out({"text/plain": "99 MB more"})
    display.finish([], FOOTER)
    assert capsys.readouterr().out == "the text\n99 MB more\ndone\n"


@pytest.mark.parametrize("profile", ["raw", "chat", "vllm", "openai"])
@pytest.mark.parametrize("kind", ["text", "events", "documents"])
def test_a_reader_keeps_no_more_than_it_shows(profile, kind):
    decoder = profiles.get(profile).decoder()
    reading, whole = Reading(17, decoder, "auto"), profiles.get(profile).decoder()
    shown, expected = "", ""
    for number in range(100):
        text = piece(number, 8_000)
        document = {"choices": [{"delta": {"content": text}}], "usage": {"completion_tokens": number}}
        output = {"text": text, "events": f"data: {json.dumps(document)}\n\n", "documents": document}[kind]
        shown += reading.feed(StreamChunk(output, number))
        expected += whole.feed(StreamChunk(output, number))
        is_text = kind == "text" or profile in ("vllm", "openai")
        assert weight(decoder._chunks) < (TEXT + 20_000 if is_text else excerpts.MEDIA)
        assert weight(decoder._shown) < TEXT + 20_000
    held_back, final = reading.finish(None)
    assert held_back == ""
    assert expected.startswith(shown)
    assert final.tokens == whole.finish(None).tokens
    assert reading.is_cut == (len(expected) > TEXT)
    if reading.is_cut:
        assert final.value is None
        assert reading.so_far() == [f"{excerpts.in_words(len(expected) - len(shown))} more than is shown"]


def test_what_comes_before_the_limit_is_read_as_ever():
    decoder = profiles.get("openai").decoder()
    reading = Reading(17, decoder, "auto")
    assert reading.feed(StreamChunk("da", 0)) == ""  # the first letters of an event, perhaps
    held_back, final = reading.finish(None)
    assert (held_back, final.value, reading.is_cut) == ("da", "da", False)


def test_pictures_that_stream_are_not_kept_without_end():
    decoder = profiles.get("raw").decoder()
    reading = Reading(17, decoder, "json")
    for number in range(15):
        reading.feed(StreamChunk({"image": "x" * MEGABYTE}, number))
        assert weight(decoder._chunks) <= excerpts.MEDIA + MEGABYTE
    _, final = reading.finish(None)
    (told,) = reading.bundles(SimpleNamespace(number=17), final)
    assert told["text/plain"].startswith("… 15.0 MB of output are not shown: `%endpoint export @17")


# ---------------------------------------------------------------------------------- what is in memory


def chunk(number: int, length: int = 1000) -> StreamChunk:
    return StreamChunk(piece(number, length), number)


def test_a_small_job_is_in_memory():
    streamed = Streamed()
    for number in range(10):
        streamed.append(chunk(number))
        streamed.keep(number + 1)
    assert (len(streamed), streamed.held, streamed.kept) == (10, 10, 10)
    assert list(streamed.since(7)) == [chunk(7), chunk(8), chunk(9)]
    assert list(streamed.since(20)) == []


def test_of_a_large_job_only_what_the_journal_lacks():
    chunks = [chunk(number) for number in range(2000)]
    streamed = Streamed(lambda first: iter(chunks[first:]))
    for at in chunks:
        streamed.append(at)
        if at.index % 100 == 99:
            streamed.keep(at.index - 9)
        assert streamed.held <= HELD / 1000 + 110
    assert (streamed.is_large, streamed.held) == (True, 10)
    assert (len(streamed), streamed.weight) == (2000, 2000 * 1000)
    for first in (0, 1234, 1989, 1990, 1999, 2000):
        assert list(streamed.since(first)) == chunks[first:]


def test_a_reader_goes_on_with_what_there_was_when_it_began():
    chunks = [chunk(number) for number in range(2000)]
    streamed = Streamed(lambda first: iter(chunks[first:]))
    for at in chunks[:1500]:
        streamed.append(at)
    reader = streamed.since()
    found = [next(reader)]
    streamed.keep(1500)
    for at in chunks[1500:]:
        streamed.append(at)
    streamed.keep(2000)
    assert streamed.held == 0
    found += reader
    assert found == chunks[: len(found)]
    assert len(found) >= 1500


def test_what_the_journal_has_lost_is_told():
    streamed = Streamed(lambda first: iter([chunk(0)][first:]))
    for number in range(2000):
        streamed.append(chunk(number))
    streamed.keep(2000)
    reader = streamed.since()
    assert next(reader) == chunk(0)
    with pytest.raises(JournalError, match="only 1 of the 2,000 chunks"):
        next(reader)


def test_before_the_journal_forgets_them_they_are_held_again():
    chunks = [chunk(number) for number in range(2000)]
    journal = list(chunks)
    streamed = Streamed(lambda first: iter(journal[first:]))
    for at in chunks:
        streamed.append(at)
    streamed.keep(2000)
    streamed.hold()
    journal.clear()
    assert (list(streamed.since()), streamed.kept) == (chunks, 0)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_weight_is_about_the_length_as_json(value):
    length = len(json.dumps(value, ensure_ascii=False))
    assert weight(value) <= 8 * length + 8
    assert weight({"key": ["x" * 5000, value]}) >= 5000


@pytest.mark.parametrize("asked", [{"chunks": 1500, "size": 8_000}, {"chunks": 12, "size": MEGABYTE}])
def test_a_streamed_job_is_whole_in_the_journal_and_not_in_memory(session, url, asked):
    handle = connected(session, url).submit(asked)
    held = []

    def count(_):
        window = handle._run.streamed._window[1]
        held.append(sum(len(at.output) for at in window))

    handle.subscribe(count)
    text = sent(asked)
    assert "".join(at.output for at in handle.chunks()) == text
    handle.wait(60)
    assert max(held) <= HELD + FULL + max(asked["size"], 128 * 1024)
    assert handle._run.streamed.held == 0
    late = list(handle.chunks())
    assert [at.index for at in late] == list(range(asked["chunks"]))
    assert handle.output() == "".join(at.output for at in late) == text
    assert handle.streamed(asked["chunks"] - 1) == late[-1:]


def test_a_reader_of_a_large_job_that_is_retried_still_gets_what_came_before(session, url):
    handle = connected(session, url).submit({**LARGE, "fails": True})
    early = handle.chunks()
    assert handle.wait(30).status is JobStatus.FAILED
    begun = iter(early)
    first = next(begun)
    handle.retry()
    assert handle.output(30) == sent(LARGE)
    found = [first]
    with pytest.raises(JobFailed):
        found.extend(begun)
    assert "".join(at.output for at in found) == sent(LARGE)
    again = iter(early)
    assert next(again) == first
    assert handle._run.streamed.held == 0


def test_memory_alone_keeps_a_large_job_once_too(url):
    session = Session()
    handle = connected(session, url).submit(LARGE)
    assert handle.output(30) == sent(LARGE)
    assert handle._run.streamed.held == 0
    session.close()
    with pytest.raises(ConfigurationError, match="attach"):
        list(handle.chunks())


def test_another_session_reads_it_when_somebody_asks(session, url, tmp_path):
    handle = connected(session, url).submit(LARGE)
    handle.wait(30)
    other = Session(journal=str(tmp_path / "sizes.db"))
    there = other.find("@1")
    assert there._run.streamed._window is None
    assert there.output() == sent(LARGE)
    assert there.streamed_count == LARGE["chunks"]
    assert there._run.streamed.held < LARGE["chunks"]
    seen = []
    there.subscribe(seen.append)
    assert [at.output for at in seen[1:-1]] == [piece(at, LARGE["size"]) for at in range(LARGE["chunks"])]
    other.close()


def test_a_long_list_of_jobs_is_nobodys_to_keep(session, url, tmp_path):
    connection = connected(session, url)
    for _ in range(3):
        connection.submit({"chunks": 2, "size": 10}).wait(30)
    other = Session(journal=str(tmp_path / "sizes.db"))
    found = other.entries()
    assert [handle._run.streamed._window for handle in found] == [None] * 3
    assert other.find("@2") is found[1]  # the same one as long as somebody has it
    watched = [weakref.ref(handle) for handle in found]
    del found
    gc.collect()
    assert [reference() for reference in watched] == [None] * 3
    assert other.find("@2").output() == sent({"chunks": 2, "size": 10})
    other.close()


# ---------------------------------------------------------------------------------- what is in the journal


@pytest.fixture
def journal(tmp_path):
    journal = Journal(str(tmp_path / "journal.db"))
    yield journal
    journal.close()


def streamed_to(journal, count: int) -> tuple[int, list[StreamChunk]]:
    number = journal.add(queued("a large one"))
    chunks = [chunk(at, 10_000) for at in range(count)]
    for first in range(0, count, 10):
        assert journal.append(number, chunks[first : first + 10])
    return number, chunks


def done(output=None) -> Job:
    return Job(
        id="j", endpoint="ep", status=JobStatus.COMPLETED, output=output, has_output=output is not None
    )


def test_chunks_that_are_not_packed_stay_where_they_are(journal):
    number, chunks = streamed_to(journal, 50)
    files = {file.name for file in Path(f"{journal.path}.d/values").iterdir()}
    journal.finish(number, done(), packs=False)
    assert {file.name for file in Path(f"{journal.path}.d/values").iterdir()} == files
    for first in (0, 7, 10, 49, 50):
        assert journal.chunks(number, first) == chunks[first:]
    assert [found.entry.number for found in journal.search("prose")] == [number]
    assert not journal.append(number, chunks[:1])  # it is nobody's any more


def test_an_output_that_is_the_very_list_of_the_chunks_is_kept_once(journal):
    number, chunks = streamed_to(journal, 50)
    outputs = [at.output for at in chunks]
    other, _ = streamed_to(journal, 50)
    journal.finish(number, done(outputs), packs=False)
    journal.finish(other, done([*outputs[:-1], "another"]), packs=False)
    rows = dict(
        journal._db.connection.execute("SELECT number, count(*) FROM chunks GROUP BY number").fetchall()
    )
    assert rows == {other: 5}
    assert journal.chunks(number) == journal.chunks(other) == chunks


def test_rows_are_read_one_at_a_time(journal, monkeypatch):
    number, chunks = streamed_to(journal, 50)
    read, get = [], journal._values.get
    monkeypatch.setattr(journal._values, "get", lambda reference: read.append(reference) or get(reference))
    reader = journal.each_chunk(number)
    assert [next(reader) for _ in range(15)] == chunks[:15]
    assert len(read) == 2


def test_rows_that_overlap_give_each_chunk_once(journal):
    number = journal.add(queued("twice"))
    chunks = [chunk(at) for at in range(30)]
    for first, end in ((0, 10), (5, 12), (12, 20), (0, 20), (20, 30)):
        journal.append(number, chunks[first:end])
    for first in (0, 5, 11, 12, 29):
        assert journal.chunks(number, first) == chunks[first:]


# ---------------------------------------------------------------------------------- in a notebook


@pytest.fixture
def at_bulk(notebook, url):
    notebook.session.connect("ep", "ep", provider=url)
    return notebook


def test_export_writes_what_was_sent(at_bulk):
    at_bulk.run("job = %endpoint run ep -q -p chunks=300 -p size=8000")
    said = at_bulk.run("%endpoint export @1 all.txt")
    assert said == f"1 job, {300 * 8000} bytes, written to all.txt\n"
    assert Path("all.txt").read_text() == sent(LARGE)
    assert "exists, and was not touched" in at_bulk.error("%endpoint export @1 all.txt")
    at_bulk.run("%endpoint export @1 all.json")
    (document,) = json.loads(Path("all.json").read_text())
    assert document["output"] == sent(LARGE)


def test_a_text_export_is_never_in_memory_as_a_whole(at_bulk, monkeypatch):
    at_bulk.run("job = %endpoint run ep -q -p chunks=300 -p size=8000")
    monkeypatch.setattr("notebook_ext.records.Record.read", None)
    at_bulk.run("%endpoint export @1 all.txt")
    assert Path("all.txt").read_text() == sent(LARGE)


def test_a_picture_is_exported_as_the_notice_says(at_bulk):
    said = at_bulk.run("job = %endpoint run ep -p result=image -p size=12000000")
    assert "9.0 MB, is not put into the notebook: `%endpoint export @1 output.png`" in said
    at_bulk.run("%endpoint export @1 output.png")
    expected = result("image", 12 * MEGABYTE)["image"]
    assert Path("output.png").read_bytes() == base64.b64decode(expected)


@pytest.mark.parametrize("verb", ["run", "runsync"])
def test_a_large_table_is_a_table_however_it_was_asked_for(at_bulk, verb):
    said = at_bulk.run(f"job = %endpoint {verb} ep -p result=table -p size=1000000")
    assert said.splitlines()[:2] == ["number  words", "0       word 0"]
    assert "24900 more rows: `%endpoint export @1 output.txt`" in said
    assert len(said) < 10_000


def test_a_finished_large_job_is_shown_again_as_it_was(at_bulk):
    live = at_bulk.run("%endpoint run ep -p chunks=300 -p size=8000")
    again = at_bulk.run("%endpoint show @1")
    replayed = at_bulk.run("%endpoint stream @1")
    notice = "… 2.2 MB more: `%endpoint export @1 output.txt` writes the whole. It ends:"
    for shown in (live, again, replayed):
        assert shown.startswith(sent(LARGE)[:100_000])
        assert len(shown) < TEXT + 3_000
        assert notice in shown
        assert sent(LARGE)[-40:].strip() in shown


@pytest.mark.kernels
def test_what_a_front_end_gets_is_bounded(url, tmp_path, request):
    """With `--full-size` 100 MB, and 12 MB without it."""
    count = 12_500 if request.config.getoption("--full-size") else 1_500
    asked = {"chunks": count, "size": 8_000}
    with kernel(tmp_path) as it:
        it.run(f"%endpoint connect ep {url}/ep")
        shown = it.run(f"%%endpoint run ep -o job -p chunks={count} -p size=8000\n")
        *texts, rest, footer = data(shown)
        assert it.page.bytes < 6 * TEXT
        assert it.page.size < 3 * TEXT
        text = "".join(bundle["text/plain"] for bundle in texts[1:])  # the first has the strip's place
        assert TEXT - excerpts.NEAR <= size(text) <= TEXT
        assert sent({"chunks": 30, "size": 8_000}).startswith(text)
        left_out = excerpts.in_words(count * 8_000 - size(text))
        assert f"… {left_out} more: `%endpoint export @1 output.txt` writes the whole" in rest["text/plain"]
        assert "COMPLETED" in footer["text/plain"]
        assert it.ask("job._run.streamed.held") == 0
        it.run("%endpoint export @1 output.txt")
        assert (tmp_path / "output.txt").read_text() == sent(asked)
        assert it.ask("sum(len(chunk.output) for chunk in job.chunks())") == count * 8_000
        before = it.page.size
        for kind in ("text", "json", "table", "image"):
            it.run(f"%%endpoint runsync ep -p result={kind} -p size=12000000\n")
        assert it.page.size - before < 3 * 3 * TEXT
        (picture, _) = data(it.run("%endpoint show @5 -f image"))
        assert len(picture["image/png"]) > 11 * MEGABYTE


def test_pieces_are_consecutive():
    """What the other tests compare with is nowhere the same."""
    assert all(a != b for a, b in pairwise(piece(number, 8_000) for number in range(20)))
