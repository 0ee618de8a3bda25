"use strict";
// Draws the charts, and redraws them when the page turns light, dark, wide or narrow, when another
// axis is chosen or a line is hidden. `inheritune.report.show` replaces their data.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");
  const drawn = new Map();
  const chosen = new Map(); // the reader's choices, by chart
  let data = JSON.parse(document.getElementById("chart-data").textContent);

  const SHAPES = {
    circle: "M14 7a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    square: "M14.5 3.5h7v7h-7z",
    diamond: "M18 2.5l4 4.5l-4 4.5l-4-4.5z",
    cross: "M16.5 3h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "triangle-up": "M18 2.5l4.5 8h-9z",
    "triangle-down": "M18 11.5l4.5-8h-9z",
    "triangle-right": "M22.5 7l-8-4.5v9z",
  };

  function choice(name) {
    if (!chosen.has(name)) chosen.set(name, { axis: null, hidden: new Set(), raw: true });
    return chosen.get(name);
  }

  // Data is stored by column; a column of equal values is one value.
  function unfolded(set) {
    if (Array.isArray(set)) return set;
    const entries = Object.entries(set.columns);
    return Array.from({ length: set.rows }, (_, index) => Object.fromEntries(
      entries.map(([key, column]) => [key, Array.isArray(column) ? column[index] : column]),
    ));
  }

  // The description with the reader's choices: another horizontal axis, fewer lines.
  function tailored(name) {
    const spec = structuredClone(data.specs[name]);
    for (const { data: own } of spec.layer ?? []) {
      if (own?.values) own.values = unfolded(own.values);
    }
    const meta = spec.usermeta;
    if (!meta?.axes) return spec;
    spec.height = narrow.matches ? 260 : 340;
    const { axis: key, hidden, raw } = choice(name);
    const axis = meta.axes.find((one) => one.key === key) ?? meta.axes[0];
    for (const layer of spec.layer) {
      const encoding = layer.encoding ?? {};
      for (const channel of [encoding.color, encoding.shape]) if (channel) channel.legend = null;
      const x = encoding.x;
      if (!x || x.field !== "tokens") continue;
      x.field = axis.key;
      if (axis === meta.axes[0]) continue; // keeps its scale, which may be logarithmic
      if (x.axis) Object.assign(x.axis, { title: axis.title, labelExpr: axis.labelExpr });
      if (x.scale) x.scale.domain = [0, axis.end];
    }
    const fits = (row) => !hidden.has(row.variant) && (raw || !row.raw)
      && !("variant" in row && row[axis.key] == null);
    for (const layer of spec.layer) {
      if (layer.data?.values) layer.data.values = layer.data.values.filter(fits);
    }
    return spec;
  }

  async function draw(name) {
    const place = document.getElementById(name);
    if (!place?.clientWidth) return; // in a closed fold: drawn when it is opened
    const config = structuredClone(dark.matches ? data.dark : data.light);
    config.legend.columns = narrow.matches ? 1 : 4;
    const result = await window.vegaEmbed(place, tailored(name), {
      // ast: expressions are interpreted, so the policy need not allow code made from text.
      ast: true,
      mode: "vega-lite",
      renderer: "svg",
      config,
      defaultStyle: false,
      downloadFileName: name,
      tooltip: { theme: dark.matches ? "dark" : "light" },
      actions: { export: true, source: false, compiled: false, editor: false },
    });
    if (drawn.has(name)) drawn.get(name).finalize();
    drawn.set(name, result);
    const figure = place.closest("figure");
    figure.querySelectorAll(":scope > .vega-actions").forEach((old) => old.remove());
    const actions = place.querySelector(".vega-actions");
    if (actions) place.after(actions); // outside the image role, so that assistive technology reaches it
    figure.classList.add("drawn");
  }

  // --- the reader's choices ---

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function swatch(line) {
    const space = "http://www.w3.org/2000/svg";
    const drawing = document.createElementNS(space, "svg");
    drawing.setAttribute("viewBox", "0 0 36 14");
    drawing.setAttribute("aria-hidden", "true");
    const stroke = document.createElementNS(space, "path");
    const dash = line.dash[1] ? line.dash.join(" ") : "none";
    for (const [key, value] of Object.entries({
      d: "M0 7h36", stroke: line.color, "stroke-width": 2, "stroke-dasharray": dash,
    })) stroke.setAttribute(key, value);
    const mark = document.createElementNS(space, "path");
    mark.setAttribute("d", SHAPES[line.shape] ?? SHAPES.circle);
    mark.setAttribute("fill", line.color);
    drawing.append(stroke, mark);
    return drawing;
  }

  function box(checked, text, onChange, picture) {
    const input = element("input", { type: "checkbox" });
    input.checked = checked;
    input.addEventListener("change", () => onChange(input.checked));
    return element("label", {}, input, ...(picture ? [picture] : []), text);
  }

  function offer(name) {
    const meta = data.specs[name].usermeta;
    const figure = document.getElementById(name)?.closest("figure");
    const place = figure?.querySelector(":scope > .controls");
    if (!meta?.axes || !place) return;
    const now = choice(name);
    const parts = [];
    if (meta.axes.length > 1) {
      const axis = element("fieldset", { class: "axis", "aria-label": "Horizontal axis" });
      for (const { key, label } of meta.axes) {
        const input = element("input", { type: "radio", name: `axis-${name}`, value: key });
        input.checked = key === (now.axis ?? meta.axes[0].key);
        input.addEventListener("change", () => { now.axis = key; draw(name); });
        axis.append(element("label", {}, input, label));
      }
      parts.push(axis);
    }
    const lines = element("fieldset", { class: "lines", "aria-label": "Lines shown" });
    for (const line of meta.lines) {
      const change = (shown) => {
        now.hidden[shown ? "delete" : "add"](line.name);
        draw(name);
      };
      lines.append(box(!now.hidden.has(line.name), line.name, change, swatch(line)));
    }
    parts.push(lines);
    if (meta.raw) {
      parts.push(box(now.raw, "single steps", (shown) => { now.raw = shown; draw(name); }));
    }
    place.replaceChildren(...parts);
  }

  async function drawAll() {
    for (const name of Object.keys(data.specs)) {
      try {
        await draw(name);
      } catch (error) {
        console.error(`chart ${name}: ${error}`); // the still image stays in place
      }
    }
    document.documentElement.dataset.charts = "done";
  }

  async function show(other) {
    data = other;
    Object.keys(data.specs).forEach(offer);
    await drawAll();
  }

  window.inheritune = { report: { show } };
  document.addEventListener("toggle", ({ target }) => {
    if (target.open) for (const place of target.querySelectorAll(".chart")) draw(place.id);
  }, true);
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  show(data);
})();
