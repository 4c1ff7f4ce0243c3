/* Recorded rollouts: the responses with the highest and the lowest scores of one, as coloured tokens. */
function rollouts(T, run) {
  if (!run.rollouts.length) return null;
  const place = make("div", { id: "recorded" }), names = DATA.quantities.filter((name) => name !== "clipped" && name !== "new_logprob");
  let at = run.rollouts.length - 1, quantity = "advantage";
  const show = () => {
    const { responses } = run.rollouts[at], scale = colouring(responses, quantity);
    place.replaceChildren(...responses.map((some, r) => make("div", {}, quoted(some.prompt, "p"), row(T, some, r, scale))));
  };
  place.addEventListener("keydown", (event) => move(place, event));
  show();
  return section(T.rollouts, sentence(T.rolloutsHint, { className: "soft" }), make("div", { className: "no-print" },
    choose(T.rollout, run.rollouts.map((some, i) => [String(i), `${T.step} ${some.step}`]), String(at), (value) => { at = Number(value); show(); }, "rollout"),
    choose(T.quantity, names.map((name) => [name, T.q[name]]), quantity, (value) => { quantity = value; show(); }, "recordedQuantity")), place);
}
