// The list of disagreements: filters, selection, and what stands on each line.

import { byId, el, fill, plural, words } from "./dom.js";

export function shown(app) {
  const { dimension, slice, kind, open } = app.filter;
  return app.cards.filter((card) =>
    (!dimension || card.dimension === dimension) && (!slice || card.slice === slice)
    && (!kind || card.kind === kind) && (!open || !card.decided.length));
}

export const sameCard = (one, other) => !!one && !!other && one.pair_id === other.pair_id && one.dimension === other.dimension;

export function drawFilters(app) {
  const distinct = (name) => [...new Set(app.cards.map((card) => card[name]))].filter(Boolean).sort();
  const kinds = distinct("kind");
  const select = (name, label, options, text) => el("label", {}, `${label} `, el("select", {
    id: `filter-${name}`, on: { change: (event) => app.choose({ [name]: event.target.value }) },
  }, el("option", { value: "" }, "all"), options.map((value) => el("option", { value, selected: app.filter[name] === value }, text(value)))));
  fill(byId("filters"),
    select("dimension", "Dimension", distinct("dimension"), app.titleOf),
    select("slice", "Slice", distinct("slice"), words),
    kinds.length > 0 && select("kind", "Worklist", kinds, (kind) => kind),
    el("label", {}, el("input", { type: "checkbox", id: "filter-open", checked: app.filter.open, on: { change: (event) => app.choose({ open: event.target.checked }) } }), " undecided only"),
    el("span", { className: "quiet", id: "num-shown" }, plural(shown(app).length, "card")));
}

export function drawList(app) {
  const cards = shown(app);
  if (!cards.length) {
    fill(byId("list"), el("p", { className: "quiet empty" }, app.cards.length ? "No card passes these filters." : "Golden and the judge agree everywhere."));
    return;
  }
  fill(byId("list"), el("ol", { "aria-label": "Disagreements" }, cards.map((card) => el("li", {}, el("button", {
    type: "button", className: "line", data: { pair: card.pair_id, dimension: card.dimension },
    "aria-current": sameCard(card, app.selected) ? "true" : undefined,
    on: { click: () => app.select(card) },
  },
    el("span", { className: "grades" }, el("b", {}, String(card.golden)), el("span", { className: "arrow", "aria-hidden": "true" }, "→"), el("span", { className: "sr" }, " golden, judge "), el("b", {}, String(card.judge))),
    el("span", { className: "line-title" }, app.titleOf(card.dimension), el("span", { className: "quiet" }, ` ${words(card.slice)}`)),
    el("span", { className: "line-query" }, card.query || "(empty query)"),
    el("span", { className: "tags" },
      card.decided.map((kind) => el("span", { className: "tag done" }, `✓ ${kind}`)),
      card.reworded && !card.decided.length && el("span", { className: "tag" }, "reworded"),
      card.kind && el("span", { className: "tag kind" }, card.kind)))))));
  revealLine(app.selected);
}

export function lineOf(card) {
  return card && byId("list").querySelector(`[data-pair="${CSS.escape(card.pair_id)}"][data-dimension="${CSS.escape(card.dimension)}"]`);
}

export function revealLine(card) {
  const line = lineOf(card), list = byId("list");
  if (!line) return;
  // Only the list scrolls: scrollIntoView would move the page under the reader.
  const top = line.offsetTop - list.offsetTop;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + line.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + line.offsetHeight - list.clientHeight;
}
