"use strict";
const board = JSON.parse(document.getElementById("board").textContent);
const at = id => document.getElementById(id);
const rows = new Map(board.groups.flatMap(g => g.rows.map((r, i) => [`${g.number}-${i}`, {...r, group: g}])));
const DASHES = ["", "7 4", "2 3"];
const colour = n => `var(--c${n % 7})`, dash = n => DASHES[Math.floor(n / 7) % 3];
const fixed = value => value === null || value === undefined ? "N/A" : value.toFixed(4);

function element(parent, name, attributes = {}, text) {
  const made = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}
function canvas(parent, width, height, label) {
  parent.replaceChildren();
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  if (label) { svg.setAttribute("role", "img"); svg.setAttribute("aria-label", label); }
  return parent.appendChild(svg);
}

// Tables
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  for (const head of heads) head.querySelector("button")?.addEventListener("click", () => {
    const {first} = head.dataset, column = head.cellIndex;
    const up = (head.getAttribute("aria-sort") === first) !== (first === "ascending");
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value;
    const text = head.matches(".model, .date");
    body.append(...[...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!x || !y) return !x - !y;  // what is not known comes last either way
      return (text ? x.localeCompare(y, "en", {numeric: true}) : x - y) * (up ? 1 : -1);
    }));
  });
}
function filter() {
  const words = at("filter").value.toLowerCase().split(/\s+/);
  let count = 0;
  for (const tr of document.querySelectorAll("tr[data-row]")) {
    const row = rows.get(tr.dataset.row);
    const text = `${row.label} ${row.adapter} ${row.arguments} ${row.group.task} ${row.date}`.toLowerCase();
    tr.hidden = !words.every(word => text.includes(word));
    count += !tr.hidden;
  }
  at("shown").textContent = `${count} of ${rows.size} rows`;
  for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector("tr[data-row]:not([hidden])");
}
const isShown = id => !document.querySelector(`tr[data-row="${id}"]`).hidden;
at("filter").addEventListener("input", () => { filter(); draw(); });

// Export
const {plain: PLAIN, common: COMMON} = {{ exported | tojson }};
const LATEX = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
  "↓": "$\\downarrow$", "↑": "$\\uparrow$", "±": "$\\pm$", "–": "--"};
const latex = text => text.replace(/[\\~^↓↑±–&%$#_{}]/g, found => LATEX[found] ?? `\\${found}`);
const inCSV = value => /[",\r\n]/.test(value ?? "") ? `"${value.replaceAll('"', '""')}"` : String(value ?? "");
const inMarkdown = cells => `| ${cells.map(cell => cell.replaceAll("|", "\\|").replaceAll("\n", " ")).join(" | ")} |`;
const exports = {
  csv(group, ids) {  // as the command's --csv
    const ground = group.ground ?? {task: group.task}, names = board.benchmarks.map(b => b.name);
    const lines = ids.map(id => rows.get(id)).map(row => [group.number, group.apart, ...PLAIN.map(key => row[key]),
      ...names.map(name => row.benchmarks[name]), ...COMMON.map(key => ground[key]), row.file]);
    return [["group", "apart", ...PLAIN, ...names, ...COMMON, "file"], ...lines].map(line => line.map(inCSV).join(",") + "\n").join("");
  },
  markdown(group, ids, title, head, lines) {
    const sides = head.map(name => ["model", "run"].includes(name) ? "---" : "---:");
    return [`## ${title}`, "", ...[head, sides, ...lines].map(inMarkdown)].join("\n") + "\n";
  },
  latex(group, ids, title, head, lines) {
    const sides = head.map(name => ["model", "run"].includes(name) ? "l" : "r").join("");
    const line = cells => `${cells.map(latex).join(" & ")} \\\\`;
    return [`% ${title}; takes \\usepackage{booktabs}`, `\\begin{tabular}{${sides}}`, "\\toprule", line(head), "\\midrule",
      ...lines.map(line), "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
  },
};
function exported(section, as) {
  const group = board.groups.find(g => g.number === Number(section.dataset.group));
  const texts = tr => [...tr.cells].slice(1).map(cell => cell.textContent.trim().replaceAll("\u00a0", " "));
  const shown = [...section.querySelectorAll("tbody tr:not([hidden])")];
  const title = `Group ${group.number}: ${Object.values(group.facts ?? {task: `task ${group.task}`}).join(", ")}`;
  const head = ["rank", ...texts(section.querySelector("thead tr")).slice(1)];
  return exports[as](group, shown.map(tr => tr.dataset.row), title, head, shown.map(texts));
}
async function copy(section, text) {
  const [box, told] = [section.querySelector("textarea"), section.querySelector(".export [role=status]")];
  box.value = text; box.hidden = false; box.focus(); box.select();
  try { await navigator.clipboard.writeText(text); told.textContent = "Copied."; }
  catch { told.textContent = document.execCommand("copy") ? "Copied." : "Selected below: copy it with Ctrl+C or ⌘C."; }
}
for (const button of document.querySelectorAll(".export button")) button.addEventListener("click", () => {
  const section = button.closest(".group"), text = exported(section, button.dataset.as);
  if (button.dataset.as !== "csv") { copy(section, text); return; }
  const link = Object.assign(document.createElement("a"), {download: `mir-group-${section.dataset.group}.csv`,
    href: URL.createObjectURL(new Blob([text], {type: "text/csv"}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

// Tooltip
let told = null;
const hide = () => { at("tip").hidden = true; told = null; };
function tell(target, title, facts) {
  const show = () => {
    const tip = at("tip");
    tip.replaceChildren();
    element(tip, "b", {}, title);
    const list = element(tip, "dl");
    for (const [name, value] of facts) { element(list, "dt", {}, name); element(list, "dd", {}, value); }
    tip.hidden = false;
    told = {target, show};
    const box = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const below = box.bottom + 6 + own.height < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - own.width - 8))}px`;
    tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - own.height - 6)}px`;
  };
  for (const event of ["mouseenter", "focus", "click"]) target.addEventListener(event, show);
  for (const event of ["mouseleave", "blur"]) target.addEventListener(event, hide);
}
addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
// Of the page or of a table; what has the focus was perhaps scrolled into sight by it.
addEventListener("scroll", () => { if (told?.target === document.activeElement) told?.show(); else hide(); }, {passive: true, capture: true});
function facts(row) {
  const {warnings = [], ...details} = row.details;
  return [
    ["MIR", `${fixed(row.mir)} ± ${fixed(row.mir_stderr)}`], ["layers", row.curve ? row.curve.length : "not known"],
    ...Object.entries(details), ["run", row.date],
    ...Object.entries(row.other_arguments).map(([name, of]) => [`* ${name}`, `of ${of}`]),
    ...warnings.map(text => ["warning", text]),
  ];
}
for (const tr of document.querySelectorAll("tr[data-row]")) {
  const row = rows.get(tr.dataset.row);
  tell(tr.querySelector(".model button"), row.label, facts(row));
  tr.querySelector("input")?.addEventListener("change", draw);
}

// Charts
function logTicks(low, high) {
  const few = [], many = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of [1, 2, 5]) {
      const tick = m * 10 ** e;
      if (tick >= low * 0.999 && tick <= high * 1.001) { many.push(tick); if (m === 1) few.push(tick); }
    }
  return few.length > 4 ? few : many.length > 2 ? many : ticks(low, high, 4);
}
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(m => m * power >= rough) * power, found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(Number((n * step).toPrecision(12)));
  return found;
}
function chosen() {
  return [...document.querySelectorAll(".pick input:checked")].map(box => box.closest("tr").dataset.row).filter(isShown).sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
}
function axes(svg, frame, xs, ys, x, y, names) {
  for (const tick of ys) {
    element(svg, "line", {class: "grid", x1: frame.left, x2: frame.right, y1: y(tick), y2: y(tick)});
    element(svg, "text", {x: frame.left - 6, y: y(tick) + 4, "text-anchor": "end"}, String(Number(tick.toPrecision(6))));
  }
  for (const tick of xs) {
    element(svg, "line", {class: "axis", x1: x(tick), x2: x(tick), y1: frame.bottom, y2: frame.bottom + 4});
    element(svg, "text", {x: x(tick), y: frame.bottom + 17, "text-anchor": "middle"}, String(Number(tick.toPrecision(6))));
  }
  element(svg, "line", {class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom});
  element(svg, "text", {x: (frame.left + frame.right) / 2, y: frame.bottom + 34, "text-anchor": "middle"}, names[0]);
  element(svg, "text", {x: 4, y: 12}, names[1]);
}
function drawCurves(ids) {
  const width = Math.max(260, at("curves").clientWidth), height = Math.round(Math.min(340, width * 0.75));
  const svg = canvas(at("curves"), width, height, "Fréchet distance by decoder layer of the chosen models");
  at("legend").replaceChildren();
  if (!ids.length) { element(svg, "text", {x: 8, y: 30}, "No model with a box ticked is shown."); return; }
  const frame = {left: 46, right: width - 8, top: 24, bottom: height - 40};
  const curves = ids.map(id => rows.get(id).curve.map(value => value > 0 ? value : null));
  const values = curves.flat().filter(value => value !== null);
  const low = Math.min(...values) / 1.1, high = Math.max(...values) * 1.1, last = Math.max(2, ...curves.map(c => c.length));
  const x = layer => frame.left + 8 + (layer - 1) / (last - 1) * (frame.right - frame.left - 16);
  const y = value => frame.bottom - Math.log(value / low) / Math.log(high / low) * (frame.bottom - frame.top);
  axes(svg, frame, ticks(1, last, Math.min(last, width / 60)).filter(Number.isInteger), logTicks(low, high), x, y, ["decoder layer", "F, log scale"]);
  ids.forEach((id, n) => {
    const row = rows.get(id), style = {fill: "none", stroke: colour(n), "stroke-width": 2, "stroke-dasharray": dash(n)};
    let path = "", pen = "M";
    curves[n].forEach((value, k) => { if (value === null) pen = "M"; else { path += `${pen}${x(k + 1).toFixed(1)} ${y(value).toFixed(1)}`; pen = "L"; } });
    element(svg, "path", {d: path, class: "curve", ...style});
    curves[n].forEach((value, k) => {
      if (value === null) return;
      const error = row.curve_stderr?.[k] ?? 0;
      if (error) element(svg, "line", {class: "bar", x1: x(k + 1), x2: x(k + 1), stroke: colour(n),
        y1: Math.min(y(Math.max(value - error, low)), frame.bottom), y2: Math.max(y(value + error), frame.top)});
      const dot = element(svg, "circle", {cx: x(k + 1), cy: y(value), r: last > 40 ? 1.5 : 2.5, fill: colour(n)});
      tell(dot, row.label, [["layer", k + 1], ["F", value.toPrecision(4) + (error ? ` ± ${error.toPrecision(2)}` : "")]]);
    });
    const item = element(at("legend"), "li"), key = canvas(element(item, "span"), 28, 10);
    element(key, "line", {x1: 0, x2: 28, y1: 5, y2: 5, ...style});
    item.append(`${row.label} (group ${row.group.number})`);
  });
}
const INDICATORS = {{ indicators | tojson }}, ERRORS = {{ errors | tojson }};
const pairs = board.groups.flatMap(g => Object.entries(g.correlations).flatMap(([of, found]) => Object.keys(found).map(name => ({group: g, of, name}))));
at("against").hidden = !pairs.length;
pairs.forEach((pair, n) => element(at("benchmark"), "option", {value: n}, `group ${pair.group.number}: ${INDICATORS[pair.of]} and ${pair.name}`));
function drawScatter(ids) {
  if (!pairs.length) return;
  const {group, of, name} = pairs[at("benchmark").value || 0];
  const points = group.rows.map((row, i) => ({row, id: `${group.number}-${i}`, score: row.benchmarks[name], value: row[of], error: row[ERRORS[of]] || 0}))
    .filter(p => p.score !== undefined && p.value !== null && isShown(p.id));
  const width = Math.max(260, at("scatter").clientWidth), height = Math.round(Math.min(340, width * 0.75));
  const svg = canvas(at("scatter"), width, height, `${INDICATORS[of]} against ${name}`);
  const all = group.rows.every((row, i) => isShown(`${group.number}-${i}`));
  at("correlation").textContent = group.correlations[of][name].words + (all ? "" : " (of all rows of the group, shown or not)");
  if (!points.length) { element(svg, "text", {x: 8, y: 30}, "No model that is shown has both."); return; }
  const frame = {left: 46, right: width - 8, top: 24, bottom: height - 40};
  const around = (values, least) => { const a = Math.min(...values), b = Math.max(...values), pad = (b - a) * 0.08 || least; return [a - pad, b + pad]; };
  const [x0, x1] = around(points.map(p => p.score), 0.05);
  const [y0, y1] = around(points.flatMap(p => [p.value - p.error, p.value + p.error]), 0.05);
  const x = v => frame.left + (v - x0) / (x1 - x0) * (frame.right - frame.left), y = v => frame.bottom - (v - y0) / (y1 - y0) * (frame.bottom - frame.top);
  axes(svg, frame, ticks(x0, x1, width / 90), ticks(y0, y1, 6), x, y, [name, of in ERRORS ? `${INDICATORS[of]} ± standard error` : INDICATORS[of]]);
  const taken = points.map(p => ({left: x(p.score) - 6, right: x(p.score) + 6, top: y(p.value) - 6, bottom: y(p.value) + 6}));
  for (const p of points) {
    const n = ids.indexOf(p.id), stroke = n < 0 ? "var(--soft)" : colour(n);
    element(svg, "line", {x1: x(p.score), x2: x(p.score), y1: y(p.value - p.error), y2: y(p.value + p.error), stroke});
    const dot = element(svg, "circle", {class: "point", cx: x(p.score), cy: y(p.value), r: 4.5, fill: stroke});
    tell(dot, p.row.label, [[INDICATORS[of], `${fixed(p.value)}${of in ERRORS ? ` ± ${fixed(p.row[ERRORS[of]])}` : ""}`], [name, fixed(p.score)]]);
  }
  // Chosen models get their names first; a name that finds no room is left to the tooltip.
  for (const p of [...points].sort((a, b) => ids.includes(b.id) - ids.includes(a.id))) {
    const text = element(svg, "text", {class: "name"}, p.row.label.split("/").pop());
    const {width: w} = text.getBBox();
    const places = [[9, 4], [-9 - w, 4], [-w / 2, -10], [-w / 2, 20]];
    const boxes = places.map(([dx, dy]) => { const l = x(p.score) + dx, b = y(p.value) + dy; return {left: l, right: l + w, top: b - 11, bottom: b + 3}; });
    const fits = boxes.find(b => b.left >= frame.left && b.right <= width && b.top >= frame.top - 6 && b.bottom <= frame.bottom
      && taken.every(t => t.right < b.left || b.right < t.left || t.bottom < b.top || b.bottom < t.top));
    if (!fits) { text.remove(); continue; }
    taken.push(fits);
    text.setAttribute("x", fits.left); text.setAttribute("y", fits.bottom - 3);
  }
}
function draw() { const ids = chosen(); drawCurves(ids); drawScatter(ids); }
at("benchmark").addEventListener("change", draw);
let seen = 0;
addEventListener("resize", () => { if (innerWidth !== seen) { seen = innerWidth; draw(); } });
at("charts").open = innerWidth > 600;  // on a phone the tables come first
at("charts").addEventListener("toggle", draw);
addEventListener("beforeprint", () => { at("charts").open = true; draw(); });
filter();
draw();
