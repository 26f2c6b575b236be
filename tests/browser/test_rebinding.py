"""A web page, in a real browser on this machine, that knows everything about an embedded endpoint, its token too."""

from __future__ import annotations

import contextlib
import http.server
import threading
from typing import TYPE_CHECKING, Any

import pytest

from browser.environments import find_chromium
from browser.server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import SimpleNamespace

    from playwright.sync_api import Browser, Page, Route

PAGE = b"<!doctype html><title>evil</title><body>"
# Each way by which a page sends something, and what it learns by it: "" where that is nothing.
TRIES = """
async ([base, token, job]) => {
  const read = async (path, options) => {
    try {
      const answer = await fetch(base + path, options);
      return answer.type === 'opaque' ? '' : `${answer.status} ${await answer.text()}`;
    } catch (error) { return ''; }
  };
  const loads = (tag, more) => new Promise(done => {
    const node = Object.assign(document.createElement(tag), more);
    node.onload = () => done(`loaded ${tag}`);
    node.onerror = () => done('');
    document.body.append(node);
  });
  const opens = (make, event) => new Promise(done => {
    const channel = make();
    channel['on' + event] = () => done(`opened ${event}`);
    channel.onerror = () => { channel.close(); done(''); };
  });
  const key = {Authorization: `Bearer ${token}`};
  const body = JSON.stringify({input: 'from a page'});
  const learnt = {
    read: await read('/abc123/health'),
    readWithKey: await read('/abc123/health', {headers: key}),
    readJob: await read(`/abc123/status/${job}`, {headers: key}),
    readWithCookies: await read('/abc123/requests', {credentials: 'include'}),
    readBlindly: await read('/abc123/requests', {mode: 'no-cors', headers: key}),
    run: await read('/abc123/run', {method: 'POST', body}),
    runWithKey: await read('/abc123/run', {method: 'POST', body, headers: {...key, 'Content-Type': 'application/json'}}),
    runBlindly: await read('/abc123/run', {method: 'POST', body, mode: 'no-cors', headers: key}),
    runByOpenAI: await read('/abc123/openai/v1/chat/completions', {method: 'POST', body: '{}', headers: key}),
    cancel: await read(`/abc123/cancel/${job}`, {method: 'POST', body: '{}', mode: 'no-cors'}),
    purge: await read('/abc123/purge-queue', {method: 'POST', keepalive: true, headers: key}),
    image: await loads('img', {src: base + '/abc123/health'}),
    script: await loads('script', {src: base + '/abc123/requests'}),
    style: await loads('link', {rel: 'stylesheet', href: base + '/abc123/health'}),
    events: await opens(() => new EventSource(`${base}/abc123/stream/${job}`), 'open'),
    socket: await opens(() => new WebSocket(`${base.replace('http', 'ws')}/abc123/health`), 'open'),
  };
  navigator.sendBeacon(base + '/abc123/run', body);
  const form = Object.assign(document.createElement('form'), {method: 'POST', enctype: 'text/plain', target: 'frame',
                                                             action: base + '/abc123/run'});
  form.append(Object.assign(document.createElement('input'), {name: '{"input": "a form", "x": "', value: '"}'}));
  const frame = Object.assign(document.createElement('iframe'), {name: 'frame'});
  document.body.append(frame, form);
  const sent = new Promise(done => { frame.onload = done; });
  form.submit();
  await sent;
  return learnt;
}
"""


ALLOWED = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Content-Type": "text/html",
    "Content-Length": str(len(PAGE)),
}
ARGUMENTS = [
    # All names below evil.example are this machine's.
    "--host-resolver-rules=MAP *.evil.example 127.0.0.1",
    # Newer Chromium keeps strange pages away from this machine by itself; other browsers do not.
    "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",
]


@contextlib.contextmanager
def site() -> Iterator[tuple[str, list[bytes]]]:
    """Somebody's web site that forbids nothing: its port, and what was posted to it."""
    posted: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in ALLOWED.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(PAGE)

        do_OPTIONS = do_GET

        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f":{server.server_port}", posted
        server.shutdown()
        thread.join()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    other = chromium.browser_type.launch(executable_path=find_chromium(), args=ARGUMENTS)
    yield other.new_page()
    other.close()


def assert_unharmed(provider: SimpleNamespace, page: Page, job: str) -> None:
    page.close()
    queue = provider.server.endpoints["abc123"]
    assert list(queue.records) == [job]
    assert queue.records[job].status == "COMPLETED"


@pytest.fixture
def job(provider: SimpleNamespace) -> str:
    import httpx

    headers = {"Authorization": provider.server.token}
    answer = httpx.post(
        f"{provider.url}/abc123/runsync", json={"input": "mine"}, headers=headers, trust_env=False
    )
    return answer.json()["id"]


def test_a_server_that_forbids_nothing_is_read_and_triggered(page: Page) -> None:
    """The ways that the other tests try do lead somewhere."""
    with site() as (port, _), site() as (other_port, posted):
        page.goto(f"http://www.evil.example{port}/")
        learnt = page.evaluate(TRIES, [f"http://127.0.0.1{other_port}", "token", "job"])
        read = {name for name, text in learnt.items() if text}
        assert {"read", "readWithKey", "readJob", "run", "runWithKey", "runByOpenAI", "purge"} <= read
        body = b'{"input":"from a page"}'
        wait_until(lambda: posted.count(body) == 4)  # three calls of fetch, one of sendBeacon
        assert any(body.startswith(b'{"input": "a form"') for body in posted)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "www.evil.example"])
def test_a_page_of_another_origin_reads_and_triggers_nothing(
    provider: SimpleNamespace, page: Page, job: str, host: str
) -> None:
    with site() as (port, _):
        page.goto(f"http://{host}{port}/")
        learnt = page.evaluate(TRIES, [provider.url, provider.server.token, job])
        assert learnt == dict.fromkeys(learnt, "")
        assert_unharmed(provider, page, job)


def test_a_page_whose_own_name_is_pointed_here_reads_and_triggers_nothing(
    provider: SimpleNamespace, page: Page, job: str
) -> None:
    """DNS rebinding: to the browser the endpoint is of the page's origin, so nothing but the name gives it away."""
    origin = f"http://www.evil.example:{provider.server.port}"

    def load(route: Route) -> None:
        route.fulfill(body=PAGE.decode(), content_type="text/html")

    page.route(f"{origin}/", load)  # as long as the name still was the attacker's
    page.goto(f"{origin}/")
    learnt = page.evaluate(TRIES, [f"{origin}/v2", provider.server.token, job])
    refused = '{"error":"this server does not answer for that Host; --allow-host adds one"}'
    assert learnt["readWithKey"] == learnt["readJob"] == learnt["runWithKey"] == f"421 {refused}"
    assert learnt["runByOpenAI"].startswith('421 {"error":{"message":"this server does not answer')
    assert not [text for text in learnt.values() if "mine" in text or "jobs" in text or "opened" in text]
    assert_unharmed(provider, page, job)
