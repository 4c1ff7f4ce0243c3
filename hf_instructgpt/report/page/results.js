/* The beginning of the page, samples, what PPO changed, and all numbers. */
const FEW = 6;  // samples shown at first
const COMPARISONS = { sampled: "comparison", greedy: "comparison_greedy" };

const between = (ci, show) => (ci ? ` [${show(ci[0])}, ${show(ci[1])}]` : "");
function machineOf(run) {
  const { device, processor, cores } = run.environment;
  return device && device !== "cpu" ? device : cores ? TEXTS[language].cores(cores, processor) : null;
}
/* How good one answer is: a check mark, the judge's points, the score. */
function marks(T, answer, nodes = []) {
  if (!answer) return null;
  if (typeof answer.correct === "boolean") {
    nodes.push(make("span", { className: answer.correct ? "good" : "bad" }, answer.correct ? "✓ " : "✗ ", make("span", {}, answer.correct ? T.right : T.wrong)));
  }
  if (isNumber(answer.gold)) nodes.push(make("span", {}, `${T.judge} ${signed(answer.gold)}`));
  if (isNumber(answer.score)) nodes.push(make("span", {}, `${T.score} ${signed(answer.score)}`));
  return make("div", { className: "marks" }, ...nodes);
}
const said = (T, answer) => [answer?.text?.trim() ? quoted(answer.text.trim()) : make("span", { className: "soft" }, isNumber(answer?.text?.length) ? T.hero.nothing : "–"), marks(T, answer)];
const nameOfFirst = (T, run) => (run.stages[0].base ? T.models.base : T.models.untrained);

function hero(T, run) {
  const m = run.metrics;
  const time = m ? duration(m.seconds.total) : null, machine = machineOf(run);
  const children = [make("h2", { className: "headline" }, T.hero.title(time))];
  if (run.answers.length) children.push(sentence(T.hero.lead + (run.held_out ? T.hero.heldOut : "") + (run.answers.length > 1 ? T.hero.picked : ""), { className: "lead" }), trio(T, run));
  if (m) children.push(make("div", { className: "three" }, ...threeNumbers(T, run).map(([value, words, note]) =>
    make("div", {}, make("div", { className: "value" }, value), sentence(words), note ? soft(note) : null))));
  if (time && machine) children.push(soft(T.hero.made(time, machine)));
  return children.length > 1 ? make("section", { className: "hero" }, ...children, ...warnings(T, run)) : null;
}
function trio(T, run) {
  const place = make("div", { className: "trio" });
  const show = () => {
    chosen.answer ??= run.typical;
    const row = run.answers[chosen.answer];
    const button = make("button", { type: "button", className: "no-print", id: "another" }, T.hero.another);
    button.addEventListener("click", () => { chosen.answer = (chosen.answer + 1) % run.answers.length; show(); document.getElementById("another").focus(); });
    const card = (name, answer, words) => make("div", { className: `answer ${name}` }, make("h3", {}, words), ...said(T, answer));
    place.replaceChildren(make("div", { className: "asked" }, quoted(row.prompt, "div", "question"),
      make("div", {}, make("span", { className: "soft" }, T.hero.of(chosen.answer + 1, run.answers.length) + " "), button)),
    card("untrained", row.untrained, nameOfFirst(T, run)), card("sft", row.sampled.sft, T.models.sft), card("ppo", row.sampled.ppo, T.models.ppo));
  };
  show();
  return place;
}
/* Whether PPO optimised the run's reward model and nothing else. */
const isReward = (m) => !m.optimised || Object.keys(m.optimised).join() === "reward";
function threeNumbers(T, run) {
  const m = run.metrics, c = m.comparison, H = T.hero, short = (x) => percent(x, 0);
  const note = (ci, show) => (ci ? H.interval(show(ci[0]), show(ci[1])) : null);
  const score = [`${fixed(c.score_sft)} → ${fixed(c.score_ppo)}`, isReward(m) ? H.score : H.optimised, change(T, run, "score", signed)];
  if (!isNumber(c.gold_win_rate)) {
    return [score, [short(m.reward.eval_accuracy), H.pairs(run.stages.find((stage) => stage.kind === "reward")?.held_out), note(m.reward.eval_accuracy_ci95, short)], [fixed(c.kl), H.kl]]
      .filter(([value]) => value !== "–");
  }
  const win = [short(c.gold_win_rate), H.win, note(c.gold_win_rate_ci95, short)];
  const correct = [`${short(c.correct_sft)} → ${short(c.correct_ppo)}`, H.correct, change(T, run, "correct", (x) => signed(100 * x, 1), T.points)];
  return [win, isNumber(c.correct_sft) ? correct : null, score].filter(Boolean);
}
const found = (run, what, how = "sampled") => (run.changes[how] || []).find((row) => row.what === what);
/* 1 or -1 if an interval over the prompts of a comparison lies above or below a value; 0 if it may be chance, as with few prompts always. */
const direction = (ci, { num_prompts: n }, value = 0) => (!ci || n < DATA.few_prompts ? 0 : ci[0] > value ? 1 : ci[1] < value ? -1 : 0);
const isChance = (row) => !direction(row.ci95, row);
function change(T, run, what, show, unit = "") {
  const row = found(run, what);
  return row ? `${T.change} ${show(row.change)}${unit}${between(row.ci95, show)}${isChance(row) ? `${T.comma}${T.chance}` : ""}` : null;
}
function warnings(T, run) {
  const m = run.metrics;
  if (!m) return [];
  const texts = run.warnings.map(([how, what]) => {
    const c = m[COMPARISONS[how]], show = { gold: (x) => signed(x), correct: (x) => percent(x) };
    const gap = { gold: (x) => signed(x), correct: (x) => signed(100 * x, 1) }, unit = { gold: "", correct: T.points };
    const of = (name, ci) => (ci ? T.brackets(`${T.change}: ${T.hero.interval(gap[name](ci[0]), gap[name](ci[1]) + unit[name])}`) : "");
    const fell = what.map((name) => T.fell(T[name], show[name](c[`${name}_sft`]), show[name](c[`${name}_ppo`]), of(name, c[`${name}_rise_ci95`])));
    return T.falls(T[how], fixed(c.score_ppo - c.score_sft), fell.join(T.and), isReward(m));
  });
  if (run.weak_reward) texts.push(T.weak);
  if (m.comparison.gold_win_rate === null) texts.push(m.judge ? T.silent : T.unjudged);
  return texts.map((text) => make("p", { className: text === T.unjudged ? "note" : "warning" }, text));
}

function samples(T, run) {
  if (!run.answers.length) return null;
  const place = make("div", {}), judged = run.answers.some((row) => typeof row.sampled.ppo.correct === "boolean");
  const more = make("button", { type: "button", className: "no-print" }, T.more(run.answers.length));
  let count = FEW;
  more.addEventListener("click", () => { count = run.answers.length; show(); });
  const show = () => place.replaceChildren(
    choice(Object.keys(COMPARISONS).map((how) => [how, T[how]]), chosen.how, T.samples, (how) => { chosen.how = how; show(); }),
    table([T.prompt, nameOfFirst(T, run), T.models.sft, T.models.ppo], run.answers.slice(0, count).map((row) =>
      [quoted(row.prompt), make("div", {}, ...said(T, row.untrained)), ...["sft", "ppo"].map((name) => make("div", {}, ...said(T, row[chosen.how][name])))]), { className: "cards answers" }), ...(count < run.answers.length ? [more] : []));
  show();
  return section(T.samples, sentence(judged ? T.samplesLead + (isLab(run.metrics.judge) ? T.points11 : "") : T.samplesUnjudged, { className: "soft" }), place);
}
const isLab = (name) => /^lab(-|$)/.test(name || "");
/* The samples of one stage. */
function stageSamples(T, stage) {
  if (!stage.samples.length) return null;
  const names = [["best", "worst"], ["response"], ["before", "after"]].find(([name]) => name in stage.samples[0]);
  const answer = (row, name) => ({ text: row[name], score: row[`${name}_score`], gold: row[`${name}_gold`], correct: row[`${name}_correct`] });
  return table([T.prompt, ...names.map((name) => T[name])],
    stage.samples.map((row) => [quoted(row.prompt), ...names.map((name) => make("div", {}, ...said(T, answer(row, name))))]), { className: "cards answers" });
}

function changed(T, run) {
  if (!run.changes.sampled) return null;
  const shares = ["begins", "ends", "correct", "ended"], place = make("div", {});
  const line = (row) => {
    const isShare = shares.includes(row.what), show = isShare ? (x) => percent(x, 0) : (x) => fixed(x, row.what === "length" ? 1 : 2);
    const unit = isShare ? T.points : "", gap = isShare ? (x) => signed(100 * x, 0) : (x) => signed(x, row.what === "length" ? 1 : 2);
    const name = make("span", {}, T.what[row.what], row.text ? " " : null, row.text ? quoted(row.text, "q") : null);
    const bar = isShare ? draw("svg", { viewBox: "0 0 104 14", class: "bar", "aria-hidden": "true" },
      draw("line", { x1: 2, x2: 102, y1: 7, y2: 7, stroke: "var(--line)", "stroke-width": 2 }),
      draw("line", { x1: 2 + 100 * row.sft, x2: 2 + 100 * row.ppo, y1: 7, y2: 7, stroke: COLOURS[0], "stroke-width": 2 }),
      draw("circle", { cx: 2 + 100 * row.sft, cy: 7, r: 3.5, fill: "var(--card)", stroke: COLOURS[0], "stroke-width": 1.5 }),
      draw("circle", { cx: 2 + 100 * row.ppo, cy: 7, r: 4.5, fill: COLOURS[0] })) : "";
    return [name, { number: show(row.sft) }, { number: show(row.ppo) }, bar,
      { number: make("span", {}, `${gap(row.change)}${unit}${between(row.ci95, gap)}`, isChance(row) ? make("span", { className: "soft" }, ` ${T.chance}`) : null) }];
  };
  const show = () => place.replaceChildren(
    choice(Object.keys(COMPARISONS).map((how) => [how, T[how]]), chosen.how, T.changed, (how) => { chosen.how = how; show(); }),
    table(["", "SFT", "PPO", "", T.change], run.changes[chosen.how].map(line), { className: "cards changes" }));
  show();
  return section(T.changed, sentence(T.changedLead, { className: "soft" }), place);
}

/* All numbers: of one run sampled and greedy, of several one column each. */
function results(T, runs) {
  const known = runs.filter((run) => run.metrics);
  if (!known.length) return null;
  const columns = known.length > 1 ? known.map((run) => [run.name, run.metrics, run.metrics.comparison, true])
    : Object.entries(COMPARISONS).map(([how, name], i) => [T[how], known[0].metrics, known[0].metrics[name], i === 0]);
  const two = (name, show) => (m, c) => `${show(c[`${name}_sft`])} → ${show(c[`${name}_ppo`])}`;
  const once = (value) => (m, c, first) => (first ? value(m, c) : "");
  const rows = {
    win: (m, c) => percent(c.gold_win_rate) + between(c.gold_win_rate_ci95, (x) => fixed(100 * x, 1)), gold: two("gold", signed),
    control: (m, c) => signed(c.gold_more_sft), correct: two("correct", percent), score: two("score", fixed), kl: once((m, c) => fixed(c.kl)),
    length: two("length", (x) => fixed(x, 1)), ended: two("ended", percent), distinct: two("distinct", percent),
    pairs: once((m) => percent(m.reward.eval_accuracy) + between(m.reward.eval_accuracy_ci95, (x) => fixed(100 * x, 1))),
    rule: once((m) => percent(m.reward.better_baseline_accuracy)), seconds: once((m) => number(m.seconds.total, 4)), seed: once((m) => String(m.seed)),
  };
  const cells = Object.entries(rows).map(([name, show]) => [T.rows[name], ...columns.map(([, m, c, first]) => ({ number: show(m, c, first) }))])
    .filter((row) => row.slice(1).some((cell) => /[0-9]/.test(cell.number)));
  return section(known.length > 1 ? T.runs : T.results, table(["", ...columns.map(([name]) => name)], cells, { className: "cards changes" }));
}
