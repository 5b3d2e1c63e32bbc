// Deciding: one of three, as a draft that survives a reload and is never written over somebody else's change.

import { post, cardPath, get } from "./api.js";
import { announce, byId, el, fill, words } from "./dom.js";
import { draftOf, dropDraft, keepDraft } from "./drafts.js";
import { sentence } from "./card.js";

export const KINDS = [
  { name: "amend", kind: "amend anchor", label: "Amend the anchor", because: "the policy is unclear" },
  { name: "precedent", kind: "add precedent", label: "Add a precedent", because: "a case to go by" },
  { name: "correct", kind: "correct label", label: "Correct the label", because: "golden is wrong" },
];

const seenOf = (card) => ({
  revision: card.revision, num_log: card.num_log, anchors: card.anchors, golden: card.golden, grader_id: card.grader_id,
});

function fresh(app, card) {
  const slug = card.query.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 40);
  return {
    name: "", why: "", seen: seenOf(card),
    amend: { grade: card.golden, anchor: card.anchors ? card.anchors[card.golden] : "" },
    precedent: { id: slug || card.pair_id, grades: Object.fromEntries(app.state.dimensions.map((one) => [one.name, card.golden_grades[one.name] ?? ""])), shown: false },
    correct: { grade: card.judge, declare: false },
  };
}

export function drawForm(app, host, conflict = null) {
  const card = app.card;
  const draft = draftOf(card) ?? fresh(app, card);
  const stale = conflict !== null || draft.seen.revision !== card.revision;
  const keep = () => keepDraft(card, draft);
  const redraw = (focus) => {
    drawForm(app, host);
    if (focus) host.querySelector(focus)?.focus();
  };
  const pick = (name) => {
    draft.name = name;
    keep();
    redraw(".fields :is(select, textarea, input)");
  };
  app.pick = (index) => {
    const { name } = KINDS[index];
    if (card.refusals[name]) announce(card.refusals[name]);
    else if (byId("form")?.isConnected) pick(name);
  };
  fill(host,
    stale && conflictPanel(app, card, draft, conflict?.log ?? null, () => {
      draft.seen = seenOf(card);
      keep();
      redraw(draft.name ? ".fields :is(select, textarea, input)" : "input[name=decision]");
    }),
    el("form", { className: "decide", on: { submit: (event) => { event.preventDefault(); if (!stale) write(app, host, card, draft); } } },
      el("fieldset", { className: "kinds" }, el("legend", {}, "Decide"), KINDS.map(({ name, label, because }, index) => el("label", { className: "choice", title: card.refusals[name] ?? "" },
        el("input", { type: "radio", name: "decision", value: name, checked: draft.name === name, disabled: !!card.refusals[name], on: { change: () => pick(name) } }),
        el("kbd", { "aria-hidden": "true" }, String(index + 1)), el("span", { className: "label" }, label), el("span", { className: "quiet" }, card.refusals[name] ?? because)))),
      draft.name && el("div", { className: "fields" }, fields(app, card, draft, keep),
        area("why", "Why", draft.why, (value) => { draft.why = value; keep(); }, draft.name === "precedent" ? "Its reason, as graders and the judge will read it" : "One sentence that a reviewer will read"),
        el("div", { className: "actions" },
          el("button", { type: "submit", className: "primary", disabled: stale, id: "write" }, "Write the change"),
          el("button", { type: "button", on: { click: () => { dropDraft(card); redraw("input[name=decision]"); } } }, "Discard draft"),
          el("span", { className: "quiet", id: "said", role: "status" }, stale ? "Read what changed first." : "")))));
}

function fields(app, card, draft, keep) {
  const grades = card.probs.map((_, grade) => grade);
  const text = (grade) => `${grade} ${app.state.grade_names[grade]}`;
  const choice = (id, label, value, change, options = grades) => el("label", { className: "field" }, el("span", {}, label),
    el("select", { id, on: { change: (event) => { change(event.target.value); keep(); } } },
      value === "" && el("option", { value: "", selected: true }, "grade"),
      options.map((grade) => el("option", { value: String(grade), selected: grade === value }, text(grade)))));
  if (draft.name === "amend") {
    const anchor = area("anchor", "It shall read", draft.amend.anchor, (value) => { draft.amend.anchor = value; keep(); }, "");
    const now = el("p", { className: "now quiet" }, "Now: ", card.anchors[draft.amend.grade]);
    return [choice("amend-grade", "Anchor of", draft.amend.grade, (value) => {
      draft.amend = { grade: Number(value), anchor: card.anchors[value] };
      anchor.querySelector("textarea").value = draft.amend.anchor;
      fill(now, "Now: ", card.anchors[value]);
    }), anchor, now];
  }
  if (draft.name === "correct") {
    return [choice("correct-grade", "Golden shall be", draft.correct.grade, (value) => { draft.correct.grade = Number(value); }, grades.filter((grade) => grade !== card.golden)),
      el("p", { className: "now quiet" }, `Now: ${text(card.golden)}, by ${card.grader_id}. The overall grade follows by the policy's rule; the earlier grade stays in the log.`),
      app.state.graders.length > 0 && el("label", { className: "field check" },
        el("input", { type: "checkbox", id: "declare", checked: draft.correct.declare, on: { change: (event) => { draft.correct.declare = event.target.checked; keep(); } } }),
        el("span", {}, `Declare me as a grader, if I am not (rubric.toml has ${app.state.graders.join(", ")})`))];
  }
  return [
    el("label", { className: "field" }, el("span", {}, "Id"), el("input", { id: "precedent-id", value: draft.precedent.id, maxLength: 80, spellcheck: false, on: { input: (event) => { draft.precedent.id = event.target.value; keep(); } } })),
    el("fieldset", { className: "grid" }, el("legend", {}, "Grades"), app.state.dimensions.map((one) =>
      choice(`grade-${one.name}`, one.title, draft.precedent.grades[one.name], (value) => { draft.precedent.grades[one.name] = Number(value); }))),
    el("label", { className: "field check" }, el("input", { type: "checkbox", id: "precedent-shown", checked: draft.precedent.shown, on: { change: (event) => { draft.precedent.shown = event.target.checked; keep(); } } }),
      el("span", {}, "Show it to the judge in every prompt (all dimensions are judged again)")),
    el("p", { className: "now quiet" }, "The pair leaves golden: what a judge may be shown never measures it."),
  ];
}

function area(id, label, value, change, hint) {
  return el("label", { className: "field wide" }, el("span", {}, label),
    el("textarea", { id, rows: 2, maxLength: 2000, value, placeholder: hint, on: {
      input: (event) => change(event.target.value),
      keydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form.requestSubmit(); },
    } }));
}

function conflictPanel(app, card, draft, log, accept) {
  const seen = draft.seen, changes = [];
  const since = log ?? card.log.filter((entry) => entry.place >= seen.num_log);
  // What the log tells is told in its words; what somebody changed in an editor is told by comparing.
  (seen.anchors ?? []).forEach((anchor, grade) => {
    const told = since.some((entry) => entry.kind === "amend anchor" && entry.grade === grade);
    if (!told && card.anchors && card.anchors[grade] !== anchor) changes.push(el("li", {}, `Anchor ${grade}: `, el("del", {}, anchor), " ", el("ins", {}, card.anchors[grade])));
  });
  if (seen.golden !== card.golden && !since.some((entry) => entry.kind === "correct label")) {
    changes.push(el("li", {}, `Golden: ${seen.golden} by ${seen.grader_id} `, el("ins", {}, `${card.golden} by ${card.grader_id}`)));
  }
  if (!changes.length && !since.length) changes.push(el("li", {}, "The pair's golden line or the question was edited."));
  return el("div", { className: "conflict", role: "alert", id: "conflict" },
    el("h4", {}, "This card has changed since you began. Nothing of yours was written."),
    el("ul", {}, changes, since.map((entry) => el("li", {}, sentence(app, entry)))),
    el("button", { type: "button", id: "accept", on: { click: accept } }, "I have read it: decide again"));
}

async function write(app, host, card, draft) {
  const decider = byId("decider").value.trim();
  const say = (text) => { fill(byId("said"), text); byId("said").className = "bad"; };
  if (!decider) {
    byId("decider").focus();
    return say("Say first who decides, at the top of the page.");
  }
  const { kind } = KINDS.find((one) => one.name === draft.name);
  const content = { kind, pair_id: card.pair_id, dimension: card.dimension, revision: draft.seen.revision, num_log: draft.seen.num_log, decider, why: draft.why, ...draft[draft.name] };
  if (draft.name === "precedent" && Object.values(content.grades).includes("")) return say("A precedent needs a grade on every dimension.");
  byId("write").disabled = true;
  try {
    await post("/api/decisions", content);
  } catch (error) {
    byId("write").disabled = false;
    if (error.status !== 409) return say(error.message);
    announce(error.message);
    if (!error.body.card) {
      dropDraft(card);
      await app.refresh();
      return app.trouble(`${error.message} The card is gone: golden and the judge agree there now, or the pair became a precedent.`);
    }
    app.card = error.body.card;
    await app.refresh({ keepCard: true });
    app.drawCard();
    drawForm(app, byId("form"), { log: error.body.log });
    return byId("accept")?.focus();
  }
  dropDraft(card);
  await app.decided(card, `Written: ${words(kind)}, ${app.titleOf(card.dimension)}.`);
}

export async function freshCard(card) {
  return get(cardPath(card)).catch((error) => {
    if (error.status === 404) return null;
    throw error;
  });
}
