/* The token microscope: a response as coloured tokens, the same prompt at several steps. */
const asProbability = (name) => name.endsWith("logprob");
const shownValue = (name, x) => (!isNumber(x) ? "–" : asProbability(name) ? percent(Math.exp(x)) : signed(x));
const glyph = (token) => token.replace(/\n/g, "↵") || " ";

function microscope(T, run) {
  if (!run.microscope.length) {
    return run.stages.some((stage) => stage.kind === "ppo") ? section(T.microscope, soft(T.nothing)) : null;
  }
  chosen.prompt = Math.min(chosen.prompt, run.microscope.length - 1);
  const place = make("div", { id: "steps" }), big = make("div", { id: "big" }), bar = make("div", { className: "colours" }), caption = make("p", { className: "soft caption" });
  const slider = make("input", { type: "range", id: "step", min: 0 }), at = make("output", {}), play = make("button", { type: "button", id: "play" }, `▶ ${T.play}`);
  const steps = () => run.microscope[chosen.prompt].steps;
  const atStep = () => {
    const i = chosen.step = Math.max(0, Math.min(chosen.step ?? steps().length - 1, steps().length - 1)), step = steps()[i];
    slider.max = steps().length - 1;
    slider.value = i;
    slider.setAttribute("aria-valuetext", at.value = String(step.step));
    big.replaceChildren(...large(T, step, colouring(steps())));
    place.querySelectorAll(".step").forEach((row, j) => row.classList.toggle("current", i === j));
  };
  const show = () => {
    const scale = colouring(steps()), name = chosen.quantity;
    place.replaceChildren(...steps().map((step, r) => row(T, step, r, scale)));
    const ends = !name ? [] : asProbability(name) ? [[0, 0], [1, 1]] : [[-scale.most, -1], [0, 0], [scale.most, 1]];
    bar.replaceChildren(...ends.map(([x, part]) => make("span", { className: "swatch" }, make("span", { style: `background:${scale.colour(part)}` }), asProbability(name) ? percent(x, 0) : signed(x))));
    caption.replaceChildren(T.colours(name ? T.q[name] : T.none, ""), quoted(run.microscope[chosen.prompt].prompt));
    atStep();
  };
  slider.addEventListener("input", () => { chosen.step = Number(slider.value); atStep(); });
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = `▶ ${T.play}`; };
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = `⏸ ${T.pause}`;
    if (chosen.step === steps().length - 1) { chosen.step = 0; atStep(); }
    timer = setInterval(() => {
      if (!place.isConnected || chosen.step >= steps().length - 1) return stop();
      chosen.step += 1;
      atStep();
    }, 700);
  });
  place.addEventListener("keydown", (event) => move(place, event));
  const names = DATA.quantities.filter((name) => name !== "clipped");
  const controls = make("div", { className: "no-print" },
    choose(T.prompt, run.microscope.map((some, i) => [String(i), some.prompt]), String(chosen.prompt), (value) => { chosen.prompt = Number(value); show(); }, "prompt"),
    choose(T.quantity, [...names, ""].map((name) => [name, name ? T.q[name] : T.none]), chosen.quantity, (value) => { chosen.quantity = value; show(); }, "quantity"));
  show();
  return section(T.microscope, sentence(T.hint, { className: "soft" }), run.thinned ? soft(T.thinned) : null, controls, caption, bar,
    make("div", { className: "player no-print" }, play, make("label", {}, T.step, slider), at), big, make("h3", {}, T.all), place);
}
/* The colour of a value of the chosen quantity, the same at all steps. */
function colouring(steps, name = chosen.quantity) {
  const column = DATA.quantities.indexOf(name);
  const most = asProbability(name) ? 1 : Math.max(1e-9, ...steps.flatMap((step) => step.tokens.map(([, ...x]) => Math.abs(x[column] ?? 0))));
  const colour = (part) => `rgba(${part < 0 ? "214,39,40" : "31,119,220"},${(0.6 * Math.abs(part)).toFixed(3)})`;
  const of = (values) => {
    const x = values[column];
    return isNumber(x) ? colour(asProbability(name) ? Math.exp(x) : x / most) : colour(0);
  };
  return { most, colour, of, value: (values) => (column < 0 ? "" : shownValue(name, values[column])) };
}
const facts = (T, step) => `${T.step} ${step.step} · ${T.score} ${signed(step.score)} · KL ${signed(step.kl)}`;
function large(T, step, scale) {
  const clipped = DATA.quantities.indexOf("clipped");
  return [make("div", { className: "soft" }, facts(T, step)), make("div", { className: "tokens" }, ...step.tokens.map(([token, ...values]) =>
    make("div", { className: values[clipped] ? "large clipped" : "large" }, make("span", { className: "glyph", style: `background:${scale.of(values)}` }, quoted(glyph(token))),
      make("span", { className: "soft" }, scale.value(values)))))];
}
function row(T, step, r, scale) {
  const clipped = DATA.quantities.indexOf("clipped");
  const tokens = step.tokens.map(([token, ...values], i) => {
    const node = make("button", { type: "button", className: values[clipped] ? "token clipped" : "token", tabIndex: r === 0 && i === 0 ? 0 : -1, style: `background:${scale.of(values)}`,
      ariaPressed: "false", ariaLabel: [token.trim() || T.end, scale.value(values), values[clipped] ? T.q.clipped : ""].filter(Boolean).join(", ") }, quoted(glyph(token), "span", ""));
    node.addEventListener("click", () => {
      for (const other of document.querySelectorAll(".token[aria-pressed=true]")) other.ariaPressed = "false";
      node.ariaPressed = "true";
      popup(node, ...details(T, token, values));
    });
    return node;
  });
  return make("div", { className: "step" }, make("div", { className: "soft" }, facts(T, step)), make("div", {}, ...tokens));
}
function details(T, token, values) {
  const of = Object.fromEntries(DATA.quantities.map((name, i) => [name, values[i]]));
  const numbers = DATA.quantities.map((name) => [T.q[name], name === "clipped" ? (of.clipped === null ? "–" : of.clipped ? T.yes : T.no) : isNumber(of[name]) && !asProbability(name) ? signed(of[name], 4) : shownValue(name, of[name])]);
  numbers.splice(2, 0, [T.ratio, isNumber(of.logprob) && isNumber(of.new_logprob) ? fixed(Math.exp(of.new_logprob - of.logprob), 3) : "–"]);
  return [make("strong", {}, JSON.stringify(token)), make("dl", {}, ...numbers.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))))];
}
/* Arrow keys: one token is in the order of tabs, and the others are reached from it. */
function move(place, event) {
  const grid = [...place.querySelectorAll(".step")].map((some) => [...some.querySelectorAll(".token")]);
  const r = grid.findIndex((some) => some.includes(event.target)), c = r < 0 ? 0 : grid[r].indexOf(event.target);
  const to = { ArrowRight: [r, c + 1], ArrowLeft: [r, c - 1], ArrowDown: [r + 1, c], ArrowUp: [r - 1, c], Home: [r, 0], End: [r, Infinity] }[event.key];
  if (r < 0 || !to || !grid[to[0]]) return;
  const next = grid[to[0]][Math.max(0, Math.min(to[1], grid[to[0]].length - 1))];
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  if (anchor) next.click();
}
