// The receipt in words: how far the numbers can be believed, and how old what they were read from is.

import { ageWords, momentWords } from "./days.js";
import { clip, el } from "./dom.js";
import { count } from "./numbers.js";

export function freshness(receipt) {
  const asOf = new Date(receipt.as_of);
  const parts = [];
  if (receipt.frontier === null) parts.push("rollups not built yet, all of it read from raw events");
  else parts.push(`rollups ${ageWords(asOf - new Date(receipt.frontier))} old`);
  if (receipt.pending_changes) parts.push(`${count(receipt.pending_changes, "late change")} included`);
  const line = el("span", { class: receipt.exact ? "exact" : "inexact" },
    el("strong", {}, receipt.exact ? "Exact" : "Not exact"), " as of ",
    el("time", { datetime: receipt.as_of, title: receipt.as_of }, momentWords(asOf)), `; ${parts.join("; ")}`);
  // Of an exact answer they say why it was slow.
  const notes = receipt.reasons.map((reason) => el("span", { class: receipt.exact ? "reason" : "reason inexact" }, clip(reason, 300)));
  return [line, ...notes];
}
