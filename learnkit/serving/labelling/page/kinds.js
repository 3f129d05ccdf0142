// The kinds: buttons with keys that do not move, the field that finds one, the dialog of a new one.

import { dialog, h, say } from "./dom.js";
import { post } from "./server.js";
import { keyOf, names, store } from "./store.js";
import { text } from "./texts.js";

/** Letters without case and accents. */
export const folded = (words) => words.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().trim();

/** Kinds whose name begins with what is typed, then those that hold it. */
export function found(typed) {
  const wanted = folded(typed);
  const begins = names().filter((name) => folded(name).startsWith(wanted));
  return [...begins, ...names().filter((name) => !begins.includes(name) && folded(name).includes(wanted))];
}

/** Buttons of all kinds: those with keys, and the others below a field that finds one. */
export class Kinds {
  constructor(choose) {
    this.choose = choose;
    this.keyed = h("div.keyed");
    this.others = h("div.others");
    this.field = h("input.find", {
      type: "search", autocomplete: "off", spellcheck: "false", enterkeyhint: "go",
      on: { input: () => this.list(), keydown: (event) => this.typed(event) },
    });
    this.hint = h("p.hint", { role: "status" });
    this.rest = h("div.rest", { hidden: true }, this.field, this.hint, this.others);
    this.element = h("div.kinds", {}, this.keyed, this.rest);
    this.shown = "";
    this.probs = null;
  }

  /** Show the kinds of the moment, with these probabilities as bars, or none if null. */
  update(probs) {
    this.probs = probs;
    const now = JSON.stringify([store.keys, names(), document.documentElement.lang]);
    if (now !== this.shown) this.build();
    this.shown = now;
    for (const button of this.element.querySelectorAll("button[data-label]")) this.fill(button);
  }

  build() {
    const byKey = Object.keys(store.keys).sort();
    this.keyed.replaceChildren(...byKey.map((key) => this.button(store.keys[key], key)));
    this.rest.hidden = names().length <= byKey.length;
    this.element.classList.toggle("full", !this.rest.hidden);
    this.field.setAttribute("aria-label", text("find"));
    this.field.placeholder = text("find");
    this.list();
  }

  list() {
    const typed = this.field.value;
    const all = typed.trim() ? found(typed) : names().filter((name) => !keyOf(name));
    this.others.replaceChildren(...all.map((name) => this.button(name, null)));
    say(this.hint, typed.trim() && !all.length ? text("find_none") : "");
    for (const button of this.others.children) this.fill(button);
  }

  button(name, key) {
    return h("button.kind", { type: "button", "data-label": name, on: { click: () => this.chosen(name) } },
      key ? h("kbd", {}, key) : null, h("span.name", { dir: "auto" }, name), h("span.share"), h("span.bar"));
  }

  fill(button) {
    const name = button.dataset.label;
    const key = keyOf(name);
    const p = this.probs?.[names().indexOf(name)];
    button.classList.toggle("good", name === store.server.good);
    const share = p === undefined ? "" : text("percent", { n: Math.round(100 * p) });
    say(button.querySelector(".share"), p >= 0.005 ? share : "");
    button.querySelector(".bar").style.width = `${100 * (p || 0)}%`;
    if (p === undefined) button.setAttribute("aria-label", key ? text("key_is", { label: name, key }) : name);
    else button.setAttribute("aria-label", key ? text("key_is_with", { label: name, key, p: Math.round(100 * p) }) : `${name}, ${share}`);
  }

  chosen(name) {
    this.clear();
    this.choose(name);
  }

  clear() {
    this.field.value = "";
    if (document.activeElement === this.field) this.field.blur();
    this.list();
  }

  /** Begin to type a name: the field is there where not every kind has a key. */
  begin(letter) {
    if (this.rest.hidden) return false;
    this.field.focus();
    this.field.value = letter;
    this.list();
    return true;
  }

  async typed(event) {
    event.stopPropagation();
    if (event.key === "Escape") { event.preventDefault(); this.clear(); }
    if (event.key !== "Enter" || !this.field.value.trim()) return;
    event.preventDefault();
    const [first] = found(this.field.value);
    if (first !== undefined) return this.chosen(first);
    const name = this.field.value;
    this.clear();
    const made = await newKind({ name });
    if (made) this.choose(made.name, made);
  }
}

// ------------------------------------------------------------------------------ a new kind

const LONGEST = 80;
const RESERVED = /^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?$/i;

/** Why a kind cannot be called so, as far as the page can tell; the server has the last word. */
export function problem(name) {
  if (!name.trim()) return { code: "empty" };
  if ([...name].length > LONGEST) return { code: "long", n: [...name].length };
  if (/[/\\:*?"<>|\p{C}]/u.test(name)) return { code: "signs" };
  if (/^[\s.]|[\s.]$/.test(name)) return { code: "ends" };
  if (RESERVED.test(name)) return { code: "reserved" };
  const same = names().find((one) => folded(one) === folded(name));
  return same === undefined ? null : { code: "same", known: same };
}

const TOLD = { empty: "name_empty", long: "name_long", signs: "name_signs", ends: "name_ends", reserved: "name_reserved", same: "name_same", forgotten: "name_forgotten" };

/** Ask for a new name: {name, new, again}; a known or a forgotten one if it was that; null if cancelled. */
export function newKind({ name = "", create = text("create"), title = text("new_title"), advice = text("advice") } = {}) {
  return dialog(title, (finish) => {
    const field = h("input", {
      id: "new-name", value: name, autocomplete: "off", spellcheck: "false", autofocus: true, "aria-describedby": "new-why new-like",
    });
    const why = h("p.wrong", { id: "new-why", role: "alert" });
    const like = h("p.like", { id: "new-like" });
    const known = h("p.answers.known");
    const show = (wrong) => {
      field.setAttribute("aria-invalid", wrong ? "true" : "false");
      say(why, wrong ? told(wrong) : "");
      known.replaceChildren(...(wrong?.known ? [offer(wrong)] : []));
    };
    const offer = (wrong) => {
      const isOld = wrong.code === "forgotten";
      return h("button", { type: "button", on: { click: () => finish({ name: wrong.known, new: isOld, again: isOld }) } },
        text(isOld ? "take_up" : "is_it", { label: wrong.known }));
    };
    const alike = () => {
      const typed = field.value.trim();
      const those = typed ? found(typed).slice(0, 4) : [];
      say(like, !names().length ? "" : those.length ? `${text("looks_like")}: ${those.join(", ")}` : text("like_none"));
    };
    const input = () => {
      const wrong = field.value ? problem(field.value) : null;
      show(wrong?.code === "empty" ? null : wrong);
      alike();
    };
    const send = async (event) => {
      event.preventDefault();
      const wrong = problem(field.value) || (await refusedByServer(field.value));
      show(wrong);
      if (!wrong) return finish({ name: field.value, new: true });
      field.focus();
    };
    field.addEventListener("input", input);
    alike();
    return [
      h("form", { novalidate: true, on: { submit: send } },
        h("label", { for: "new-name" }, text("name")), field, why, like, known,
        advice && h("p.hint", {}, advice),
        h("p.answers", {}, h("button.main", { type: "submit" }, create),
          h("button", { type: "button", on: { click: () => finish(null) } }, text("cancel")))),
    ];
  });
}

function told(wrong) {
  const name = TOLD[wrong.code];
  return name ? text(name, { label: wrong.known ?? "", n: wrong.n ?? "" }) : wrong.error;
}

async function refusedByServer(name) {
  try {
    await post("/label/class", { check: name });
  } catch (error) {
    if (error.kind === "name") return { code: error.code, known: error.known, error: error.message };
    // without a connection the answer waits, and the name with it
    if (error.status) return { code: "", error: error.message };
  }
  return null;
}
