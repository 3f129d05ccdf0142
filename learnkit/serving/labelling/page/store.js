// What the page knows, what is remembered where, and which state follows from it.

const PLACE = "learnkit.label";
const CLOSEST = 9; // kinds that have a key

export const store = {
  server: null, // what the server said last: classes, counts, digest, ...
  queue: [], // images held; the first is on the screen
  answered: [], // what was said about images, newest last: it can be taken back
  outbox: [], // of these, and of what is taken back: what the server has not got yet
  busy: null, // the one of the outbox that is on its way
  offline: false,
  blocked: null, // why nothing can be saved, in a sentence
  excused: null, // such a sentence in spite of which someone wants to try
  loaded: false,
  view: "one", // the tab
  keys: {}, // "1" -> name of a kind
  touched: new Map(), // id -> when it was answered or taken back
  clock: 0,
};

/** LOADING, ASKING, SENDING, LEARNING, EMPTY, OFFLINE or REFUSED: it follows from what is known. */
export function stateOf(one = store) {
  if (one.blocked) return "REFUSED";
  if (one.offline) return "OFFLINE";
  if (!one.loaded) return "LOADING";
  if (one.outbox.length > 1) return "SENDING";
  if (one.busy) return "LEARNING";
  return one.queue.length ? "ASKING" : "EMPTY";
}

const listeners = [];
export const whenChanged = (run) => listeners.push(run);
export const changed = () => listeners.forEach((run) => run());

// A browser may forbid storage: the page then works, and forgets when it is closed.
function storage(kind) {
  try {
    const found = window[kind];
    found.setItem(`${PLACE}.test`, "1");
    found.removeItem(`${PLACE}.test`);
    return found;
  } catch (error) {
    console.info(`learnkit: ${kind} cannot be used (${error.name}); nothing is remembered there`);
    return null;
  }
}
const [ofTab, ofBrowser] = [storage("sessionStorage"), storage("localStorage")];

function kept(place, name, otherwise) {
  const found = place?.getItem(`${PLACE}.${name}`);
  try {
    return found === null || found === undefined ? otherwise : JSON.parse(found);
  } catch (error) {
    console.info(`learnkit: ${name} of an earlier visit is not readable (${error.name})`);
    return otherwise;
  }
}

export const settings = {
  who: "", language: "", theme: "auto", sound: true, hide: false, show: "", tile: "medium",
  ...kept(ofBrowser, "settings", {}),
};
export function set(name, value) {
  settings[name] = value;
  ofBrowser?.setItem(`${PLACE}.settings`, JSON.stringify(settings));
  changed();
}

/** Random and hexadecimal; crypto.randomUUID is missing where a page came without https. */
export function random(bytes) {
  return [...crypto.getRandomValues(new Uint8Array(bytes))]
    .map((one) => one.toString(16).padStart(2, "0")).join("");
}

/** The name of this tab: it holds its images through a reload, and another tab gets others. */
export const tab = kept(ofTab, "tab", null) || random(8);
ofTab?.setItem(`${PLACE}.tab`, JSON.stringify(tab));

const KEPT_ANSWERS = 30;
/** Write down what was answered and not yet sent: it outlives a reload. */
export function remember() {
  store.answered.splice(0, Math.max(0, store.answered.length - KEPT_ANSWERS));
  ofTab?.setItem(`${PLACE}.answers`, JSON.stringify({ answered: store.answered, outbox: store.outbox }));
}

export function recall() {
  const found = kept(ofTab, "answers", { answered: [], outbox: [] });
  const byKey = new Map(found.answered.map((one) => [one.key, one]));
  store.answered = found.answered;
  store.outbox = found.outbox.map((one) => byKey.get(one.key) || one);
  for (const one of store.outbox) one.status = one.of ? "taking_back" : "sending";
}

/** Mark images as answered or taken back now: what the server said earlier of them is old. */
export function touch(ids) {
  store.clock += 1;
  for (const id of ids) store.touched.set(id, store.clock);
}

export const names = () => (store.server?.classes || []).map((one) => one.name);
export const keyOf = (name) => Object.keys(store.keys).find((key) => store.keys[key] === name);

/**
 * Give kinds their keys, and let each keep its own: 1 to 9 in the model's order; where there are more
 * kinds, for the most used. A new kind gets the next one, a renamed one that of its old name. A kind
 * whose name is a digit has the key of that digit, where it is free.
 */
export function assignKeys(classes, before) {
  const now = classes.map((one) => one.name);
  if (before && before.length === now.length) {
    const differ = now.flatMap((name, place) => (name === before[place] ? [] : [place]));
    const old = differ.length === 1 && keyOf(before[differ[0]]);
    if (old) store.keys[old] = now[differ[0]];
  }
  if (!before) store.keys = kept(ofTab, "keys", {})[store.server.model] || {};
  for (const [key, name] of Object.entries(store.keys)) if (!now.includes(name)) delete store.keys[key];
  for (const name of now) if (/^[0-9]$/.test(name) && !keyOf(name)) store.keys[name] ??= name;
  const without = classes.filter((one) => !keyOf(one.name));
  const nFree = CLOSEST - Object.keys(store.keys).filter((key) => key !== "0").length;
  const most = [...without].sort((a, b) => b.count - a.count).slice(0, nFree);
  for (const one of without.filter((name) => most.includes(name))) store.keys[freeKey()] = one.name;
  ofTab?.setItem(`${PLACE}.keys`, JSON.stringify({ [store.server.model]: store.keys }));
}

function freeKey() {
  const last = Math.max(0, ...Object.keys(store.keys).map(Number));
  if (last < CLOSEST) return String(last + 1);
  return [..."123456789"].find((key) => !(key in store.keys));
}
