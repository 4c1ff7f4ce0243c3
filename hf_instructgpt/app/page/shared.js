/* What both pages need: settings, two languages, requests, elements. Texts are only ever set as text. */

export const settings = JSON.parse(document.getElementById("settings").textContent);

/* ---- Languages: the command's, until a person chooses another one ---- */

const memory = (key, value) => {  // a browser may forbid storage
  try {
    if (value === undefined) return localStorage.getItem(key);
    value === null ? localStorage.removeItem(key) : localStorage.setItem(key, value);
  } catch { /* nothing is remembered then */ }
  return null;
};
export { memory };
export const language = () => (memory("language") ?? settings.language) === "zh" ? "zh" : "en";
document.documentElement.lang = language();
export function chooseLanguage(name) {
  memory("language", name);
  location.reload();
}
/* `say({en: "{n} left", zh: "还有 {n} 个"}, {n: 3})` */
export const say = (texts, values = {}) =>
  texts[language()].replace(/\{(\w+)\}/g, (whole, name) => name in values ? values[name] : whole);

/* ---- Elements ---- */

/* `make("p", {class: "soft", onclick: f}, "text", child)` */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
/* Characters that turn the direction of what follows are shown as what they are: they can make .exe look like .txt. */
export const readable = (text) => text.replace(/[\u202a-\u202e\u2066-\u2069]/g, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase()}⟩`);
/* A text of a person or a model, in its own direction. */
export const textBox = (text, attributes = {}) =>
  make("div", {...attributes, class: `text ${attributes.class ?? ""}`, dir: "auto"}, readable(text));

/* ---- Requests ---- */

/* Send a request and return its response; one that is not 2xx, or none, is thrown as an Error whose message people can
   read, with `code`: what the server said (`stale`, `invalid`...), or `offline`. */
export async function send(path, body, options = {}) {
  let response;
  try {
    response = await fetch(path, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body ?? {}), ...options});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error(say({en: "The server does not answer. Nothing is lost: try again.", zh: "服务器没有响应。内容没有丢失，请重试。"})), {code: "offline"});
  }
  if (!response.ok) {
    const detail = (await response.json().catch(() => ({}))).detail ?? {};
    throw Object.assign(new Error(detail.message ?? `HTTP ${response.status}`), {code: detail.code ?? "error"});
  }
  return response;
}
/* What the server answers, as JSON. */
export const ask = async (path, body) => (await send(path, body)).json();
