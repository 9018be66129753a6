// What is shown lives in the URL, so that it can be kept, sent and gone back to.

/** The view of an address. What is no whole number of days or no UUID is left to the server, whose refusal is shown. */
export function read(search = location.search) {
  const query = new URLSearchParams(search);
  return {
    days: query.get("days") ?? "30",
    since: query.get("since"),
    until: query.get("until"),
    collection: query.get("collection_id"),
    rank: query.get("rank"),
    search: query.get("q") ?? "",
  };
}

/** The address of a view, relative to the page. */
export function write(view) {
  const query = new URLSearchParams();
  if (view.since) {
    query.set("since", view.since);
  } else {
    query.set("days", view.days);
  }
  if (view.until) query.set("until", view.until);
  if (view.collection) query.set("collection_id", view.collection);
  if (view.rank) query.set("rank", view.rank);
  if (view.search) query.set("q", view.search);
  return `?${query}`;
}

/** What the API is asked. */
export function parameters(view) {
  const query = new URLSearchParams(view.since ? { since: view.since } : { days: view.days });
  if (view.until) query.set("until", view.until);
  if (view.collection) query.set("collection_id", view.collection);
  return query;
}

/** The window in words: "the last 30 days". */
export function windowWords(view) {
  if (view.since) return `${view.since} to ${view.until ?? "now"}`;
  const days = Math.max(1, Math.min(365, Number(view.days) || 30));
  return `the last ${days === 1 ? "day" : `${days} days`}${view.until ? ` until ${view.until}` : ""}`;
}
