// The overview refreshes itself. Without this script one reloads the page.
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
        // The coordinator is away for a moment; the next try may find it.
    }
}

if (live) {
    setInterval(refresh, EVERY);
}
