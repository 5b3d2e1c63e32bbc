// One disagreement: the pair, what golden and the judge say of it, the anchors between them, and what was decided.

import { byId, el, fill, percent, signed, when, words } from "./dom.js";
import { drawForm } from "./form.js";

export function drawCard(app) {
  const card = app.card;
  if (!card) return fill(byId("card"), el("p", { className: "quiet empty" }, "Choose a card."));
  const name = (grade) => app.state.grade_names[grade];
  const apart = Math.abs(card.golden - card.judge);
  fill(byId("card"), el("article", { "aria-labelledby": "card-title", id: "card-article", tabIndex: -1 },
    el("header", { className: "card-head" },
      el("h3", { id: "card-title" }, app.titleOf(card.dimension), el("span", { className: "quiet" }, ` ${words(card.slice)}`)),
      el("p", { className: "verdict" },
        "Golden ", el("b", {}, `${card.golden} ${name(card.golden)}`), ", judge ", el("b", {}, `${card.judge} ${name(card.judge)}`),
        el("span", { className: "quiet" }, ` ${apart} apart, leniency ${signed(card.judge - card.golden)}`)),
      el("code", { className: "quiet id", title: "pair_id" }, card.pair_id)),
    card.task && el("p", { className: "task" }, el("span", { className: "tag kind" }, card.task.kind), " ", card.task.evidence),
    el("p", { className: "question" }, card.question),
    el("div", { className: "card-body" },
      el("div", { className: "evidence" },
        el("dl", { className: "pair" },
          el("dt", {}, "Query"), el("dd", {}, card.query || el("i", {}, "empty")),
          el("dt", {}, "Member"), el("dd", {}, card.profile || el("i", {}, "empty")),
          el("dt", {}, "Posting"), el("dd", {}, card.document)),
        el("dl", { className: "pair reasons" },
          el("dt", {}, "Golden"), el("dd", {}, card.golden_reason || el("i", {}, "no reason given"), el("span", { className: "quiet" }, ` by ${card.grader_id}`)),
          el("dt", {}, "Judge"), el("dd", {}, card.rationale || el("i", {}, "no reason asked"), el("span", { className: "quiet" }, ` label mass ${percent(card.label_mass)}`)))),
      el("div", { className: "scale" }, anchors(card, name), otherGrades(app, card))),
    el("div", { id: "form" }),
    card.log.length > 0 && el("details", { className: "earlier" },
      el("summary", {}, `Decided before (${card.log.length})`),
      el("ul", {}, card.log.map((entry) => el("li", {}, sentence(app, entry), " ", when(entry.at)))))));
  drawForm(app, byId("form"));
}

function anchors(card, name) {
  const grades = card.probs.map((_, grade) => grade).reverse();
  return el("table", { className: "anchors" },
    el("caption", { className: "sr" }, "Grades with their anchors and the judge's probabilities"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Grade"), el("th", { scope: "col" }, card.anchors ? "Anchor" : "Name"), el("th", { scope: "col", className: "num" }, "Judge"))),
    el("tbody", {}, grades.map((grade) => {
      const bar = el("span", { className: "bar" });
      bar.style.width = `${Math.round(100 * card.probs[grade])}%`;
      return el("tr", { className: [grade === card.golden && "is-golden", grade === card.judge && "is-judge"].filter(Boolean).join(" ") },
        el("th", { scope: "row" }, String(grade), el("span", { className: "quiet" }, ` ${name(grade)}`)),
        el("td", {}, card.anchors ? card.anchors[grade] : "",
          grade === card.golden && el("span", { className: "tag golden" }, "golden"),
          grade === card.judge && el("span", { className: "tag judge" }, "judge")),
        el("td", { className: "num prob" }, el("span", { className: "track", "aria-hidden": "true" }, bar), el("span", {}, percent(card.probs[grade]))));
    })));
}

function otherGrades(app, card) {
  const names = Object.keys(card.golden_grades).filter((name) => name in card.judge_grades && name !== card.dimension);
  return names.length > 0 && el("p", { className: "others quiet" }, "Elsewhere on this pair: ",
    names.map((name, index) => {
      const [golden, judge] = [card.golden_grades[name], card.judge_grades[name]];
      const text = `${app.titleOf(name)} ${golden}${golden === judge ? "" : ` → ${judge}`}`;
      const link = golden !== judge && el("button", { type: "button", className: "link", on: { click: () => app.open({ pair_id: card.pair_id, dimension: name }) } }, text);
      return [index ? ", " : "", link || text];
    }));
}

export function sentence(app, entry) {
  const who = el("b", {}, entry.decider);
  const quote = (text) => el("q", {}, text);
  if (entry.kind === "amend anchor") {
    return el("span", {}, who, ` amended anchor ${entry.grade} of ${app.titleOf(entry.dimension)}: `, el("del", {}, entry.before), " ", el("ins", {}, entry.after), ` (${entry.why})`);
  }
  if (entry.kind === "correct label") {
    const changed = Object.keys(entry.after).filter((key) => key.startsWith("grades.") && entry.before[key] !== entry.after[key]);
    return el("span", {}, who, " corrected golden: ", changed.map((key) => `${app.titleOf(key.slice(7))} ${entry.before[key]} → ${entry.after[key]}`).join(", "), ` (${entry.why})`);
  }
  return el("span", {}, who, " made a precedent of ", quote(entry.before?.query || entry.pair_id), `: ${entry.after?.id}${entry.after?.shown ? ", shown to the judge" : ""} (${entry.why})`);
}
