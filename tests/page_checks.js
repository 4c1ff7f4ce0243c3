/* What the tests ask of the report's page in a browser. */
{
  /* The contrast (WCAG 2.2, 1.4.3 and 1.4.11) of each text, and of each colour of lines, with the layers behind it. */
  contrasts() {
    const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
    const over = (top, under) => [0, 1, 2].map((i) => (top[3] ?? 1) * top[i] + (1 - (top[3] ?? 1)) * under[i]);
    const light = (colour) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
      const x = colour[i] / 255;
      return sum + weight * (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    }, 0);
    const ratio = (a, b) => {
      const [high, low] = [light(a), light(b)].sort((p, q) => q - p);
      return (high + 0.05) / (low + 0.05);
    };
    const behind = (node) => {
      const layers = [];
      for (let some = node; some; some = some.parentElement) layers.push(parse(getComputedStyle(some).backgroundColor));
      return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
    };
    const texts = [...document.querySelectorAll("main *, header *")].filter((node) => node.checkVisibility() &&
      [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
    const found = texts.map((node) => {
      const style = getComputedStyle(node), colour = parse(node.closest("svg") ? style.fill : style.color);
      return [ratio(over(colour, behind(node)), behind(node)), node.outerHTML.slice(0, 90)];
    });
    const line = document.querySelector("polyline"), card = behind(line.closest("section"));
    const lines = COLOURS.map((colour) => {
      line.setAttribute("stroke", colour);
      return [ratio(parse(getComputedStyle(line).stroke), card), colour];
    });
    return {
      texts: found.length, low: found.filter(([x]) => x < 4.5), lines: lines.length, lowLines: lines.filter(([x]) => x < 3),
    };
  },
  structure() {
    const all = (some) => [...document.querySelectorAll(some)];
    const html = (nodes) => nodes.map((node) => node.outerHTML.slice(0, 90));
    const ids = all("[id]").map((node) => node.id), levels = all("h1, h2, h3").map((node) => Number(node.tagName[1]));
    const isHidden = (node) => node.getAttribute("aria-hidden") === "true";
    return {
      unnamed: html(all("button, a, summary").filter((node) => !(node.ariaLabel || node.textContent).trim())),
      unlabelled: html(all("input, select").filter((node) => !node.labels.length && !node.ariaLabel)),
      graphics: html(all("svg").filter((node) => !isHidden(node) && !node.getAttribute("aria-label"))),
      heads: html(all("th").filter((node) => !node.textContent.trim())),
      ids: ids.filter((id, i) => ids.indexOf(id) !== i),
      skipped: levels.filter((level, i) => i && level > levels[i - 1] + 1),
      chinese: html(all(".quoted, .token span").filter((node) => /[\u4e00-\u9fff]/.test(node.textContent) && node.lang !== "zh")),
      stops: all(".token[tabindex='0']").length,
    };
  },
}
