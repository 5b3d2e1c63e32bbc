// What has been typed and not yet written: in this tab, and in this browser's store for a reload or a closed tab.
// Each tab stores its own, so that one that writes its decision takes no other's draft along.

const tab = (sessionStorage["preceptor-tab"] ??= Math.random().toString(36).slice(2));
const held = new Map();
let owner = "";

const stem = (card) => `preceptor-draft ${owner} ${card.pair_id} ${card.dimension} `;
const own = (card) => stem(card) + tab;

export function ownedBy(policyId) {
  owner = policyId;
}

export function draftOf(card) {
  if (held.has(own(card))) return held.get(own(card));
  const stored = Object.keys(localStorage).filter((key) => key.startsWith(stem(card)));
  const from = stored.includes(own(card)) ? own(card) : stored[0];
  if (!from) return null;
  try {
    const draft = JSON.parse(localStorage.getItem(from));
    localStorage.removeItem(from);
    keepDraft(card, draft);
    return draft;
  } catch {
    return null;
  }
}

export function keepDraft(card, draft) {
  held.set(own(card), draft);
  try {
    localStorage.setItem(own(card), JSON.stringify(draft));
  } catch {
    // A full or forbidden store: the draft lives as long as the page.
  }
}

export function dropDraft(card) {
  held.delete(own(card));
  localStorage.removeItem(own(card));
}

export function setting(name, fallback) {
  return localStorage.getItem(`preceptor-${name}`) ?? fallback;
}

export function keepSetting(name, value) {
  localStorage.setItem(`preceptor-${name}`, value);
}
