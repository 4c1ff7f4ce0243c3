/* Line charts as SVG: a crosshair with the values at hand, by mouse, touch or arrow keys, and a table behind each. */
const COLOURS = ["#3a7bd5", "#c2660a", "#2a8f5b", "#a05cc7", "#c94f7c", "#7d8087"];

const EXPLAINED = { loss: "loss", "mean score": "score", "pair accuracy": "pair_accuracy", score: "score", "KL to the reference, nats per response": "kl", "tokens per response": "token" };

function ticks(low, high) {
  const rough = (high - low) / 4 || Math.abs(low) || 1, power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 2.5, 5, 10].map((m) => m * power).find((w) => w >= rough * 0.999), found = [];
  for (let i = Math.floor(low / width + 1e-9); i <= Math.ceil(high / width - 1e-9); i++) found.push(i * width);
  return found.length > 1 ? found : [found[0], found[0] + width];
}
/* Panels of a stage over several runs, `[name, panels]` of each: a line per run and line; runs differ by colour, lines by dashes. */
function overlaid(stages) {
  const panels = new Map();
  stages.forEach(([name, some], i) => some.forEach((panel) => {
    const lines = panels.get(panel.label) || panels.set(panel.label, []).get(panel.label);
    panel.lines.forEach((line, j) => lines.push({ ...line, run: name, colour: COLOURS[(stages.length > 1 ? i : j) % COLOURS.length], dashed: j > 0 }));
  }));
  return [...panels].map(([label, lines]) => ({ label, xlabel: stages[0][1][0].xlabel, lines }));
}
/* On paper charts are narrower; their texts keep their size. */
for (const event of ["beforeprint", "afterprint"]) {
  addEventListener(event, () => document.querySelectorAll(".plot").forEach((place) => place.paint(event === "beforeprint" ? 330 : Math.round(place.clientWidth))));
}
function chart(panel, T) {
  const several = new Set(panel.lines.map((line) => line.run)).size > 1;
  const name = (line) => (several ? `${line.run}, ` : "") + say(line.label);
  const show = panel.label === "pair accuracy" ? percent : (y) => number(y, 4);
  const readout = make("div", { className: "readout" }), place = make("div", { className: "plot" });
  const hint = T.hints[panel.label];
  const steps = [...new Set(panel.lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  const valueAt = (line, x) => line.points.find((p) => p[0] === x);
  const marked = (line) => draw("svg", { viewBox: "0 0 22 8", class: "key", "aria-hidden": "true" },
    draw("line", { x1: 1, x2: 21, y1: 4, y2: 4, stroke: line.colour, "stroke-width": 2.5, ...(line.dashed ? { "stroke-dasharray": "5 3" } : {}) }));
  const read = (x) => readout.replaceChildren(...panel.lines.map((line) => {
    const point = x === null ? line.points.at(-1) : valueAt(line, x);
    return make("span", {}, marked(line), `${name(line)} `, make("strong", {}, point ? show(point[1]) : "–"));
  }), make("span", {}, `${T.step} ${x === null ? steps.at(-1) : x}`));
  const summary = panel.lines.map((line) => `${name(line)} ${show(line.points[0][1])} → ${show(line.points.at(-1)[1])}`).join("; ");

  const paint = (W) => {
    const H = panel.small ? 110 : 210, left = panel.small ? 44 : 50, right = W - 12, top = 8, bottom = H - (panel.small ? 20 : 36);
    const ys = panel.lines.flatMap((line) => line.points.map((p) => p[1])), yTicks = ticks(Math.min(...ys), Math.max(...ys));
    const [x0, x1, y0, y1] = [0, steps.at(-1), yTicks[0], yTicks.at(-1)];
    const X = (x) => left + ((right - left) * (x - x0)) / (x1 - x0 || 1), Y = (y) => bottom - ((bottom - top) * (y - y0)) / (y1 - y0);
    const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, height: H, role: "img", tabindex: 0, "aria-label": `${say(panel.label)}, ${say(panel.xlabel)}: ${summary}` });
    for (const y of yTicks) {
      svg.append(draw("line", { x1: left, x2: right, y1: Y(y), y2: Y(y), stroke: "var(--line)" }),
        draw("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, panel.label === "pair accuracy" ? percent(y, 0) : number(y)));
    }
    for (const x of ticks(x0, x1).filter((x) => x >= x0 && x <= x1 && Number.isInteger(x))) svg.append(draw("text", { x: X(x), y: bottom + 16, "text-anchor": "middle" }, String(x)));
    if (!panel.small) svg.append(draw("text", { x: (left + right) / 2, y: H - 4, "text-anchor": "middle" }, say(panel.xlabel)));
    for (const line of panel.lines) {
      const dash = line.dashed ? { "stroke-dasharray": "5 3" } : {};
      svg.append(draw("polyline", { points: line.points.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join(" "), fill: "none", stroke: line.colour, "stroke-width": 2, ...dash }));
      if (line.points.length < 40) svg.append(...line.points.map(([x, y]) => draw("circle", { cx: X(x), cy: Y(y), r: 2.5, fill: line.colour })));
    }
    const cross = draw("g", { class: "cross", visibility: "hidden" });
    svg.append(cross);
    let at = null;
    const point = (i) => {
      at = i === null ? null : Math.max(0, Math.min(steps.length - 1, i));
      read(at === null ? null : steps[at]);
      cross.setAttribute("visibility", at === null ? "hidden" : "visible");
      if (at === null) return;
      const x = steps[at], dots = panel.lines.map((line) => [line, valueAt(line, x)]).filter(([, p]) => p);
      cross.replaceChildren(draw("line", { x1: X(x), x2: X(x), y1: top, y2: bottom, stroke: "var(--soft)" }),
        ...dots.map(([line, p]) => draw("circle", { cx: X(x), cy: Y(p[1]), r: 4.5, fill: line.colour, stroke: "var(--card)", "stroke-width": 1.5 })));
    };
    const nearest = (event) => {
      const r = svg.getBoundingClientRect(), x = x0 + (((event.clientX - r.left) * W / r.width - left) / (right - left)) * (x1 - x0);
      point(steps.reduce((best, s, i) => (Math.abs(s - x) < Math.abs(steps[best] - x) ? i : best), 0));
    };
    for (const event of ["pointermove", "pointerdown"]) svg.addEventListener(event, nearest);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
    svg.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: (at ?? -1) + 1, ArrowLeft: (at ?? steps.length) - 1, Home: 0, End: steps.length - 1, Escape: null };
      if (event.key in moves) { point(moves[event.key]); event.preventDefault(); readout.ariaLive = "polite"; }
    });
    svg.addEventListener("blur", () => point(null));
    place.replaceChildren(svg);
    point(null);
  };
  place.paint = paint;
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now > 0 && now !== width) paint(width = now);
  }).observe(place);
  const details = make("details", { className: "no-print" }, make("summary", {}, panel.small ? T.data : `${T.data}: ${say(panel.label)}`));
  details.addEventListener("toggle", () => {  // made when it is opened
    if (details.childElementCount === 1) details.append(make("div", { className: "rows" }, table([say(panel.xlabel), ...panel.lines.map(name)],
      steps.map((x) => [String(x), ...panel.lines.map((line) => ({ number: show(valueAt(line, x)?.[1]) }))]), { className: "plain" })));
  });
  return make("figure", {}, make("figcaption", {}, make("strong", {}, ...rich(panel.label in EXPLAINED ? `[[${EXPLAINED[panel.label]}|${say(panel.label)}]]` : say(panel.label))), panel.small ? null : make("div", { className: "soft" }, hint || "\u00a0")),
    readout, place, details);
}
