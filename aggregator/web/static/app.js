// The page: an address is read, the server is asked, one of the states is shown.

import * as address from "./address.js";
import { aiTables } from "./ai.js";
import { Refused, forgetToken, get, hasToken, keepToken, takeToken } from "./api.js";
import { charts } from "./chart.js";
import { collectionName, collectionsOf, showCollections } from "./collections.js";
import { byId, el } from "./dom.js";
import { freshness } from "./freshness.js";
import { startPicker } from "./picker.js";
import { seriesOf } from "./series.js";
import { totalCards } from "./totals.js";

const PANELS = ["waiting", "message", "token-panel", "numbers"];
const OVERVIEW = "../usage";
const TOTALS = "totals";

let asking = null;
let view = address.read();
let directory = null;
let drawn = false;

function panel(name) {
  for (const id of PANELS) byId(id).hidden = id !== name;
  if (name !== "numbers") drawn = false;
  const known = name === "numbers" || name === "waiting" || name === "message";
  byId("toolbar").hidden = !known;
  byId("reload").hidden = !known;
  byId("scope").hidden = !known;
  byId("forget").hidden = !hasToken();
}

const announce = (text) => byId("announce").replaceChildren(text);

/** Follow a link within the page; one that is to open elsewhere is left to the browser. */
function go(event, target) {
  if (event?.ctrlKey || event?.metaKey || event?.shiftKey || event?.altKey || event?.button > 0) return;
  event?.preventDefault();
  const moved = target.collection !== view.collection;
  history.pushState(null, "", address.write(target));
  show({ focus: moved });
}

/** Ask for the view of the address and show it. */
async function show({ focus = false } = {}) {
  view = address.read();
  controls();
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  if (drawn) byId("main").setAttribute("aria-busy", "true");
  else panel("waiting");
  announce("Loading");
  try {
    const answers = await load(signal);
    draw(answers);
  } catch (error) {
    if (signal.aborted) return;
    refused(error);
  }
  byId("main").removeAttribute("aria-busy");
  if (focus && drawn) {
    window.scrollTo(0, 0);
    byId("heading").focus({ preventScroll: true });
  }
}

async function load(signal) {
  const asked = (extra) => {
    const query = address.parameters(view);
    for (const [key, value] of Object.entries(extra)) query.set(key, value);
    return query;
  };
  const [overview, totals, daily] = await Promise.all([
    get(OVERVIEW, asked({ receipt: "true" }), signal),
    get(TOTALS, asked({ by: "resource_type", grain: "none", fill: "true" }), signal),
    get(TOTALS, asked({ by: "resource_type", grain: "day", fill: "true" }), signal),
  ]);
  return { overview, totals: rowsOf(totals), daily: rowsOf(daily) };
}

const rowsOf = (answer) => (Array.isArray(answer) ? answer : answer.rows ?? answer.totals);

function draw({ overview, totals, daily }) {
  const { receipt } = overview;
  const collections = collectionsOf(overview.by_collection);
  if (view.collection === null) directory = collections;
  byId("freshness").replaceChildren(...freshness(receipt));
  scope(collections);
  if (overview.by_collection.length === 0) {
    message(`No usage in ${address.windowWords(view)}`,
      view.collection === null ? "Nothing was counted in this window." : "Nothing of this collection was counted in this window.",
      [...(view.collection === null ? [] : [link("All collections", { ...view, collection: null })]),
        ...(view.days === "365" && !view.since ? [] : [link("The last 365 days", { ...view, days: "365", since: null, until: null })])]);
    announce(`No usage in ${address.windowWords(view)}`);
    return;
  }
  const ordered = [...totals].sort((a, b) => order(a.resource_type, b.resource_type));
  const before = view.since ? "the window before" : `the ${view.days === "1" ? "day" : `${view.days} days`} before`;
  byId("compared").replaceChildren(totals.some((row) => row.event_count_before !== null) ? `▲▼ change on ${before}` : "");
  byId("totals").replaceChildren(...totalCards(ordered, before));
  byId("charts").replaceChildren(...charts(seriesOf(daily, ordered, view, Date.parse(receipt.as_of))));
  byId("collections").hidden = view.collection !== null;
  if (view.collection === null) {
    showCollections(collections, ordered, view, {
      go,
      changed: (state) => {
        view = state;
        history.replaceState(null, "", address.write(state));
        controls();
      },
    });
  }
  byId("ai").hidden = overview.ai_drilldown.length === 0;
  byId("ai-tables").replaceChildren(...aiTables(overview.ai_drilldown));
  panel("numbers");
  drawn = true;
  announce(`Showing ${address.windowWords(view)}`);
}

const order = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -1 : 1);

const link = (text, target) => el("a", { href: address.write(target), click: (event) => go(event, target) }, text);

function scope(collections = []) {
  const words = address.windowWords(view);
  document.title = `Usage, ${words}`;
  const all = link("All collections", { ...view, collection: null });
  if (view.collection === null) {
    byId("scope").replaceChildren(`All collections, ${words}`);
    return;
  }
  const found = [...collections, ...(directory ?? [])].find((one) => one.id === view.collection);
  byId("scope").replaceChildren(all, "›", el("strong", { class: "clip" }, collectionName(found ?? { id: view.collection, title: null })), `· ${words}`);
}

function controls() {
  for (const anchor of byId("windows").children) {
    const target = { ...view, days: anchor.dataset.days, since: null, until: null };
    anchor.href = address.write(target);
    if (!view.since && !view.until && anchor.dataset.days === view.days) anchor.setAttribute("aria-current", "true");
    else anchor.removeAttribute("aria-current");
  }
  byId("days").value = !view.since && /^[0-9]+$/.test(view.days) ? view.days : "";
  scope();
}

function message(title, text, actions) {
  byId("message-title").replaceChildren(title);
  byId("message-text").replaceChildren(text);
  byId("message-actions").replaceChildren(...actions);
  panel("message");
}

function refused(error) {
  byId("freshness").replaceChildren();
  if (error instanceof Refused && error.status === 401) {
    const had = hasToken();
    forgetToken();
    askToken(had ? "The token was not accepted: it may have expired. Please give another." : "This page shows the usage of all collections to their owners and admins.");
    return;
  }
  const again = el("button", { type: "button", click: () => show() }, "Try again");
  const other = el("button", { type: "button", class: "quiet", click: forget }, "Use another token");
  const status = error instanceof Refused ? error.status : -1;
  const said = error instanceof Refused ? error.message : "";
  if (status === 403) {
    message("No access", "This page is for owners and admins of a collection, and the token's user is neither. Ask one of them to make you an admin.", [again, other]);
    byId("toolbar").hidden = true;
    byId("scope").hidden = true;
  } else if (status === 400) {
    message("The server cannot answer this address", said, [link("Back to the last 30 days", address.read(""))]);
    byId("scope").hidden = true;
  } else if (status === 503) {
    message("The server is busy", "Too many are asking at once. Try again in a moment.", [again]);
  } else if (status === 0) {
    message("The numbers could not be read", said, [again]);
  } else {
    if (status === -1) console.error(error);
    message("The numbers could not be read", "Something failed on the server. The numbers themselves are safe.", [again]);
  }
  announce(byId("message-title").textContent);
  byId("message-title").focus({ preventScroll: true });
}

function askToken(text) {
  byId("token-text").replaceChildren(text);
  panel("token-panel");
  byId("token").value = "";
  byId("token").focus();
}

function forget() {
  forgetToken();
  asking?.abort();
  directory = null;
  byId("freshness").replaceChildren();
  byId("numbers").querySelectorAll("#totals, #charts, #ranking, #ai-tables").forEach((part) => part.replaceChildren());
  askToken("The token was forgotten, and the numbers are gone from this tab.");
}

/** The collections of the window, once: the page has them already, unless it was opened on a single one. */
async function known() {
  if (directory === null) {
    const query = address.parameters({ ...view, collection: null });
    query.set("by", "collection");
    directory = collectionsOf(rowsOf(await get(TOTALS, query)));
  }
  return directory;
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (byId("token").value.trim() === "") return;
  keepToken(byId("token").value);
  byId("token").value = "";
  show({ focus: true });
});
byId("days-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const days = Math.max(1, Math.min(365, Math.trunc(byId("days").valueAsNumber)));
  if (Number.isNaN(days)) byId("days").value = view.days;
  else go(null, { ...view, days: String(days), since: null, until: null });
});
byId("windows").addEventListener("click", (event) => {
  const days = event.target.dataset?.days;
  if (days) go(event, { ...view, days, since: null, until: null });
});
byId("reload").addEventListener("click", () => show());
byId("forget").addEventListener("click", forget);
// The skip link moves through the history as well, and asks for nothing.
window.addEventListener("popstate", () => address.write(address.read()) !== address.write(view) && show());
window.addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#token=")) return;
  takeToken();
  show();
});
startPicker(known, (entry) => go(null, { ...view, collection: entry?.id ?? null, search: "" }));

takeToken();
show();
