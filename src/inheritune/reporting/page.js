"use strict";
// Draws the charts, and redraws them when the page turns light, dark, wide or narrow, when another
// axis is chosen or a line is named or hidden. `inheritune.report.show` replaces their data.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");
  const drawn = new Map();
  const chosen = new Map(); // the reader's choices, by chart
  const gone = new Set(); // runs of a comparison that its filter hides
  let data = JSON.parse(document.getElementById("chart-data").textContent);

  // Named lines have their colour; `rest`: the others are drawn, in grey.
  function choice(name) {
    if (!chosen.has(name)) {
      const lines = data.specs[name].usermeta?.lines ?? [];
      const named = new Set(lines.filter((line) => !line.muted).map((line) => line.name));
      chosen.set(name, { axis: null, named, rest: named.size < lines.length, raw: true });
    }
    return chosen.get(name);
  }

  // --- numbers, as the page writes them ---

  function digits(value) {
    return Math.abs(value) >= 99.95 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
  }

  const FORMS = {
    loss: (value) => value.toFixed(3),
    plain: digits,
    amount(value) {
      for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
        if (Math.abs(value) >= size * 0.9995) return digits(value / size) + unit;
      }
      return digits(value);
    },
    power(value) {
      const [mantissa, exponent] = value.toExponential(1).split("e");
      return `${mantissa} × 10${[...String(+exponent)].map((one) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[one] ?? "⁻").join("")}`;
    },
  };

  // --- descriptions with the reader's choices ---

  // Data is stored by column; a column of equal values is one value.
  function unfolded(set) {
    if (Array.isArray(set)) return set;
    const entries = Object.entries(set.columns);
    return Array.from({ length: set.rows }, (_, index) => Object.fromEntries(
      entries.map(([key, column]) => [key, Array.isArray(column) ? column[index] : column]),
    ));
  }

  // Moves heights apart, in their order, so that names at the ends of lines do not overlap: the
  // mean of lifting the upper ones and of lowering the lower ones.
  function spread(heights, most, low, high) {
    const gap = Math.min(most, (high - low) / Math.max(1, heights.length - 1));
    const up = lifted(heights, gap, low, high);
    const down = lifted(heights.map((height) => -height).reverse(), gap, -high, -low).reverse();
    return up.map((above, index) => (above - down[index]) / 2);
  }

  function lifted(wanted, gap, low, high) {
    const heights = [...wanted];
    const order = heights.map((_, index) => index).sort((a, b) => heights[a] - heights[b]);
    let floor = -Infinity, ceiling = high;
    for (const index of order) {
      heights[index] = Math.max(Math.min(Math.max(heights[index], low), high), floor);
      floor = heights[index] + gap;
    }
    for (const index of order.reverse()) {
      heights[index] = Math.min(heights[index], ceiling);
      ceiling = heights[index] - gap;
    }
    return heights;
  }

  function isGone({ name }) {
    return [...gone].some((run) => name.startsWith(`${run}: `));
  }

  // On a phone a line of a comparison is called by its run, and by its variant where that fits.
  function brief(name) {
    const [run, own] = name.split(": ");
    const short = own ? `${run}: ${own.replace(/ \(target\)| loss.*/, "")}` : name;
    return own && short.length > 21 ? run : short;
  }

  function domainOf(meta, lines) {
    const { zero, margin, least } = meta.measure;
    const ends = [...lines.flatMap((line) => line.frame), ...meta.levels.map(({ value }) => value)];
    if (!ends.length) return [0, 1];
    const low = zero ? 0 : Math.min(...ends), high = Math.max(...ends);
    const free = Math.max(margin * (high - low), least);
    return [zero ? 0 : low - free, high + free];
  }

  function tailored(name) {
    const spec = structuredClone(data.specs[name]);
    for (const { data: own } of spec.layer ?? []) {
      if (own?.values) own.values = unfolded(own.values);
    }
    const meta = spec.usermeta;
    if (!meta?.axes) return spec;
    const { axis: key, named, rest, raw } = choice(name);
    const axis = meta.axes.find((one) => one.key === key) ?? meta.axes[0];
    const stays = meta.levels.map(({ label }) => !isGone({ name: label }));
    meta.levels = meta.levels.filter((_, index) => stays[index]);
    const shown = meta.lines.filter((line) => (rest || named.has(line.name)) && !isGone(line));
    const domain = domainOf(meta, shown), y = meta.measure.key;
    const end = Math.max(...shown.map((line) => line.last[axis.key] ?? 0), meta.planned[axis.key] ?? 0);
    spec.height = narrow.matches ? 260 : spec.height;

    // --- names at the ends of lines ---
    const labels = shown.filter((line) => named.has(line.name)).map((line) => ({
      label: narrow.matches ? brief(line.name) : line.label, color: line.color, shape: line.shape, ...line.last,
    }));
    for (const { label, value } of meta.levels) {
      labels.push({ label: narrow.matches ? brief(label) : label, color: "#7b8088", shape: "diamond", [axis.key]: end, [y]: value });
    }
    const gap = (domain[1] - domain[0]) * 16 / spec.height;
    spread(labels.map((row) => row[y]), gap, ...domain).forEach((height, index) => { labels[index][y] = height; });

    for (const layer of spec.layer) {
      const [kind, index] = (layer.name ?? "").split(" ");
      // --- which lines, and in which look ---
      if (kind === "labels") {
        layer.data.values = labels.filter((row) => row[axis.key] != null);
        if (narrow.matches && layer.mark.limit) layer.mark.limit = 130;
      }
      if (kind === "line" || kind === "raw") {
        const line = meta.lines[index], isNamed = named.has(line.name);
        if (isGone(line) || !(isNamed ? kind === "line" || raw : rest && kind === "line")) layer.data.values = [];
        if (kind === "line") {
          Object.assign(layer.mark, isNamed
            ? { color: line.color, strokeWidth: 2, strokeDash: line.dash, opacity: 1 }
            : { color: meta.muted, strokeWidth: 1, strokeDash: [1, 0], opacity: 0.6 });
        }
      }
      if (kind === "markers") layer.data.values = layer.data.values.filter((row) => named.has(row.variant) && !isGone({ name: row.variant }));
      if (kind === "levels") layer.data.values = layer.data.values.filter((_, at) => stays[at]);
      if (kind === "rounds" || kind === "restarts") {
        for (const row of layer.data.values) row[y] = domain[kind === "rounds" ? 1 : 0];
      }
      if (kind === "rounds" && index !== "title") { // a label that would cover the one before it is left out
        const room = 24 * end / Math.max(100, document.getElementById(name).clientWidth - (narrow.matches ? 160 : 280));
        let free = -Infinity;
        layer.data.values = layer.data.values.filter((row) => {
          const fits = (row[axis.key] ?? -1) >= free;
          if (fits) free = row[axis.key] + room;
          return fits;
        });
      }
      // --- axes ---
      const scale = layer.encoding?.y?.scale;
      if (scale) scale.domain = domain;
      const x = layer.encoding?.x;
      if (x?.field !== "tokens") continue;
      x.field = axis.key;
      if (x.scale?.type === "log") continue;
      if (x.axis) Object.assign(x.axis, { title: axis.title, labelExpr: axis.labelExpr });
      if (x.scale) x.scale.domain = [0, 1.02 * end || 1];
      if (layer.data?.values) layer.data.values = layer.data.values.filter((row) => row[axis.key] != null);
    }
    return spec;
  }

  async function draw(name) {
    const place = document.getElementById(name);
    // In a closed fold: drawn when it is opened.
    if (!place?.clientWidth || place.checkVisibility?.() === false) return;
    const spec = tailored(name);
    const result = await window.vegaEmbed(place, spec, {
      // ast: expressions are interpreted, so the policy need not allow code made from text.
      ast: true,
      mode: "vega-lite",
      renderer: "svg",
      config: dark.matches ? data.dark : data.light,
      defaultStyle: false,
      downloadFileName: name,
      tooltip: { theme: dark.matches ? "dark" : "light" },
      actions: { export: true, source: false, compiled: false, editor: false },
    });
    if (drawn.has(name)) drawn.get(name).finalize();
    drawn.set(name, result);
    const figure = place.closest("figure");
    figure.querySelector(":scope > .vega-actions")?.remove(); // of the drawing before
    const actions = place.querySelector(".vega-actions");
    if (actions) place.after(actions); // outside the image role, so that assistive technology reaches it
    figure.classList.add("drawn");
    if (spec.usermeta?.axes) follow(place, name, spec, result.view);
  }

  // --- the values of all lines at the pointer ---

  function follow(place, name, spec, view) {
    const { lines, measure, axes } = spec.usermeta, { axis: key, named } = choice(name);
    const axis = axes.find((one) => one.key === key) ?? axes[0];
    const rows = spec.layer.filter((layer) => layer.name?.startsWith("line "))
      .map((layer) => [lines[layer.name.split(" ")[1]], layer.data.values]);
    const tip = element("div", { class: "tip", "aria-hidden": "true" });
    const rule = element("div", { class: "tip-rule", "aria-hidden": "true" });
    const plot = place.querySelector("svg .background");
    place.append(rule, tip);
    place.onpointerleave = () => { tip.hidden = rule.hidden = true; };
    place.onpointerleave();
    place.onpointermove = ({ clientX, clientY }) => {
      const frame = plot.getBoundingClientRect(), outer = place.getBoundingClientRect();
      const share = (clientX - frame.left) / frame.width;
      if (share < 0 || share > 1) return place.onpointerleave();
      const at = view.scale("x").invert(share * view.width());
      const height = view.scale("y").invert((clientY - frame.top) / frame.height * view.height());
      const near = [];
      for (const [line, values] of rows) {
        let best = null;
        const places = values.map((row) => row[axis.key]), slack = 0.02 * (view.scale("x").domain()[1]);
        if (at < Math.min(...places) - slack || at > Math.max(...places) + slack) continue; // not trained there
        for (const row of values) {
          if (!best || Math.abs(row[axis.key] - at) < Math.abs(best[axis.key] - at)) best = row;
        }
        if (best) near.push({ line, best, gap: Math.abs(best[measure.key] - height) });
      }
      // The named lines, and of the grey ones the nearest.
      const grey = near.filter(({ line }) => !named.has(line.name)).sort((a, b) => a.gap - b.gap);
      const listed = near.filter(({ line }) => named.has(line.name)).concat(grey.slice(0, 1))
        .sort((a, b) => b.best[measure.key] - a.best[measure.key]);
      if (!listed.length) return place.onpointerleave();
      tip.replaceChildren(
        element("b", {}, `${FORMS[axis.form](Math.max(at, 0))} ${axis.label}`),
        ...listed.map(({ line, best }) => element("span", {}, glyph(line), line.name,
          element("i", {}, `${FORMS[measure.form](best[measure.key])} at ${FORMS[axis.form](best[axis.key])}`))),
      );
      tip.hidden = rule.hidden = false;
      const left = clientX - outer.left;
      rule.style.cssText = `left:${left}px;top:${frame.top - outer.top}px;height:${frame.height}px`;
      const room = outer.width - tip.offsetWidth;
      tip.style.left = `${Math.max(0, Math.min(left > outer.width / 2 ? left - tip.offsetWidth - 14 : left + 14, room))}px`;
      tip.style.top = `${frame.top - outer.top + 8}px`;
    };
  }

  // --- the reader's choices ---

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function glyph(line) {
    return element("span", { class: "mark", style: `color:${line.color}`, "aria-hidden": "true" }, line.glyph);
  }

  function box(checked, parts, onChange) {
    const input = element("input", { type: "checkbox" });
    input.checked = checked;
    input.addEventListener("change", () => onChange(input.checked));
    return element("label", {}, input, ...parts);
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
    const lines = element("fieldset", { class: "lines", "aria-label": "Lines with their names" });
    for (const line of meta.lines) {
      if (isGone(line)) continue;
      lines.append(box(now.named.has(line.name), [glyph(line), line.name], (shown) => {
        now.named[shown ? "add" : "delete"](line.name);
        draw(name);
      }));
    }
    parts.push(lines);
    if (meta.lines.some((line) => line.muted)) {
      parts.push(box(now.rest, ["the others, in grey"], (shown) => { now.rest = shown; draw(name); }));
    }
    if (meta.raw) {
      parts.push(box(now.raw, ["single steps"], (shown) => { now.raw = shown; draw(name); }));
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

  document.getElementById("filter")?.addEventListener("input", ({ target }) => {
    // A word may be anywhere in a name, and begins an outcome: "matched" is not "not-matched".
    const words = target.value.toLowerCase().replace("not ", "not-").split(/\s+/).filter(Boolean);
    const outcome = (one) => one.dataset.outcome.split(" ");
    gone.clear();
    for (const one of document.querySelectorAll("[data-run]")) {
      one.hidden = !words.every((word) => one.dataset.run.toLowerCase().includes(word)
        || outcome(one).some((part) => part.startsWith(word)));
      if (one.hidden) gone.add(one.dataset.run);
    }
    const none = !document.querySelector("[data-run]:not([hidden])");
    document.getElementById("nothing").hidden = !none;
    for (const one of document.querySelectorAll("main > section:has([data-run], .chart)")) one.hidden = none;
    show(data);
  });
  window.inheritune = { report: { show } };
  document.addEventListener("toggle", ({ target }) => {
    if (target.open) for (const place of target.querySelectorAll(".chart")) draw(place.id);
  }, true);
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  show(data);
})();
