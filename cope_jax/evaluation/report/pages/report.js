"use strict";
// The gallery, the tables of failures, and the maps. Texts from the data are inserted only as text nodes and attributes, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 12;
  const SVG = "http://www.w3.org/2000/svg";

  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  }

  function directionName(name) {
    return data.directions[name].join(" → ");
  }

  function describe(item) {
    const products = item.products.length ? `product ${item.products.join(", ")}` : "no product";
    const frames = item.domain === "page" ? "" : ` · ${item.count} ${item.count === 1 ? "frame" : "frames"}`;
    return `${item.domain} ${item.id} · ${products}${frames}`;
  }

  function picture(item, position) {
    if (!item.frames.length) return make("span", "blank", "no picture");
    const image = make("img");
    image.src = item.frames[position];
    image.alt = `${item.domain} ${item.id}` + (item.frames.length > 1 ? `, picture ${position + 1} of ${item.frames.length}` : "");
    image.loading = "lazy";
    return image;
  }

  function middle(item) {
    return picture(item, Math.floor(item.frames.length / 2));
  }

  function text(item) {
    const node = make("p", "text", item.text || "no text");
    if (item.text) { node.title = item.text; node.dir = "auto"; }
    return node;
  }

  // Pairs of products that are marked as one. They stay in this browser; without storage, until the page is closed.
  const STORE = `cope-duplicates-${data.fingerprint}`;
  const pairKey = (a, b) => [a, b].sort().join("\t");
  const marks = new Set();
  try {
    JSON.parse(localStorage.getItem(STORE) || "[]").forEach((pair) => marks.add(pair));
  } catch { /* no storage */ }

  function sameButton(a, b) {
    const button = make("button", "same small", "Same product");
    button.type = "button";
    Object.assign(button.dataset, { a, b });
    button.setAttribute("aria-label", `Products ${a} and ${b} are the same product`);
    button.setAttribute("aria-pressed", marks.has(pairKey(a, b)));
    return button;
  }

  function showMarks() {
    const status = document.getElementById("marked");
    if (!status) return;
    status.textContent = marks.size ? `${marks.size} ${marks.size === 1 ? "pair is" : "pairs are"} marked as one product.` : "No pairs are marked.";
    for (const id of ["export", "unmark"]) document.getElementById(id).hidden = !marks.size;
    document.querySelectorAll("button.same").forEach((button) => button.setAttribute("aria-pressed", marks.has(pairKey(button.dataset.a, button.dataset.b))));
    try {
      localStorage.setItem(STORE, JSON.stringify([...marks]));
    } catch { /* no storage */ }
  }

  function download(name, content) {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const csvCell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  // A result: rank and score, whether it is right (as a word and by its border), picture, id, and text.
  function tile(key, { tag = "li", place, score, right, best = false, product }) {
    const item = data.items[key];
    const mark = make("span", "mark", right ? "✓ right" : "✗ wrong");
    const head = make("div", "place", make("span", "", place), make("span", "", score.toFixed(3)));
    const node = make(tag, `tile ${right ? "right" : "wrong"}${best ? " best" : ""}`, head, mark, middle(item), make("p", "what", describe(item)), text(item));
    if (!right && product !== undefined && item.products.length) node.append(sameButton(product, item.products[0]));
    return node;
  }

  function hitList(answer) {
    const list = make("ol", "hits");
    const [product] = data.items[answer.query].products;
    answer.hits.forEach(([key, score, right], i) => list.append(tile(key, { place: `#${i + 1}`, score, right, product: i < answer.rank - 1 ? product : undefined })));
    const [key, score] = answer.best;
    if (answer.rank > answer.hits.length) list.append(tile(key, { place: `#${answer.rank}`, score, right: true, best: true }));
    return list;
  }

  function duel(answer) {
    const [key, score, right] = answer.hits[0];
    const [bestKey, bestScore] = answer.best;
    const sides = make("ul", "hits duel",
      tile(key, { place: "first result", score, right, product: data.items[answer.query].products[0] }),
      tile(bestKey, { place: `right answer, #${answer.rank}`, score: bestScore, right: true }));
    const all = make("details", "", make("summary", "", "All results"), hitList(answer));
    return make("div", "", sides, all);
  }

  function verdict(answer) {
    if (answer.rank === 1) return make("span", "verdict right", "✓ right");
    return make("span", "verdict wrong", answer.confused ? "≈ confusion" : "✗ wrong");
  }

  function outcome(answer) {
    if (answer.rank === 1) return "the first item is right";
    const apart = answer.confused ? `, only ${answer.gap.toFixed(4)} below a wrong one` : "";
    return `the right answer has rank ${answer.rank}${apart}`;
  }

  function card(answer) {
    const item = data.items[answer.query];
    const title = make("h3", "", directionName(answer.direction));
    const pictures = make("div", "pictures", ...(item.frames.length ? item.frames.map((_, i) => picture(item, i)) : [picture(item, 0)]));
    const query = make("div", "query", pictures, make("p", "what", describe(item)), text(item));
    const found = answer.confused ? duel(answer) : hitList(answer);
    const link = make("button", "small link", "Copy link");
    link.type = "button";
    link.dataset.id = answer.id;
    const node = make("article", "card", make("header", "", verdict(answer), title, make("small", "", outcome(answer)), link), make("div", "answer", query, found));
    node.tabIndex = -1;
    return node;
  }

  // The search covers the query and the right answer.
  function searchable(answer) {
    return [answer.query, answer.best[0]].flatMap((key) => {
      const item = data.items[key];
      return [item.text, item.id, ...item.products];
    }).join("\n").toLowerCase();
  }

  const answers = data.answers.map((answer) => ({ ...answer, id: `${answer.direction}/${answer.query}`, words: searchable(answer) }));
  const form = document.getElementById("controls");
  const cards = document.getElementById("cards");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  const only = document.getElementById("only");
  let chosen = [];
  let address = new URLSearchParams();  // what the part of the address after # shows alone: a query, product or pair

  const productsOf = (key) => data.items[key].products;

  function inAddress(answer) {
    if (address.has("query")) return answer.id === address.get("query");
    const own = productsOf(answer.query), found = productsOf(answer.hits[0][0]);
    if (address.has("product")) return [...own, ...found].includes(address.get("product"));
    if (!address.has("pair")) return true;
    const [a, b] = address.get("pair").split("\t");
    return (own.includes(a) && found.includes(b)) || (own.includes(b) && found.includes(a));
  }

  function describeAddress() {
    if (address.has("query")) return "One query is shown.";
    if (address.has("product")) return `Queries of product ${address.get("product")}, and others that find it first, are shown.`;
    return `Queries of the pair ${address.get("pair").replace("\t", " and ")} are shown.`;
  }

  function matches(answer, { direction, outcome, words }) {
    if (!inAddress(answer)) return false;
    if (direction && answer.direction !== direction) return false;
    if (outcome === "right" && answer.rank !== 1) return false;
    if (outcome === "wrong" && answer.rank === 1) return false;
    if (outcome === "confused" && !answer.confused) return false;
    if (outcome === "notext" && data.items[answer.query].text) return false;
    return words.toLowerCase().split(/\s+/).every((word) => answer.words.includes(word));
  }

  function showMore() {
    const shown = cards.childElementCount;
    cards.append(...chosen.slice(shown, shown + PAGE).map(card));
    more.hidden = cards.childElementCount >= chosen.length;
    count.textContent = chosen.length
      ? `${cards.childElementCount} of ${chosen.length} queries shown`
      : "No matching queries. Choose another direction or outcome, or clear the search.";
    return cards.children[shown];
  }

  function filter() {
    const wanted = Object.fromEntries(new FormData(form));
    chosen = answers.filter((answer) => matches(answer, wanted));
    const missed = (answer) => (answer.rank > 1 ? answer.gap : Infinity);
    if (wanted.order === "closest") chosen.sort((a, b) => missed(a) - missed(b));
    if (wanted.order === "product") chosen.sort((a, b) => collator.compare(productsOf(a.query).join(), productsOf(b.query).join()));
    cards.replaceChildren();
    showMore();
  }

  // Shows what the address names; the form's own filters start over.
  function followAddress() {
    address = new URLSearchParams(location.hash.slice(1));
    const outcome = address.get("outcome"), isOnly = ["query", "product", "pair"].some((name) => address.has(name));
    if (!outcome && !isOnly && only.hidden && cards.childElementCount) return;  // another part of the page
    only.hidden = !isOnly;
    if (isOnly || outcome) form.reset();
    if (isOnly) only.firstElementChild.textContent = describeAddress();
    if (outcome) form.elements.outcome.value = outcome;
    filter();
    if (isOnly || outcome) document.getElementById("gallery").scrollIntoView();
  }

  const collator = new Intl.Collator(undefined, { numeric: true });

  // Titles of columns sort their tables; a cell counts by its number, or its text.
  for (const table of document.querySelectorAll("table.sortable")) {
    const titles = [...table.querySelectorAll("thead th")];
    titles.slice(0, 4).forEach((title, column) => {
      const button = make("button", "", title.textContent);
      button.type = "button";
      title.replaceChildren(button);
      button.addEventListener("click", () => {
        const order = title.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
        titles.forEach((other) => other.removeAttribute("aria-sort"));
        title.setAttribute("aria-sort", order);
        const body = table.tBodies[0], sign = order === "ascending" ? 1 : -1;
        const value = (row) => row.cells[column].querySelector("[aria-pressed]")?.getAttribute("aria-pressed") ?? row.cells[column].textContent.trim().replace(/(\d),(?=\d{3})/g, "$1");
        body.append(...[...body.rows].sort((a, b) => sign * collator.compare(value(a), value(b))));
      });
    });
  }

  document.addEventListener("click", ({ target }) => {
    const same = target.closest("button.same"), link = target.closest("button.link");
    if (same) {
      const key = pairKey(same.dataset.a, same.dataset.b);
      if (!marks.delete(key)) marks.add(key);
      showMarks();
    } else if (link) {
      const url = `${location.href.split("#")[0]}#${new URLSearchParams({ query: link.dataset.id })}`;
      navigator.clipboard?.writeText(url).catch(() => {});
      history.replaceState(null, "", url);  // to copy it from the address bar
      link.textContent = "Link copied";
    }
  });
  document.getElementById("export")?.addEventListener("click", () => {
    const rows = [...marks].map((pair) => pair.split("\t").map(csvCell).join(","));
    download("duplicates.csv", ["product,same_as", ...rows, ""].join("\n"));
  });
  document.getElementById("unmark")?.addEventListener("click", () => { marks.clear(); showMarks(); });
  window.addEventListener("hashchange", followAddress);
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => showMore()?.focus());
  followAddress();
  showMarks();

  // All maps have the same items in the same order, so selecting an item on one shows it on all.
  const maps = [...document.querySelectorAll(".map")].map((svg) => ({
    svg,
    links: svg.querySelector(".links"),
    ring: svg.querySelector(".ring"),
    places: [...svg.querySelectorAll("circle:not(.ring), path")].map((mark) => {
      const box = mark.getBBox();
      return [box.x + box.width / 2, box.y + box.height / 2];
    }),
  }));
  const readout = document.getElementById("readout");
  let current = -1;

  function choose(index) {
    if (index === current) return;
    current = index;
    const [key, domain, id, products, words] = data.points[index];
    const kin = data.points.flatMap((point, i) => (i !== index && point[3].some((product) => products.includes(product)) ? [i] : []));
    for (const { links, ring, places } of maps) {
      const [x, y] = places[index];
      ring.setAttribute("cx", x);
      ring.setAttribute("cy", y);
      links.replaceChildren(...kin.map((i) => {
        const line = document.createElementNS(SVG, "line");
        Object.entries({ x1: x, y1: y, x2: places[i][0], y2: places[i][1] }).forEach(([name, value]) => line.setAttribute(name, value));
        return line;
      }));
    }
    const others = `${kin.length} other ${kin.length === 1 ? "item" : "items"} shown`;
    readout.replaceChildren(
      make("p", "", make("b", domain, domain), ` ${id}`),
      make("p", "", products.length ? `product ${products.join(", ")}; ${others}` : "no product"),
      make("p", "", words || "no text"));
    if (data.items[key]) readout.append(middle(data.items[key]));
  }

  function nearest(places, x, y) {
    let best = -1, least = 20 ** 2;
    places.forEach(([a, b], i) => {
      const distance = (a - x) ** 2 + (b - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  // The nearest point in that direction; the distance across it counts double.
  function step(places, [dx, dy]) {
    const [x, y] = places[current];
    let best = current, least = Infinity;
    places.forEach(([a, b], i) => {
      const along = (a - x) * dx + (b - y) * dy, across = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
      if (along > 0 && along + 2 * across < least) [best, least] = [i, along + 2 * across];
    });
    return best;
  }

  for (const { svg, places } of maps) {
    const point = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const found = nearest(places, at.x, at.y);
      if (found >= 0) choose(found);
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("focus", () => { if (current < 0 && places.length) choose(0); });
    svg.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      choose(current < 0 ? 0 : step(places, ARROWS[event.key]));
    });
  }
})();
