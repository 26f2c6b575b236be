"""What a hostile endpoint sends never executes: live, cut anywhere, final, saved, and converted."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import nbconvert
import nbformat
import pytest
from xss_payloads import BARE, IMG, JS, PAYLOADS, P

from browser.jobs import Jobs
from browser.lab import notebook

HOSTILE = f'''
%load_ext notebook_ext
import asyncio, os, pathlib, sys
sys.path.append({str(Path(__file__).parents[1])!r})
from xss_payloads import PAYLOADS
import notebook_ext.display

GATE = pathlib.Path(os.environ["GATE"])
FILLER = "\\n\\n".join(["Words that fill a block so that what follows begins another one. " * 4] * 5) + "\\n\\n"

def pieces(payloads, way):
    """Payloads as they are, as the contents of fences, or in threes, before and after the end of a block."""
    text = "\\n\\n".join(payloads)
    threes = [text[at : at + 3] for at in range(0, len(text), 3)]
    return {{
        "whole": [text],
        "fenced": [f"```\\n{{payload}}\\n```\\n\\n" for payload in payloads],
        "cut": [FILLER, *threes, "\\n\\n", FILLER, *threes],
    }}[way]

async def hostile(job):
    first, end = job["input"]["part"]
    way = job["input"]["way"]
    parts = pieces([text for _, text in PAYLOADS[first:end]], way)
    for part in parts:
        yield part
        await asyncio.sleep(0.6 / len(parts))  # some five drawings on the way
    while not (GATE / way).exists():
        await asyncio.sleep(0.05)

def run(way, parts):
    if way == "cut":
        notebook_ext.display.LONG_TEXT = notebook_ext.display.BLOCK  # what is long is drawn in pieces
    for part in parts:
        get_ipython().run_line_magic("endpoint", f"run hostile --bg -p way={{way}} -p 'part={{part}}'")

%endpoint serve hostile --handler hostile --workers {len(PAYLOADS)}
'''


@dataclass(frozen=True)
class Way:
    """How payloads are sent.

    Args:
        name: The handler's word for it.
        payloads: How many are in one job.
        jobs: How many are in one cell: JupyterLab folds away what is past 50 outputs.
        places: In how many places of Markdown each job is live at least.
    """

    name: str
    payloads: int
    jobs: int
    places: int

    def cells(self) -> list[list[list[int]]]:
        """The payloads of each job of each cell: the first, and the one after the last."""
        parts = [[at, at + self.payloads] for at in range(0, len(PAYLOADS), self.payloads)]
        return [parts[at : at + self.jobs] for at in range(0, len(parts), self.jobs)]


# One by one, as one may hide another; a fence is to hide all.
WHOLE, FENCED, CUT = Way("whole", 1, 15, 1), Way("fenced", 10, 12, 1), Way("cut", 1, 8, 2)
# All that could act in a page, among what was made from an endpoint's text.
FIND = """() => {
  const found = window.__pwned === undefined ? [] : [`executed ${window.__pwned} times`];
  // JupyterLab draws Mermaid diagrams as such pictures, in which no script runs.
  const isPicture = (node, name, address) =>
    node.localName === 'img' && name === 'src' && address.startsWith('data:image/');
  const active = ['script', 'iframe', 'object', 'embed', 'form', 'base', 'meta', 'link', 'frame'];
  for (const node of document.querySelectorAll('.jp-OutputArea-output *')) {
    if (active.includes(node.localName)) found.push(node.outerHTML);
    for (const {name, value} of node.attributes) {
      const address = value.replace(/[\\u0000-\\u0020]/g, '').toLowerCase();
      if (name.startsWith('on') || name === 'srcdoc' || name.startsWith('data-commandlinker')
          || /^(javascript|vbscript|data):/.test(address) && !isPicture(node, name, address)) found.push(node.outerHTML);
    }
  }
  return found;
}"""
EVERYTHING = "\n\n".join(
    [IMG, BARE, f"<script>{P}</script>", f"[click]({JS})", f"http://x.test/{IMG}", f'"><b {IMG}']
)


def assert_inert(page) -> None:
    page.wait_for_timeout(300)  # an `onerror` comes when its picture could not be loaded
    assert page.evaluate(FIND) == []


def wait_count(lab, cell: int, selector: str, count: int) -> None:
    lab.wait(
        "([i, selector, count]) => lab.output(i)?.querySelectorAll(selector).length >= count",
        [cell, selector, count],
    )


def test_the_search_finds_what_it_searches_for(lab):
    hostile = [f"[click]({JS})", f"<b onclick='{P}'>b</b>", "<form></form>", IMG]
    lab.open(
        notebook(f"from IPython.display import Markdown, display\nfor t in {hostile!r}: display(Markdown(t))")
    )
    lab.run(0)
    lab.wait("() => window.__pwned")
    assert len(lab.evaluate(FIND)) >= 1 + len(hostile)
    lab.evaluate("() => { delete window.__pwned }")


@pytest.mark.parametrize("app", ["lab", "notebook7"])
def test_no_payload_acts_live_or_final_or_saved(request, app, tmp_path):
    lab = request.getfixturevalue(app)
    ways = {"lab": [WHOLE, FENCED, CUT], "notebook7": [WHOLE]}[app]
    contents = [(way, parts) for way in ways for parts in way.cells()]
    together = f"%%endpoint run hostile -p way=whole -p 'part=[0, {len(PAYLOADS)}]'\n"
    jobs = Jobs(
        lab, tmp_path, *(f"run({way.name!r}, {parts})" for way, parts in contents), together, first=HOSTILE
    )
    for way in ways:
        cells = {cell: parts for cell, (of, parts) in enumerate(contents, 1) if of is way}
        for cell in cells:
            lab.run(cell)
        for cell, parts in cells.items():
            wait_count(lab, cell, ".jp-RenderedMarkdown", way.places * len(parts))
        assert_inert(lab.page)
        jobs.let_go(way.name)
        for cell, parts in cells.items():
            lab.wait("([i, n]) => lab.text(i).split('· COMPLETED ·').length > n", [cell, len(parts)])
        assert_inert(lab.page)
    last = len(contents) + 1
    lab.run(last)
    wait_count(lab, last, ".jp-RenderedMarkdown", 1)
    assert_inert(lab.page)
    if app == "lab":
        saved = lab.save()
        lab.open_as_reader(trusted=True)
        wait_count(lab, last, ".jp-RenderedMarkdown", 1)
        assert_inert(lab.page)
        assert_inert_when_converted(lab, saved, tmp_path)


def assert_inert_when_converted(lab, saved, folder: Path) -> None:
    html, _ = nbconvert.HTMLExporter().from_notebook_node(nbformat.reads(json.dumps(saved), as_version=4))
    file = folder / "converted.html"
    file.write_text(html)
    page = lab.page.context.browser.new_page()
    try:
        page.route("http*://**", lambda route: route.abort())
        page.goto(file.as_uri(), wait_until="domcontentloaded")
        assert page.locator(".jp-RenderedMarkdown").count() > len(PAYLOADS)
        assert_inert(page)
    finally:
        page.close()


def test_nothing_that_an_endpoint_says_besides_its_text_acts(lab, tmp_path):
    with hostile_server(tmp_path / "go") as url:
        jobs = Jobs(
            lab,
            tmp_path,
            f"%endpoint run evil --bg -- one {BARE}",
            "%endpoint run evil -- two",
            "%endpoint status @1",
            "%endpoint health evil",
            "%endpoint jobs",
            "%endpoint show @1",
            "%endpoint run evil --debug -- three",
            first=f"%load_ext notebook_ext\n%endpoint connect evil {url}/evil",
        )
        lab.run(1)
        lab.wait("() => document.querySelector('.nbx-strip .nbx-text')?.innerText.includes('onerror')")
        assert_inert(lab.page)
        jobs.let_go()
        lab.wait_text(1, "· FAILED ·")
        for cell in range(2, 8):
            lab.run(cell)
            assert "onerror" in lab.text(cell), cell
        assert_inert(lab.page)
        saved = lab.save()
        assert "onerror" in json.dumps(saved)
        lab.open_as_reader(trusted=True)
        lab.wait_text(2, "· FAILED ·")
        assert_inert(lab.page)


@contextmanager
def hostile_server(gate: Path):
    """A server that puts hostile text wherever its answers have room, and holds its jobs until the gate is there."""
    error = {f"error_{what}": EVERYTHING for what in ("type", "message", "traceback")}
    failed = {
        "status": "FAILED",
        "error": json.dumps({**error, "worker_id": EVERYTHING}),
        "workerId": EVERYTHING,
        "delayTime": 5,
        "executionTime": 7,
    }

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            _, _, _, verb, *rest = unquote(self.path.partition("?")[0]).split("/")
            document = {"id": "/".join(rest) or "job", "status": "IN_PROGRESS", "output": EVERYTHING}
            if verb == "health":
                document = {"jobs": {EVERYTHING: 1, "inQueue": 1}, "workers": {EVERYTHING: 2}}
            elif verb == "run":
                document["status"] = "IN_QUEUE"
            elif verb == "stream" and not gate.exists():
                released.wait(0.3)
                document = {"status": "IN_PROGRESS", "stream": []}
            elif gate.exists():
                document |= failed
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    released = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v2"
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()
