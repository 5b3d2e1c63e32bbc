// The policy for reading, each finding of lint at its line.

import { get } from "./api.js";
import { byId, el, fill, plural } from "./dom.js";

export async function drawPolicy(app) {
  const policy = await get("/api/policy");
  const { files } = policy;
  const by = (file) => policy.findings.filter((finding) => finding.file === file);
  const elsewhere = policy.findings.filter((finding) => !Object.values(files).includes(finding.file));
  const prose = el("article", { className: "prose", id: "document" });
  // The server renders the document with raw HTML switched off; everything else on this page is set as text.
  prose.innerHTML = policy.html;
  placeInProse(prose, by(files.document));
  const contents = [...prose.querySelectorAll("h1, h2, h3")].map((heading, index) => {
    heading.id ||= `section-${index}`;
    heading.tabIndex = -1;
    return el("li", { className: heading.tagName.toLowerCase() }, el("button", { type: "button", className: "link", on: { click: () => reveal(heading) } }, heading.textContent));
  });
  fill(byId("view-policy"), el("div", { className: "policy" },
    el("aside", { className: "rail", "aria-label": "Findings and contents" },
      el("h2", {}, "Lint"),
      policy.broken && el("p", { className: "bad" }, policy.broken),
      findingsList(policy),
      el("h2", {}, "Contents"),
      el("nav", { "aria-label": "Contents" }, el("ul", { className: "contents" }, contents,
        el("li", { className: "h2" }, el("button", { type: "button", className: "link", on: { click: () => reveal(byId("rubric")) } }, files.rubric)),
        el("li", { className: "h2" }, el("button", { type: "button", className: "link", on: { click: () => reveal(byId("precedents")) } }, files.precedents))))),
    el("div", { className: "pages" },
      prose,
      el("section", { id: "rubric", tabIndex: -1, "aria-label": files.rubric }, el("h2", {}, files.rubric), source(policy.rubric, by(files.rubric))),
      el("section", { id: "precedents", tabIndex: -1, "aria-label": files.precedents }, el("h2", {}, `${files.precedents}, ${plural(policy.precedents.length, "precedent")}`), precedents(app, policy.precedents, by(files.precedents))),
      elsewhere.length > 0 && el("section", {}, el("h2", {}, "Other files"), elsewhere.map((finding) => note(finding, true))))));
}

function reveal(node) {
  node.scrollIntoView({ block: "center" });
  node.focus({ preventScroll: true });
}

const place = (finding) => `${finding.file}${finding.line ? `:${finding.line}` : ""}`;
const idOf = (finding) => `finding ${place(finding)} ${finding.message}`.replace(/\s+/g, "-");

function note(finding, named = false) {
  return el("div", { className: `finding ${finding.severity}`, id: idOf(finding), tabIndex: -1 },
    el("b", {}, finding.severity), " ", el("span", { className: "quiet" }, named ? place(finding) : finding.line ? `line ${finding.line}` : "whole file"), " ", finding.message);
}

function findingsList(policy) {
  const hidden = policy.num_hidden > 0 && el("p", { className: "quiet" }, `${plural(policy.num_hidden, "finding")} in golden splits that are not shown here; preceptor policy lint lists them.`);
  if (!policy.findings.length) return [el("p", {}, policy.broken ? "" : hidden ? "Nothing else." : "Clean."), hidden];
  return [el("ul", { className: "findings" }, policy.findings.map((finding) => el("li", {}, el("button", {
    type: "button", className: `link finding-link ${finding.severity}`, on: { click: () => reveal(byId(idOf(finding))) },
  }, el("b", {}, finding.severity), " ", el("span", { className: "quiet" }, place(finding)), " ", finding.message)))), hidden];
}

function placeInProse(prose, findings) {
  const blocks = [...prose.querySelectorAll("[data-line]")];
  for (const finding of [...findings].reverse()) {
    const before = blocks.filter((block) => finding.line && Number(block.dataset.line) <= finding.line);
    const block = before.at(-1);
    if (!block) prose.prepend(note(finding));
    else if (block.tagName === "TR") block.after(el("tr", {}, el("td", { colSpan: block.cells.length }, note(finding))));
    else {
      let top = block;
      while (top.parentElement !== prose) top = top.parentElement;
      top.after(note(finding));
    }
    block?.classList.add("marked");
  }
}

function source(lines, findings) {
  return el("ol", { className: "source" }, lines.map((line, index) => {
    const here = findings.filter((finding) => finding.line === index + 1);
    return el("li", { className: here.length ? "marked" : "" }, el("code", {}, line || " "), here.map((finding) => note(finding)));
  }), findings.filter((finding) => !finding.line).map((finding) => el("li", {}, note(finding))));
}

function precedents(app, listed, findings) {
  return el("ol", { className: "precedents" }, listed.map((one) => el("li", {},
    el("h3", {}, String(one.id), el("span", { className: "quiet" }, ` line ${one.line}`)),
    el("p", {}, el("q", {}, String(one.query)), " ", el("span", { className: "quiet" }, String(one.reason))),
    el("p", { className: "quiet" }, Object.entries(one.grades ?? {}).map(([name, grade]) => `${app.titleOf(name)} ${grade}`).join(", ")),
    findings.filter((finding) => finding.line === one.line).map((finding) => note(finding)))),
  findings.filter((finding) => !listed.some((one) => one.line === finding.line)).map((finding) => el("li", {}, note(finding))));
}
