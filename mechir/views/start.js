/* Which section is shown, and which dossier is open: the address says the latter. */

const REPORT = JSON.parse($("data").textContent);
let shown = REPORT.sections[0], before = null;

function close() {
  if ($("dossier").hidden) return;
  $("dossier").hidden = true;
  history.replaceState(null, "", "#map");
  if (before && before.isConnected) before.focus();
}

function follow() {
  const site = decodeURIComponent(location.hash.slice(1));
  if (Object.hasOwn(shown.components.sites, site)) {
    if ($("dossier").hidden) before = document.activeElement;
    dossier(shown, site);
  } else $("dossier").hidden = true;
  document.querySelectorAll(".cell").forEach((cell) => cell.classList.toggle("open", cell.dataset.site === site));
}

function show(section) {
  shown = section;
  $("about").replaceChildren("Model ", make("strong", "", {}, section.model), " (fingerprint ", make("code", "", {}, section.fingerprint.slice(0, 12)),
    ") on collection ", make("strong", "", {}, section.collection), ".");
  for (const part of [summary, links, map, more]) part(section);
  const there = { links: section.links.rows.length, map: $("map-view").children.length, figures: section.figures.length };
  for (const [name, n] of Object.entries(there)) { // what was not measured has no headline
    $(name).hidden = !n;
    document.querySelector(`nav a[href="#${name}"]`).hidden = !n;
  }
  follow();
  return figures(section);
}

document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
addEventListener("hashchange", follow);
REPORT.sections.forEach((section, k) => $("section").append(make("option", "", { value: k }, `${section.model} (${section.fingerprint.slice(0, 6)}) on ${section.collection}`)));
$("choose").hidden = REPORT.sections.length < 2;
$("section").addEventListener("change", () => show(REPORT.sections[Number($("section").value)]));
$("glossary").append(...REPORT.words.flatMap(([word, meaning]) => [make("dt", "", {}, word), make("dd", "", {}, meaning)]));
$("footer").textContent = `Made from ${REPORT.registry} by mechir ${REPORT.version}, ${REPORT.made}. This file needs no network.`;
show(shown).then(() => { document.documentElement.dataset.ready = ""; });
