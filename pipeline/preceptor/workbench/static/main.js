// The page: what it knows, how its parts are drawn again, and its keys.

import { get } from "./api.js";
import { drawAgreement } from "./agreement.js";
import { drawCard } from "./card.js";
import { drawFilters, drawList, lineOf, sameCard, shown } from "./cases.js";
import { announce, byId, el, fill, plural, words } from "./dom.js";
import { keepSetting, ownedBy, setting } from "./drafts.js";
import { freshCard } from "./form.js";
import { drawLog } from "./log.js";
import { drawPolicy } from "./policy.js";
import { drawBeforeAfter, drawWaiting, start } from "./recalibrate.js";

const app = {
  state: null, cells: [], cards: [], results: [], selected: null, card: null, pick: () => {},
  filter: { dimension: "", slice: "", kind: "", open: false },

  titleOf: (name) => app.state.dimensions.find((one) => one.name === name)?.title ?? words(name[0].toUpperCase() + name.slice(1)),
  drawCard: () => drawCard(app),

  trouble(text) {
    byId("trouble").hidden = !text;
    fill(byId("trouble"), text && [el("span", {}, text), el("button", { type: "button", on: { click: () => app.trouble("") } }, "Dismiss")]);
  },

  async refresh({ keepCard = false } = {}) {
    try {
      const [state, cells, cards, recalibrations] = await Promise.all(["state", "agreement", "cards", "recalibrations"].map((name) => get(`/api/${name}`)));
      Object.assign(app, { state, cells, cards, results: recalibrations.results });
      app.trouble("");
    } catch (error) {
      return app.trouble(error.message);
    }
    ownedBy(app.state.policy_id);
    drawHead();
    drawWaiting(app);
    drawBeforeAfter(app);
    drawAgreement(app);
    drawFilters(app);
    drawList(app);
    if (!keepCard) await app.select(app.cards.find((card) => sameCard(card, app.selected)) ?? shown(app)[0] ?? null, { quiet: true });
  },

  async choose(filter) {
    Object.assign(app.filter, filter);
    const focused = document.activeElement;
    const again = focused?.classList.contains("cell") ? `.cell[data-dimension="${focused.dataset.dimension}"][data-slice="${focused.dataset.slice}"]` : focused?.id && `#${focused.id}`;
    drawAgreement(app);
    drawFilters(app);
    const cards = shown(app);
    if (!cards.some((card) => sameCard(card, app.selected))) await app.select(cards[0] ?? null, { quiet: true });
    drawList(app);
    if (again) document.querySelector(again)?.focus({ preventScroll: true });
    announce(plural(cards.length, "card"));
  },

  async select(card, { quiet = false } = {}) {
    app.selected = card;
    remember();
    drawList(app);
    try {
      const found = card && await freshCard(card);
      if (!sameCard(card, app.selected) && card !== app.selected) return;
      app.card = found;
    } catch (error) {
      return app.trouble(error.message);
    }
    app.drawCard();
    if (quiet || !card) return;
    lineOf(card)?.focus({ preventScroll: true });
    const cards = shown(app);
    announce(`Card ${cards.findIndex((one) => sameCard(one, card)) + 1} of ${cards.length}: ${app.titleOf(card.dimension)}, golden ${card.golden}, judge ${card.judge}`);
  },

  open(card) {
    const found = app.cards.find((one) => sameCard(one, card));
    if (found && !shown(app).includes(found)) Object.assign(app.filter, { dimension: "", slice: "", kind: "", open: false });
    drawAgreement(app);
    drawFilters(app);
    return found && app.select(found);
  },

  async decided(card, text) {
    const cards = shown(app);
    const place = cards.findIndex((one) => sameCard(one, card));
    const next = cards[place + 1] ?? cards[place - 1] ?? null;
    app.selected = next;
    await app.refresh();
    lineOf(app.selected)?.focus({ preventScroll: true });
    announce(text);
    app.said = text;
  },
};

function drawHead() {
  const { state } = app;
  fill(byId("identity"), `${state.name} `, el("code", {}, state.policy_version));
  const { error, warning } = state.findings;
  fill(byId("lint-count"), error || warning ? `${plural(error, "error")}, ${plural(warning, "warning")}` : "clean");
  byId("lint-count").classList.toggle("bad", error > 0);
  fill(byId("log-count"), state.waiting.length ? `${state.waiting.length} new` : "");
}

function remember() {
  const card = app.selected;
  sessionStorage.setItem("preceptor-card", JSON.stringify(card && { pair_id: card.pair_id, dimension: card.dimension }));
}

async function step(by) {
  const cards = shown(app);
  if (!cards.length) return;
  const at = cards.findIndex((card) => sameCard(card, app.selected));
  await app.select(cards[Math.min(cards.length - 1, Math.max(0, at + by))]);
}

async function show() {
  const view = ["policy", "log"].find((name) => location.hash === `#${name}`) ?? "decide";
  for (const name of ["decide", "policy", "log"]) byId(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    if (view === "policy") await drawPolicy(app);
    if (view === "log") await drawLog(app);
  } catch (error) {
    app.trouble(error.message);
  }
}

function keys(event) {
  const help = byId("help");
  const typing = event.target.closest("input:not([type=radio], [type=checkbox]), textarea, select");
  if (event.key === "Escape" && typing) return lineOf(app.selected)?.focus();
  if (typing || help.open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") return help.showModal();
  if (!byId("single-keys").checked || byId("view-decide").hidden) return;
  const run = { j: () => step(1), k: () => step(-1), 1: () => app.pick(0), 2: () => app.pick(1), 3: () => app.pick(2) }[event.key];
  if (run) {
    event.preventDefault();
    run();
  }
}

byId("decider").value = setting("decider", "");
byId("decider").addEventListener("input", (event) => keepSetting("decider", event.target.value));
byId("single-keys").checked = setting("single-keys", "on") === "on";
byId("single-keys").addEventListener("change", (event) => keepSetting("single-keys", event.target.checked ? "on" : "off"));
byId("help-button").addEventListener("click", () => byId("help").showModal());
byId("recalibrate").addEventListener("click", () => start(app));
document.addEventListener("keydown", keys);
window.addEventListener("hashchange", show);

app.selected = JSON.parse(sessionStorage.getItem("preceptor-card") ?? "null");
await app.refresh();
await show();
document.body.dataset.ready = "true";
