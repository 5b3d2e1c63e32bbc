// The decision log, newest first.

import { get } from "./api.js";
import { byId, el, fill, when } from "./dom.js";
import { sentence } from "./card.js";

export async function drawLog(app) {
  const entries = await get("/api/decisions");
  const waiting = new Set(app.state.waiting.map((entry) => JSON.stringify([entry.at, entry.pair_id, entry.kind])));
  fill(byId("view-log"), el("section", { "aria-labelledby": "log-title" },
    el("div", { className: "section-head" }, el("h2", { id: "log-title" }, "Decisions"), el("p", { className: "quiet" }, "Kept in decisions.jsonl beside the policy. Read the change itself with git diff.")),
    entries.length
      ? el("table", { className: "log" },
        el("thead", {}, el("tr", {}, ["When", "Decision", "Files", "Policy before", "Judged"].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, entries.map((entry) => el("tr", {},
          el("td", {}, when(entry.at)), el("td", {}, sentence(app, entry)), el("td", { className: "quiet" }, entry.files.join(", ")),
          el("td", {}, el("code", {}, entry.policy_version)),
          el("td", {}, waiting.has(JSON.stringify([entry.at, entry.pair_id, entry.kind])) ? "not yet" : "yes")))))
      : el("p", { className: "quiet empty" }, "Nothing has been decided yet.")));
}
