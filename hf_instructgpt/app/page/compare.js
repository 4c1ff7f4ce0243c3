/* Two answers side by side: ask, vote, change the vote, go on. Which model is where is known only after the vote. */
import {ask, chooseLanguage, language, make, memory, say, send, settings, textBox} from "./shared.js";

const WORDS = {
  title: {en: "Compare models", zh: "比较模型"},
  hello: {en: "Enter your name, then a prompt. Two models answer it, and you vote.", zh: "先输入名字，再输入提示。两个模型作答，由你投票。"},
  name: {en: "Your name", zh: "你的名字"},
  start: {en: "Start", zh: "开始"},
  change: {en: "Change name", zh: "更改名字"},
  other: {en: "中文", zh: "English"},
  keys: {en: "Keys", zh: "快捷键"},
  prompt: {en: "Prompt", zh: "提示"},
  sampled: {en: "Sample (temperature 1)", zh: "采样（温度 1）"},
  blind: {en: "Hide model names until I vote", zh: "投票前隐藏模型名"},
  ask: {en: "Ask", zh: "提问"},
  stop: {en: "Stop", zh: "停止"},
  answer: {en: "Answer {side}", zh: "回答 {side}"},
  a: {en: "A is better", zh: "A 更好"},
  b: {en: "B is better", zh: "B 更好"},
  tie: {en: "No difference", zh: "没有差别"},
  bad: {en: "Both bad", zh: "都不好"},
  which: {en: "Which is better?", zh: "哪个更好？"},
  same: {en: "Both answers are the same.", zh: "两个回答相同。"},
  writing: {en: "Answer {side} is being written …", zh: "正在生成回答 {side} …"},
  waiting: {en: "Waiting: the models are answering someone else …", zh: "请稍候：模型正在回答别人的问题 …"},
  stopped: {en: "Stopped. These answers cannot be voted on.", zh: "已停止，这两个回答不能投票。"},
  failed: {en: "An answer failed; the server's log says why. Ask again.", zh: "生成回答时出错，原因见服务器日志。请重新提问。"},
  broken: {en: "The answers broke off: the server does not answer. Ask again.", zh: "回答中断：服务器没有响应。请重新提问。"},
  saved: {en: "Saved: {verdict}. A is {a}, B is {b}.", zh: "已保存：{verdict}。A 是 {a}，B 是 {b}。"},
  notBlind: {en: "It does not count as blind.", zh: "这一票不算盲投。"},
  changed: {en: "It was changed after the names were shown, so it does not count as blind.", zh: "看到模型名之后改过，不算盲投。"},
  unsaved: {en: "Not saved: {reason}", zh: "未保存：{reason}"},
  undo: {en: "Undo", zh: "撤销"},
  undone: {en: "Vote undone. The names were shown, so another vote on these answers does not count as blind.", zh: "已撤销这一票。模型名已经显示，对这两个回答再投票不算盲投。"},
  goOn: {en: "Continue the conversation", zh: "继续对话"},
  fresh: {en: "New conversation", zh: "新对话"},
  next: {en: "Next prompt", zh: "下一个提示"},
  own: {en: "New prompt", zh: "新提示"},
  skip: {en: "Skip", zh: "跳过"},
  empty: {en: "Enter a prompt.", zh: "请输入提示。"},
  nameless: {en: "Enter your name first.", zh: "请先输入名字。"},
  of: {en: "Prompt {n} of {total} · you have voted on {done}. Change the text to ask something else.", zh: "第 {n} 个提示，共 {total} 个；你已投 {done} 个。修改文字就会改问别的。"},
  done: {en: "All {total} prompts have your vote, thank you! You can still type prompts of your own.", zh: "{total} 个提示都已投票，谢谢！还可以自己输入提示。"},
  unknown: {en: "Characters that a model does not know: {list}", zh: "有模型不认识这些字符：{list}"},
  dropped: {en: "The conversation is too long for these models: they do not read its first {n} turns.", zh: "对话超出模型的长度，最早的 {n} 轮不再读入。"},
  alone: {en: "Each prompt is answered on its own: {names} cannot read earlier turns.", zh: "每个提示单独作答：{names} 不读取之前的对话。"},
  apart: {en: "{names} cannot read earlier turns and does not answer follow-up prompts.", zh: "{names} 不读取之前的对话，不参与追问。"},
  cut: {en: "Cut after {n} tokens.", zh: "在 {n} 个 token 处被截断。"},
  nothing: {en: "Empty: the model ended its answer at once.", zh: "空回答：模型立即结束了回答。"},
  blank: {en: "Only {n} blank characters.", zh: "只有 {n} 个空白字符。"},
  unscored: {en: "Too long for the reward model: no score.", zh: "超出奖励模型的长度，没有分数。"},
  score: {en: "score {n}", zh: "分数 {n}"},
  you: {en: "You", zh: "你"},
  system: {en: "System", zh: "系统"},
  earlier: {en: "Answer", zh: "回答"},
  votes: {en: "Your votes ({n})", zh: "你的投票（{n}）"},
  none: {en: "None yet.", zh: "还没有。"},
  beat: {en: "{x} over {y}", zh: "{x} 胜 {y}"},
  tied: {en: "{x} = {y}", zh: "{x} = {y}"},
  bothBad: {en: "both bad: {x}, {y}", zh: "都不好：{x}、{y}"},
  open: {en: "not blind", zh: "非盲投"},
  altered: {en: "changed", zh: "改过"},
  results: {en: "Everybody's results", zh: "所有人的结果"},
  blindVotes: {en: "Blind votes: {n}", zh: "盲投：{n} 票"},
  otherVotes: {en: "Votes that are not blind, and not counted above: {n}", zh: "非盲投，不计入上表：{n} 票"},
  otherWhy: {en: "Names were shown, the vote was changed after they were shown, or an answer had been shown before with its model's name.", zh: "投票时显示了模型名，看到模型名之后改过，或某个回答此前已连同模型名显示过。"},
  model: {en: "Model", zh: "模型"},
  all: {en: "Votes", zh: "票数"},
  won: {en: "Won", zh: "胜"},
  lost: {en: "Lost", zh: "负"},
  ties: {en: "No difference", zh: "没有差别"},
  share: {en: "Won of decided (95 % CI)", zh: "分出胜负的票中获胜（95% 区间）"},
  strength: {en: "Strength (95 % CI)", zh: "强度（95% 区间）"},
  sentence: {en: "{x} won {won} of {all} decided votes ({share}, 95 % CI {low}–{high} %).", zh: "{x} 在分出胜负的 {all} 票中赢了 {won} 票（{share}，95% 区间 {low}–{high} %）。"},
  pairs: {en: "Row against column: won : lost", zh: "行对列：胜 : 负"},
  meaning: {en: "Strengths come from the Bradley–Terry model, in log-odds; their mean is 0. A model whose strength is higher by 1 wins 73 % of the time. “No difference” and “Both bad” count as half a win for each model. Intervals: Wilson for shares; for strengths, a bootstrap that assumes independent votes.", zh: "强度由 Bradley–Terry 模型拟合，单位是对数几率，平均为 0：强度高 1 的一方胜率为 73 %。“没有差别”和“都不好”各算半胜。区间：比例用 Wilson 区间；强度用自助法，假定各票独立。"},
  few: {en: "≈: too few votes for an interval.", zh: "≈：票数太少，没有区间。"},
  regularised: {en: "Some model has won or lost every vote against the others, or was not compared with them: its strength has no finite estimate. Half a win each is added; these strengths (≈) are a rough order, without intervals.", zh: "有模型对其他模型全胜或全负，或没有和它们比较过，强度没有有限的估计值。这里给双方各加半胜；带 ≈ 的强度只是大致的顺序，没有区间。"},
  help: {en: [["a  ←", "A is better"], ["b  →", "B is better"], ["t", "No difference"], ["x", "Both bad"], ["u", "Undo the vote"], ["c", "Continue the conversation with the preferred answer (A, if none is preferred)"], ["n", "Next prompt; without a vote, the pair is skipped"], ["Enter", "Ask (Shift+Enter: new line)"], ["?", "These keys"]],
    zh: [["a  ←", "A 更好"], ["b  →", "B 更好"], ["t", "没有差别"], ["x", "都不好"], ["u", "撤销这一票"], ["c", "用选中的回答继续对话（没有选中则用 A）"], ["n", "下一个提示；没投票则跳过"], ["Enter", "提问（Shift+Enter 换行）"], ["?", "显示快捷键"]]},
  counts: {en: "The last vote counts. A vote that was changed after the names were shown still trains the reward model, but is not counted as blind.", zh: "以最后一次投票为准。看到模型名之后改过的票仍用于训练奖励模型，但不算盲投。"},
  close: {en: "Close", zh: "关闭"},
};
const word = (name, values) => say(WORDS[name], values);
const SIDES = ["a", "b"], VERDICTS = ["a", "tie", "bad", "b"];
const HINTS = {a: "a", tie: "t", bad: "x", b: "b"};
const KEYS = {a: "a", ArrowLeft: "a", b: "b", ArrowRight: "b", t: "tie", x: "bad"};

const state = {
  annotator: "", isFixed: false, votes: [],
  number: null, fileText: null, turns: [], after: null,  // what is asked next
  round: null,  // what is shown: id, prompt (messages), answers, notes, names, scores, verdict, stage, blind, changed
  abort: null, isBusy: false,
};

/* ---- The page's parts ---- */

const $ = (id) => document.getElementById(id);
const button = (id, text, key, onclick, attributes = {}) =>
  make("button", {id, type: "button", onclick, ...attributes}, text, key ? " " : null, key ? make("kbd", {"aria-hidden": "true"}, key) : null);

function build() {
  document.title = word("title");
  document.body.append(
    make("header", {},
      make("h1", {}, word("title")), make("span", {class: "soft"}, settings.models.join(" · ")), make("span", {class: "push"}),
      make("form", {id: "name", onsubmit: (event) => { event.preventDefault(); begin($("annotator").value.trim()); }},
        make("label", {for: "annotator"}, word("name")), make("input", {id: "annotator", autocomplete: "off", maxlength: 100, size: 12}),
        make("button", {id: "start"}, word("start"))),
      make("span", {id: "who", hidden: true}, make("b", {id: "who-name"}), " ", button("rename", word("change"), null, rename)),
      button("keys", word("keys"), "?", () => $("help").showModal()),
      button("language", word("other"), null, () => chooseLanguage(language() === "zh" ? "en" : "zh"), {lang: language() === "zh" ? "en" : "zh"})),
    make("main", {},
      make("section", {id: "conversation", "aria-label": word("prompt"), hidden: true}),
      make("form", {id: "asking", onsubmit: (event) => { event.preventDefault(); answer(); }},
        make("label", {for: "prompt", id: "prompt-label"}, word("prompt")),
        make("textarea", {id: "prompt", dir: "auto", rows: 3, maxlength: settings.maxLength, onkeydown: enter, oninput: edited, "aria-describedby": "progress"}),
        make("p", {id: "progress", class: "soft"}),
        make("label", {}, make("input", {type: "checkbox", id: "sampled", checked: true}), word("sampled")),
        make("label", {}, make("input", {type: "checkbox", id: "blind", checked: true}), word("blind")),
        make("span", {class: "push"}),
        button("fresh", word("fresh"), null, fresh, {hidden: true}),
        make("button", {id: "ask", class: "primary"}, word("ask"), " ", make("kbd", {"aria-hidden": "true"}, "Enter"))),
      make("div", {id: "pair", tabindex: -1, hidden: true}, ...SIDES.map((side) =>
        make("section", {id: `answer-${side}`, class: "card", "aria-labelledby": `title-${side}`}))),
      make("div", {id: "bar"},
        make("div", {class: "row"}, make("p", {id: "status", role: "status"}),
          make("div", {id: "after", class: "row push", hidden: true},
            button("stop", word("stop"), null, stop), button("undo", word("undo"), "u", undo),
            button("continue", word("goOn"), "c", goOn), button("next", word("next"), "n", next))),
        make("div", {id: "votes", role: "group", "aria-label": word("which"), hidden: true},
          ...VERDICTS.map((verdict) => button(`vote-${verdict}`, word(verdict), HINTS[verdict], () => vote(verdict))))),
      make("details", {id: "results", class: "card", ontoggle: showTable}, make("summary", {}, word("results")), make("div", {id: "table"})),
      make("details", {id: "history", class: "card"}, make("summary", {id: "history-title"}), make("ol", {id: "votes-list"}))),
    make("dialog", {id: "help", "aria-labelledby": "help-title"}, make("h2", {id: "help-title"}, word("keys")),
      make("table", {}, make("tbody", {}, ...WORDS.help[language()].map(([keys, text]) =>
        make("tr", {}, make("td", {}, ...keys.split("  ").flatMap((key) => [make("kbd", {}, key), " "])), make("td", {}, text))))),
      make("p", {class: "soft"}, word("counts")), button("close", word("close"), null, () => $("help").close())));
}

const tell = (text, kind = "") => { $("status").textContent = text; $("status").className = kind; };

/* One message of a conversation. */
const turn = ({role, content}) => make("div", {class: `turn ${role === "assistant" ? "" : "person"}`},
  make("div", {class: "soft"}, word({user: "you", system: "system", assistant: "earlier"}[role] ?? "system")), textBox(content));

/* Everything that follows from `state`. */
function show() {
  const round = state.round, turns = round ? round.prompt : state.turns;
  $("conversation").hidden = turns.length === 0;
  $("conversation").replaceChildren(...turns.map(turn), ...(round?.remarks ?? []).map((text) => make("p", {class: "soft"}, text)));
  $("asking").hidden = Boolean(round);
  $("fresh").hidden = state.after === null;
  $("pair").hidden = $("votes").hidden = $("after").hidden = !round;
  $("bar").classList.toggle("fixed", Boolean(round));
  if (!round) return;
  SIDES.forEach((side, i) => showAnswer(side, i, round));
  const isOpen = round.stage === "complete" || round.stage === "voted", isSame = round.answers[0] === round.answers[1];
  for (const verdict of VERDICTS) {
    $(`vote-${verdict}`).disabled = !isOpen || (isSame && SIDES.includes(verdict));
    $(`vote-${verdict}`).setAttribute("aria-pressed", round.verdict === verdict);
  }
  $("undo").hidden = round.stage !== "voted";
  $("continue").hidden = round.stage !== "voted" || !settings.continues;
  $("stop").hidden = round.stage !== "writing";
  $("next").hidden = round.stage === "writing";
  const name = round.stage !== "voted" ? "skip" : settings.prompts ? "next" : "own";
  $("next").firstChild.textContent = word(name);
  $("next").classList.toggle("primary", round.stage === "voted");
}

function showAnswer(side, i, round) {
  const notes = round.notes?.[i] ?? {}, score = round.scores?.[i];
  $(`answer-${side}`).classList.toggle("better", round.verdict === side);
  $(`answer-${side}`).replaceChildren(
    make("div", {class: "head"}, make("h2", {id: `title-${side}`}, word("answer", {side: side.toUpperCase()})),
      round.names ? make("span", {class: "name"}, round.names[i]) : null,
      typeof score === "number" ? make("span", {class: "soft number"}, word("score", {n: signed(score)})) : null),
    textBox(round.answers[i]),
    ...remarks(notes).map((text) => make("p", {class: "soft note"}, text)));
}

function remarks(notes) {
  const found = [];
  if ("empty" in notes) found.push(notes.empty ? word("blank", {n: notes.empty}) : word("nothing"));
  if ("cut" in notes) found.push(word("cut", {n: notes.cut}));
  if (notes.unscored && state.round.stage === "voted") found.push(word("unscored"));
  return found;
}

/* ---- Who votes ---- */

async function begin(name) {
  if (!name) { tell(word("nameless"), "bad"); $("annotator").focus(); return; }
  try {
    await load(name);
    memory("annotator", state.annotator);
    tell("");
    await (settings.prompts && !state.round ? fromFile(null) : null);
    if (!state.round) $("prompt").focus();
  } catch (error) { tell(error.message, "bad"); }
}

async function load(name) {
  const found = await ask("api/state", {annotator: name});
  Object.assign(state, {annotator: found.annotator, isFixed: found.fixed, votes: found.votes});
  $("who-name").textContent = found.annotator;
  $("name").hidden = Boolean(found.annotator);
  $("who").hidden = !found.annotator;
  $("rename").hidden = found.fixed;
  showVotes();
}

function rename() {
  $("name").hidden = false; $("who").hidden = true;
  $("annotator").value = state.annotator; $("annotator").select();
}

/* ---- Asking ---- */

function enter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  if (!event.repeat) answer();
}

function edited() {
  memory("compare.draft", $("prompt").value || null);
  if (state.number === null || $("prompt").value === state.fileText) return;
  Object.assign(state, {number: null, turns: []});
  $("progress").textContent = "";
  show();
}

function fresh() {
  Object.assign(state, {after: null, turns: []});
  show();
  $("prompt").focus();
}

async function answer() {
  const text = $("prompt").value;
  if (state.abort) return;
  if (!state.annotator) return begin($("annotator").value.trim());
  if (!text.trim()) { tell(word("empty"), "bad"); return; }
  const body = {annotator: state.annotator, text, sampled: $("sampled").checked, blind: $("blind").checked};
  if (state.number !== null) body.number = state.number;
  else if (state.after !== null) body.after = state.after;
  state.abort = new AbortController();
  if (body.blind) $("results").open = false;
  try {
    const response = await send("api/ask", body, {signal: state.abort.signal});
    const shown = [...state.turns, {role: "user", content: text}];
    state.round = {stage: "writing", prompt: shown, answers: ["", ""], notes: [{}, {}], names: null, verdict: null, remarks: []};
    tell(word("writing", {side: "A"}));
    show();
    $("pair").focus();
    for await (const line of lines(response)) take(line);
    if (state.round.stage === "writing") { state.round.stage = "broken"; tell(word("broken"), "bad"); }
  } catch (error) {
    if (state.round?.stage === "writing") state.round.stage = "broken";
    const isStopped = error.name === "AbortError";
    tell(isStopped ? word("stopped") : state.round ? word("broken") : error.message, isStopped ? "" : "bad");
  }
  state.abort = null;
  show();
}

/* The objects of a body of JSON lines, as they come in. */
async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

function take(line) {
  const round = state.round;
  if (line.kind === "begin") {
    Object.assign(round, {id: line.id, names: line.names ?? null});
    if (line.unknown.length) round.remarks.push(word("unknown", {list: line.unknown.slice(0, 10).join(" ") + (line.unknown.length > 10 ? " …" : "")}));
    if (line.dropped) round.remarks.push(word("dropped", {n: line.dropped}));
  } else if (line.kind === "wait") tell(word("waiting"));
  else if (line.kind === "text") {
    if (!round.answers[line.side]) tell(word("writing", {side: "AB"[line.side]}));
    round.answers[line.side] += line.text;
    showAnswer(SIDES[line.side], line.side, round);
    return;
  } else if (line.kind === "failed") { round.stage = "broken"; tell(word("failed"), "bad"); }
  else if (line.kind === "end") {
    Object.assign(round, {stage: "complete", answers: line.answers, notes: line.notes});
    tell(line.answers[0] === line.answers[1] ? word("same") : word("which"));
  }
  show();
}

const stop = () => state.abort?.abort();

/* ---- Voting ---- */

/* Do one thing at a time, and say what went wrong. */
async function once(work) {
  if (state.isBusy) return;
  state.isBusy = true;
  try { await work(); } catch (error) { tell(word("unsaved", {reason: error.message}), "bad"); }
  state.isBusy = false;
}

const vote = (verdict) => once(async () => {
  const round = state.round;
  if (!round || !["complete", "voted"].includes(round.stage) || $(`vote-${verdict}`).disabled) return;
  const found = await ask("api/vote", {annotator: state.annotator, id: round.id, verdict});
  if (!state.votes.some((known) => known.id === found.id)) state.votes.unshift(found);
  memory("compare.draft", null);
  voted(found);
});

function voted(found) {
  state.votes = state.votes.map((known) => known.id === found.id ? found : known);
  Object.assign(state.round, {...found, prompt: state.round.prompt, stage: "voted"});
  const extra = found.changed ? ` ${word("changed")}` : found.blind ? "" : ` ${word("notBlind")}`;
  tell(word("saved", {verdict: word(found.verdict), a: found.names[0], b: found.names[1]}) + extra, "good");
  show();
  showVotes();
  if ($("results").open) showTable();
}

const undo = () => once(async () => {
  const round = state.round;
  if (round?.stage !== "voted") return;
  await ask("api/undo", {annotator: state.annotator, id: round.id});
  state.votes = state.votes.filter((known) => known.id !== round.id);
  Object.assign(round, {stage: "complete", verdict: null});
  tell(word("undone"));
  show();
  showVotes();
  if ($("results").open) showTable();
});

const openVote = (id) => once(async () => {
  stop();
  const found = await ask("api/open", {annotator: state.annotator, id});
  state.round = {prompt: found.messages, remarks: []};
  voted(found);
  scrollTo({top: 0});
  $("pair").focus();
});

/* ---- Going on ---- */

function goOn() {
  const round = state.round;
  if (round?.stage !== "voted" || !settings.continues) return;
  const preferred = round.answers[round.verdict === "b" ? 1 : 0];
  Object.assign(state, {after: round.id, number: null, turns: [...round.prompt, {role: "assistant", content: preferred}], round: null});
  $("prompt").value = ""; $("progress").textContent = "";
  tell("");
  show();
  $("prompt").focus();
}

const next = () => once(async () => {
  const round = state.round;
  if (!round || round.stage === "writing") return;
  const isVoted = round.stage === "voted";
  Object.assign(state, {after: null, turns: [], round: null});
  tell("");
  if (settings.prompts) {
    await fromFile(state.lastNumber ?? null);
    if (state.number !== null) answer();
    return;
  }
  if (isVoted) $("prompt").value = "";
  show();
  $("prompt").focus();
});

/* The next prompt of the file after a number that has no vote yet. */
async function fromFile(number) {
  const found = await ask("api/next", {annotator: state.annotator, number});
  const draft = number === null ? memory("compare.draft") : null;
  Object.assign(state, {number: found.number, lastNumber: found.number, turns: found.turns ?? [], fileText: found.text ?? ""});
  $("prompt").value = state.fileText;
  $("progress").textContent = found.number === null ? word("done", found) : word("of", {...found, n: found.number + 1});
  if (draft && draft !== state.fileText) { $("prompt").value = draft; edited(); }
  show();
  if (found.number === null) $("prompt").focus();
}

/* ---- What was voted ---- */

function showVotes() {
  $("history-title").textContent = word("votes", {n: state.votes.length});
  const items = state.votes.map((known) => {
    const [a, b] = known.models, [x, y] = known.verdict === "b" ? [b, a] : [a, b];
    const what = {tie: "tied", bad: "bothBad"}[known.verdict] ?? "beat";
    const marks = [known.changed ? word("altered") : null, known.blind ? null : word("open")].filter(Boolean);
    return make("li", {}, make("button", {type: "button", onclick: () => openVote(known.id)}, textBox(known.prompt),
      make("span", {}, word(what, {x, y})), marks.length ? make("span", {class: "soft"}, marks.join(" · ")) : null));
  });
  $("votes-list").replaceChildren(...(items.length ? items : [make("li", {class: "soft"}, word("none"))]));
}

/* ---- The table ---- */

async function showTable() {
  if (!$("results").open) return;
  try {
    const {blind, others} = await ask("api/table");
    $("table").replaceChildren(...standings(blind));
    if (others.count) $("table").append(make("hr"), ...counts(others));
    $("table").append(make("p", {class: "soft"}, word("meaning")));
  } catch (error) { $("table").replaceChildren(make("p", {class: "bad"}, error.message)); }
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

const number = (text) => make("td", {class: "number"}, String(text));
const COUNTS = [["votes", "all"], ["won", "won"], ["lost", "lost"], ["ties", "ties"], ["both_bad", "bad"]];
const row = (model, ...cells) => [make("th", {scope: "row"}, model.name), ...COUNTS.map(([name]) => number(model[name])), ...cells];

/* What blind votes say. */
function standings(found) {
  const title = word("blindVotes", {n: found.count}), parts = [make("h2", {}, title)];
  const [first] = found.models;
  if (found.models.length === 2 && first.share) {
    const [share, low, high] = first.share;
    parts.push(make("p", {}, word("sentence", {x: first.name, won: first.won, all: first.won + first.lost, share: percent(share), low: (100 * low).toFixed(0), high: (100 * high).toFixed(0)})));
  }
  const interval = (values, show) => number(!values ? "–" : values.length === 1 ? `≈ ${show(values[0])}` : `${show(values[0])} (${show(values[1])} … ${show(values[2])})`);
  parts.push(scrolling(title, ["model", ...COUNTS.map(([, name]) => name), "share", "strength"].map((name) => word(name)),
    found.models.map((model) => row(model, interval(model.share, percent), interval(model.strength, signed)))));
  if (found.is_regularised) parts.push(make("p", {class: "soft"}, word("regularised")));
  else if (first.strength?.length === 1) parts.push(make("p", {class: "soft"}, word("few")));
  if (found.models.length > 2 && found.count) {
    const names = found.models.map((model) => model.name);
    parts.push(make("p", {class: "soft phone"}, word("pairs")));
    parts.push(scrolling(word("pairs"), [word("pairs"), ...names], found.pairs.map((wins, i) => [
      make("th", {scope: "row"}, names[i]), ...wins.map((won, j) => number(i === j ? "" : `${won} : ${found.pairs[j][i]}`))])));
  }
  return parts;
}

/* The other votes, which prove nothing: only their numbers. */
const counts = (found) => [make("h2", {}, word("otherVotes", {n: found.count})), make("p", {class: "soft"}, word("otherWhy")),
  scrolling(word("otherVotes", {n: found.count}), ["model", ...COUNTS.map(([, name]) => name)].map((name) => word(name)),
    found.models.filter((model) => model.votes).map((model) => row(model)))];

/* A table that scrolls sideways by itself where it is too wide, by keyboard too; on a phone its rows are lists. */
function scrolling(name, heads, rows) {
  for (const cells of rows) cells.forEach((cell, i) => { cell.dataset.label = heads[i]; });
  return make("div", {class: "wide", role: "region", tabindex: 0, "aria-label": name},
    make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((text, i) => make("th", {scope: "col", class: i ? "number" : ""}, text)))),
      make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells)))));
}

/* ---- Keys ---- */

function press(event) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || $("help").open) return;
  if (event.target.closest?.("input, textarea, select, .wide")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;  // Caps Lock
  const act = key === "?" ? () => $("help").showModal() : KEYS[key] ? () => vote(KEYS[key]) : {u: undo, c: goOn, n: next}[key];
  if (!act) return;
  event.preventDefault();
  act();
}

build();
document.addEventListener("keydown", press);
const names = settings.single.join(language() === "zh" ? "、" : ", ");
if (settings.single.length) $("asking").append(make("p", {class: "soft"}, word(settings.continues ? "apart" : "alone", {names})));
$("prompt").value = memory("compare.draft") ?? "";
show();
await load(memory("annotator") ?? "").catch((error) => tell(error.message, "bad"));
if (state.annotator) begin(state.annotator);
else { tell(word("hello")); $("annotator").focus(); }
