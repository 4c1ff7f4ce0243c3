/* The page: its sections in order, drawn again when the language or the run changes. */
function show() {
  const T = TEXTS[language], runs = DATA.runs, run = runs[chosen.run], name = runs.map((some) => some.name).join(", ");
  closePopup();
  document.documentElement.lang = language;
  document.title = `${name} · hf-instructgpt`;
  document.getElementById("name").textContent = name;
  document.getElementById("language").textContent = T.other;
  const several = runs.length < 2 ? [] : [results(T, runs), ...stages(T, runs), choose(T.shown, runs.map((some, i) => [String(i), some.name]), String(chosen.run), (value) => {
    Object.assign(chosen, { run: Number(value), answer: null, prompt: 0, step: null });
    show();
    document.getElementById("run").focus();
  }, "run")];
  const single = runs.length < 2 ? stages(T, runs) : [], numbers = runs.length < 2 ? results(T, runs) : null;
  document.getElementById("main").replaceChildren(...[...several, hero(T, run), ...single, samples(T, run), changed(T, run), microscope(T, run), rollouts(T, run), explore(T, run), numbers,
    environment(T, run), glossary(T)].filter(Boolean));
}
document.getElementById("language").addEventListener("click", () => { language = language === "en" ? "zh" : "en"; show(); });
show();
