/* Where it was trained, how to repeat it, what is beside the page, and the glossary. */
function environment(T, run) {
  const pairs = (rows) => make("dl", { className: "facts" }, ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const known = Object.entries(run.environment).map(([name, value]) => [T.environment[name] || name, value]);
  const seconds = run.metrics ? Object.entries(run.metrics.seconds) : run.stages.filter((stage) => isNumber(stage.seconds)).map((stage) => [stage.name, stage.seconds]);
  const link = ([name, address]) => make("li", {}, make("a", { href: address }, name));
  return section(T.again, known.length ? pairs(known) : soft(T.unknown),
    seconds.length ? make("h3", {}, T.time) : null, pairs(seconds.map(([name, value]) => [T.parts[name] || name, fixed(value, 1)])),
    run.command ? make("p", {}, T.command(run.config)) : null, run.command ? make("pre", { tabIndex: 0 }, run.command) : null,
    run.options ? make("details", {}, make("summary", {}, `${T.options}: ${run.config}`), make("pre", { tabIndex: 0 }, run.options)) : null,
    run.files.length ? make("h3", {}, T.files) : null, make("ul", { className: "files" }, ...run.files.map(link)));
}
const glossary = (T) => section(T.glossary, make("dl", { className: "glossary" }, ...DATA.glossary.map((some) =>
  make("div", {}, make("dt", {}, some[language]), make("dd", {}, some[`definition_${language}`])))));
