/* What all parts use: the data, elements, numbers, explained words, a popup, tables. */
const DATA = JSON.parse(document.getElementById("data").textContent);
let language = DATA.language || ((navigator.language || "").startsWith("zh") ? "zh" : "en");
const chosen = { run: 0, answer: null, how: "sampled", prompt: 0, quantity: "advantage", step: null };
const GLOSSARY = Object.fromEntries(DATA.glossary.map((some) => [some.term, some]));

/* An element with properties and children; texts are only ever set as text. */
function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
function draw(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const section = (title, ...children) => make("section", {}, make("h2", {}, title), ...children);
const soft = (...children) => make("p", { className: "soft" }, ...children);

const isNumber = (x) => typeof x === "number";
const minus = (text) => text.replace(/-/g, "−");
const number = (x, digits = 3) => (isNumber(x) ? minus(Number(x.toPrecision(digits)).toString()) : "–");
const fixed = (x, digits = 2) => (isNumber(x) ? minus(x.toFixed(digits)).replace(/^−(0\.?0*)$/, "$1") : "–");
const signed = (x, digits = 2) => (isNumber(x) ? (x > 0 && Number(x.toFixed(digits)) !== 0 ? "+" : "") + fixed(x, digits) : "–");
const percent = (x, digits = 1) => (isNumber(x) ? fixed(100 * x, digits) + (language === "zh" ? "%" : "\u00a0%") : "–");
const say = (word) => TEXTS[language].words[word] || word;
function duration(seconds) {
  const T = TEXTS[language], s = Math.round(seconds);
  return s < 120 ? T.seconds(s) : T.minutes(Math.floor(s / 60), s % 60);
}

/* A text of the data, which may be in another language or direction than the page. */
function quoted(text, tag = "span", className = "quoted") {
  const lang = /[\u3040-\u30ff\u3400-\u9fff]/.test(text) ? "zh" : "";
  return make(tag, { className, dir: "auto", ...(lang && lang !== language ? { lang } : {}) }, text);
}
/* A text whose terms of the glossary, in double brackets with or without other words, are explained. */
function rich(text) {
  return text.split(/(\[\[.*?\]\])/).map((part) => {
    if (!part.startsWith("[[")) return part;
    const [term, words] = part.slice(2, -2).split("|"), known = GLOSSARY[term];
    const node = make("span", { className: "term", role: "button", tabIndex: 0 }, words || known[language]);
    const open = () => popup(node, make("strong", {}, known[language]), " ", known[`definition_${language}`]);
    for (const event of ["focus", "click", "pointerenter"]) node.addEventListener(event, open);
    node.addEventListener("pointerleave", () => { if (document.activeElement !== node) closePopup(); });
    node.addEventListener("blur", closePopup);
    return node;
  });
}
const sentence = (text, properties = {}) => make("p", properties, ...rich(text));
/* A formula in plain text: a_{b} is an index, a^{b} an exponent, a line break a new line. */
function formula(text) {
  const parts = text.split(/([_^]\{.*?\})/).map((part) =>
    /^[_^]\{/.test(part) ? make(part[0] === "_" ? "sub" : "sup", {}, part.slice(2, -1)) : part);
  return make("p", { className: "equation" }, ...parts);
}

/* One box beside what was chosen, always within the window. */
const box = make("div", { id: "popup", role: "tooltip", hidden: true });
let anchor = null;
document.body.append(box);
function popup(node, ...content) {
  closePopup();
  anchor = node;
  node.setAttribute("aria-describedby", "popup");
  box.replaceChildren(...content);
  box.hidden = false;
  const at = node.getBoundingClientRect(), width = document.documentElement.clientWidth;
  const left = Math.max(8, Math.min(at.left, width - box.offsetWidth - 8));
  const below = at.bottom + 6 + box.offsetHeight <= window.innerHeight || at.top < box.offsetHeight + 6;
  box.style.left = `${left + window.scrollX}px`;
  box.style.top = `${(below ? at.bottom + 6 : at.top - box.offsetHeight - 6) + window.scrollY}px`;
}
function closePopup() {
  if (anchor) anchor.removeAttribute("aria-describedby");
  anchor = null;
  box.hidden = true;
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") closePopup(); });
document.addEventListener("pointerdown", (event) => { if (anchor && !box.contains(event.target) && event.target !== anchor) closePopup(); });

/* A table whose rows become cards on a phone: each cell is a text, an element, or {number: text}. */
function table(head, rows, properties = {}) {
  const isNumeric = (value) => value !== null && typeof value === "object" && "number" in value;
  const cell = (value, i) => {
    const node = i === 0 ? make("th", { scope: "row" }) : make("td", { className: isNumeric(value) ? "number" : "text" });
    node.dataset.label = head[i];
    node.append(isNumeric(value) ? value.number : value);
    return node;
  };
  return make("table", properties,
    make("thead", {}, make("tr", {}, ...head.map((word, i) => word === ""
      ? make("td", {}) : make("th", { scope: "col", className: isNumeric(rows[0][i]) ? "number" : "" }, word)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell)))));
}
/* Buttons of which one is pressed. */
function choice(values, current, label, choose) {
  return make("div", { className: "choice no-print", role: "group", ariaLabel: label }, ...values.map(([value, words]) => {
    const node = make("button", { type: "button", ariaPressed: String(value === current) }, words);
    node.addEventListener("click", () => choose(value));
    return node;
  }));
}
function choose(label, options, current, changed, id) {
  const node = make("select", { id }, ...options.map(([value, words]) => make("option", { value, selected: value === current }, words)));
  node.addEventListener("change", () => changed(node.value));
  return make("label", { className: "no-print" }, label, node);
}
