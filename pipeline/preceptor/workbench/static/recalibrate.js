// Judging again what decisions touched: what waits, how far it is, and agreement before and after.

import { get, post } from "./api.js";
import { EVERY } from "./agreement.js";
import { announce, byId, el, fill, kappa, percent, plural, range, signed, when } from "./dom.js";

const POLL_MS = 500;
let polling = false;

export function drawWaiting(app) {
  const { stale, waiting, calibration, job } = app.state;
  const running = job.state === "running";
  const parts = [waiting.length ? plural(waiting.length, "decision") : "No decision", ` since calibration ${calibration.version}`];
  const todo = stale.length ? `; to judge again: ${stale.map(app.titleOf).join(", ")}` : waiting.length ? "; no prompt changed, so agreement is only counted again" : "";
  fill(byId("waiting"), el("span", {}, ...parts, todo, ". "), el("span", { className: "quiet" }, `Judge ${calibration.judge_id}, `, when(calibration.finished_at),
    calibration.reads_policy ? "" : ". A tuned teacher reads no policy: new words change its grades only once it is tuned again."));
  byId("recalibrate").disabled = running;
  drawProgress(job);
  if (running) follow(app);
}

function drawProgress(job) {
  const host = byId("progress");
  host.hidden = job.state !== "running" && job.state !== "failed";
  if (job.state === "failed") return fill(host, el("span", { className: "bad" }, `Failed: ${job.error} Press Recalibrate to go on where it stopped.`));
  if (job.state !== "running") return fill(host);
  const bar = el("progress", { max: Math.max(job.num_rows, 1), "aria-label": "Rows judged" });
  if (job.num_rows) bar.value = job.num_done;
  fill(host, bar, el("span", {}, job.num_rows ? `${job.num_done} of ${job.num_rows} rows` : "starting the judge"));
}

export async function start(app) {
  try {
    const { job } = await post("/api/recalibrations", {});
    app.state.job = job;
    announce("Recalibration started.");
    drawWaiting(app);
  } catch (error) {
    app.trouble(error.message);
  }
}

async function follow(app) {
  if (polling) return;
  polling = true;
  try {
    for (;;) {
      await new Promise((done) => setTimeout(done, POLL_MS));
      const { job } = await get("/api/recalibrations");
      drawProgress(job);
      if (job.state === "running") continue;
      await app.refresh();
      announce(job.state === "done" ? summary(app) : `Recalibration failed: ${job.error}`);
      return;
    }
  } catch (error) {
    app.trouble(error.message);
  } finally {
    polling = false;
  }
}

function summary(app) {
  const [latest] = app.results;
  if (!latest) return "Recalibration done.";
  const at = (cells) => cells.find((cell) => cell.dimension === app.state.overall && cell.slice === EVERY);
  const [before, after] = [at(latest.before), at(latest.after)];
  const moved = before && after ? ` Overall kappa ${kappa(before.quadratic.value)} before, ${kappa(after.quadratic.value)} after.` : "";
  return `Recalibration done: ${plural(latest.num_judged, "row")} judged.${moved}`;
}

export function drawBeforeAfter(app) {
  const [latest] = app.results;
  if (!latest) return fill(byId("before-after"));
  const at = (cells) => new Map(cells.filter((cell) => cell.slice === EVERY).map((cell) => [cell.dimension, cell]));
  const [before, after] = [at(latest.before), at(latest.after)];
  const order = [app.state.overall, ...app.state.dimensions.map((one) => one.name)].filter((name) => before.has(name) || after.has(name));
  const interval = (cell) => cell ? [el("b", {}, kappa(cell.quadratic.value)), " ", el("span", { className: "quiet" }, range(cell.quadratic))] : "–";
  const rows = order.map((name) => {
    const [was, now] = [before.get(name), after.get(name)];
    const both = was && now && was.quadratic.value !== null && now.quadratic.value !== null;
    const moved = both ? now.quadratic.value - was.quadratic.value : null;
    return el("tr", { className: latest.dimensions.includes(name) ? "touched" : "", data: { dimension: name } },
      el("th", { scope: "row" }, app.titleOf(name), latest.dimensions.includes(name) && el("span", { className: "tag" }, "judged again")),
      el("td", { className: "num" }, interval(was)), el("td", { className: "num" }, interval(now)),
      el("td", { className: `num ${moved > 0.004 ? "good" : moved < -0.004 ? "bad" : "quiet"}` }, moved === null ? "–" : `${moved > 0.004 ? "▲ " : moved < -0.004 ? "▼ " : ""}${signed(moved)}`),
      el("td", { className: "num" }, `${was ? percent(was.exact) : "–"} → ${now ? percent(now.exact) : "–"}`),
      el("td", { className: "num quiet" }, `${was?.num ?? 0} → ${now?.num ?? 0}`));
  });
  fill(byId("before-after"), el("details", { open: true },
    el("summary", {}, el("b", {}, `${latest.earlier} → ${latest.version}`), ` ${plural(latest.num_judged, "row")} judged, ${latest.num_kept} kept; `,
      `${plural(latest.num_settled, "disagreement")} settled, ${latest.num_arisen} arisen; policy ${latest.earlier_policy_version} → ${latest.policy_version}`),
    el("table", { className: "compare" },
      el("thead", {}, el("tr", {}, ["Dimension", "Kappa before", "Kappa after", "Change", "Exact", "Grades"].map((name, index) => el("th", { scope: "col", className: index ? "num" : "" }, name)))),
      el("tbody", {}, rows))));
}
