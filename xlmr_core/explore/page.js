"use strict";
// Draws the data in the element "data". No framework: `make` makes an element, each section draws itself again
// when the state of its panel changes.
const data = JSON.parse(document.getElementById("data").textContent);
const VIEWS = { tokens: "from one token", matrix: "all tokens", rollout: "rollout" };

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, what] of Object.entries(value)) element.style.setProperty(key, what);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const percent = (p) => (p < 0.0005 ? "0%" : (100 * p).toFixed(p < 0.1 ? 1 : 0) + "%");
const signed = (x) => (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(2);
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const say = (text) => { document.getElementById("said").textContent = text; };

// "▁" is SentencePiece's space. `bdi` keeps a right-to-left piece from moving its neighbours.
function shownPiece(piece) {
  return make("bdi", { dir: "auto" }, piece === "▁" ? "␣" : piece.replace(/^▁/, " ").replaceAll("▁", " ").trim() || piece);
}
const pieceOf = (id) => data.pieces[id] ?? "?";
// Of the first letter; in "auto" a browser would take the "s" of <s>.
const RTL = /^\P{L}*[\p{Script=Arabic}\p{Script=Hebrew}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;
const directionOf = (text) => (RTL.test(text) ? "rtl" : "ltr");
const isSpecial = (token) => /^<.*>$/.test(token[0]);

class Panel {
  constructor(text, number) {
    this.text = text;
    this.tokens = text.tokens;
    this.count = text.tokens.length;
    this.attention = bytes(text.attention);
    this.rollout = bytes(text.rollout);
    this.number = number;
    const shown = text.off ? text.off.positions[0] : Math.min(1, this.count - 1);
    this.state = { token: shown, layer: data.layers - 1, head: -1, view: "tokens", away: null };
    this.element = make("section", { class: "panel", "aria-label": "Text " + (number + 1) });
    this.head = make("div");
    this.body = make("div");
    this.element.append(this.head, this.body);
    this.drawHead();
    this.draw();
  }

  set(change, words) {
    const focused = document.activeElement?.dataset?.key;
    Object.assign(this.state, change);
    this.draw();
    if (focused) this.element.querySelector(`[data-key="${focused}"]`)?.focus();
    if (words) say(words);
  }

  weight(query, key) { // attention of the chosen layer and head, or the mean of its heads; rollout
    const { layer, head, view } = this.state;
    const at = query * this.count + key, size = this.count * this.count;
    if (view === "rollout") return this.rollout[layer * size + at] / 255;
    if (head >= 0) return this.attention[(layer * data.heads + head) * size + at] / 255;
    let sum = 0;
    for (let n = 0; n < data.heads; n++) sum += this.attention[(layer * data.heads + n) * size + at];
    return sum / data.heads / 255;
  }

  drawHead() {
    this.head.append(
      make("h2", {}, data.texts.length > 1 ? "Text " + (this.number + 1) : "Text"),
      make("p", { class: "text", dir: "auto" }, this.text.text),
    );
  }

  draw() {
    this.body.replaceChildren(
      this.drawTokens(), this.drawAttention(), this.drawNorms(), ...[this.drawLens(), this.drawHeads()].filter(Boolean),
    );
  }

  drawTokens() {
    const { token } = this.state;
    const list = make("ul", { class: "tokens", "aria-label": "Tokens", dir: directionOf(this.text.text) });
    this.tokens.forEach((one, i) => {
      const share = this.state.view === "matrix" ? 0 : this.weight(token, i);
      const button = make("button", {
        class: "piece shade" + (isSpecial(one) ? " special" : ""), type: "button", "data-key": "token" + i,
        "aria-pressed": String(i === token), style: { "--share": share },
        title: `id ${one[1]}, characters ${one[2]} to ${one[3]}`,
        "aria-label": `${one[0]}, token ${i}, id ${one[1]}, attention ${percent(share)}`,
        onclick: () => this.set({ token: i, away: null }, `token ${i}, ${one[0]}`),
        onkeydown: (event) => this.move(event, i),
      }, shownPiece(one[0]));
      list.append(make("li", {}, button));
    });
    const [piece, id, start, end] = this.tokens[token];
    return make("div", {}, list, make("p", { class: "soft" }, "Token ", String(token), ": ",
      make("b", {}, shownPiece(piece)), `, id ${id}, characters ${start} to ${end}`));
  }

  move(event, i) {
    const rtl = getComputedStyle(event.currentTarget.closest("ul")).direction === "rtl";
    const step = { ArrowRight: rtl ? -1 : 1, ArrowLeft: rtl ? 1 : -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.element.querySelector(`[data-key="token${Math.min(this.count - 1, Math.max(0, i + step))}"]`).focus();
  }

  chooser(label, key, options, value, change) {
    const select = make("select", { "data-key": key, onchange: (event) => change(event.target.value) });
    for (const [option, words] of options) {
      select.append(make("option", { value: option, ...(String(option) === String(value) ? { selected: "" } : {}) }, words));
    }
    return make("label", {}, label, select);
  }

  drawAttention() {
    const { token, layer, head, view } = this.state;
    const layers = Array.from({ length: data.layers }, (_, i) => [i, String(i)]);
    const heads = [[-1, "mean"], ...Array.from({ length: data.heads }, (_, i) => [i, String(i)])];
    const controls = make("div", { class: "controls" },
      this.chooser("View", "view", Object.entries(VIEWS), view, (value) => this.set({ view: value })),
      this.chooser("Layer", "layer", layers, layer, (value) => this.set({ layer: Number(value) })),
      view === "rollout" ? null
        : this.chooser("Head", "head", heads, head, (value) => this.set({ head: Number(value) })));
    const drawing = view === "tokens" ? this.drawList(token) : this.drawMatrix();
    const explained = {
      tokens: "Where the chosen token looks: the darker a token above, the more.",
      matrix: "Row: the token that looks. Column: what it looks at. The arrow keys move.",
      rollout: "How much of each token (column) has reached each token (row) after the layer, if attention and the "
        + "residual connection count half each.",
    }[view];
    return make("section", { "aria-label": "Attention" }, make("h2", {}, "Attention"), controls,
      make("p", { class: "soft" }, explained), drawing);
  }

  drawList(token) {
    const order = this.tokens.map((_, i) => i).sort((a, b) => this.weight(token, b) - this.weight(token, a)).slice(0, 5);
    const rows = order.map((i) => this.row(this.tokens[i][0], this.weight(token, i), `token ${i}`));
    return make("table", { class: "list" }, make("caption", { class: "hidden" }, "The five most looked at"), make("tbody", {}, ...rows));
  }

  row(piece, share, more) {
    return make("tr", {}, make("th", { scope: "row" }, shownPiece(piece)),
      make("td", { class: "number" }, percent(share)),
      make("td", {}, make("span", { class: "bar", style: { width: 8 * share + "rem" } })),
      more === undefined ? null : make("td", { class: "soft" }, more));
  }

  drawMatrix() {
    const labels = this.tokens.map((one) => shownPiece(one[0]));
    const header = make("tr", {}, make("td"), ...this.tokens.map((one) => make("th", { scope: "col" }, shownPiece(one[0]))));
    const rows = this.tokens.map((_, q) => make("tr", {}, make("th", { scope: "row" }, labels[q]),
      ...this.tokens.map((_, k) => make("td", {
        class: "shade", style: { "--share": this.weight(q, k) }, "data-key": `cell${q}-${k}`,
        tabindex: q === this.state.token && k === 0 ? "0" : "-1", "aria-label": percent(this.weight(q, k)),
        title: `${this.tokens[q][0]} → ${this.tokens[k][0]}: ${percent(this.weight(q, k))}`,
      }))));
    const table = make("table", { class: "matrix", onkeydown: (event) => this.walk(event) },
      make("caption", { class: "hidden" }, "Attention of every token to every token"),
      make("thead", {}, header), make("tbody", {}, ...rows));
    return make("div", { class: "scroll" }, table);
  }

  walk(event) {
    const key = event.target.dataset.key;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!key?.startsWith("cell") || !step) return;
    event.preventDefault();
    const [q, k] = key.slice(4).split("-").map(Number);
    const clamp = (x) => Math.min(this.count - 1, Math.max(0, x));
    const next = [clamp(q + step[0]), clamp(k + step[1])];
    event.target.tabIndex = -1;
    const cell = this.element.querySelector(`[data-key="cell${next[0]}-${next[1]}"]`);
    cell.tabIndex = 0;
    cell.focus();
    say(`${this.tokens[next[0]][0]} to ${this.tokens[next[1]][0]}: ${percent(this.weight(...next))}`);
  }

  drawNorms() {
    const { token } = this.state, depth = data.layers + 1;
    const own = Array.from({ length: depth }, (_, i) => this.text.norms[i * this.count + token]);
    const median = Array.from({ length: depth }, (_, i) => {
      const all = this.text.norms.slice(i * this.count, (i + 1) * this.count).sort((a, b) => a - b);
      return all[Math.floor(all.length / 2)];
    });
    const top = Math.max(...own, ...median) * 1.05;
    const place = (value, i) => `${40 + (i * 540) / (depth - 1)},${150 - (130 * value) / top}`;
    const path = (values) => "M" + values.map(place).join("L");
    const svg = `<svg viewBox="0 0 600 176" role="img" aria-label="Length of the vector of the chosen token by depth">`
      + `<path class="other" d="${path(median)}"/><path d="${path(own)}"/>`
      + `<text x="0" y="24">${top.toFixed(1)}</text><text x="0" y="154">0</text>`
      + own.map((_, i) => `<text x="${36 + (i * 540) / (depth - 1)}" y="170">${i}</text>`).join("") + "</svg>";
    const figure = make("div");
    figure.innerHTML = svg; // numbers only: no text of the input is in it
    const rows = own.map((value, i) => make("tr", {}, make("th", { scope: "row" }, i ? `layer ${i - 1}` : "embeddings"),
      make("td", { class: "number" }, value.toFixed(2)), make("td", { class: "number" }, median[i].toFixed(2))));
    return make("section", { "aria-label": "Norms" }, make("h2", {}, "Length of the vector by depth"),
      make("p", { class: "soft" }, "The line: the chosen token. Dashed: the median of all tokens. 0 is what the first layer reads."),
      figure, make("details", {}, make("summary", {}, "As numbers"),
        make("table", { class: "list" }, make("thead", {}, make("tr", {}, make("th", {}, "after"),
          make("th", { scope: "col" }, "token"), make("th", { scope: "col" }, "median"))), make("tbody", {}, ...rows))));
  }

  likeliest(store, index) { // the pieces and their probabilities at one place
    const from = index * store.width;
    return Array.from({ length: store.width }, (_, i) => [store.ids[from + i], store.p[from + i]]).filter(([id]) => id >= 0);
  }

  drawLens() {
    if (!this.text.lens) return null;
    const rows = [];
    for (let depth = 0; depth <= data.layers; depth++) {
      const found = this.likeliest(this.text.lens, depth * this.count + this.state.token).slice(0, 3);
      rows.push(make("tr", {}, make("th", { scope: "row" }, depth ? `layer ${depth - 1}` : "embeddings"),
        ...found.map(([id, p]) => make("td", { class: "shade", style: { "--share": p } },
          shownPiece(pieceOf(id)), make("span", { class: "soft" }, " " + percent(p))))));
    }
    return make("section", { "aria-label": "Logit lens" }, make("h2", {}, "What it would answer, by depth"),
      make("p", { class: "soft" }, "The LM head on the vector of the chosen token after each layer (logit lens)."),
      make("div", { class: "scroll" }, make("table", { class: "list" }, make("tbody", {}, ...rows))));
  }

  drawHeads() {
    if (!this.text.off) return null;
    const off = this.text.off, { token, away } = this.state;
    const section = make("section", { "aria-label": "Prediction without a head" }, make("h2", {}, "Switch a head off"));
    const found = this.likeliest(this.text.lens, data.layers * this.count + token);
    const at = off.positions.indexOf(token);
    const whole = make("table", { class: "list" }, make("caption", {}, "whole model"),
      make("tbody", {}, ...found.map(([id, p]) => this.row(pieceOf(id), p))));
    if (at < 0) {
      section.append(whole, make("p", { class: "soft" }, "Choose a masked token to switch heads off."));
      return section;
    }
    const place = (l, n) => (l * data.heads + n) * off.positions.length + at;
    const largest = Math.max(0.01, ...Array.from({ length: data.layers * data.heads }, (_, i) => Math.abs(off.change[i * off.positions.length + at])));
    const rows = Array.from({ length: data.layers }, (_, l) => make("tr", {}, make("th", { scope: "row" }, String(l)),
      ...Array.from({ length: data.heads }, (_, n) => {
        const change = off.change[place(l, n)], chosen = away !== null && away[0] === l && away[1] === n;
        return make("td", {}, make("button", {
          type: "button", class: change < 0 ? "down" : "up", style: { "--share": Math.abs(change) / largest },
          "data-key": `off${l}-${n}`, "aria-pressed": String(chosen),
          "aria-label": `layer ${l}, head ${n}: ${signed(change)}`,
          onclick: () => this.set({ away: chosen ? null : [l, n] }, chosen ? "whole model" : `without layer ${l}, head ${n}`),
        }, signed(change)));
      })));
    const header = make("tr", {}, make("td"), ...Array.from({ length: data.heads }, (_, n) => make("th", { scope: "col" }, String(n))));
    section.append(make("p", { class: "soft" }, "Change of the log-probability of ", make("b", {}, shownPiece(pieceOf(found[0][0]))),
      " when a head (column) of a layer (row) is set to 0. Choose one to see the answer without it."),
      make("div", { class: "scroll" }, make("table", { class: "grid" }, make("thead", {}, header), make("tbody", {}, ...rows))),
      make("div", { class: "controls" }, whole, away === null ? null : make("table", { class: "list" },
        make("caption", {}, `without layer ${away[0]}, head ${away[1]}`),
        make("tbody", {}, ...this.likeliest(off.likeliest, place(...away)).map(([id, p]) => this.row(pieceOf(id), p))))));
    return section;
  }
}

document.getElementById("model").textContent = data.model || "the model";
document.title = "xlmr explore: " + data.texts.map((text) => text.text).join(" | ");
document.getElementById("about").textContent = `${data.layers} layers, ${data.heads} heads. Choose a token; everything below follows.`;
const main = document.getElementById("main");
if (data.texts.length > 1) main.className = "two";
data.texts.forEach((text, i) => main.append(new Panel(text, i).element));
document.body.dataset.drawn = "yes";
