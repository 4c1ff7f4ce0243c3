/* ---- Explorable PPO: a logged response computed anew with other options: a section, or null without a token log ---- */
const explore = (() => {
const EXPLORE = {
  en: {
    title: "Explorable PPO", token: "token", step: "step", sum: "sum", own: "run", reset: "Back to the run's own settings", now: "now",
    intro: "PPO computed here, in the page, from the log-probs, values and scores that the run logged. Move a slider and see what " +
      "changes. Choose a token to see its numbers in the formulas.",
    missing: "The token log lacks the run's options, because an earlier version wrote it. Train again to explore PPO here.",
    none: "The run logged no token with its options.",
    options: { cliprange: "clip range ε", lam: "GAE λ", gamma: "discount γ", kl_coef: "KL coefficient β" },
    equal: (most) => `These are the run's own settings: the numbers below equal the logged ones (largest difference ${most}).`,
    changed: "Not the run's settings. Grey marks show the run's own numbers. Its answers, log-probs and values stay as logged: " +
      "a run trained with these settings would have sampled other answers.",
    whitened: (mean, std) => `Â is A after whitening, with the mean ${mean} and standard deviation ${std} that the run logged. They are those ` +
      "of its whole rollout, so they stay the same when you move a slider.",
    plain: "The run does not whiten advantages: Â = A.",
    rewards: "The run whitens rewards; their logged mean and scale stay the same when you move a slider.",
    group: "The run subtracts a mean over the prompt's responses, b; it stays as logged.",
    scaled: "It divides by σ, the standard deviation of the group's rewards plus 0.0001, which stays as logged, too.",
    high: "The upper bound, 1 + ε⁺, is an option of its own (cliprange_high), which the slider does not move.",
    dual: "Where Â is negative, the objective is at least c Â (dual_clip).",
    critic: "The run has no critic: λ and γ play no role.", in_loss: "The run penalises the KL in the loss, so β = 0 in its rewards.",
    heads: { kl: "penalised KL, nats", reward: "reward", value: "value (critic)", advantage: "advantage", return: "return",
      whitened: "advantage, whitened", ratio: "probability ratio after the updates", objective: "clipped objective" },
    summary: { reward: "sum of rewards", objective: "mean objective", clipped: "clipped tokens" },
    explain: { reward: "Each token pays β per nat of KL to the reference; the score comes at the last token T.",
      token_reward: "Each token pays β per nat of KL to the reference; the reward functions gave it the score s.",
      gae: "The critic's surprise δ, and what follows, discounted by γλ.", total: "Every token gets the response's total reward.",
      objective: "ρ compares the policy after the updates with the one that sampled. Beyond 1 ± ε, where the advantage pushes further, the gradient is 0." },
    bars: "Advantage Â per token", clip: "Objective per unit of |Â| against the ratio ρ; ○ = clipped, no gradient",
    tries: "Try", lessons: { lam0: "λ = 0: each token sees one step ahead. Little noise, but as wrong as the critic.",
      lam1: "λ = 1: each token gets all rewards still to come, minus its value. No bias from the critic, more noise.",
      gamma: "γ = 0.5: the score fades by half per token, so early tokens hardly feel it.",
      kl: "β = 0: only the scores are left as rewards, and nothing keeps the policy near the reference.",
      clip: "ε = 0.01: almost every token whose probability moved is clipped." },
  },
  zh: {
    title: "动手调 PPO", token: "词元", step: "步", sum: "合计", own: "本次训练", reset: "恢复本次训练的设置", now: "现在",
    intro: "页面用训练时记录的对数概率、价值和分数，当场重新计算 PPO。拖动滑块，看数字如何变化；选中一个词元，看它代入公式后的数字。",
    missing: "这份词元日志由旧版本写成，缺少训练选项。重新训练后即可在这里动手调 PPO。",
    none: "训练没有记录任何带选项的词元。",
    options: { cliprange: "裁剪范围 ε", lam: "GAE 的 λ", gamma: "折扣 γ", kl_coef: "KL 系数 β" },
    equal: (most) => `这是本次训练自己的设置：下面的数字与日志一致（最大差 ${most}）。`,
    changed: "已不是本次训练的设置，灰色标记是训练时的数字。回答、对数概率和价值仍是日志里的：真的用这些设置训练，采样出的回答会不同。",
    whitened: (mean, std) => `Â 是白化后的优势，所用均值 ${mean} 和标准差 ${std} 取自日志。它们属于整个 rollout，因此不随滑块变化。`,
    plain: "本次训练不对优势做白化：Â = A。",
    rewards: "本次训练对奖励做白化；记录的均值和缩放不随滑块变化。",
    group: "本次训练减去同一提示多个回答的均值 b；b 保持日志中的值。",
    scaled: "再除以 σ，即同组奖励的标准差加 0.0001；σ 也保持日志中的值。",
    high: "上界 1 + ε⁺ 是单独的选项（cliprange_high），不随滑块变化。",
    dual: "Â 为负时，目标不低于 c Â（dual_clip）。",
    critic: "本次训练没有价值模型：λ 和 γ 不起作用。", in_loss: "本次训练把 KL 惩罚放在损失里，所以奖励中 β = 0。",
    heads: { kl: "受惩罚的 KL（nat）", reward: "奖励", value: "价值（价值模型）", advantage: "优势", return: "回报",
      whitened: "白化后的优势", ratio: "更新后的概率比", objective: "裁剪后的目标" },
    summary: { reward: "奖励之和", objective: "目标均值", clipped: "被裁剪的词元" },
    explain: { reward: "每个词元为与参考模型的 KL 付出代价，每 nat 为 β；分数在最后一个词元 T 处给出。",
      token_reward: "每个词元为与参考模型的 KL 付出代价，每 nat 为 β；奖励函数给它的分数是 s。",
      gae: "价值模型的意外 δ，加上之后的部分（按 γλ 折扣）。", total: "每个词元都得到整个回答的总奖励。",
      objective: "ρ 是更新后的策略与采样时的策略之比。超出 1 ± ε 且优势还在往外推时，梯度为 0。" },
    bars: "每个词元的优势 Â", clip: "单位 |Â| 的目标随概率比 ρ 的变化；○ = 被裁剪，无梯度",
    tries: "试一试", lessons: { lam0: "λ = 0：每个词元只看一步。噪声小，但价值模型错多少就错多少。",
      lam1: "λ = 1：每个词元得到之后的全部奖励，减去它的价值。没有价值模型的偏差，但噪声更大。",
      gamma: "γ = 0.5：分数每往前一个词元减半，靠前的词元几乎感觉不到。",
      kl: "β = 0：奖励里只剩分数，没有什么把策略留在参考模型附近。",
      clip: "ε = 0.01：概率有变化的词元几乎都被裁剪。" },
  },
};
const TRIES = { lam0: { lam: 0 }, lam1: { lam: 1 }, gamma: { gamma: 0.5 }, kl: { kl_coef: 0 }, clip: { cliprange: 0.01 } };
const highOf = (options) => options.cliprange_high ?? options.cliprange;
/* Dual clip: an objective per token, given its advantage, is bounded below where the advantage is negative. */
const floored = (options, objective, advantage) => (advantage < 0 && options.dual_clip ? Math.max(objective, options.dual_clip * advantage) : objective);
const exploring = { run: null, prompt: 0, step: null, token: null, values: {}, lesson: null };

/* PPO of one logged response with `options`; as `ppo/token_rewards.py`, `ppo/advantages.py` and `functional.py` do it. */
function recompute(step, options) {
  const logged = Object.fromEntries(DATA.quantities.map((name, i) => [name, step.tokens.map((token) => token[i + 1])]));
  const kl = step.kl_penalty || logged.kl, last = kl.length - 1, own = step.options, values = logged.value;
  const scores = step.token_scores || kl.map((_, t) => (t === last ? step.rewarded_score : 0));
  const affine = ([mean, scale], keeps) => (x) => (x - mean) * scale + (keeps ? mean : 0);
  let rewards = kl.map((x, t) => -options.kl_coef * x + scores[t]);
  if (own.reward_whitening) rewards = rewards.map(affine(own.reward_whitening, true));
  const sum = (xs) => xs.reduce((a, b) => a + b, 0);
  const deltas = rewards.map((r, t) => r + options.gamma * (t < last ? values[t + 1] : 0) - values[t]);
  let advantages, returns, baseline = 0;
  if (own.advantage_estimator === "gae") {
    const sums = (lam) => deltas.reduceRight((found, delta) => [delta + options.gamma * lam * (found[0] ?? 0), ...found], []);
    advantages = sums(options.lam);
    returns = sums(own.critic_lam ?? options.lam).map((a, t) => a + values[t]);
  } else {
    const scale = own.group_scale ?? 1;
    baseline = sum(logged.reward) - logged.advantage[0] / scale;
    advantages = returns = rewards.map(() => (sum(rewards) - baseline) * scale);
  }
  const whitened = own.advantage_whitening ? advantages.map(affine(own.advantage_whitening)) : advantages;
  const ratios = logged.new_logprob.map((x, t) => Math.exp(Math.min(x - logged.logprob[t], 20)));
  const clamped = ratios.map((x) => Math.min(Math.max(x, 1 - options.cliprange), 1 + highOf(options)));
  const objective = whitened.map((a, t) => floored(options, Math.min(ratios[t] * a, clamped[t] * a), a));
  const clipped = whitened.map((a, t) => clamped[t] * a < ratios[t] * a || objective[t] > Math.min(ratios[t] * a, clamped[t] * a));
  return { kl, scores, reward: rewards, value: values, advantage: advantages, return: returns, whitened, ratio: ratios, objective, clipped,
    deltas, clamped, baseline, totals: { kl: sum(kl), reward: sum(rewards), objective: sum(objective) }, logged };
}
/* A formula as MathML: words between spaces, `a_b` with an index. */
function formula(text) {
  const math = (tag, ...children) => {
    const node = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
    node.append(...children);
    return node;
  };
  const atom = (word) => {
    const node = math(/^[\d.]+$/.test(word) ? "mn" : /^\p{L}/u.test(word) ? "mi" : "mo", word);
    node.setAttribute("stretchy", "false");
    return node;
  };
  return math("math", ...text.split(" ").map((word) => {
    const [base, index] = word.split("_");
    return index ? math("msub", atom(base), math("mrow", ...index.split(/([+−])/).map(atom))) : atom(base);
  }));
}
const shown = (x, digits = 3) => {
  const text = x.toFixed(Math.max(0, digits - (Math.abs(x) >= 99.95 ? 2 : Math.abs(x) >= 9.995 ? 1 : 0)));
  return /^-0\.?0*$/.test(text) ? text.slice(1) : text.replace("-", "−");
};
const signed = (x) => (x < 0 ? `(${shown(x)})` : shown(x));
/* The choices of a slider: a grid, and the run's own setting even if it is not on it. */
function choices(name, own) {
  const [low, high, width] = { cliprange: [0.01, 0.5, 0.01], lam: [0, 1, 0.01], gamma: [0, 1, 0.01], kl_coef: [0, 0.5, 0.005] }[name];
  const most = Math.max(high, name === "kl_coef" ? 4 * own : own), size = Math.round((most - low) / (width * Math.max(1, most / high)));
  const grid = Array.from({ length: size + 1 }, (_, i) => Number((low + ((most - low) * i) / size).toPrecision(6)));
  return [...new Set([...grid, own])].sort((a, b) => a - b);
}

function explore(T, run) {
  if (!run.microscope.length) return null;
  const E = EXPLORE[language], names = ["kl_coef", "gamma", "lam", "cliprange"];
  const prompts = run.microscope.map((some) => ({ prompt: some.prompt, steps: some.steps.filter((step) => step.options && step.tokens.length &&
    step.tokens.every((token) => token.every((x) => x !== null))) })).filter((some) => some.steps.length);
  if (!prompts.length) {
    const old = run.microscope.some((some) => some.steps.some((step) => step.tokens.length && !step.options));
    return section(E.title, make("p", { className: "soft" }, old ? E.missing : E.none));
  }
  if (exploring.run !== run) Object.assign(exploring, { run, prompt: 0, step: null, token: null, values: {}, lesson: null });

  const select = make("select", { id: "explore-prompt" }, ...prompts.map((some, i) => make("option", { value: i, selected: i === exploring.prompt }, some.prompt)));
  const slider = (id, words) => {
    const input = make("input", { type: "range", id, min: 0, step: 1 }), output = make("output", { htmlFor: id }), own = make("span", { className: "soft" });
    return { input, output, own, node: make("div", { className: "slider" }, make("label", { htmlFor: id }, words), output, own, input) };
  };
  const steps = slider("explore-step", E.step), sliders = Object.fromEntries(names.map((name) => [name, slider(`explore-${name}`, E.options[name])]));
  const reset = make("button", { type: "button", id: "explore-reset" }, E.reset), state = make("p", { id: "explore-state", ariaLive: "polite" });
  const tries = make("div", { className: "tries" }, make("span", { className: "soft" }, E.tries)), lesson = make("p", { id: "explore-lesson", ariaLive: "polite" });
  const formulas = make("div", { id: "explore-formulas" }), summary = make("dl", { id: "explore-summary" });
  const place = make("div", { id: "explore-table" }), charts = make("div", { className: "charts" }), notes = make("p", { className: "soft" });

  function update() {
    const { steps: all } = prompts[exploring.prompt];
    if (exploring.step === null) exploring.step = liveliest(all);
    const at = Math.min(exploring.step, all.length - 1), step = all[at];
    const own = step.options, options = { ...own, ...exploring.values }, hasCritic = own.advantage_estimator === "gae";
    const own_ = recompute(step, own), x = recompute(step, options), isOwn = names.every((name) => options[name] === own[name]);
    const t = Math.min(exploring.token ?? step.tokens.length - 1, step.tokens.length - 1);
    Object.assign(steps.input, { max: all.length - 1, value: at, ariaValueText: String(step.step) });
    steps.output.value = step.step;
    for (const name of names) {
      const { input, output, own: mark } = sliders[name], values = choices(name, own[name]);
      const value = options[name], off = !hasCritic && (name === "gamma" || name === "lam");
      const nearest = values.reduce((best, v, i) => (Math.abs(v - value) < Math.abs(values[best] - value) ? i : best), 0);
      Object.assign(input, { max: values.length - 1, value: nearest, ariaValueText: number(value), disabled: off });
      input.choices = values;
      output.value = number(value);
      mark.textContent = value === own[name] ? "" : `${E.own}: ${number(own[name])}`;
    }
    const most = Math.max(...own_.reward.map((r, i) => Math.max(Math.abs(r - own_.logged.reward[i]), Math.abs(own_.whitened[i] - own_.logged.advantage[i]))));
    state.textContent = isOwn ? E.equal(most < 1e-12 ? "0" : most.toExponential(0)) : E.changed;
    state.className = isOwn ? "same" : "changed";
    reset.disabled = isOwn;
    lesson.textContent = exploring.lesson ? E.lessons[exploring.lesson] : "";
    const count = (some) => some.clipped.filter(Boolean).length, mean = (some) => some.totals.objective / some.kl.length;
    summary.replaceChildren(...[["reward", shown(x.totals.reward), shown(own_.totals.reward)], ["objective", shown(mean(x)), shown(mean(own_))],
      ["clipped", `${count(x)} / ${x.kl.length}`, `${count(own_)} / ${x.kl.length}`]].map(([name, value, before]) => make("div", {},
      make("dt", {}, E.summary[name]), make("dd", {}, make("strong", {}, value), value === before ? null : make("span", { className: "soft" }, ` ${E.own}: ${before}`)))));
    formulas.replaceChildren(...worked(E, step, options, x, t, hasCritic));
    place.replaceChildren(numbers(E, step, x, t, hasCritic, choose));
    charts.replaceChildren(bars(E, step, x, own_, t), clipping(E, options, x, t));
    const pair = own.advantage_whitening;
    notes.textContent = [pair ? E.whitened(shown(pair[0]), shown(1 / pair[1])) : E.plain, own.reward_whitening ? E.rewards : "",
      !hasCritic && x.baseline ? E.group : "", own.advantage_estimator === "grpo" ? E.scaled : "", hasCritic ? "" : E.critic,
      isNumber(own.cliprange_high) ? E.high : "", own.dual_clip ? E.dual : "", own.kl_coef ? "" : run_in_loss(E, own_)].filter(Boolean).join(" ");
  }
  function choose(token) {
    exploring.token = token;
    update();
    place.querySelector("button[aria-pressed=true]").focus();
  }
  select.addEventListener("change", () => { exploring.prompt = Number(select.value); exploring.step = exploring.token = null; update(); });
  steps.input.addEventListener("input", () => { exploring.step = Number(steps.input.value); exploring.token = null; update(); });
  for (const name of names) {
    const { input } = sliders[name];
    input.addEventListener("input", () => { exploring.values[name] = input.choices[Number(input.value)]; exploring.lesson = null; update(); });
  }
  reset.addEventListener("click", () => { exploring.values = {}; exploring.lesson = null; update(); });
  for (const [key, values] of Object.entries(TRIES)) {
    const button = make("button", { type: "button" }, E.lessons[key].split(/[:：]/)[0]);
    button.addEventListener("click", () => { exploring.values = { ...values }; exploring.lesson = key; update(); });
    tries.append(button);
  }
  update();
  return make("section", { id: "explore" }, make("h2", {}, E.title), make("p", { className: "soft" }, E.intro),
    make("div", { className: "choose no-print" }, make("label", {}, T.prompt, select), steps.node),
    make("div", { className: "explore" },
      make("div", {}, ...names.map((name) => sliders[name].node), make("div", { className: "no-print" }, reset), tries, lesson),
      make("div", { className: "results" }, state, summary, place, charts, notes), formulas));
}
/* Which step has most clipped tokens, the last of equals: there is most to see. */
function liveliest(steps) {
  const column = DATA.quantities.indexOf("clipped") + 1, counts = steps.map((step) => step.tokens.filter((token) => token[column]).length);
  return counts.lastIndexOf(Math.max(...counts));
}
const run_in_loss = (E, own) => (own.totals.kl ? E.in_loss : "");

/* The formulas, and below each the numbers of the chosen token. */
function worked(E, step, options, x, t, hasCritic) {
  const last = x.kl.length - 1, isLast = t === last, pair = step.options.advantage_whitening, { kl_coef, gamma, lam } = options;
  const block = (words, ...lines) => make("div", { className: "working" }, ...lines.flatMap(([text, numbers]) =>
    [make("div", {}, formula(text)), numbers ? make("div", { className: "inserted" }, numbers) : null]), make("p", { className: "soft" }, words));
  const score = x.scores[t], reward = `= −${number(kl_coef)} × ${signed(x.kl[t])}${isLast || score ? ` + ${signed(score)}` : ""} = ${shown(-kl_coef * x.kl[t] + score)}`;
  const own = step.token_scores ? [E.explain.token_reward, "r_t = − β KL_t + s_t"] : [E.explain.reward, "r_t = − β KL_t + [ t = T ] · score"];
  const next = isLast ? 0 : x.value[t + 1], later = isLast ? 0 : x.advantage[t + 1];
  const advantage = hasCritic
    ? block(E.explain.gae, ["δ_t = r_t + γ V_t+1 − V_t", `= ${shown(x.reward[t])} + ${number(gamma)} × ${signed(next)} − ${signed(x.value[t])} = ${shown(x.deltas[t])}`],
      ["A_t = δ_t + γ λ A_t+1", `= ${shown(x.deltas[t])} + ${number(gamma)} × ${number(lam)} × ${signed(later)} = ${shown(x.advantage[t])}`],
      [`G_t = A_t ${isNumber(step.options.critic_lam) ? `( λ = ${number(step.options.critic_lam)} ) ` : ""}+ V_t`, `= ${shown(x.return[t] - x.value[t])} + ${signed(x.value[t])} = ${shown(x.return[t])}`])
    : step.options.advantage_estimator === "grpo"
      ? block(E.explain.total, ["A_t = ( r_1 + … + r_T − b ) / σ", `= (${shown(x.totals.reward)} − ${signed(x.baseline)}) / ${shown(1 / step.options.group_scale)} = ${shown(x.advantage[t])}`])
      : block(E.explain.total, ["A_t = r_1 + … + r_T − b", `= ${shown(x.totals.reward)} − ${signed(x.baseline)} = ${shown(x.advantage[t])}`]);
  const high = isNumber(options.cliprange_high) ? "ε⁺" : "ε", dual = x.whitened[t] < 0 && options.dual_clip;
  const least = dual ? [" , c Â_t )", `, ${number(dual)} × ${signed(x.whitened[t])})`] : ["", ""], most = dual ? ["max ( ", "max("] : ["", ""];
  const whitening = pair ? [["Â_t = ( A_t − μ ) / σ", `= (${shown(x.advantage[t])} − ${signed(pair[0])}) / ${shown(1 / pair[1])} = ${shown(x.whitened[t])}`]] : [];
  return [make("h3", {}, `${E.token} ${t + 1}: `, make("q", {}, visible(step.tokens[t][0]))),
    block(own[0], [own[1], reward]), advantage,
    block(E.explain.objective, ...whitening, ["ρ_t = π ( t ) / π_old ( t )", `= exp(${shown(x.logged.new_logprob[t])} − ${signed(x.logged.logprob[t])}) = ${shown(x.ratio[t])}`],
      [`L_t = ${most[0]}min ( ρ_t Â_t , clip ( ρ_t , 1 − ε , 1 + ${high} ) Â_t )${least[0]}`,
        `= ${most[1]}min(${shown(x.ratio[t])} × ${signed(x.whitened[t])}, ${shown(x.clamped[t])} × ${signed(x.whitened[t])})${least[1]} = ${shown(x.objective[t])}`])];
}
const visible = (token) => token.replace(/\n/g, "↵").replace(/ /g, "␣") || "∅";

/* The response as a table: a row per token, sums below. */
function numbers(E, step, x, chosenToken, hasCritic, choose) {
  const symbols = { kl: "KL", reward: "r", value: "V", advantage: "A", return: "G", whitened: "Â", ratio: "ρ", objective: "L" };
  const columns = Object.keys(symbols).filter((name) => (hasCritic || (name !== "value" && name !== "return")) && (name !== "whitened" || step.options.advantage_whitening));
  const scale = Object.fromEntries(columns.map((name) => [name, Math.max(1e-9, ...x[name].map((y) => Math.abs(name === "ratio" ? y - 1 : y)))]));
  const digits = matchMedia("(max-width: 30rem)").matches ? 2 : 3;
  const rows = step.tokens.map(([token], t) => {
    const button = make("button", { type: "button", className: x.clipped[t] ? "cell clipped" : "cell", ariaPressed: String(t === chosenToken),
      tabIndex: t === chosenToken ? 0 : -1 }, quoted(visible(token), "span", ""));
    button.addEventListener("click", () => choose(t));
    button.addEventListener("keydown", (event) => {
      const to = { ArrowDown: t + 1, ArrowUp: t - 1, Home: 0, End: step.tokens.length - 1 }[event.key];
      if (to === undefined || to < 0 || to >= step.tokens.length) return;
      event.preventDefault();
      choose(to);
    });
    return make("tr", {}, make("th", { scope: "row" }, button), ...columns.map((name) => {
      const value = x[name][t], y = name === "ratio" ? value - 1 : value;
      const cell = make("td", { className: `number of-${name}`, title: `${E.heads[name]}: ${value}`,
        style: `background:rgba(${y < 0 ? "214,39,40" : "31,119,220"},${((0.5 * Math.abs(y)) / scale[name]).toFixed(3)})` }, shown(value, digits));
      cell.dataset.value = value;
      return cell;
    }));
  });
  return make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, E.token), ...columns.map((name) =>
      make("th", { scope: "col", className: `number of-${name}` }, make("abbr", { title: E.heads[name] }, symbols[name]))))),
    make("tbody", {}, ...rows),
    make("tfoot", {}, make("tr", {}, make("th", { scope: "row" }, E.sum), ...columns.map((name) =>
      make("td", { className: `number of-${name}` }, name in x.totals ? shown(x.totals[name], digits) : "")))));
}
/* Advantages as bars; a grey mark where the run's own was. */
function bars(E, step, x, own, t) {
  const count = x.kl.length, all = [...x.whitened, ...own.whitened, 0], low = Math.min(...all), high = Math.max(...all), width = 320 / count;
  const Y = (y) => 14 + (120 * (high - y)) / (high - low || 1);
  const svg = draw("svg", { viewBox: "0 0 360 166", role: "img", "aria-label": E.bars });
  for (const y of ticks(low, high)) svg.append(draw("text", { x: 34, y: Y(y) + 4, "text-anchor": "end" }, number(y)));
  for (let i = 0; i < count; i++) {
    const at = 38 + i * width, y = x.whitened[i];
    svg.append(draw("rect", { x: at + 0.12 * width, width: 0.76 * width, y: Math.min(Y(y), Y(0)), height: Math.max(Math.abs(Y(y) - Y(0)), 0.8),
      fill: y < 0 ? "#d62728" : "#1f77dc", opacity: i === t ? 1 : 0.65 }, draw("title", {}, `${visible(step.tokens[i][0])}: ${shown(y)}`)),
      draw("line", { x1: at, x2: at + width, y1: Y(own.whitened[i]), y2: Y(own.whitened[i]), stroke: "var(--soft)", "stroke-width": 2 }));
    if (count <= 24) svg.append(draw("text", { x: at + width / 2, y: 154, "text-anchor": "middle" }, visible(step.tokens[i][0]).slice(0, Math.max(1, Math.floor(width / 9)))));
  }
  svg.append(draw("line", { x1: 38, x2: 358, y1: Y(0), y2: Y(0), stroke: "var(--soft)" }));
  return make("figure", {}, make("figcaption", {}, E.bars), svg);
}
/* The clipped objective for advantages of +1 and -1, with the tokens on it. */
function clipping(E, options, x, t) {
  const ratios = x.ratio.map((y) => Math.min(Math.max(y, 0.3), 1.7)), low = 1 - options.cliprange, high = 1 + highOf(options);
  const X = (y) => 38 + (320 * (y - 0.3)) / 1.4, Y = (y) => 74 - 34 * y;
  const on = (ratio, sign) => floored(options, Math.min(ratio * sign, Math.min(Math.max(ratio, low), high) * sign), sign);
  const svg = draw("svg", { viewBox: "0 0 360 166", role: "img", "aria-label": E.clip });
  for (const y of [low, high]) {
    svg.append(draw("line", { x1: X(y), x2: X(y), y1: 10, y2: 138, stroke: "var(--line)", "stroke-dasharray": "4 3" }));
  }
  for (const y of [0.4, 0.7, 1, 1.3, 1.6]) svg.append(draw("text", { x: X(y), y: 154, "text-anchor": "middle" }, number(y)));
  for (const [sign, colour] of [[1, "#1f77dc"], [-1, "#d62728"]]) {
    const corners = sign > 0 ? [high] : [low, options.dual_clip || 1.7], path = [0.3, ...corners.map((y) => Math.min(Math.max(y, 0.3), 1.7)), 1.7].map((y) => `${X(y).toFixed(1)},${Y(on(y, sign)).toFixed(1)}`);
    svg.append(draw("polyline", { points: path.join(" "), fill: "none", stroke: colour, "stroke-width": 1.6 }),
      draw("text", { x: 34, y: Y(on(0.3, sign)) + 4, "text-anchor": "end" }, sign > 0 ? "Â>0" : "Â<0"));
  }
  ratios.forEach((ratio, i) => {
    const sign = x.whitened[i] < 0 ? -1 : 1, colour = sign < 0 ? "#d62728" : "#1f77dc";
    svg.append(draw("circle", { cx: X(ratio), cy: Y(on(ratio, sign)), r: i === t ? 6 : 4, fill: x.clipped[i] ? "var(--card)" : colour, stroke: colour, "stroke-width": 2 }));
  });
  return make("figure", {}, make("figcaption", {}, E.clip), svg);
}
return explore;
})();
