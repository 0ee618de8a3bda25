"use strict";
// Draws the charts, and draws them again when the page turns light, dark, wide or narrow.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");
  const drawn = new Map();

  async function draw(name) {
    const place = document.getElementById(name);
    const config = structuredClone(dark.matches ? data.dark : data.light);
    config.legend.columns = narrow.matches ? 1 : 4;
    const spec = { ...data.specs[name], height: narrow.matches ? 260 : 340 };
    if (drawn.has(name)) drawn.get(name).finalize();
    // ast: expressions are interpreted, so the page needs no right to make code from text.
    const result = await window.vegaEmbed(place, spec, {
      ast: true,
      mode: "vega-lite",
      renderer: "svg",
      config,
      defaultStyle: false,
      downloadFileName: name,
      tooltip: { theme: dark.matches ? "dark" : "light" },
      actions: { export: true, source: false, compiled: false, editor: false },
    });
    drawn.set(name, result);
    const figure = place.closest("figure");
    figure.querySelectorAll(":scope > .vega-actions").forEach((old) => old.remove());
    const actions = place.querySelector(".vega-actions");
    if (actions) place.after(actions);  // outside the image role, so that it can be reached
    figure.classList.add("drawn");
  }

  async function drawAll() {
    for (const name of Object.keys(data.specs)) {
      try {
        await draw(name);
      } catch (error) {
        console.error(`chart ${name}: ${error}`);  // the still image stays in place
      }
    }
    document.documentElement.dataset.charts = "done";
  }

  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();
})();
