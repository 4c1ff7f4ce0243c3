/* The page of `rank`. Texts are set as text; the one exception is the HTML of the server's Markdown renderer. */

import {ask, chooseLanguage, language, make, memory, readable, settings, textBox} from "./shared.js";
import {t} from "./rank_texts.js";

const EARLY = 400;  // ms in which nobody has seen an item
const RETRY = 2000;  // ms until the server is asked again

let annotator = "", login = false;
let item = null;  // what is shown
let ranks = [], own = "", ownRank = 0;  // by place shown; null: none yet; 0 is above all
let marked = 0, appeared = 0, busy = false, leaving = false;
let view = memory("view") ?? "plain";

const isPair = () => item?.mode === "pairs";
const isBestWorst = () => item?.mode === "best-worst";
const isRanking = () => item?.mode === "ranking";
const nameOf = (place) => isPair() ? "AB"[place] : String(place + 1);
const most = () => item.responses.length + (own.trim() ? 1 : 0);
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const button = (id, text, key, onclick, attributes = {}) =>
  make("button", {id, type: "button", onclick, "aria-keyshortcuts": key, ...attributes}, text, " ", key && make("kbd", {}, key));

/* ---- What stands on the page ---- */

const name = make("input", {id: "annotator", maxlength: settings.name_length, autocomplete: "off", dir: "auto", required: true});
const hello = make("form", {id: "hello", class: "card", onsubmit: (event) => { event.preventDefault(); enter(name.value); }},
  make("label", {for: "annotator"}, t("yourName")), name, make("button", {id: "start", class: "primary"}, t("start")));
const whoRanks = make("span", {id: "who", hidden: true});
const bar = make("progress", {id: "bar", "aria-label": t("title")});
const counts = make("span", {id: "counts", class: "soft"});
const progress = make("div", {id: "progress", hidden: true}, bar, counts);
const views = make("select", {id: "view", "aria-label": t("view"), onchange: () => chooseView()},
  ...["plain", "code", "markdown"].map((kind) => make("option", {value: kind, selected: kind === view}, t(kind))));
const other = language() === "zh" ? "en" : "zh";
const header = make("header", {}, make("h1", {}, t("title")), progress, whoRanks,
  make("div", {class: "push tools"}, views,
    settings.guidelines ? button("show-guidelines", t("guidelines"), "g", () => toggleGuidelines()) : null,
    button("show-list", t("list"), "l", () => openList(), {hidden: true}), button("show-help", t("help"), "?", () => openHelp()),
    make("button", {id: "language", type: "button", lang: other, onclick: () => { leaving = true; chooseLanguage(other); }},
      other === "zh" ? "中文" : "English")));

const note = make("p", {id: "note", class: "card", hidden: true});
const promptBox = make("section", {id: "prompt", class: "card", "aria-label": t("prompt")});
const rule = make("p", {id: "rule", class: "soft"});
const grid = make("div", {id: "answers"});
const pairChoice = make("fieldset", {id: "pair", class: "ranks"});
const ownText = make("textarea", {id: "own", rows: 2, dir: "auto", maxlength: settings.answer_length, "aria-label": t("own"), oninput: () => write()});
const ownRanks = make("fieldset", {class: "ranks", id: "own-rank"});
const ownHint = make("span", {class: "soft"}, t("ownHint"));
const ownCard = make("div", {id: "own-card", class: "card answer", role: "group", tabindex: -1, "aria-label": t("own"), hidden: true},
  make("div", {class: "title"}, t("own"), " ", ownHint), ownText, ownRanks);
const status = make("p", {id: "status", role: "status"});
const buttons = make("div", {id: "buttons"},
  button("save", t("save"), "Enter", () => save(), {class: "primary"}), button("all-bad", t("allBad"), "b", () => allBad()),
  button("skip", t("skip"), "x", () => skip()), button("undo", t("undo"), "u", () => undo()),
  button("write", t("writeOwn"), "w", () => openOwn()));
const task = make("div", {id: "task", hidden: true}, note, promptBox, rule, grid, pairChoice, ownCard);
const end = make("section", {id: "end", class: "card", hidden: true});
const foot = make("div", {id: "foot"}, buttons, status);
const main = make("main", {}, hello, task, end, foot);
const side = make("aside", {id: "guidelines", class: "card markdown", "aria-label": t("guidelines"), tabindex: 0, hidden: true});
side.innerHTML = settings.guidelines;
const page = make("div", {id: "page"}, main, side);
document.title = t("title");
document.body.replaceChildren(header, page);

function tell(text, isBad = false) {
  status.textContent = text;
  status.classList.toggle("bad", isBad);
}

/* ---- Who ranks ---- */

const session = (key, value) => {
  try { return value === undefined ? sessionStorage.getItem(key) : sessionStorage.setItem(key, value); } catch { return null; }
};
const tab = session("tab") ?? String(Math.random()).slice(2);
session("tab", tab);

async function enter(given) {
  annotator = given.trim();
  if (!annotator || [...annotator].length > settings.name_length) return leave(t("enterName", {n: settings.name_length}));
  if (!login) { memory("annotator", annotator); session("annotator", annotator); }
  hello.hidden = true;
  whoRanks.replaceChildren(make("bdi", {}, readable(annotator)),
    ...(login ? [] : [" · ", make("button", {id: "change", class: "quiet", type: "button", "aria-label": t("changeName"), onclick: () => leave("")}, t("change"))]));
  whoRanks.hidden = progress.hidden = document.getElementById("show-list").hidden = false;
  name.blur();
  await load(t("hello", {name: readable(annotator)}), nowKey());
}

function leave(said) {
  memory("annotator", null);
  try { sessionStorage.removeItem("annotator"); } catch { /* as in `session` */ }
  work(false);
  show(null);
  whoRanks.hidden = progress.hidden = end.hidden = document.getElementById("show-list").hidden = true;
  hello.hidden = false;
  name.value = annotator;
  name.focus();
  tell(said || t("enterName", {n: settings.name_length}), Boolean(said));
}

/* ---- Tabs: each shows another prompt, and finds its own again after it was loaded anew ---- */

let release = () => {};
const lockName = (key) => JSON.stringify(["rank", annotator, tab, key]);

async function elsewhere() {
  const held = (await navigator.locks?.query())?.held ?? [];
  return held.map((lock) => { try { return JSON.parse(lock.name); } catch { return []; } })
    .filter(([what, who, where]) => what === "rank" && who === annotator && where !== tab).map((parts) => parts[3]);
}
function hold(key) {
  release();
  navigator.locks?.request(lockName(key), {ifAvailable: true}, (lock) => lock && new Promise((resolve) => { release = resolve; }));
}
const nowKey = () => session(`now ${annotator}`) ?? memory(`now ${annotator}`);

/* ---- Drafts: what was chosen and written, kept until it is saved ---- */

const draftKey = () => `${item.edit ? "edit" : "draft"} ${annotator} ${item.key}`;
const isBlank = () => !own.trim() && ranks.every((rank) => rank === null);

function keep() {
  memory(draftKey(), isBlank() ? null : JSON.stringify({id: item.id, ranks, own, ownRank, order: places()}));
}
function draft() {
  try { return JSON.parse(memory(draftKey()) ?? "null"); } catch { return null; }
}
addEventListener("beforeunload", (event) => {
  if (!leaving && item && own.trim() && own !== (item.own ?? "")) event.preventDefault();
});

/* ---- An item comes ---- */

function work(isBusy) {
  busy = isBusy;
  isBusy ? main.setAttribute("aria-busy", "true") : main.removeAttribute("aria-busy");
}

async function load(said, wanted = null, isBad = false) {
  work(true);
  const asker = annotator, hasLeft = () => annotator !== asker || !hello.hidden;
  const slow = setTimeout(() => tell(t("loading")), 600);
  for (;;) {
    try {
      const answer = await ask("api/next", {annotator, wanted, avoid: await elsewhere()});
      clearTimeout(slow);
      if (hasLeft()) return;
      count(answer.progress);
      show(answer.item);
      tell(answer.item ? said : `${said} ${t("finished")}`, isBad);
      break;
    } catch (error) {
      clearTimeout(slow);
      if (hasLeft()) return;
      if (error.code === "name") { leave(t("enterName", {n: settings.name_length})); break; }
      tell(error.code === "offline" ? t("waiting") : error.message, true);
      await wait(RETRY);
    }
  }
  work(false);
}

function count({mine, total, everyone, skipped}) {
  bar.max = Math.max(total, 1);
  bar.value = mine;
  const number = (n) => n.toLocaleString(language());
  counts.textContent = [t("ranked", {mine: number(mine), total: number(total)}), t("everyone", {n: number(everyone)}),
    ...(skipped ? [t("skippedNumber", {n: number(skipped)})] : [])].join(" · ");
}

function show(next) {
  item = next;
  task.hidden = buttons.hidden = !item;
  end.hidden = Boolean(item) || !annotator || !hello.hidden;
  release();
  if (!item) return end.hidden || showEnd();
  if (!item.edit) {
    session(`now ${annotator}`, item.key);
    memory(`now ${annotator}`, item.key);
    hold(item.key);
  }
  const kept = draft(), places = item.responses.map((_, place) => place);
  const isSame = kept?.id === item.id;
  ranks = isSame ? kept.ranks : item.ranks ?? places.map(() => null);
  own = kept?.own ?? item.own ?? "";
  ownRank = kept?.ownRank ?? item.own_rank ?? 0;
  build(isSame && kept.order?.length === places.length ? kept.order : places);
  appeared = performance.now();
  mark(0, !document.querySelector("dialog[open]"));
  scrollTo(0, 0);
}

function build(order) {
  note.hidden = !(item.edit || item.was_skipped);
  note.textContent = item.edit ? t("changing") + (item.all_bad ? ` ${t("wasBad")}` : "") : t("wasSkipped");
  promptBox.replaceChildren(...promptParts());
  rule.textContent = t(isPair() ? "rulePairs" : isBestWorst() ? "ruleBestWorst" : "rule");
  grid.className = item.mode;
  grid.replaceChildren(...order.map(answerCard));
  pairChoice.hidden = !isPair();
  pairChoice.replaceChildren(...(isPair() ? pairParts() : []));
  ownText.value = own;
  ownCard.hidden = !own;
  ownRanks.replaceChildren(...ownParts());
  const skipButton = document.getElementById("skip");
  skipButton.replaceChildren(item.edit ? t("back") : t("skip"), " ", make("kbd", {}, "x"));
  paint();
  showTexts();
}

function promptParts() {
  const messages = typeof item.prompt === "string" ? [{content: item.prompt}] : item.prompt;
  const parts = messages.flatMap(({role, content}) => [
    messages.length > 1 ? make("div", {class: "role soft"}, role) : null, aText(String(content), t("prompt"))]);
  return parts.filter(Boolean);
}

function answerCard(place) {
  const label = isPair() ? nameOf(place) : t("answer", {n: nameOf(place)});
  const title = make("div", {class: "title", draggable: isRanking() ? "true" : null, title: isRanking() ? t("drag") : null,
    ondragstart: (event) => startDrag(event, card), ondragend: () => endDrag()},
    make("span", {class: "name"}, isRanking() ? "⠿ " : "", label), make("span", {class: "lacks bad", hidden: true}, t("noRank")));
  const isLong = item.responses[place].length > 300;  // it needs the width below its ranks too
  const card = make("div", {class: `card answer ${isLong ? "long" : ""}`, id: `card-${nameOf(place)}`, role: "group", tabindex: -1,
    "aria-label": isPair() ? t("answer", {n: nameOf(place)}) : label, "data-place": place}, title,
    ...aScroller(item.responses[place], t("answer", {n: nameOf(place)}), `answer-${nameOf(place)}`));
  if (isRanking()) card.append(rankChoice(place));
  if (isBestWorst()) card.append(pickChoice(place));
  return card;
}

/* A radio button that looks like a key. */
function chip(group, value, text, choose, attributes = {}) {
  const input = make("input", {type: "radio", name: group, value, onchange: choose, ...attributes});
  return make("label", {class: "chip"}, input, make("span", {}, text));
}
function rankChoice(place) {
  const values = item.responses.map((_, i) => i + 1).concat(item.responses.length + 1);
  return make("fieldset", {class: "ranks", id: `rank-${place + 1}`}, make("legend", {class: "unseen"}, t("rankOf", {n: nameOf(place)})),
    ...values.map((value) => chip(`rank-${place}`, value, value, () => give(place, value))));
}
function pickChoice(place) {
  return make("div", {class: "ranks"}, ...[["best", 1], ["worst", 3]].map(([kind, rank]) =>
    chip(kind, place, t(kind), () => pick(place, rank), {"aria-label": t(kind === "best" ? "isBest" : "isWorst", {n: nameOf(place)})})));
}
function pairParts() {
  return [make("legend", {class: "unseen"}, t("rulePairs")),
    ...[["1", "aBetter", [1, 2]], ["0", "tie", [1, 1]], ["2", "bBetter", [2, 1]]].map(([key, text, both]) => {
      const made = chip("pair", key, t(text), () => prefer(both));
      made.append(make("kbd", {}, key));
      return made;
    })];
}
function ownParts() {
  if (!isRanking()) return [make("legend", {class: "soft"}, t("ownIsBest"))];
  const values = [0, ...item.responses.map((_, i) => i + 1), item.responses.length + 1];
  return [make("legend", {class: "soft"}, t("rankOfOwn")),
    ...values.map((value) => chip("own-rank", value, value || t("aboveAll"), () => giveOwn(value)))];
}

/* ---- Texts: plain, as code or as Markdown; long ones scroll ---- */

function aText(text, label) {
  const node = textBox(text, {class: "shown", "data-label": label});
  node.raw = text;
  sizes.observe(node);
  node.addEventListener("scroll", () => follow(node), {passive: true});
  return node;
}
function aScroller(text, label, id) {
  const node = aText(text, label);
  node.id = id;
  return [node, make("div", {class: "more soft", hidden: true, "aria-hidden": "true"}, t("more"))];
}
/* A text that is longer than its box takes the focus, so that the keyboard scrolls it, and says that there is more. */
function follow(node) {
  const isLong = node.scrollHeight > node.clientHeight + 2;
  const more = node.nextElementSibling?.matches(".more") ? node.nextElementSibling : null;
  if (more) more.hidden = !isLong || node.scrollTop + node.clientHeight >= node.scrollHeight - 2;
  if (isLong === node.hasAttribute("tabindex")) return;
  const given = {tabindex: 0, role: "region", "aria-label": t("scrolls", {what: node.dataset.label})};
  for (const [key, value] of Object.entries(given)) isLong ? node.setAttribute(key, value) : node.removeAttribute(key);
}
const sizes = new ResizeObserver((entries) => entries.forEach(({target}) => follow(target)));

function chooseView() {
  view = views.value;
  memory("view", view);
  showTexts();
  if (item && byPointer) mark(marked);  // keys are for ranking again
}
async function showTexts() {
  const nodes = [...task.querySelectorAll(".shown")];
  const paintText = (node, html) => {
    node.classList.toggle("code", view === "code");
    node.classList.toggle("markdown", html !== undefined);
    if (html === undefined) node.textContent = readable(node.raw);
    else node.innerHTML = html;
    follow(node);
  };
  nodes.forEach((node) => paintText(node));
  if (view === "markdown" && nodes.length) {
    try {
      const {html} = await ask("api/html", {texts: nodes.map((node) => readable(node.raw))});
      if (view === "markdown") nodes.forEach((node, i) => paintText(node, html[i]));
    } catch (error) { tell(error.message, true); }
  }
  fit();
}

/* All answers are seen at once where there is room for columns: texts shrink until the page does not scroll. */
function fit() {
  if (!item) return;
  const texts = [...grid.querySelectorAll(".shown")], columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const rows = Math.ceil(texts.length / columns);
  grid.style.removeProperty("--fit");
  task.querySelectorAll(".shown").forEach(follow);
  let height = Math.max(...texts.map((text) => text.offsetHeight));
  for (let tries = 0; columns > 1 && tries < 4; tries += 1) {
    const over = document.documentElement.scrollHeight - innerHeight;
    if (over <= 0 || height <= 50) break;
    height = Math.max(50, Math.floor(height - over / rows));
    grid.style.setProperty("--fit", `${height}px`);
    texts.forEach(follow);
  }
}
addEventListener("resize", fit);

/* ---- The mark, and ranks ---- */

const places = () => [...grid.children].map((card) => Number(card.dataset.place));
const cards = () => [...grid.children, ...(isRanking() && own.trim() && !ownCard.hidden ? [ownCard] : [])];

function mark(index, takesFocus = true) {
  const all = cards();
  marked = Math.max(0, Math.min(index, all.length - 1));
  [...grid.children, ownCard].forEach((card) => {
    card.classList.toggle("marked", card === all[marked]);
    card === all[marked] ? card.setAttribute("aria-current", "true") : card.removeAttribute("aria-current");
  });
  if (takesFocus) {
    all[marked]?.focus({preventScroll: true});
    all[marked]?.scrollIntoView({block: "nearest"});
  }
}
function markThe(event) {
  const index = cards().findIndex((card) => card.contains(event.target));
  if (index >= 0 && index !== marked) mark(index, false);
}
task.addEventListener("focusin", markThe);
task.addEventListener("pointerdown", markThe);

function give(place, rank) {
  ranks[place] = rank;
  changed();
}
function giveOwn(rank) {
  ownRank = rank;
  changed();
}
function pick(place, rank) {
  const was = ranks.indexOf(rank);
  if (was >= 0) ranks[was] = null;
  const isTaken = ranks[place] !== null;
  ranks[place] = rank;
  changed();
  tell(isTaken ? t(rank === 1 ? "ruleBestWorst" : "otherWorst") : "", isTaken);
}
function prefer(both) {
  ranks = [...both];
  changed();
}
function changed() {
  if (!busy) keep();  // what is being saved needs no draft
  paint();
}

function paint() {
  const last = item.responses.length + 1;
  for (const input of task.querySelectorAll("input[type=radio]")) {
    const value = Number(input.value);
    if (input.name === "own-rank") input.checked = ownRank === value;
    else if (input.name === "best") input.checked = ranks[value] === 1;
    else if (input.name === "worst") input.checked = ranks[value] === 3;
    else if (input.name === "pair") input.checked = ranks[0] !== null && value === [1, 0, 2][Math.sign(ranks[0] - ranks[1]) + 1];
    else {
      input.checked = ranks[Number(input.name.split("-")[1])] === value;
      input.parentElement.hidden = value === last && !own.trim();
    }
  }
  for (const card of grid.children) {
    const rank = ranks[Number(card.dataset.place)];
    if (rank !== null) lacks(card, false);
    card.classList.toggle("better", isPair() && ranks[0] !== null && ranks[0] !== ranks[1] && rank === Math.min(...ranks));
  }
}
function lacks(card, isMissing) {
  card.classList.toggle("missing", isMissing);
  card.querySelector(".lacks").hidden = !isMissing;
}

function digit(key) {
  if (busy) return;
  const value = Number(key), answers = item.responses.length;
  if (isPair()) {
    if (value > 2) return tell(t("noSuchAnswer", {digit: key}), true);
    return prefer([[1, 1], [1, 2], [2, 1]][value]);
  }
  if (isBestWorst()) {
    if (value < 1 || value > answers) return tell(t("noSuchAnswer", {digit: key}), true);
    const hasBest = ranks.includes(1), hasWorst = ranks.includes(3);
    if (hasBest && hasWorst) ranks.fill(null);  // chosen anew
    if (hasBest && !hasWorst && ranks[value - 1] === 1) return tell(t("otherWorst"), true);
    pick(value - 1, hasBest && !hasWorst ? 3 : 1);
    return mark(places().indexOf(value - 1));
  }
  if (value < 1 || value > most()) return tell(t("noSuchRank", {digit: key, most: most()}), true);
  const card = cards()[marked];
  card === ownCard ? giveOwn(value) : give(Number(card.dataset.place), value);
  tell("");
  mark(marked + 1);
}

function arrow(key) {
  if (isPair()) return prefer(["ArrowLeft", "ArrowUp"].includes(key) ? [1, 2] : [2, 1]);
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  mark(marked + {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[key]);
}

/* Dragging an answer by its title: the order becomes the ranks. */
let dragged = null;
function startDrag(event, card) {
  dragged = card;
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", "");
  event.dataTransfer.setDragImage(card, 10, 10);
  card.classList.add("dragged");
}
function endDrag() {
  dragged?.classList.remove("dragged");
  grid.querySelectorAll(".over").forEach((card) => card.classList.remove("over"));
  dragged = null;
}
grid.addEventListener("dragover", (event) => {
  if (!dragged) return;
  event.preventDefault();
  const over = event.target.closest?.(".answer");
  for (const card of grid.children) card.classList.toggle("over", card === over && card !== dragged);
});
grid.addEventListener("drop", (event) => {
  if (!dragged || busy) return;
  event.preventDefault();
  const over = event.target.closest?.(".answer"), all = [...grid.children];
  if (over && over !== dragged) all.indexOf(dragged) < all.indexOf(over) ? over.after(dragged) : over.before(dragged);
  places().forEach((place, i) => { ranks[place] = i + 1; });
  const card = dragged;
  endDrag();
  changed();
  mark(cards().indexOf(card));
});

/* ---- Your own answer ---- */

function openOwn() {
  ownCard.hidden = false;
  ownText.focus();
  fit();
  ownCard.scrollIntoView({block: "nearest"});
}
function closeOwn() {
  ownCard.hidden = !own.trim();
  fit();
  mark(own.trim() ? cards().length - 1 : marked);
}
function write() {
  own = ownText.value;
  if (!own.trim()) {  // one rank less
    ranks = ranks.map((rank) => rank > item.responses.length ? null : rank);
    ownRank = 0;
  }
  changed();
}

/* ---- What buttons and keys do ---- */

const isEarly = () => busy || performance.now() - appeared < EARLY;

async function act(path, body, said) {
  work(true);
  const shown = item, key = draftKey();
  try {
    await ask(`api/${path}`, {annotator, id: shown.id, key: shown.key, ...body});
  } catch (error) {
    work(false);
    keep();
    return refuse(error, shown, key);
  }
  if (path !== "skip") memory(key, null);
  await load(said, shown.edit ? nowKey() : null);
}
async function refuse(error, shown, key) {
  if (error.code === "stale") return load(t("stale"), shown.key, true);
  if (error.code === "done") { memory(key, null); return load(t("done"), null, true); }
  const texts = {offline: t("offline"), long: t("ownLong", {n: settings.answer_length}), gone: t("gone")};
  tell(texts[error.code] ?? t("notSaved", {why: error.message}), true);
}
const seconds = () => Math.round(performance.now() - appeared) / 1000;

function save() {
  if (!item) return;
  if (isEarly()) return tell(t("early"), true);
  if (isBestWorst()) {
    if (!ranks.includes(1) || !ranks.includes(3)) return tell(t("missingBest"), true);
  } else if (isPair()) {
    if (ranks.includes(null)) return tell(t("missingPair"), true);
  } else if (ranks.includes(null)) return miss();
  return act("save", {ranks: ranks.map((rank) => rank ?? 2), own, own_rank: ownRank, seconds: seconds(), edit: Boolean(item.edit)}, t("saved"));
}
function miss() {
  const missing = [...grid.children].filter((card) => ranks[Number(card.dataset.place)] === null);
  missing.forEach((card) => lacks(card, true));
  tell(t("missing", {which: missing.map((card) => nameOf(Number(card.dataset.place))).join(", ")}), true);
  mark(cards().indexOf(missing[0]));
}
function allBad() {
  if (!item) return;
  if (isEarly()) return tell(t("early"), true);
  if (own.trim()) return tell(t("ownAndBad"), true);
  return act("save", {ranks: item.responses.map(() => 1), all_bad: true, seconds: seconds(), edit: Boolean(item.edit)}, t("savedBad"));
}
function skip() {
  if (!item) return;
  if (item.edit && !busy) {
    memory(draftKey(), null);
    return load("", nowKey());
  }
  if (isEarly()) return tell(t("early"), true);
  return act("skip", {}, t("skipped"));
}
async function undo() {
  if (busy || !annotator || !hello.hidden) return;
  await again("api/undo", {});
}
async function again(path, body) {
  work(true);
  try {
    const answer = await ask(path, {annotator, ...body});
    if (answer.progress) count(answer.progress);
    if (answer.item) {
      show(answer.item);
      if (!item.edit) keep();  // it is not in the file any more
    }
    tell(t(!answer.item ? "nothingToUndo" : item.edit ? "opened" : "undone"), !answer.item);
  } catch (error) {
    tell(error.code === "offline" ? error.message : t("gone"), true);
  }
  work(false);
}

/* ---- Keys ---- */

const KEYS = {Enter: save, b: allBad, x: skip, u: undo, w: () => item && openOwn(), g: toggleGuidelines, l: openList, "?": openHelp};
let byPointer = false;
addEventListener("pointerdown", () => { byPointer = true; }, true);
addEventListener("keydown", (event) => { if (event.key === "Tab") byPointer = false; }, true);

/* Does the browser itself do something with this key there? */
function isNative(event) {
  const {key, target} = event;
  if (key === "Enter") return target.matches("button, a, option");
  return key.startsWith("Arrow") && !byPointer && target.matches("input[type=radio], .shown[tabindex], #guidelines");
}

document.addEventListener("keydown", (event) => {
  const {key, target} = event, writes = target.matches("textarea, input:not([type=radio]), select");
  if (event.isComposing || key === "Process" || document.querySelector("dialog[open]")) return;
  if (target === ownText && key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat) save();
  } else if (target === ownText && key === "Escape") closeOwn();
  if (writes || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.repeat) {  // a key that is held acts once
    if (["Enter", " "].includes(key) && target.matches("button")) event.preventDefault();
    return;
  }
  if (isNative(event)) return;
  const pressed = key.length === 1 ? key.toLowerCase() : key;
  if (item && /^[0-9]$/.test(key)) digit(key);
  else if (item && key.startsWith("Arrow")) arrow(key);
  else if (Object.hasOwn(KEYS, pressed) && annotator && hello.hidden) KEYS[pressed]();
  else return;
  event.preventDefault();
});

/* ---- Dialogs ---- */

function openDialog(id, title, ...parts) {
  const close = make("button", {type: "button", class: "push", onclick: () => dialog.close()}, t("close"), " ", make("kbd", {}, "Esc"));
  document.getElementById(id)?.remove();
  const dialog = make("dialog", {id, "aria-label": title, onclose: () => { dialog.remove(); mark(marked); }},
    make("div", {class: "head"}, make("h2", {}, title), close), ...parts);
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

function openHelp() {
  const rows = [
    ...(isPair() ? [["1 2 0", "keyPair"], ["← →", "keyArrowsPair"]]
      : [[`1–${item ? most() : 9}`, isBestWorst() ? "keyPick" : "keyRank"], ["↑ ↓ ← →", "keyArrows"]]),
    ["Enter", "save"], ["b", "keyBad"], ["x", "keySkip"], ["u", "keyUndo"], ["w", "keyOwn"],
    ...(settings.guidelines ? [["g", "guidelines"]] : []), ["l", "list"], ["?", "help"]];
  openDialog("help", t("help"),
    make("table", {}, make("tbody", {}, ...rows.map(([keys, text]) =>
      make("tr", {}, make("th", {scope: "row"}, ...keys.split(" ").flatMap((key) => [make("kbd", {}, key), " "])), make("td", {}, t(text)))))),
    make("p", {class: "soft"}, t("ownHint")), isRanking() ? make("p", {class: "soft"}, t("keyDrag")) : null);
}

const wide = matchMedia("(min-width: 75rem)");
function placeGuidelines() {
  side.hidden = !settings.guidelines || !wide.matches || memory("guidelines") === "closed";
  page.classList.toggle("guided", !side.hidden);
  fit();
}
function toggleGuidelines() {
  if (!settings.guidelines) return;
  if (wide.matches) {
    memory("guidelines", side.hidden ? "open" : "closed");
    return placeGuidelines();
  }
  const text = make("div", {class: "markdown"});
  text.innerHTML = settings.guidelines;
  openDialog("guidelines-dialog", t("guidelines"), text);
}
wide.addEventListener("change", placeGuidelines);

/* What belongs to all rankings: download, agreement, push. */
function sharing(said, ...more) {
  const work = async (does) => {
    try { await does(); } catch (error) { said.classList.add("bad"); said.textContent = error.message; }
  };
  const repo = settings.push_to;
  return make("div", {class: "tools"}, ...more,
    make("button", {class: "show-agreement", type: "button", onclick: () => work(openAgreement)}, t("agreement")),
    make("button", {class: "download", type: "button", onclick: () => work(download)}, t("download")),
    repo ? make("button", {class: "push-to-hub", type: "button", onclick: () => work(() => publish(said))}, t("push", {repo})) : null);
}
async function download() {
  const {name, text} = await ask("api/export", {annotator});
  const url = URL.createObjectURL(new Blob([text], {type: "application/jsonl"}));
  make("a", {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
async function publish(said) {
  if (!confirm(t("askPush", {repo: settings.push_to}))) return;
  said.classList.remove("bad");
  said.textContent = t("pushing");
  const {url} = await ask("api/push", {annotator});
  said.textContent = t("pushed", {url});
}

async function openAgreement() {
  const {same, compared, alpha, annotators} = await ask("api/agreement", {annotator});
  const share = (part, all) => all ? `${Math.round(100 * part / all)} %` : "–", number = (value) => value === null ? "–" : value.toFixed(2);
  const heads = ["annotator", "rankings", "seconds", "ties", "agrees", "alpha"];
  openDialog("agreement", t("agreement"),
    make("p", {}, compared ? t("overall", {same, compared, share: share(same, compared), alpha: number(alpha)}) : t("noOverlap")),
    make("div", {class: "scrolls", tabindex: 0, role: "region", "aria-label": t("agreement")}, make("table", {},
      make("thead", {}, make("tr", {}, ...heads.map((head, i) => make("th", {scope: "col", class: i ? "number" : ""}, t(head))))),
      make("tbody", {}, ...annotators.map((one) => make("tr", {}, make("th", {scope: "row"}, make("bdi", {}, readable(one.annotator))),
        ...[one.rankings, one.median_seconds?.toFixed(1) ?? "–", one.ties === null ? "–" : share(one.ties, 1),
          `${share(one.same, one.compared)}${one.interval ? ` [${one.interval.map((end) => Math.round(100 * end)).join(", ")}]` : ""}`,
          number(one.alpha)].map((value, i) => make("td", {class: "number", "data-label": t(heads[i + 1])}, String(value)))))))),
    make("p", {class: "soft"}, t("aboutAlpha")));
}

const asText = (prompt) => typeof prompt === "string" ? prompt : String(prompt.at(-1).content);
const short = (text) => textBox([...text].length > 200 ? `${[...text].slice(0, 200).join("")}…` : text);

async function openList() {
  if (!annotator || !hello.hidden) return;
  let rows;
  try { ({rows} = await ask("api/mine", {annotator})); } catch (error) { return tell(error.message, true); }
  const said = make("p", {role: "status"});
  const dialog = openDialog("list", t("list"), sharing(said), said, rows.length === 0 ? make("p", {}, t("noneRanked"))
    : make("div", {class: "scrolls"}, make("table", {},
      make("thead", {}, make("tr", {}, ...["prompt", "bestAnswer", "when"].map((head) => make("th", {scope: "col"}, t(head))), make("td"))),
      make("tbody", {}, ...rows.map((row, i) => make("tr", {}, make("td", {}, short(asText(row.prompt))),
        make("td", {}, row.all_bad ? t("noneGood") : short(row.best)), make("td", {class: "soft when"}, when(row)),
        make("td", {}, make("button", {type: "button", class: "edit", "aria-label": t("editRow", {n: i + 1}),
          onclick: () => { dialog.close(); again("api/open", {id: row.id}); }}, t("edit")))))))));
}
const when = ({saved_at, seconds}) => [saved_at ? new Date(1000 * saved_at).toLocaleString(language(), {dateStyle: "medium", timeStyle: "short"}) : null, seconds === null ? null : `${seconds} s`].filter(Boolean).join(" · ");

function showEnd() {
  const said = make("p", {role: "status"});
  end.replaceChildren(make("h2", {}, t("finished")), make("p", {}, t("finishedMore")),
    sharing(said, button("end-list", t("list"), "l", () => openList())), said);
}

/* ---- Start ---- */

placeGuidelines();
show(null);
(async () => {
  let known = "";
  for (;;) {
    try { ({annotator: known} = await ask("api/who", {})); break; } catch { tell(t("waiting"), true); await wait(RETRY); }
  }
  login = Boolean(known);
  known ||= session("annotator") ?? memory("annotator");
  if (known) return enter(known);
  tell(t("enterName", {n: settings.name_length}));
  name.focus();
})();
