/* What each stage did: three sentences, the formula, whether it helped, the curves. */
function stages(T, runs) {
  const names = [...new Set(runs.flatMap((run) => run.stages.map((stage) => stage.name)))];
  const parts = names.map((name) => {
    const found = runs.map((run) => [run, run.stages.find((stage) => stage.name === name)]).filter(([, stage]) => stage);
    const panelsOf = (key) => overlaid(found.filter(([, stage]) => stage[key]?.length).map(([run, stage]) => [run.name, stage[key]]));
    const small = panelsOf("diagnostics");
    const helped = found.map(([run, stage]) => [run.name, help(T, run, stage)]).filter(([, text]) => text);
    const [run, stage] = found.find(([run]) => run === runs[chosen.run]) || found[0];
    const shown = stage.kind === "reward" || !run.answers.length ? stageSamples(T, stage) : null;
    return make("section", { className: "stage" }, make("h2", {}, T.stages[name]),
      make("div", { className: "explained" }, make("div", {}, ...explained(T, run, stage).map((text) => sentence(text))), formula(formulaOf(T, run, stage))),
      ...helped.map(([name, text]) => make("p", { className: "helped" }, runs.length > 1 ? `${name}: ` : `${T.helped} `, ...rich(text))),
      make("div", { className: "charts" }, ...panelsOf("panels").map((panel) => chart(panel, T))),
      small.length ? make("h3", {}, T.diagnostics) : null,
      make("div", { className: "charts small" }, ...small.map((panel) => chart({ ...panel, small: true }, T))),
      shown ? make("h3", {}, T.samples) : null, shown, shown && stage.kind === "reward" && isLab(stage.data) ? soft(T.help.rules) : null);
  });
  return parts;
}
/* A stage's options; of what a trainer left, those of PPO's token log. PPO's texts and formula are others where there is no critic. */
const optionsOf = (run, stage) => ({ ...(stage.kind === "ppo" && run.microscope[0]?.steps[0].options), ...stage.options });
const estimatorOf = (run, stage) => optionsOf(run, stage).advantage_estimator ?? "gae";
const isWithoutCritic = (run, stage) => estimatorOf(run, stage) !== "gae";
/* What the advantage has besides the response's total: nothing, or the name of its text. */
const groupOf = (run, stage) => ({ rloo: "rloo", grpo: "grpo" }[estimatorOf(run, stage)] ?? (optionsOf(run, stage).subtract_group_mean ? "group" : null));
function explained(T, run, stage) {
  const E = T.explained, options = optionsOf(run, stage), by = E.by[!run.metrics ? "unknown" : isReward(run.metrics) ? "reward" : "functions"];
  if (stage.kind !== "ppo") return E[stage.name] || E[stage.kind];
  const first = (isWithoutCritic(run, stage) ? E.no_critic : E.ppo[0]).replace("{by}", by) + (E[groupOf(run, stage)] ?? "");
  return [first, E.ppo[1] + (options.kl_coef === 0 ? E.noPenalty : options.kl_penalty_in === "loss" ? E.inLoss : "")
    + (options.kl_coef !== 0 && (options.ref_temperature ?? 1) !== 1 ? E.sharpened(options.ref_temperature) : ""), E.ppo[2]];
}
function formulaOf(T, run, stage) {
  const F = T.formulas, options = optionsOf(run, stage), group = groupOf(run, stage), mean = options.loss_aggregation ?? "token";
  if (stage.kind !== "ppo") return F[stage.name];
  const advantage = !isWithoutCritic(run, stage) ? F.ppo : group === "grpo" ? F.grpo : F.no_critic + (group ? " − b" : "");
  return [advantage, F.loss(F.means[mean] ?? F.means.token, isNumber(options.cliprange_high) ? "ε⁺" : "ε"),
    mean === "fixed_length" && options.max_completion_length ? F.length(options.max_completion_length) : "", options.dual_clip ? F.dual(options.dual_clip) : ""].filter(Boolean).join("\n");
}
/* Whether a stage helped, from the numbers of the run, else from the curves. */
function help(T, run, stage) {
  const m = run.metrics, H = T.help, line = (panel, label) => stage.panels.find((p) => p.label === panel)?.lines.find((l) => l.label === label)?.points;
  const texts = [], short = (x) => percent(x, 0), interval = (ci, show) => (ci ? T.brackets(T.hero.interval(show(ci[0]), show(ci[1]))) : "");
  const ends = (panel, label, show) => {
    const points = line(panel, label);
    if (points && points.length > 1) texts.push(H.fell(H.names[`${panel} ${label}`], show(points[0][1]), show(points.at(-1)[1]), panel === "loss"));
    if (points && points.length > 1 && label === "training") texts.push(H.seen);
  };
  if (stage.kind === "sft") {
    const before = run.answers.map((row) => row.untrained.correct).filter((x) => typeof x === "boolean");
    const after = run.answers.map((row) => row.sampled.sft.correct).filter((x) => typeof x === "boolean");
    if (before.length && stage.name === "sft") texts.push(H.untrained(before.filter(Boolean).length, before.length, after.filter(Boolean).length));
    ends("loss", line("loss", "validation")?.length > 1 ? "validation" : "training", fixed);
  } else if (stage.kind === "reward") {
    const r = m && m.reward;
    if (r && isNumber(r.eval_accuracy)) {
      texts.push(H.pairs(percent(r.eval_accuracy), interval(r.eval_accuracy_ci95, percent), isNumber(r.better_baseline_accuracy) ? percent(r.better_baseline_accuracy) : null, stage.held_out),
        run.weak_reward ? H.weak : H.beats);
    } else ends("pair accuracy", line("pair accuracy", "validation")?.length > 1 ? "validation" : "training", percent);
    const terms = ["lm_coef", "logprob_coef"].filter((name) => optionsOf(run, stage)[name]);
    if (terms.length) texts.push(H.terms(terms));
    if (isLab(stage.data)) texts.push(H.noisy);
  } else if (m) {
    const c = m.comparison, row = found(run, "correct"), ci = c.score_rise_ci95;
    texts.push((c.score_ppo > c.score_sft ? H.score : H.noRise)(fixed(c.score_sft), fixed(c.score_ppo), ci ? T.brackets(`${T.change} ${signed(c.score_ppo - c.score_sft)}${between(ci, signed)}`) : ""));
    if (!direction(ci, c)) texts.push(H.maybe);
    if (isNumber(c.gold_win_rate)) {
      texts.push(H.win(short(c.gold_win_rate), interval(c.gold_win_rate_ci95, short)), { "1": H.better, "-1": H.worse }[direction(c.gold_win_rate_ci95, c, 0.5)] || H.unclear);
      if (isNumber(c.gold_more_sft)) texts.push(H.control(signed(c.gold_more_sft), signed(c.gold_ppo)));
      if (row) texts.push(H.correct(short(c.correct_sft), short(c.correct_ppo), !isChance(row)));
    }
  } else ends("score", line("score", "validation prompts")?.length > 1 ? "validation prompts" : "sampled responses", fixed);
  return texts.join(language === "zh" ? "" : " ");
}
