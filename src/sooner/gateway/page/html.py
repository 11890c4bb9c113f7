"""The page as HTML, from plain data: made here only, so that what strangers wrote is escaped here only."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from sooner.gateway.page.words import UNKNOWN, count, name, plain, seconds, share

_REFUSED = {
    "refused_full": "room full",
    "refused_wait": "would wait too long",
    "refused_down": "no engine up",
    "refused_deadline": "deadline out of reach",
    "refused_limit": "over a tenant's limit",
    "refused_key": "key revoked meanwhile",
    "refused_bytes": "bodies fill the memory",
}


def page(state: Mapping[str, Any], *, signed_in: bool) -> str:
    """Return the whole page."""
    parts = "".join(
        f'<section id="{key}" aria-live="off">{text}</section>' for key, text in sections(state).items()
    )
    out = '<form method="post" action="/sooner/logout"><button class="quiet">Sign out</button></form>'
    return document(
        "sooner",
        f'<header><h1>sooner</h1><p id="live" role="status">as of {_clock(state["at"])}</p>'
        f"{out if signed_in else ''}</header>{parts}",
        live=True,
    )


def sign_in(failed: bool) -> str:
    """Return the page that asks for the admin key."""
    told = '<p class="bad" role="alert">That is not the admin key.</p>' if failed else ""
    return document(
        "sooner: sign in",
        f'<header><h1>sooner</h1></header><section><h2>Sign in</h2>{told}<form method="post"'
        ' action="/sooner/login"><label>Admin key <input name="key" type="password"'
        ' autocomplete="current-password" required autofocus></label> <button>Sign in</button></form>'
        "</section>",
    )


def document(title: str, body: str, *, live: bool = False) -> str:
    """Return a whole page; a `live` one takes in what changes."""
    script = '<script src="/sooner/static/page.js" defer></script>' if live else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>"
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/sooner/static/page.css">'
        f"{script}</head><body><main>{body}</main></body></html>"
    )


def sections(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the parts of the page that change, by their id."""
    return {
        "switch": _switch(state["ordering"]),
        "worth": _worth(state["worth"]),
        "now": _now(state),
        "queue": _queue(state["queue"], state["waiting"]),
        "hour": _past(state["hour"], state["day"], state["slo"]),
        "tenants": _tenants(state["tenants"]),
        "truth": _truth(state["truth"]),
        "learned": _learned(state["learned"])
        + _shadow("Shadow", state["shadow"], "requests", "replies")
        + _shadow("Shadow policy", state["shadow_policy"], "pairs", "pairs that waited together"),
    }


def _switch(ordering: Mapping[str, Any]) -> str:
    on = ordering["on"]
    policy = html.escape(plain(ordering["policy"]))
    said = (
        f"Ordering is <strong>on</strong>: {policy}."
        if on
        else "Ordering is <strong>off</strong>: arrival order."
    )
    turns = "".join(
        f"<li>{_clock(turn['when'], day=True)} turned {_on(turn['on'])} by {name(turn['by'], 120)}</li>"
        for turn in ordering["turns"][:5]
    )
    log = f'<ol class="turns" aria-label="Who turned it">{turns}</ol>' if turns else ""
    return (
        f'<h2 class="sr">Ordering</h2><div class="row"><p class="state {"on" if on else "off"}">{said}</p>'
        '<form method="post" action="/sooner/v1/switch">'
        f'<input type="hidden" name="on" value="{"false" if on else "true"}">'
        '<label>Your name, for the log <input name="by" maxlength="64" autocomplete="name"></label>'
        f'<button class="{"danger" if on else "go"}">Turn ordering {_on(not on)}</button></form></div>{log}'
    )


def _worth(worth: Mapping[str, Any]) -> str:
    """Return what arrival order would have done, or why that is not known."""
    title, answer = "<h2>Was it worth it?</h2>", worth["answer"]
    if answer is None:
        told = f"Nobody asks: {worth['off']}." if worth["off"] else "The journal is asked soon."
        return f'{title}<p class="hint">{html.escape(told)}</p>'
    when = _clock(answer["at"], day=True)
    if "none" in answer:
        return f'{title}<p>No claim: {name(answer["none"], 300)}.</p><p class="hint">Asked {when}.</p>'
    rows = [
        (
            name(loss["tenant"]),
            count(loss["requests"]),
            count(loss["lost"]),
            seconds(loss["mean_extra"]),
            seconds(loss["worst_extra"]),
            _change(loss["mean_change"]),
        )
        for loss in answer["lost"]
    ]
    head = ("Tenant", "Requests", "Waited longer", "by, mean", "at worst", "Mean wait of all its")
    return (
        f'{title}<p class="told">{html.escape(answer["sentence"])}</p>'
        f'<p class="hint">Against order of arrival, {count(answer["requests"])} requests since'
        f" {_clock(answer['since'], day=True)} under {html.escape(plain(answer['served']))}, as of {when}."
        " What is smaller than the error of the replay is not claimed.</p>"
        + table("Who waited longer than in order of arrival", head, rows, answer["lost_more"])
    )


def _change(value: float) -> str:
    return f"{seconds(abs(value))} {'longer' if value > 0 else 'shorter'}"


def _on(on: bool) -> str:
    return "on" if on else "off"


def _now(state: Mapping[str, Any]) -> str:
    engines = state["engines"]
    engine_table = table(
        "Engines",
        ("Engine", "State", "Running", "Waits inside", "KV memory"),
        [
            (
                name(engine["name"]),
                f'<span class="{engine["state"]}">{engine["state"]}</span>',
                f"{count(engine['running'])} of {count(engine['limit'])}",
                count(engine["waiting_inside"]),
                share(engine["kv"]),
            )
            for engine in engines["rows"]
        ],
        engines["more"],
    )
    total = state["total"]
    return (
        "<h2>Now</h2>"
        + _tiles(
            ("waiting", "Waiting", count(state["waiting"])),
            ("running", "Running", count(state["running"])),
            ("requests", "Requests since the start", count(total["requests"])),
            ("finished", "Finished since the start", count(total["finished"])),
            ("errors", "Engine failures since the start", count(total["upstream_errors"])),
        )
        + engine_table
    )


def _queue(queue: Mapping[str, Any], waiting: int) -> str:
    if not queue["rows"]:
        return "<h2>Queue</h2><p>Nobody waits.</p>"
    rows = [
        (
            count(request["position"]),
            html.escape(request["reason"]),
            seconds(request["waited_s"]),
            seconds(request["eta_s"]),
            count(request["prompt_tokens"]),
            count(request["reply_tokens"]),
            name(request["tenant"]),
            f'<a href="/sooner/requests/{quote(request["id"], safe="")}">{name(request["id"])}</a>',
        )
        for request in queue["rows"]
    ]
    head = ("Place", "Why this place", "Waited", "Starts in", "Prompt", "Reply, about", "Tenant", "Request")
    return "<h2>Queue, in order</h2>" + table("Waiting requests", head, rows, queue["more"], text=(1, 6, 7))


def _past(hour: Mapping[str, Any], day: Mapping[str, Any], slo: Mapping[str, Any]) -> str:
    """Return the last hour beside the last day."""
    both = (hour, day)
    times = [
        (words, *(seconds(seen[key][q]) for seen in both for q in ("p50", "p90", "p99")))
        for key, words in (
            ("wait", "Wait in the queue"),
            ("ttft", "Time to first token"),
            ("e2e", "Whole reply"),
        )
    ]
    counts = [
        ("Replies", *(count(seen["requests"]) for seen in both)),
        ("in time", *(share(seen["in_time"] / max(seen["requests"], 1)) for seen in both)),
        ("Replies a second", *(f"{seen['per_second']:.2f}" for seen in both)),
        ("in time, a second (goodput)", *(f"{seen['goodput']:.2f}" for seen in both)),
        ("Reply tokens a second", *(count(seen["tokens_per_second"]) for seen in both)),
        ("Cut off", *(count(seen["cut"]) for seen in both)),
        ("Errors of engines", *(count(seen["failed"]) for seen in both)),
        ("Refused", *(count(sum(seen["refused"].values())) for seen in both)),
        *(
            (words, *(count(seen["refused"].get(name, 0)) for seen in both))
            for name, words in _REFUSED.items()
            if any(seen["refused"].get(name) for seen in both)
        ),
    ]
    spans = [
        f"last {words}" if seen["length_s"] > 0.99 * whole else f"{words} so far, {seconds(seen['length_s'])}"
        for words, whole, seen in (("hour", 3600.0, hour), ("day", 86_400.0, day))
    ]
    head = ("", *(f"P{q}, {words}" for words in ("hour", "day") for q in (50, 90, 99)))
    return (
        "<h2>Last hour and day</h2>"
        + _tiles(
            ("hour-requests", f"Replies, {spans[0]}", count(hour["requests"])),
            ("goodput", "In time, a second", f"{hour['goodput']:.2f}"),
            ("hour-wait", "P50 of the wait", seconds(hour["wait"]["p50"])),
            ("hour-e2e", "P99 of the reply", seconds(hour["e2e"]["p99"])),
            ("refused", "Refused", count(sum(hour["refused"].values()))),
        )
        + table("Times", head, times)
        + table("Counts", ("", *spans), counts)
        + f'<p class="hint">In time: the first token within {seconds(slo["ttft_s"])}, the end within'
        f" {seconds(slo['ttft_s'])} and {seconds(slo['tpot_s'])} a token ([slo] in the settings).</p>"
    )


def _tenants(tenants: Mapping[str, Any]) -> str:
    rows = [
        (
            name(tenant["name"]),
            f"{share(tenant['share'])} {_meter(tenant['share'])}",
            share(tenant["fair_share"]),
            count(tenant["requests"]),
            count(tenant["waiting"]),
            seconds(tenant["mean_wait_s"]),
        )
        for tenant in tenants["rows"]
    ]
    if not rows:
        return "<h2>Tenants</h2><p>No request yet.</p>"
    head = ("Tenant", "Had of the work", "Fair share", "Replies", "Waiting", "Mean wait")
    return "<h2>Tenants, last hour</h2>" + table("Tenants", head, rows, tenants["more"])


def _truth(truth: Mapping[str, Any]) -> str:
    if truth["ratio"] is None:
        told = f"{count(truth['judged'])} predicted replies so far; they are judged from 20 on."
        return f"<h2>Predictions</h2><p>{told}</p>"
    tau = UNKNOWN if truth["tau"] is None else f"{truth['tau']:.2f}"
    rows = [
        (words, count(group["predicted"]), count(group["real"]), count(group["requests"]))
        for words, group in zip(
            ("Shortest quarter", "Second", "Third", "Longest quarter"), truth["groups"], strict=True
        )
    ]
    return (
        "<h2>Predictions</h2>"
        + _tiles(
            ("tau", "Kendall's tau with the truth", tau),
            ("ratio", "Predicted over real tokens", f"{truth['ratio']:.2f}"),
            ("judged", "Latest replies judged", count(truth["judged"])),
        )
        + table("Predicted and real", ("By prediction", "Predicted tokens", "Real tokens", "Replies"), rows)
    )


def _learned(standings: Sequence[Mapping[str, Any]]) -> str:
    if not standings:
        return "<h2>Learned order</h2><p>Nothing is learned yet, or learning is off.</p>"
    rows = [
        (
            html.escape(standing["of"])
            + ("" if standing["of"] == "all" else f" {html.escape(standing['group'][:8])}"),
            _on(standing["on"]),
            UNKNOWN
            if standing["tau"] is None
            else f"{standing['tau']:.2f} ± {standing['tau_error'] or 0.0:.2f}",
            share(standing["gain"]),
            count(standing["seen"]),
            count(standing["alarms"]),
        )
        for standing in standings
    ]
    head = ("Of", "Order", "Kendall's tau", "Expected gain", "Replies", "Drift alarms")
    return "<h2>Learned order, of all and by model and sender</h2>" + table("Learned order", head, rows)


def _shadow(title: str, state: Mapping[str, Any] | None, compared: str, words_of: str) -> str:
    """Return the order that acts beside the one that watches, where there is one."""
    if state is None:
        return ""

    def sure(value: float | None, error: float | None) -> str:
        return UNKNOWN if value is None or error is None else f"{value:.2f} ± {error:.2f}"

    rows = [
        (
            words + (f" {name(state[key])}" if key in state else ""),
            sure(state[f"{key}_tau"], state[f"{key}_tau_error"]),
            sure(state[f"{key}_gain"], state[f"{key}_gain_error"]),
        )
        for key, words in (("acting", "Acts:"), ("shadow", "Watches:"), ("better", "Would be better by"))
    ]
    return f"<h3>{title}, over {count(state[compared])} {words_of}</h3>" + table(
        title, ("Order", "Kendall's tau", "Expected gain"), rows
    )


def _tiles(*tiles: tuple[str, str, str]) -> str:
    return '<dl class="tiles">' + "".join(
        f'<div><dt>{words}</dt><dd id="n-{key}">{value}</dd></div>' for key, words, value in tiles
    ) + "</dl>"  # fmt: skip


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], more: int = 0, text: Sequence[int] = ()
) -> str:
    """Return a table of cells that are HTML; `text` are columns of words, which are not numbers."""

    def cells(row: Sequence[str]) -> str:
        others = "".join(
            f'<td class="text">{cell}</td>' if at in text else f"<td>{cell}</td>"
            for at, cell in enumerate(row[1:], 1)
        )
        return f'<tr><th scope="row">{row[0]}</th>{others}</tr>'

    columns = "".join(
        f'<th scope="col"{" class=text" if at in text else ""}>{words}</th>' for at, words in enumerate(head)
    )
    body = "".join(map(cells, rows))
    note = f'<p class="hint">and {count(more)} more</p>' if more else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table><caption class="sr">'
        f"{caption}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>{note}"
    )


def _meter(value: float) -> str:
    return f'<meter min="0" max="1" value="{min(max(value, 0.0), 1.0):.3f}" aria-hidden="true"></meter>'


def _clock(when: float, *, day: bool = False) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC" if day else "%H:%M:%S UTC", time.gmtime(when))
