"""The page in a real browser: it lives, the switch is pressed by keyboard, strangers' names do nothing."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gateway_faults import serving

from page_states import HOSTILE as NAMES
from page_states import state, why
from sooner import training
from sooner.gateway.page import html, request_html
from sooner.gateway.page.routes import HEADERS
from sooner.judging import evaluation
from sooner.rankers import Context, conformance, get
from sooner.report import ranker as ranker_page

CHROMIUM = Path("/usr/bin/chromium")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM} (apt install chromium)"
)

HOSTILE = (
    "<script>window.hit=1</script>", "<img src=x onerror='window.hit=1'>",
    "\"><svg onload='window.hit=1'>",
    "</bdi></table><h1 id=planted>x</h1>", "</script><script>window.hit=1</script>", "x" * 3000,
    "&lt;script&gt;", "javascript:window.hit=1", "a\tb", "\xe2\x80\xae gnp.exe",
    "' onmouseover='window.hit=1",
    "<style>body{display:none}</style>", "<iframe srcdoc='<script>parent.hit=1</script>'>", "${window.hit=1}",
    "<a href=javascript:window.hit=1>x</a>", "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example>", "<form action=//evil.example>", "<!--", "]]>",
)  # fmt: skip
PLANTS = "main script, img, iframe, base, svg, #planted, form:not([action^='/'])"
CONTRAST = """() => {
  const light = (rgb) => {
    const [r, g, b] = rgb.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (!color.endsWith(", 0)")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const one of document.querySelectorAll("h1, h2, p, dt, dd, th, td, button, label, li, span, strong")) {
    if (!one.textContent.trim()) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), one.outerHTML.slice(0, 80)]);
  }
  return found.sort((x, y) => x[0] - y[0])[0];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def emulating(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run an emulated engine of two slots in a process of its own; give it and its URL."""
    (folder / "engine.toml").write_text("iteration_s = 0.05\nmax_num_seqs = 2\nnum_blocks = 10000\n")
    engine = ("--emulate", str(folder / "engine.toml"), "--lengths", "40", "--model", "m", "--bare")
    command = [sys.executable, "-m", "sooner", "serve", "--port", "0", *engine]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith(b"serving "))
        yield process, said.split()[-1].decode().removesuffix("/v1")
    finally:
        process.kill()
        process.communicate()


@contextmanager
def gateway(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, subprocess.Popen[bytes]]]:
    """Serve a gateway before an emulated engine, both in processes of their own."""
    with emulating(folder) as (engine, url):
        backend = f'[[backend]]\nurl = "{url}"\nkind = "vllm"\nname = "slow"\nmax_in_flight = 2\n'
        (folder / "gateway.toml").write_text(backend)
        with serving("--config", str(folder / "gateway.toml")) as (process, served):
            yield process, served, engine


def ask(url: str, tenant: str, n: int) -> socket.socket:
    """Send a request without waiting for its reply; the socket keeps it there."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi " * n}], "stream": True})
    sent = socket.create_connection((host, int(port)))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"x-sooner-tenant: {tenant}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    sent.sendall(head.encode("latin-1") + body.encode())
    return sent


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[tuple[Any, str, Any]]:
    with gateway(tmp_path) as (process, url, emulated):
        sockets = [ask(url, tenant, n) for n, tenant in enumerate(HOSTILE * 2, 1)]
        yield process, url, emulated
        for one in sockets:
            one.close()


def until(page: Any, true: str, patience: float = 20.0) -> None:
    """Wait until an expression is true; the page's policy lets no string be run but from outside."""
    end = time.monotonic() + patience
    while not page.evaluate(true):
        assert time.monotonic() < end, true
        page.wait_for_timeout(100)


def watched(browser: Any, url: str, **more: Any) -> tuple[Any, list[str]]:
    """Open the page; return it and all that was wrong or went elsewhere."""
    page = browser.new_page(**more)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
    page.on(
        "request", lambda asked: None if asked.url.startswith((url, "data:")) else wrong.append(asked.url)
    )
    page.goto(f"{url}/sooner/")
    return page, wrong


def test_the_page_lives_and_strangers_names_do_nothing(browser: Any, crowded: tuple[Any, str, Any]) -> None:
    process, url, emulated = crowded
    page, wrong = watched(browser, url, viewport={"width": 1280, "height": 900})
    until(page, "document.querySelectorAll('#queue tbody tr').length > 20")
    finished = "Number(document.getElementById('n-finished').textContent)"
    before = page.evaluate(finished)
    until(page, f"{finished} > {before}")  # with nobody touching it
    names = page.locator("#queue bdi").all_inner_texts()
    assert any("<script>window.hit=1</script>" in name for name in names)
    assert page.evaluate("window.hit") is None
    assert page.locator("#planted, #queue script, #queue img, iframe, base").count() == 0

    # the switch, by keyboard alone
    page.keyboard.press("Tab")
    page.keyboard.type("anna <b>")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Turn ordering off"
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Ordering is off: arrival order.")
    assert "turned off by anna <b> (this machine, 127.0.0.1)" in page.inner_text(".turns")
    assert "by arrival" in page.inner_text("#queue")
    page.click("text=Turn ordering on")
    page.wait_for_selector("text=Ordering is on: boost.")

    # the engine dies, then the gateway
    emulated.kill()
    page.wait_for_selector("#now .down", timeout=20_000)
    assert wrong == []
    process.send_signal(signal.SIGKILL)
    page.wait_for_selector("body.stale", timeout=20_000)
    assert "no news from the gateway since" in page.inner_text("#live")
    page.close()


def test_it_is_read_on_a_telephone_by_day_and_by_night(browser: Any, crowded: tuple[Any, str, Any]) -> None:
    _, url, _ = crowded
    for scheme in ("light", "dark"):
        page, wrong = watched(browser, url, viewport={"width": 390, "height": 800}, color_scheme=scheme)
        until(page, "document.querySelectorAll('#queue tbody tr').length > 20")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, (scheme, where)
        for region in page.locator(".scroll").all():  # what is wider scrolls by keyboard
            assert region.get_attribute("tabindex") == "0"
        assert wrong == []
        page.close()


def test_twenty_pages_of_hostile_names_run_nothing_and_break_nothing(browser: Any) -> None:
    """Each name is everywhere on pages of its own, as they come and as they change, under our policy."""
    static = resources.files("sooner.gateway.page").joinpath("static")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
    shown = ""

    def answer(route: Any) -> None:
        path = route.request.url.removeprefix("http://127.0.0.1:9")
        kind, body = "text/html; charset=utf-8", html.page(state(shown), signed_in=True)
        if path == "/sooner/events":
            told = json.dumps({"at": 1.0, "sections": html.sections(state(shown) | {"waiting": 9_999})})
            kind, body = "text/event-stream; charset=utf-8", f"data: {told}\n\n"
        elif path.startswith("/sooner/requests/"):
            body = request_html.request(why(shown)) + request_html.no_request(shown)
        elif path.startswith("/sooner/static/"):
            kind = "text/css" if path.endswith("css") else "text/javascript"
            body = static.joinpath(path.rpartition("/")[2]).read_text("utf-8")
        elif path != "/sooner/":
            wrong.append(route.request.url)
        route.fulfill(status=200, body=body, headers={**HEADERS, "Content-Type": kind})

    page.route("**/*", answer)
    assert len(NAMES) >= 20
    for shown in NAMES:
        for path in ("/sooner/", "/sooner/requests/r1"):
            page.goto(f"http://127.0.0.1:9{path}")
            if path == "/sooner/":
                until(page, "document.getElementById('n-waiting').textContent.endsWith('999')")
            assert page.evaluate("window.hit") is None, shown[:40]
            assert page.url == f"http://127.0.0.1:9{path}", shown[:40]
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, shown[:40]
            assert page.locator(PLANTS).count() == 0, shown[:40]
            assert page.locator("#queue h2, .words").count() == 1, shown[:40]
    page.close()
    assert wrong == []


def test_the_page_of_a_ranker_is_whole_on_a_telephone(browser: Any) -> None:
    """No table or chart of it is wider than the screen, or scrolls away within itself."""
    prompts, lengths = conformance.rows(60)
    groups = [str(number) for number in range(len(prompts))]
    data = training.Dataset(prompts, np.array(lengths, float), [Context()] * len(prompts), groups)
    told = evaluation.evaluate(get("prompt_length")().fit(*conformance.rows(40)), data)
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_content(ranker_page.html(told | {"tau_by_ranker_part": {"lexical": 0.93, "transformer": 0.41}}))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("svg").count() > 3
    out = page.evaluate(
        """[...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right > 390.5
        || (getComputedStyle(one).overflowX != 'visible' && one.scrollWidth > one.clientWidth + 1))
        .map(one => one.tagName)"""
    )
    assert out == []
    page.close()
