// Elements from data. Every text becomes a text node: nothing that a member or a posting says is read as markup.

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "on") for (const [name, run] of Object.entries(value)) node.addEventListener(name, run);
    else if (key === "data") Object.assign(node.dataset, value);
    else if (key in node && !key.startsWith("aria") && key !== "list") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

export function fill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter(Boolean));
}

export function announce(text) {
  // A repeated text is announced again only where the node changes in between.
  byId("live").textContent = "";
  setTimeout(() => { byId("live").textContent = text; }, 20);
}

export const kappa = (value) => (value === null ? "–" : value.toFixed(2).replace("-", "−"));
export const percent = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);
export const signed = (value) =>
  value === null ? "–" : `${value > 0.004 ? "+" : value < -0.004 ? "−" : ""}${Math.abs(value).toFixed(2)}`;
export const range = (interval) => (interval.low === null ? "" : `${kappa(interval.low)} to ${kappa(interval.high)}`);
export const plural = (num, one, many = `${one}s`) => `${num} ${num === 1 ? one : many}`;
export const words = (name) => name.replaceAll("_", " ");

export function when(iso) {
  const time = new Date(iso);
  return el("time", { dateTime: iso, title: iso }, time.toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
}
