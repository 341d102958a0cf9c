/* The report: summary, tables, map and figures. Texts are hostile: they go into textContent and attributes, never into markup. */
const $ = (id) => document.getElementById(id);

/* An element with a class, attributes and children; strings become text. */
function make(tag, name, attributes, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  const text = Number.isInteger(value) ? String(value)
    : size >= 1e-4 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  return text.replaceAll("-", "\u2212");
}
const chance = (p) => (p === null || p === undefined ? "" : p < 0.001 ? "<\u2009.001" : number(Number(p.toPrecision(2))));
const between = (low, high) => (low === null ? "" : `[${number(low)}, ${number(high)}]`);
const address = (site) => "#" + encodeURIComponent(site);
const siteLink = (site) => make("a", "site", { href: address(site) }, site);

/* The run that a number stands on: a link to its figure, where this page has it. */
function runLink(run, text) {
  return shown.figures.some((one) => one.run === run) ? make("a", "run", { href: `#run-${run}` }, text || run.slice(0, 8)) : text || run.slice(0, 8);
}

function sentence(parts) {
  return parts.map((part) => typeof part === "string" ? part
    : part.site ? siteLink(part.site)
    : part.code ? make("code", "", {}, part.code)
    : part.run ? runLink(part.run)
    : make("strong", "", {}, part.strong));
}

/* A table whose columns sort. A column: name, title, value(row) to sort by, cell(row): a node or text, kind "number" or "text". */
function table(columns, rows, caption) {
  const body = make("tbody"), head = make("tr");
  const drawn = rows.map((row) => {
    const line = make("tr");
    columns.forEach((column, k) => {
      const cell = make(k ? "td" : "th", column.kind || "number", k ? {} : { scope: "row" });
      const shown = column.cell ? column.cell(row) : number(column.value(row));
      cell.append(...[shown].flat().filter((one) => one !== null && one !== undefined));
      line.append(cell);
    });
    return { row, line };
  });
  const place = () => body.replaceChildren(...drawn.map((one) => one.line));
  const headers = columns.map((column) => {
    const header = make("th", column.kind || "number", { scope: "col" });
    if (!column.fixed) {
      const button = make("button", "", { type: "button" }, column.name);
      if (column.title) button.title = column.title;
      button.addEventListener("click", () => {
        const down = header.getAttribute("aria-sort") === (column.kind === "text" ? "ascending" : null);
        const up = header.getAttribute("aria-sort") === "descending" || (column.kind === "text" && !down);
        headers.forEach((one) => one.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", up ? "ascending" : "descending");
        drawn.sort((a, b) => order(column.value(a.row), column.value(b.row), up ? 1 : -1));
        place();
      });
      header.append(button);
    } else header.append(column.name);
    return header;
  });
  head.append(...headers);
  place();
  const made = make("table", "", {}, make("caption", "hidden", {}, caption), make("thead", "", {}, head), body);
  return { drawn, node: make("div", "scroll", { tabindex: "0", role: "region", "aria-label": caption }, made) };
}

/* What is missing stands last, whichever way. */
function order(a, b, way) {
  const none = (value) => value === null || value === undefined || value === "";
  if (none(a) || none(b)) return none(a) - none(b);
  return way * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
}

function summary(section) {
  $("lead").replaceChildren(...sentence(section.lead));
  $("answers").replaceChildren(...section.answers.flatMap(({ question, sentences }) => [
    make("dt", "", {}, question),
    make("dd", "", {}, ...sentences.map((one) => make("p", "", {}, ...sentence(one)))),
  ]));
}

/* A component's finding by a measure, as an object; undefined where there is none. */
function finding(section, site, name) {
  const { measures, sites } = section.components;
  const row = (sites[site] ? sites[site].findings : []).find(([k]) => measures[k].measure === name);
  return row && told(section, row);
}
function told(section, [k, value, low, high, p, holds, queries, label, least, run]) {
  return { ...section.components.measures[k], value, low, high, p, holds, queries, label, least, run };
}

function valued(one, unit) {
  if (!one || one.value === null) return "";
  return [make(one.holds ? "strong" : "span", one.holds ? "" : "weak", {}, number(one.value)),
    make("span", "interval", {}, between(one.low, one.high)), unit ? make("span", "interval unit", {}, unit) : null];
}

function links(section) {
  const { columns, missing, rows } = section.links;
  $("missing").textContent = missing.length ? `Not measured: ${missing.map(spaced).join(", ")}.` : "";
  const conflicts = (row) => (section.components.sites[row.site] || { conflicts: [] }).conflicts;
  const made = table([
    { name: "component", kind: "text", value: (row) => row.site, cell: (row) => siteLink(row.site) },
    { name: "linked to", kind: "text", value: (row) => row.links, cell: (row) => row.links.split(",").filter(Boolean).flatMap((one) => [make("span", "tag", {}, one), " "]) },
    { name: "exploratory", title: "links that no plan has tested", kind: "text", value: (row) => row.exploratory, cell: (row) => row.exploratory.replaceAll(",", ", ") },
    { name: "effect", title: "of the causal measure behind the first link", value: (row) => row.effect,
      cell: (row) => row.effect === null ? "" : [make("strong", "", {}, number(row.effect)), make("span", "interval", {}, `${between(row.low, row.high)} ${row.unit}`)] },
    { name: "p", title: "corrected within its run, times the tries", value: (row) => row.p_all, cell: (row) => chance(row.p_all) },
    { name: "conflicts", kind: "text wide", value: (row) => conflicts(row).length || null, cell: (row) => conflicts(row).map((one) => make("p", "", {}, one)) },
    { name: "evidence", kind: "text", value: (row) => evidence(section, columns, row).length, cell: (row) => onDemand(evidence(section, columns, row)) },
  ], rows, "Links: components and the evidence on each");
  const filter = make("input", "", { type: "search", id: "filter", placeholder: "h3, tf, dead \u2026" });
  const count = make("span", "faint", { "aria-live": "polite" });
  const said = (line) => [...line.cells].slice(0, -1).map((cell) => cell.textContent).join(" ").toLowerCase();
  const apply = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    made.drawn.forEach(({ line }) => { line.hidden = !wanted.every((word) => said(line).includes(word)); });
    count.textContent = `${made.drawn.filter(({ line }) => !line.hidden).length} of ${rows.length}`;
  };
  filter.addEventListener("input", apply);
  apply();
  $("links-table").replaceChildren(make("p", "controls", {}, make("label", "", { for: "filter" }, "Filter"), filter, count), made.node);
}

/* What was measured of a component of the table, each with its name. */
function evidence(section, columns, row) {
  const shown = columns.map(({ name, measure }) => ({ name: spaced(name), one: finding(section, row.site, measure) })).filter(({ one }) => one && one.value !== null);
  return row.conductance_rank === null ? shown : [...shown, { name: "conductance rank", one: { value: row.conductance_rank, low: null, high: null, holds: false, measure: "" } }];
}

function onDemand(shown) {
  if (!shown.length) return "";
  const holding = shown.filter(({ one }) => one.holds).length;
  const parts = shown.flatMap(({ name, one }) => [
    make("dt", "", { title: one.measure }, name + (one.causal ? "\u2009\u2020" : "")), make("dd", "", {}, ...valued(one, one.unit)),
  ]);
  return make("details", "", {}, make("summary", "", {}, `${holding} of ${shown.length} hold`), make("dl", "facts", {}, ...parts));
}
const spaced = (name) => name.replaceAll("_", " ");

/* Layer x head, a button each; the colour says the value, a ring that it holds. */
function map(section) {
  const { measures, sites } = section.components;
  const heads = Object.keys(sites).map((site) => /^h(\d+)\.(\d+)$/.exec(site)).filter(Boolean);
  const by = new Map();
  for (const [site] of heads) {
    for (const row of sites[site].findings) by.set(row[0], (by.get(row[0]) || new Map()).set(site, told(section, row)));
  }
  if (!by.size) {
    $("map-view").replaceChildren();
    return;
  }
  const size = [1, 2].map((k) => Math.max(...heads.map((one) => Number(one[k]))) + 1);
  const holding = (k) => [...by.get(k).values()].filter((one) => one.holds).length;
  const chosen = [...by.keys()].sort((a, b) => measures[b].causal - measures[a].causal || holding(b) - holding(a));
  const select = make("select", "", { id: "evidence" });
  for (const causal of [true, false]) {
    const group = make("optgroup", "", { label: causal ? "what happens when the head is changed" : "what it looks like" });
    for (const k of chosen.filter((one) => measures[one].causal === causal)) {
      group.append(make("option", "", { value: k }, `${measures[k].measure} (${holding(k) ? holding(k) + " hold" : "none holds"})`));
    }
    if (group.children.length) select.append(group);
  }
  const first = chosen.find((k) => measures[k].measure.startsWith("contrast, ") && holding(k));
  select.value = String(first === undefined ? chosen[0] : first);
  const view = make("div"), about = make("p", "faint", { "aria-live": "polite" });
  const draw = () => {
    const k = Number(select.value), cells = by.get(k), one = measures[k];
    const top = Math.max(...[...cells.values()].map((cell) => Math.abs(cell.value))) || 1;
    const queries = Math.max(...[...cells.values()].map((cell) => cell.queries));
    const runs = [...new Set([...cells.values()].map((cell) => cell.run))];
    about.replaceChildren(`${one.unit}; ${queries ? `${queries} queries` : "weights alone"}; ${one.causal ? "causal" : "not causal"}`
      + `${one.sign === -1 ? "; negative values speak for it" : ""}; ${one.experiment}, run `, ...runs.flatMap((run, place) => [place ? ", " : "", runLink(run)]));
    view.replaceChildren(grid(size, cells, top, sites), legend(top, Math.max(...[...cells.values()].map((cell) => cell.least || 0))));
  };
  select.addEventListener("change", draw);
  draw();
  $("map-view").replaceChildren(make("p", "controls", {}, make("label", "", { for: "evidence" }, "Evidence"), select), about, view);
}

function grid([layers, heads], cells, top, sites) {
  const body = make("div", "grid", { role: "grid", "aria-label": "Layers and heads" });
  body.style.setProperty("--heads", heads);
  const row = (name, children) => make("div", "row", { role: "row" }, make("span", "axis", { role: "rowheader" }, name), ...children);
  body.append(row("layer", Array.from({ length: heads }, (_, head) => make("span", "axis", { role: "columnheader" }, String(head)))));
  const buttons = [];
  for (let layer = 0; layer < layers; layer += 1) {
    body.append(row(String(layer), Array.from({ length: heads }, (_, head) => {
      const site = `h${layer}.${head}`, one = cells.get(site);
      const button = make("button", "cell", { type: "button", role: "gridcell", tabindex: buttons.length ? "-1" : "0", "data-site": site });
      if (one) {
        const share = Math.abs(one.value) / top;
        button.style.setProperty("--v", share.toFixed(3));
        button.classList.add(one.value < 0 ? "neg" : "pos");
        button.classList.toggle("strong", share > 0.6);
        button.classList.toggle("holds", one.holds);
        button.textContent = short(one.value, top);
      }
      const words = one ? `${number(one.value)} ${between(one.low, one.high)} ${one.holds ? "holds" : "does not hold"}` : "not measured";
      if (!sites[site]) button.setAttribute("aria-disabled", "true");
      button.setAttribute("aria-label", `${site}: ${words}`);
      button.title = `${site}: ${words}${one && one.label ? `, ${one.label}` : ""}`;
      buttons.push(button);
      return button;
    })));
  }
  body.addEventListener("click", (event) => {
    const button = event.target.closest(".cell");
    if (button && sites[button.dataset.site]) location.hash = address(button.dataset.site);
  });
  body.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(event.target);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: heads, ArrowUp: -heads }[event.key];
    const goal = step && buttons[at + step];
    if (at < 0 || !goal) return;
    event.preventDefault();
    buttons[at].tabIndex = -1;
    goal.tabIndex = 0;
    goal.focus();
  });
  return make("div", "scroll plain", {}, body);
}

/* Two digits, without a zero before the point. */
function short(value, top) {
  const text = top >= 10 ? value.toFixed(0) : top >= 1 ? value.toFixed(1) : value.toFixed(2);
  return /[1-9]/.test(text) ? text.replace("-", "\u2212").replace(/^(\u2212?)0\./, "$1.") : "0";
}

function legend(top, least) {
  return make("p", "legend", {}, number(-top), make("span", "bar", { role: "img", "aria-label": "from blue, negative, to red, positive" }),
    number(top), make("span", "sample holds", { "aria-hidden": "true" }), make("span", "said", {}, `it holds: p, corrected and times the tries, < ${REPORT.level}, and at least what counts${least ? ` (${number(least)})` : ""}`));
}
