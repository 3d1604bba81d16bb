"use strict";
// Draws the blocks of a page from the data that lie in it. Text only ever becomes text: nothing is parsed as markup.
const page = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const WORDS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f"]; // Okabe and Ito

function el(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "rect", "text"].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function shown(value) {
  if (value === null || value === undefined || !isFinite(value)) return "";
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(2) : String(+value.toFixed(4));
}

function choice(label, options, chosen, change) {
  const select = el("select", { onchange: () => change(select.value) });
  for (const option of options) select.append(el("option", { value: option, selected: option === chosen }, option));
  return el("label", {}, label, select);
}

function copyButton(text) {
  const button = el("button", { type: "button", onclick: copy }, "copy");
  function copy() {
    const area = el("textarea", {}, text);
    document.body.append(area);
    area.select();
    button.textContent = document.execCommand("copy") ? "copied" : "select it by hand";
    area.remove();
  }
  return button;
}

// ---- scales and axes

function ticks(low, high, count = 6) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(+at.toPrecision(12));
  return found;
}

function extent(values) {
  const finite = values.filter((value) => value !== null && isFinite(value));
  if (!finite.length) return [0, 1];
  let low = finite[0], high = finite[0];
  for (const value of finite) { low = Math.min(low, value); high = Math.max(high, value); }
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
  return [low - room, high + room];
}

function frame(figure, ys, label) {
  const width = Math.max(300, Math.min(1080, figure.clientWidth || 1000)), height = width < 500 ? 260 : 340;
  const box = { left: 62, right: width - 14, top: 12, bottom: height - 46, width, height };
  const plot = el("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const [low, high] = ys;
  const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
  for (const at of ticks(low, high)) {
    plot.append(el("line", { class: "grid", x1: box.left, x2: box.right, y1: y(at), y2: y(at) }));
    plot.append(el("text", { x: box.left - 8, y: y(at) + 4, "text-anchor": "end", class: "faint" }, shown(at)));
  }
  return { plot, box, y };
}

function tipFor(figure) {
  const tip = el("div", { class: "tip", hidden: true });
  figure.append(tip);
  return {
    show(event, text) {
      tip.textContent = text;
      tip.hidden = false;
      const bounds = figure.getBoundingClientRect();
      const x = event.clientX - bounds.left, left = Math.min(x + 14, bounds.width - tip.offsetWidth - 4);
      tip.style.left = `${Math.max(0, left)}px`;
      tip.style.top = `${Math.max(0, event.clientY - bounds.top - tip.offsetHeight - 10)}px`;
    },
    hide() { tip.hidden = true; },
  };
}

function redrawnOnResize(figure, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (!figure.clientWidth || figure.clientWidth === width) return;
    width = figure.clientWidth;
    requestAnimationFrame(draw); // drawing in here would change sizes that are being told of
  }).observe(figure);
}

// ---- blocks

const blocks = {
  text(block) {
    return block.paragraphs.map((text) => el("p", { class: block.tone || null }, text));
  },

  table(block) {
    let sorted = null, down = false, filter = "", all = false;
    const body = el("tbody"), head = el("tr"), found = el("span", { class: "hint", "aria-live": "polite" });
    const visible = () => block.columns.map((column, i) => i).filter((i) => all || !block.columns[i].further);
    function fill() {
      const places = visible();
      head.replaceChildren(...places.map((i) => {
        const column = block.columns[i], order = sorted === i ? (down ? "descending" : "ascending") : "none";
        const mark = order === "none" ? "" : down ? " ▾" : " ▴";
        const sort = () => { down = sorted === i ? !down : column.numeric === true; sorted = i; fill(); };
        const button = el("button", { type: "button", onclick: sort }, column.name + mark);
        return el("th", { class: column.numeric ? "number" : null, scope: "col", "aria-sort": order }, button);
      }));
      const wanted = block.rows.filter((row) => row.cells.some((cell) => cell[0].toLowerCase().includes(filter)));
      if (sorted !== null) {
        const value = (row) => row.cells[sorted][1] ?? row.cells[sorted][0];
        const missing = (of) => of === "" || of === null;
        wanted.sort((a, b) => {
          const [first, second] = [value(a), value(b)];
          if (missing(first) !== missing(second)) return missing(first) ? 1 : -1;
          const less = typeof first === "number" && typeof second === "number"
            ? first - second : String(first).localeCompare(String(second), undefined, { numeric: true });
          return down ? -less : less;
        });
      }
      body.replaceChildren(...wanted.map((row) => el("tr", { class: row.best ? "best" : null }, ...places.map((i) =>
        el("td", { class: block.columns[i].numeric ? "number" : row.cells[i][0].length < 32 ? "short" : null },
          row.cells[i][0])))));
      found.textContent = wanted.length < block.rows.length ? `${wanted.length} of ${block.rows.length}` : "";
    }
    const search = el("input", { type: "search", placeholder: "filter", "aria-label": `filter ${block.title}` });
    search.addEventListener("input", () => { filter = search.value.toLowerCase(); fill(); });
    const further = block.columns.some((column) => column.further);
    const box = el("input", { type: "checkbox" });
    box.addEventListener("change", () => { all = box.checked; fill(); });
    fill();
    return [
      el("div", { class: "controls" }, search, further ? el("label", {}, box, "all columns") : null, found),
      el("div", { class: "scroll", tabindex: "0" }, el("table", {}, el("thead", {}, head), body)),
    ];
  },

  settings(block) {
    let metric = block.metrics[0], key = block.keys[0];
    const figure = el("figure");
    function draw() {
      const rows = block.settings.filter((setting) => setting.metrics[metric]);
      const values = block.values[key] || ["all seeds"];
      const heights = rows.flatMap((row) => {
        const of = row.metrics[metric];
        return [of.mean, of.low, of.high, ...of.seeds.map((seed) => seed[1])];
      });
      const { plot, box, y } = frame(figure, extent(heights), `${metric} against ${key}`);
      const tip = (figure.replaceChildren(plot), tipFor(figure));
      const x = (value, shift) => box.left + ((values.indexOf(value) + 0.5 + shift) / values.length) * (box.right - box.left);
      const every = Math.ceil(values.length / Math.max(2, Math.floor((box.right - box.left) / 70)));
      values.forEach((value, i) => {
        if (i % every) return;
        const name = value.length > 14 ? value.slice(0, 13) + "…" : value;
        plot.append(el("text", { x: x(value, 0), y: box.bottom + 18, "text-anchor": "middle", class: "faint" }, name));
      });
      plot.append(el("text", { x: (box.left + box.right) / 2, y: box.height - 8, "text-anchor": "middle" }, key || ""));
      const others = new Map(rows.map((row) => [row.others[key] || "", 0]));
      [...others.keys()].forEach((name, i) => others.set(name, i));
      for (const row of rows) {
        const of = row.metrics[metric], place = others.get(row.others[key] || "");
        const shift = others.size > 1 ? 0.6 * (place / (others.size - 1) - 0.5) : 0;
        const colour = WORDS[place % WORDS.length], at = x(row.setting[key] ?? "all seeds", shift);
        if (of.low !== null) {
          plot.append(el("line", { x1: at, x2: at, y1: y(of.low), y2: y(of.high), stroke: colour, "stroke-width": 2 }));
        }
        of.seeds.forEach(([seed, value], i) => {
          const off = (i - (of.seeds.length - 1) / 2) * Math.min(5, 24 / of.seeds.length);
          plot.append(el("circle", { cx: at + off, cy: y(value), r: 3, fill: colour, opacity: 0.55 }));
        });
        const said = `${row.name}\n${metric} ${shown(of.mean)}` +
          (of.low === null ? "" : ` [${shown(of.low)}, ${shown(of.high)}]`) + `\n${of.method}\n` +
          of.seeds.map(([seed, value]) => `seed ${seed}: ${shown(value)}`).slice(0, 10).join("\n");
        const mean = el("rect", {
          x: at - 5, y: y(of.mean) - 5, width: 10, height: 10, fill: colour, class: "halo", tabindex: "0",
          transform: `rotate(45 ${at} ${y(of.mean)})`, "aria-label": said,
        });
        for (const kind of ["pointermove", "pointerdown"]) mean.addEventListener(kind, (event) => tip.show(event, said));
        mean.addEventListener("pointerleave", tip.hide);
        plot.append(mean);
      }
    }
    redrawnOnResize(figure, draw);
    const controls = [choice("metric", block.metrics, metric, (chosen) => { metric = chosen; draw(); })];
    if (block.keys.length > 1) controls.push(choice("against", block.keys, key, (chosen) => { key = chosen; draw(); }));
    return [el("div", { class: "controls" }, ...controls), figure];
  },

  curves(block) {
    let metric = block.metrics[0];
    const groups = [...new Set(block.series.map((series) => series.group))];
    const seeds = [...new Set(block.series.map((series) => series.seed))].filter((seed) => seed !== "");
    const off = new Set(groups.filter((group) => !block.on.includes(group))), seedsOff = new Set();
    const figure = el("figure");
    const colour = (group) => WORDS[groups.indexOf(group) % WORDS.length];
    const dash = (group) => ["", "6 3", "2 3", "8 3 2 3"][Math.floor(groups.indexOf(group) / WORDS.length) % 4] || null;
    function draw() {
      const rows = block.series.filter((s) => !off.has(s.group) && !seedsOff.has(s.seed) && s.values[metric]);
      const { plot, box, y } = frame(figure, extent(rows.flatMap((s) => s.values[metric][1])), `${metric} against steps`);
      const tip = (figure.replaceChildren(plot), tipFor(figure));
      const steps = rows.flatMap((s) => s.values[metric][0]);
      const last = steps.reduce((a, b) => Math.max(a, b), 1), x = (step) => box.left + (step / last) * (box.right - box.left);
      for (const at of ticks(0, last, box.width < 500 ? 4 : 8)) {
        plot.append(el("text", { x: x(at), y: box.bottom + 18, "text-anchor": "middle", class: "faint" }, shown(at)));
      }
      plot.append(el("text", { x: (box.left + box.right) / 2, y: box.height - 8, "text-anchor": "middle" }, "step"));
      const path = (at, values) => at.map((step, i) => (values[i] === null ? "" :
        `${i && values[i - 1] !== null ? "L" : "M"}${x(step).toFixed(1)} ${y(values[i]).toFixed(1)}`)).join("");
      const means = new Map();
      for (const group of groups) {
        const own = rows.filter((s) => s.group === group);
        if (!own.length) continue;
        for (const s of own.length > 1 ? own : []) {
          plot.append(el("path", { d: path(...s.values[metric]), fill: "none", stroke: colour(group), opacity: 0.35 }));
        }
        const at = own[0].values[metric][0].filter((step) => own.every((s) => s.values[metric][0].includes(step)));
        const mean = at.map((step) => own.reduce((sum, s) => {
          const value = s.values[metric][1][s.values[metric][0].indexOf(step)];
          return value === null || sum === null ? null : sum + value / own.length;
        }, 0));
        means.set(group, [at, mean]);
        plot.append(el("path", {
          d: path(at, mean), fill: "none", stroke: colour(group), "stroke-width": 2, "stroke-dasharray": dash(group),
        }));
      }
      const rule = el("line", { class: "grid", y1: box.top, y2: box.bottom, visibility: "hidden" });
      plot.append(rule);
      const hover = (event) => {
        const bounds = plot.getBoundingClientRect();
        const step = ((event.clientX - bounds.left) / bounds.width * box.width - box.left) / (box.right - box.left) * last;
        const all = [...means.values()].flatMap(([at]) => at);
        if (!all.length) return;
        const near = all.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a));
        const lines = [...means].filter(([, [at]]) => at.includes(near))
          .map(([group, [at, mean]]) => [group, mean[at.indexOf(near)]]).filter(([, value]) => value !== null)
          .sort((a, b) => b[1] - a[1]).map(([group, value]) => `${group}: ${shown(value)}`);
        rule.setAttribute("x1", x(near)); rule.setAttribute("x2", x(near)); rule.setAttribute("visibility", "visible");
        tip.show(event, `step ${near}\n${lines.slice(0, 12).join("\n")}`);
      };
      for (const kind of ["pointermove", "pointerdown"]) plot.addEventListener(kind, hover);
      plot.addEventListener("pointerleave", () => { tip.hide(); rule.setAttribute("visibility", "hidden"); });
    }
    redrawnOnResize(figure, draw);
    const chip = (name, set, mark) => {
      const button = el("button", {
        type: "button", class: "chip", "aria-pressed": !set.has(name) + "", onclick: () => {
          if (!set.delete(name)) set.add(name);
          button.setAttribute("aria-pressed", !set.has(name) + "");
          draw();
        },
      }, ...(mark ? [mark] : []), name);
      return button;
    };
    const line = (group) => el("svg", { width: 18, height: 8, "aria-hidden": "true" }, el("line", {
      x1: 0, x2: 18, y1: 4, y2: 4, stroke: colour(group), "stroke-width": 3, "stroke-dasharray": dash(group),
    }));
    return [
      el("div", { class: "controls" }, choice("metric", block.metrics, metric, (chosen) => { metric = chosen; draw(); })),
      figure,
      el("div", { class: "controls" }, ...groups.map((group) => chip(group, off, line(group)))),
      seeds.length > 1 ? el("div", { class: "controls" }, "seeds", ...seeds.map((seed) => chip(seed, seedsOff))) : null,
    ];
  },

  samples(block) {
    const names = [...new Set(block.items.flatMap((item) => item.texts.map(([name]) => name)))];
    const on = new Set(names.slice(0, block.first)), cards = el("div");
    let number = 0;
    function fill() {
      const item = block.items[number];
      const card = (name, text) => el("div", { class: "card" }, el("h3", {}, name), el("pre", {}, text));
      cards.replaceChildren(card("prompt", item.prompt), el("div", { class: "cards" },
        ...item.texts.filter(([name]) => on.has(name)).map(([name, text]) => card(name, text))));
    }
    const chips = names.map((name) => {
      const button = el("button", { type: "button", class: "chip", "aria-pressed": on.has(name) + "", onclick: () => {
        if (!on.delete(name)) on.add(name);
        button.setAttribute("aria-pressed", on.has(name) + "");
        fill();
      } }, name);
      return button;
    });
    fill();
    const places = block.items.map((item, i) => `${i + 1} of ${block.items.length}`);
    const pick = choice("prompt", places, places[0], (chosen) => { number = places.indexOf(chosen); fill(); });
    return [el("div", { class: "controls" }, pick), el("div", { class: "controls" }, ...chips), cards];
  },

  pairs(block) {
    return block.items.map((item) => el("details", {}, el("summary", {}, item.name), el("div", { class: "cards" },
      ...item.texts.map(([name, text]) => el("div", { class: "card" }, el("h3", {}, name), el("pre", {}, text))))));
  },

  code(block) {
    return block.items.map(([name, text]) => el("details", {}, el("summary", {}, name),
      el("div", { class: "controls" }, copyButton(text)), el("pre", {}, text)));
  },
};

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

const main = document.querySelector("main");
main.append(el("header", {}, el("h1", {}, page.title),
  el("button", { type: "button", class: "theme", onclick: theme }, "light / dark")));
for (const block of page.blocks) {
  main.append(el("section", {}, block.title ? el("h2", {}, block.title) : null,
    block.note ? el("p", { class: "note" }, block.note) : null, ...blocks[block.kind](block).filter((node) => node)));
}
