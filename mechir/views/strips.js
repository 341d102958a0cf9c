/* One pair as two strips of word pieces, shaded by what a head gives from one to the other.
   Texts are hostile: they go into textContent and nowhere else. */
const mechirStrips = (() => {
  "use strict";
  const SCALE = 10000, TOLD = 5, CLIP = 20, SIDES = ["query", "doc"], NAMES = { query: "query", doc: "document" };
  const WAYS = { at: "looks at", by: "is looked at by" };

  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const other = (side) => (side === "query" ? "doc" : "query");
  const clipped = (text) => (text.length > CLIP ? `${text.slice(0, CLIP)}\u2026` : text);
  const written = (weight) => (weight / SCALE).toFixed(3).replace(/^0/, "");

  /* What piece `at` of `side` gives to (way "at") or gets from ("by") each piece of the other text. */
  function weights(pair, site, side, at, way) {
    const reads = (side === "query") === (way === "at"); // query<-doc, else doc<-query
    const [queryDoc, docQuery] = pair.heads[site], n = pair[other(side)].length;
    const block = reads ? queryDoc : docQuery, across = reads ? pair.doc.length : pair.query.length;
    const place = (k) => (way === "at" ? at * across + k : k * across + at);
    return Array.from({ length: n }, (_, k) => block[place(k)]);
  }

  /* The strip of one text; words stand apart, the pieces of a word together. */
  function strip(pair, side, shared, tokens) {
    const line = make("div", "strip"), text = make("div", "pieces");
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", `Word pieces of the ${NAMES[side]}`);
    let word = null;
    pair[side].forEach(([shown, joined], k) => {
      if (!joined || !word) {
        if (word) text.append(" ");
        word = text.appendChild(make("span", "word"));
      }
      const piece = make("button", "piece", shown);
      piece.type = "button";
      piece.tabIndex = k ? -1 : 0;
      if (shared.has(key(pair[side][k]))) {
        piece.classList.add("match");
        piece.setAttribute("aria-description", "also in the other text");
      }
      tokens[side].push(word.appendChild(piece));
    });
    line.append(make("div", "side", NAMES[side]), text);
    return line;
  }
  const key = ([shown, joined]) => (joined ? "+" : " ") + shown.toLowerCase();

  function choice(legend, options, chosen, choose) {
    const group = make("div", "choice");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", legend);
    const buttons = Object.entries(options).map(([value, name]) => {
      const button = group.appendChild(make("button", "", name));
      button.type = "button";
      button.setAttribute("aria-pressed", String(value === chosen));
      button.addEventListener("click", () => {
        buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
        choose(value);
      });
      return button;
    });
    return group;
  }

  function ids(pair) {
    const line = make("div", "ids");
    const told = { query: pair.query_id, document: pair.doc_id, grade: pair.grade, score: pair.score };
    for (const [name, value] of Object.entries(told)) {
      if (value === null || value === undefined) continue;
      const shown = typeof value === "number" && name === "score" ? value.toFixed(2).replace("-", "\u2212") : value;
      line.append(make("span", "", name + " "), make("b", "", String(shown)), " ");
    }
    return line;
  }

  /* Draws a pair {query_id, doc_id, grade, score, query, doc: [[text, joined]], heads: {site: [query_doc, doc_query]}};
     weights are whole numbers, 10000 is 1. */
  function draw(root, pair) {
    const sites = Object.keys(pair.heads), tokens = { query: [], doc: [] };
    const state = { site: sites[0], way: "at", over: null, pinned: null };
    const keys = SIDES.map((side) => new Set(pair[side].map(key)));
    const shared = new Set([...keys[0]].filter((one) => keys[1].has(one)));
    const status = make("p", "told"), most = make("span");
    status.setAttribute("aria-live", "polite");

    const shade = () => {
      const top = Math.max(1, ...pair.heads[state.site].map((block) => block.reduce((a, b) => Math.max(a, b), 0)));
      const from = state.pinned || state.over;
      for (const side of SIDES) {
        let values = pair[side].map((_, k) => Math.max(0, ...weights(pair, state.site, side, k, back(state.way))));
        if (from) values = from.side === side ? values.map(() => 0) : weights(pair, state.site, from.side, from.at, state.way);
        tokens[side].forEach((piece, k) => {
          piece.style.setProperty("--w", (values[k] / top).toFixed(3));
          piece.classList.toggle("strong", values[k] > 0.55 * top);
          piece.classList.toggle("from", Boolean(from && from.side === side && from.at === k));
          piece.setAttribute("aria-pressed", String(Boolean(state.pinned && from.side === side && from.at === k)));
          piece.title = from && from.side === side ? "" : written(values[k]);
        });
      }
      most.textContent = written(top);
      status.textContent = from ? said(from) : `Shaded: the largest weight by which a piece ${state.way === "at"
        ? "is looked at from" : "looks at"} the other text. Point at a piece, or go through them with the arrow keys.`;
    };
    const back = (way) => (way === "at" ? "by" : "at");
    const said = (from) => {
      const values = weights(pair, state.site, from.side, from.at, state.way);
      const order = values.map((_, k) => k).sort((a, b) => values[b] - values[a]).slice(0, TOLD);
      const listed = order.map((k) => `${clipped(pair[other(from.side)][k][0])} ${written(values[k])}`).join(", ");
      const sum = state.way === "at" ? `; ${written(values.reduce((a, b) => a + b, 0))} of its attention in all` : "";
      return `${state.site}: ${NAMES[from.side]} piece \u201c${clipped(pair[from.side][from.at][0])}\u201d ${WAYS[state.way]} ${listed}${sum}`;
    };

    const controls = make("div", "controls");
    if (sites.length > 1) {
      controls.append(choice("Head", Object.fromEntries(sites.map((one) => [one, one])), state.site, (site) => { state.site = site; shade(); }));
    }
    controls.append(choice("Weights", { at: "looks at", by: "is looked at by" }, "at", (way) => { state.way = way; shade(); }));
    const scale = make("div", "scale");
    scale.append("0 ", make("span", "bar"), " ", most, " ", make("span", "match", "same piece"), " in both texts");
    root.replaceChildren(ids(pair), controls, ...SIDES.map((side) => strip(pair, side, shared, tokens)), status, scale);
    listen(root, tokens, state, shade);
    shade();
  }

  function listen(root, tokens, state, shade) {
    const found = (target) => {
      const piece = target.closest && target.closest(".piece");
      const side = piece && SIDES.find((one) => tokens[one].includes(piece));
      return side ? { side, at: tokens[side].indexOf(piece) } : null;
    };
    const look = (event) => { state.over = found(event.target); shade(); };
    root.addEventListener("pointerover", look);
    root.addEventListener("pointerleave", () => { state.over = null; shade(); });
    root.addEventListener("focusin", look);
    root.addEventListener("focusout", () => { state.over = null; shade(); });
    root.addEventListener("click", (event) => {
      const one = found(event.target), was = state.pinned;
      if (one) state.pinned = was && was.side === one.side && was.at === one.at ? null : one;
      shade();
    });
    root.addEventListener("keydown", (event) => {
      const one = found(event.target);
      if (event.key === "Escape" && state.pinned) { state.pinned = null; event.stopPropagation(); shade(); }
      if (!one) return;
      const own = tokens[one.side], across = tokens[other(one.side)];
      const goal = { ArrowRight: own[one.at + 1], ArrowLeft: own[one.at - 1], Home: own[0], End: own[own.length - 1],
        ArrowDown: across[0], ArrowUp: across[0] }[event.key];
      if (!goal) return;
      event.preventDefault();
      for (const piece of own.concat(across)) piece.tabIndex = -1;
      own[0].tabIndex = across[0].tabIndex = 0;
      goal.tabIndex = 0;
      goal.focus();
    });
  }

  for (const root of document.querySelectorAll(".mechir-attention:not([data-drawn])")) {
    root.dataset.drawn = "";
    draw(root.querySelector(".mechir-strips"), JSON.parse(root.querySelector("[type='application/json']").textContent));
  }
  return draw;
})();
