// The table of cells, and all figures of the chosen one.

import { byId, el, fill, kappa, percent, plural, range, signed, words } from "./dom.js";

export const EVERY = "all";
const STEPS = [0.2, 0.4, 0.6, 0.8];
const NAMES = ["below 0.20", "0.20 to 0.39", "0.40 to 0.59", "0.60 to 0.79", "0.80 and above"];

const shade = (value) => (value === null ? "none" : String(STEPS.filter((step) => value >= step).length));

export function drawAgreement(app) {
  const { cells, state } = app;
  const slices = [...new Set(cells.map((cell) => cell.slice))].filter((slice) => slice !== EVERY).sort();
  const order = [state.overall, ...state.dimensions.map((one) => one.name)];
  const dimensions = [...new Set(cells.map((cell) => cell.dimension))].sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const at = new Map(cells.map((cell) => [`${cell.dimension} ${cell.slice}`, cell]));
  const head = el("tr", {},
    el("th", { scope: "col" }, "Dimension"),
    ["Kappa", "95 %", "Exact", "Within 1", "Leniency", "Grades"].map((name) => el("th", { scope: "col", className: "num" }, name)),
    slices.map((slice, index) => el("th", { scope: "col", className: index ? "num" : "num first" }, words(slice))));
  const rows = dimensions.map((dimension) => {
    const whole = at.get(`${dimension} ${EVERY}`);
    return el("tr", { className: dimension === state.overall ? "overall" : "" },
      el("th", { scope: "row" }, app.titleOf(dimension),
        state.stale.includes(dimension) && el("span", { className: "tag", title: "Its wording has changed since it was judged" }, "reworded")),
      el("td", { className: "num" }, cellButton(app, whole)),
      el("td", { className: "num quiet" }, range(whole.quadratic)),
      el("td", { className: "num" }, percent(whole.exact)),
      el("td", { className: "num" }, percent(whole.within_one)),
      el("td", { className: "num" }, signed(whole.leniency)),
      el("td", { className: "num quiet" }, String(whole.num)),
      slices.map((slice, index) => el("td", { className: index ? "num" : "num first" }, cellButton(app, at.get(`${dimension} ${slice}`)))));
  });
  const legend = el("p", { className: "legend quiet" }, "Kappa ",
    NAMES.map((name, index) => el("span", {}, el("i", { className: "swatch", data: { shade: String(index) } }), name)));
  fill(byId("agreement"), el("table", { className: "heat" }, el("thead", {}, head), el("tbody", {}, rows)), legend);
  drawCell(app, at.get(`${app.filter.dimension || state.overall} ${app.filter.slice || EVERY}`) ?? cells[0]);
}

function cellButton(app, cell) {
  if (!cell) return el("span", { className: "quiet" }, "–");
  const chosen = app.filter.dimension === cell.dimension && (app.filter.slice || EVERY) === cell.slice;
  const where = `${app.titleOf(cell.dimension)}, ${cell.slice === EVERY ? "all slices" : words(cell.slice)}`;
  return el("button", {
    type: "button", className: "cell", data: { shade: shade(cell.quadratic.value), dimension: cell.dimension, slice: cell.slice },
    "aria-pressed": String(chosen),
    "aria-label": `${where}: kappa ${kappa(cell.quadratic.value)}, ${plural(cell.num, "grade")}`,
    title: `${where}: ${kappa(cell.quadratic.value)} (${range(cell.quadratic)}), exact ${percent(cell.exact)}, ${plural(cell.num, "grade")}`,
    on: { click: () => app.choose(chosen ? { dimension: "", slice: "" } : { dimension: cell.dimension, slice: cell.slice === EVERY ? "" : cell.slice }) },
  }, kappa(cell.quadratic.value));
}

function drawCell(app, cell) {
  if (!cell) return fill(byId("cell"));
  const line = (name, ...value) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value));
  const interval = (name, value) => line(name, el("b", {}, kappa(value.value)), " ", el("span", { className: "quiet" }, range(value)));
  const most = Math.max(1, ...cell.confusion.flat());
  const grades = cell.confusion.map((_, grade) => grade);
  const confusion = el("table", { className: "confusion" },
    el("caption", {}, "Golden down, judge across"),
    el("thead", {}, el("tr", {}, el("td"), grades.map((grade) => el("th", { scope: "col" }, String(grade))))),
    el("tbody", {}, cell.confusion.map((row, golden) => el("tr", {},
      el("th", { scope: "row" }, String(golden)),
      row.map((num, judge) => el("td", { className: golden === judge ? "same" : "", data: { level: String(num ? Math.ceil((4 * num) / most) : 0) } }, num ? String(num) : "·"))))));
  fill(byId("cell"),
    el("h3", {}, app.titleOf(cell.dimension), el("span", { className: "quiet" }, ` ${cell.slice === EVERY ? "all slices" : words(cell.slice)}`)),
    el("div", { className: "cell-body" },
      el("dl", { className: "figures" },
        interval("Quadratic", cell.quadratic), interval("Linear", cell.linear), interval("Binarised", cell.binarised),
        line("Exact", percent(cell.exact)), line("Within one", percent(cell.within_one)),
        line("Leniency", signed(cell.leniency), el("span", { className: "quiet" }, cell.leniency > 0.004 ? " judge kinder" : cell.leniency < -0.004 ? " judge stricter" : "")),
        line("Label mass", percent(cell.label_mass)), line("Grades", String(cell.num))),
      confusion));
}
