// The overview refreshes itself. Without this script, the page has to be reloaded by hand.
"use strict";

const live = document.getElementById("live");
const EVERY = 5000;

async function refresh() {
    if (document.hidden) {
        return;
    }
    try {
        const answer = await fetch("/live" + location.search, { cache: "no-store" });
        if (answer.status === 401) {
            location.assign("/login");
        } else if (answer.ok) {
            const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
            live.replaceChildren(...fresh.body.childNodes);
            live.dataset.refreshed = String(Date.now());
        }
    } catch {
        // The coordinator cannot be reached at the moment; the next attempt may succeed.
    }
}

if (live) {
    setInterval(refresh, EVERY);
}
