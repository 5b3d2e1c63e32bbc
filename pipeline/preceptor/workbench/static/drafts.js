// What has been typed and not yet written, kept in this browser by policy and card.

let owner = "";
const key = (card) => `preceptor-draft ${owner} ${card.pair_id} ${card.dimension}`;

export function ownedBy(policyId) {
  owner = policyId;
}

export function draftOf(card) {
  try {
    return JSON.parse(localStorage.getItem(key(card)));
  } catch {
    return null;
  }
}

export function keepDraft(card, draft) {
  try {
    localStorage.setItem(key(card), JSON.stringify(draft));
  } catch {
    // A full or forbidden store: the draft lives as long as the page.
  }
}

export function dropDraft(card) {
  localStorage.removeItem(key(card));
}

export function setting(name, fallback) {
  return localStorage.getItem(`preceptor-${name}`) ?? fallback;
}

export function keepSetting(name, value) {
  localStorage.setItem(`preceptor-${name}`, value);
}
