"use strict";
// Takes in what the server rendered, part by part. A part that holds the keyboard's focus waits for its turn.
const live = document.getElementById("live");
let last = 0;

function shown(at) {
  return "as of " + new Date(at * 1000).toISOString().slice(11, 19) + " UTC";
}

const events = new EventSource("/sooner/events");
events.onmessage = (event) => {
  const told = JSON.parse(event.data);
  last = Date.now();
  document.body.classList.remove("stale");
  live.textContent = shown(told.at);
  for (const [id, html] of Object.entries(told.sections)) {
    const part = document.getElementById(id);
    if (part === null || part.dataset.html === html) continue;
    const typing = part.contains(document.activeElement) && document.activeElement.matches("input, button");
    if (typing) continue;
    const scrolled = [...part.querySelectorAll(".scroll")].map((one) => [one.scrollLeft, one === document.activeElement]);
    part.innerHTML = html;
    [...part.querySelectorAll(".scroll")].forEach((one, n) => {
      if (!scrolled[n]) return;
      one.scrollLeft = scrolled[n][0];
      if (scrolled[n][1]) one.focus({ preventScroll: true });
    });
    part.dataset.html = html;
  }
};
setInterval(() => {
  if (last && Date.now() - last > 5000) {
    document.body.classList.add("stale");
    live.textContent = "no news from the gateway since " + new Date(last).toISOString().slice(11, 19) + " UTC";
  }
}, 1000);
