// Find a collection by title or id, from anywhere: the combobox of the toolbar (WAI-ARIA's pattern, list with manual choice).

import { byId, el } from "./dom.js";
import { collectionName } from "./collections.js";

const OFFERED = 12;

/** ``known`` resolves to the collections there are, ``choose`` is given one, or null for all of them. */
export function startPicker(known, choose) {
  const input = byId("picker");
  const list = byId("picker-list");
  let offered = [];
  let active = -1;

  const close = () => {
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };

  const pick = (entry) => {
    input.value = "";
    close();
    choose(entry);
  };

  const move = (index) => {
    list.children[active]?.setAttribute("aria-selected", "false");
    active = (index + offered.length) % offered.length;
    list.children[active].setAttribute("aria-selected", "true");
    list.children[active].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", list.children[active].id);
  };

  const offer = async () => {
    const asked = input.value;
    const wanted = asked.trim().toLowerCase();
    const collections = await known();
    if (asked !== input.value || document.activeElement !== input) return;
    const found = collections.filter((entry) => entry.id !== null && entry.key.includes(wanted)).slice(0, OFFERED);
    offered = wanted ? found : [null, ...found];
    active = -1;
    input.removeAttribute("aria-activedescendant");
    list.replaceChildren(...offered.map((entry, index) => el("li", {
      id: `picker-${index}`, role: "option", "aria-selected": "false",
      // Before the blur that a click would cause.
      pointerdown: (event) => { event.preventDefault(); pick(entry); },
    }, entry === null ? "All collections" : collectionName(entry))));
    list.hidden = offered.length === 0;
    input.setAttribute("aria-expanded", String(!list.hidden));
  };

  input.addEventListener("input", offer);
  input.addEventListener("click", offer);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", async (event) => {
    if (event.key === "Escape") {
      if (list.hidden) input.value = "";
      close();
      event.preventDefault();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) await offer();
      if (offered.length) move(active < 0 && event.key === "ArrowUp" ? -1 : active + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key === "Enter" && !list.hidden && offered.length) {
      event.preventDefault();
      if (active >= 0) pick(offered[active]);
      else if (offered.length === 1) pick(offered[0]);
    }
  });
}
