"use strict";
// The gallery and the maps. Texts from the data are inserted only as text nodes and attributes, never as HTML.
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

  // A result: rank and score, whether it is right (as a word and by its border), picture, id, and text.
  function tile(key, { tag = "li", place, score, right, best = false }) {
    const item = data.items[key];
    const mark = make("span", "mark", right ? "✓ right" : "✗ wrong");
    const head = make("div", "place", make("span", "", place), make("span", "", score.toFixed(3)));
    return make(tag, `tile ${right ? "right" : "wrong"}${best ? " best" : ""}`, head, mark, middle(item), make("p", "what", describe(item)), text(item));
  }

  function hitList(answer) {
    const list = make("ol", "hits");
    answer.hits.forEach(([key, score, right], i) => list.append(tile(key, { place: `#${i + 1}`, score, right })));
    const [key, score] = answer.best;
    if (answer.rank > answer.hits.length) list.append(tile(key, { place: `#${answer.rank}`, score, right: true, best: true }));
    return list;
  }

  function duel(answer) {
    const [key, score, right] = answer.hits[0];
    const [bestKey, bestScore] = answer.best;
    const sides = make("ul", "hits duel",
      tile(key, { place: "first result", score, right }),
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
    const node = make("article", "card", make("header", "", verdict(answer), title, make("small", "", outcome(answer))), make("div", "answer", query, found));
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

  const answers = data.answers.map((answer) => ({ ...answer, words: searchable(answer) }));
  const form = document.getElementById("controls");
  const cards = document.getElementById("cards");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  let chosen = [];

  function matches(answer, { direction, outcome, words }) {
    if (direction && answer.direction !== direction) return false;
    if (outcome === "right" && answer.rank !== 1) return false;
    if (outcome === "wrong" && answer.rank === 1) return false;
    if (outcome === "confused" && !answer.confused) return false;
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
    if (wanted.outcome === "confused") chosen.sort((a, b) => a.gap - b.gap);
    cards.replaceChildren();
    showMore();
  }

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => showMore()?.focus());
  filter();

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
