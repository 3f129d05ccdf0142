// Elements and dialogs. Whatever is shown goes through textContent: names from outside stay text.

import { text } from "./texts.js";

/** An element: attributes, `on` listeners, children (elements, or text). */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [kind, run] of Object.entries(value)) element.addEventListener(kind, run);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

export const find = (id) => document.getElementById(id);

/** A picture by its id; small ones for lists. */
export function picture(id, alt = "", side = 320) {
  return h("img", { src: address(id, side), alt, draggable: "false", loading: side > 320 ? null : "lazy" });
}

export const address = (id, side) => `/label/image/${encodeURIComponent(id)}?side=${side}`;

/** Set the text of an element only where it changed: live regions are read out once. */
export function say(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

/** A button with a key cap. */
export function keyed(key, words, run, attributes = {}) {
  return h("button", { type: "button", ...attributes, on: { click: run } },
    key ? h("kbd", {}, key) : null, h("span", {}, words));
}

/**
 * Show a modal dialog until `finish(value)` is called or it is cancelled; its value, null if cancelled.
 * `build(finish)` gives the children; the first element with `autofocus` has the focus.
 */
export function dialog(title, build) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    let value = null;
    const heading = h("h2", { id: `d${Math.random().toString(16).slice(2)}` }, title);
    const element = h("dialog", { "aria-labelledby": heading.id });
    const finish = (given) => { value = given; element.close(); };
    element.append(heading, ...build(finish));
    element.addEventListener("close", () => {
      element.remove();
      if (before instanceof HTMLElement) before.focus();
      resolve(value);
    });
    document.body.append(element);
    element.showModal();
  });
}

/** Ask between answers [[value, words], ...], the first of which is the usual one; null if cancelled. */
export function choose(title, words, answers, picture_ = null) {
  return dialog(title, (finish) => [
    picture_,
    ...[words].flat().map((one) => h("p", {}, one)),
    h("p.answers", {}, answers.map(([value, label], place) =>
      h(place ? "button" : "button.main", {
        type: "button", autofocus: place === 0, on: { click: () => finish(value) },
      }, label))),
  ]);
}

/** Ask whether to go on. */
export const confirmed = (title, words, go) =>
  choose(title, words, [[true, go], [null, text("cancel")]]);

export const hasDialog = () => document.querySelector("dialog[open]") !== null;
