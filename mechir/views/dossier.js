/* The figures, and the dossier of one component. */

const NOTHING = () => Promise.reject(new Error("this page loads nothing"));
const LOADER = { load: NOTHING, sanitize: NOTHING, http: NOTHING, file: NOTHING };
/* Colours are the page's own, so that light, dark and print need no other drawing. */
const ink = "var(--ink)", faint = "var(--faint)", line = "var(--line)";
const CONFIG = {
  background: "transparent",
  font: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
  title: { color: ink, subtitleColor: faint, fontSize: 13, fontWeight: 600 },
  axis: { labelColor: faint, titleColor: ink, gridColor: line, domainColor: faint, tickColor: faint, titleFontWeight: 500 },
  legend: { labelColor: ink, titleColor: ink, titleFontWeight: 500 },
  header: { labelColor: ink, titleColor: ink },
  text: { color: ink },
  rule: { color: faint },
  tick: { color: ink },
  view: { stroke: line },
};

const SHRINK = 1.3; // a chart that is wider than so many times its place is scrolled rather than shrunk

async function figures(section) {
  const list = $("figures-list");
  list.replaceChildren(...section.figures.map(figure));
  if (!section.figures.length) list.append(make("p", "", {}, "No finished run."));
  for (const [k, one] of section.figures.entries()) {
    const at = list.children[k] && list.children[k].querySelector(".chart");
    if (!at || !one.chart) continue;
    try {
      await vegaEmbed(at, structuredClone(one.chart), { mode: "vega-lite", ast: true, actions: false, renderer: "svg",
        defaultStyle: false, loader: LOADER, config: CONFIG, tooltip: { disableDefaultStyle: true } });
      at.classList.toggle("wide", at.querySelector("svg").width.baseVal.value > SHRINK * at.clientWidth);
    } catch (error) {
      at.replaceChildren(make("p", "note", {}, `This chart cannot be drawn: ${error.message}.`));
    }
    at.dataset.drawn = "";
  }
}

function figure(one) {
  const chart = one.chart ? make("div", "chart", { tabindex: "0", role: "img", "aria-label": `Chart: ${one.title}` }) : make("p", "note", {}, one.note);
  const facts = make("dl", "facts", {}, ...one.provenance.flatMap(([name, value]) => [make("dt", "", {}, name), make("dd", "", {}, value)]));
  const rows = one.table.rows, columns = one.table.columns.map((name, k) => ({ name, kind: typeof (rows.find((row) => row[k] !== null) || [])[k] === "number" ? "number" : "text", value: (row) => row[k] }));
  const more = rows.length < one.table.of ? ` (${rows.length} of ${one.table.of} rows)` : "";
  const body = make("details", "", {}, make("summary", "", {}, `Numbers${more}`));
  body.addEventListener("toggle", () => { if (body.open && body.children.length === 1) body.append(table(columns, rows, `Numbers: ${one.title}`).node); });
  return make("figure", "", { id: `run-${one.run}` }, make("figcaption", "", {}, make("h3", "", {}, one.title), make("p", "subtitle", {}, one.about), standing(one)), chart,
    command(one.command), one.remark ? make("p", "faint", {}, one.remark) : null,
    make("details", "", {}, make("summary", "", {}, "Where it comes from"), facts), body);
}

const NAMED = 4;

/* What of this page stands on a run. */
function standing({ run, claims }) {
  const more = claims.length > NAMED ? ` and ${claims.length - NAMED} more` : "";
  return make("p", "faint", {}, `Run ${run.slice(0, 8)}${claims.length ? `, on which stand: ${claims.slice(0, NAMED).join("; ")}${more}` : ""}.`);
}

function command(text) {
  const words = text.split(" ").flatMap((word, k) => [k ? " " : "", make("span", "whole", {}, word)]);
  const code = make("code", "", {}, ...words), button = make("button", "", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return make("p", "command", {}, code, button);
}

function more(section) {
  const parts = [];
  const sites = Object.keys(section.components.sites).sort((a, b) => order(a, b, 1));
  const all = make("select", "", { id: "component" }, make("option", "", { value: "" }, "\u2026"), ...sites.map((site) => make("option", "", { value: site }, site)));
  all.addEventListener("change", () => { if (all.value) location.hash = address(all.value); });
  if (sites.length) parts.push(make("p", "controls", {}, make("label", "", { for: "component" }, "Dossier of any component"), all));
  if (section.neurons.length) {
    parts.push(make("details", "", {}, make("summary", "", {}, "Neurons: the strongest 30 of each measure"), table([
      { name: "neuron", kind: "text", value: (row) => row.site }, { name: "measure", kind: "text", value: (row) => row.measure },
      { name: "value", value: (row) => row.value, cell: (row) => valued(row) }, { name: "unit", kind: "text", value: (row) => row.unit },
      { name: "label", kind: "text", value: (row) => row.label }, { name: "queries", value: (row) => row.n_queries },
    ], section.neurons, "Neurons").node));
  }
  if (section.others.length) {
    parts.push(make("details", "", {}, make("summary", "", {}, `Other runs (${section.others.length})`), table([
      { name: "run", kind: "text", value: (row) => row.run }, { name: "experiment", kind: "text", value: (row) => row.experiment },
      { name: "started", kind: "text", value: (row) => row.started }, { name: "not shown because", kind: "text", value: (row) => row.why },
    ], section.others, "Other runs").node));
  }
  $("more-view").replaceChildren(...parts);
  $("more").hidden = !parts.length;
}

function dossier(section, site) {
  const { agreements, conflicts, findings } = section.components.sites[site];
  const rows = findings.map((row) => told(section, row)).sort((a, b) => b.holds - a.holds || b.causal - a.causal || order(a.measure, b.measure, 1));
  const shut = make("button", "close", { type: "button", "aria-label": "Close the dossier" }, "\u00d7");
  shut.addEventListener("click", close);
  const from = (one) => runLink(one.run, one.experiment);
  const said = (name, sentences, text) => sentences.length ? [make("h3", "", {}, name), make("ul", text, {}, ...sentences.map((one) => make("li", "", {}, one)))] : [];
  const heading = make("h2", "", { id: "dossier-heading", tabindex: "-1" }, site);
  $("dossier").replaceChildren(shut, heading,
    make("p", "faint", {}, `${rows.length} findings of ${section.model} on ${section.collection}; ${rows.filter((one) => one.holds).length} hold.`),
    ...said("What it is linked to", agreements, "agreements"), ...said("Conflicts", conflicts, "conflicts"),
    make("h3", "", {}, "Findings"),
    table([
      { name: "measure", kind: "text narrow", value: (one) => one.measure, cell: (one) => [one.measure + (one.causal ? "\u2009†" : ""), make("span", "interval", {}, from(one), one.label ? ` \u00b7 ${one.label}` : "")] },
      { name: "value", value: (one) => one.value, cell: (one) => valued(one, one.unit) },
      { name: "p", title: "corrected within its run, times the tries", value: (one) => one.p, cell: (one) => chance(one.p) },
      { name: "holds", kind: "text", value: (one) => (one.holds ? 1 : 0), cell: (one) => (one.holds ? "yes" : "") },
      { name: "queries", value: (one) => one.queries || null },
    ], rows, `Findings of ${site}`).node,
    ...attention(section, site));
  $("dossier").hidden = false;
  heading.focus({ preventScroll: true });
}

function attention(section, site) {
  if (!/^h\d+\.\d+$/.test(site)) return [];
  const { pairs, left_out, command: run } = section.examples, heading = make("h3", "", {}, "Attention on example pairs");
  const own = pairs.filter((pair) => site in pair.heads), ask = run.replace("HEAD", site);
  if (left_out.includes(site)) return [heading, make("p", "", {}, "Its examples are left out: this page has no room for more.")];
  if (!own.length) return [heading, make("p", "", {}, "None yet. This makes them: "), command(ask)];
  const root = make("div", "mechir-strips"), select = make("select", "", { id: "pair" });
  own.forEach((pair, k) => select.append(make("option", "", { value: k }, `${pair.query_id} / ${pair.doc_id}${pair.grade === null ? "" : `, grade ${pair.grade}`}`)));
  const draw = () => { const pair = own[Number(select.value)]; mechirStrips(root, { ...pair, heads: { [site]: pair.heads[site] } }); };
  select.addEventListener("change", draw);
  draw();
  return [heading, make("p", "controls", {}, make("label", "", { for: "pair" }, "Pair"), select), root];
}
