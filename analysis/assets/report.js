// The interactive timeline of a report: draws the spans that analysis/embed.py put into the page on one canvas.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("spans").textContent);
  const canvas = document.getElementById("timeline");
  const pen = canvas.getContext("2d");
  const tip = document.getElementById("tip");
  const details = document.getElementById("details");
  const range = document.getElementById("range");
  const WAIT = data.actions.length;
  const HEADER = 26, AXIS = 26, GAP = 10;

  const unpack = (text, Type) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Type(bytes.buffer);
  };
  const timelines = data.timelines.map((t) => ({
    ...t,
    start: unpack(t.start, Float64Array),
    length: unpack(t.length, Float32Array),
    code: unpack(t.code, Uint8Array),
    first: unpack(t.first, Int32Array),
    second: unpack(t.second, Int32Array),
    cause: unpack(t.cause, Uint8Array),
  }));
  const whole = Math.max(1e-6, ...timelines.map((t) => t.whole_ms));
  const shortest = whole / 1e7;
  const view = { from: 0, to: whole };
  let selected = null; // {t, row, i}
  let width = 0, gutter = 0, rowHeight = 0, places = [], waiting = false;

  // ---- words ----
  const digits = (number, count = 3) => Number(number.toPrecision(count)).toLocaleString("en");
  const time = (ms) =>
    ms < 1e-6 ? "0 ms" : ms < 1 ? digits(ms * 1e3) + " µs" : ms < 1e3 ? digits(ms) + " ms" : ms < 1e5 ? digits(ms / 1e3) + " s"
      : Math.floor(ms / 6e4) + " min " + Math.round((ms % 6e4) / 1e3) + " s";
  const unit = (span) => (span < 2 ? [1e3, "µs"] : span < 2e3 ? [1, "ms"] : span < 6e5 ? [1e-3, "s"] : [1 / 6e4, "min"]);

  function holds(microbatch) {
    const shares = data.microbatches[microbatch];
    if (!shares || !shares.length) return [];
    const lines = [];
    let total = 0;
    for (let k = 0; k < shares.length; k += 2) {
      total += shares[k + 1];
      lines.push(data.adapters[shares[k]].name + ": " + shares[k + 1].toLocaleString("en") + " tokens");
    }
    if (lines.length > 1) lines.push("together " + total.toLocaleString("en") + " tokens");
    return lines;
  }

  function describe({ t, row, i }) {
    const line = timelines[t], code = line.code[i], first = line.first[i], second = line.second[i];
    const when = "from " + digits(line.start[i], 7) + " ms, for " + time(line.length[i]);
    const where = line.rows[row] + (timelines.length > 1 ? ", " + line.source : "");
    if (code === WAIT) {
      const cause = line.cause[i] === 255 ? "not recorded" : data.causes[line.cause[i]];
      const until = second >= 0 && first >= 0 ? ["until " + data.actions[second] + " of microbatch " + first] : [];
      return ["waiting: " + cause, ...until, where, when];
    }
    if (second >= 0) {
      const name = (data.adapters[first] || { name: "adapter " + first }).name;
      return [data.actions[code] + " of " + name + ", global batch " + second, where, when];
    }
    return [data.actions[code] + " of microbatch " + first, ...holds(first), where, when];
  }

  // ---- drawing ----
  const hatches = new Map();
  function hatch(kind) {
    if (!hatches.has(kind)) {
      const tile = document.createElement("canvas");
      tile.width = tile.height = 6;
      const p = tile.getContext("2d");
      p.fillStyle = kind ? "#fff" : "#ececec";
      p.fillRect(0, 0, 6, 6);
      p.strokeStyle = "#9a9a9a";
      p.lineWidth = 1;
      p.beginPath();
      if (kind === "|") { p.moveTo(3, 0); p.lineTo(3, 6); }
      // Lines that leave one tile enter the next.
      for (const at of [-6, 0, 6]) {
        if (kind === "/" || kind === "x") { p.moveTo(at - 1, 7); p.lineTo(at + 7, -1); }
        if (kind === "\\" || kind === "x") { p.moveTo(at - 1, -1); p.lineTo(at + 7, 7); }
      }
      p.stroke();
      hatches.set(kind, pen.createPattern(tile, "repeat"));
    }
    return hatches.get(kind);
  }

  // From top to bottom where spans share a column: waiting, then adapters in order, so that height reads as a share.
  const CROWDED_WAIT = "#e2e2e2";
  const rank = new Map([CROWDED_WAIT, ...data.adapters.flatMap((a) => [a.pale, a.colour]), "#767676", "#000000"].map((c, k) => [c, k]));

  // The colours of a span with their shares of its height.
  function stripes(line, i) {
    const code = line.code[i];
    if (code === WAIT) return [[line.cause[i] === 255 ? "x" : data.hatches[line.cause[i]], 1, true]];
    if (code === data.step) return [["#000000", 1]];
    const pale = data.forwards.includes(code);
    if (!pale && !data.backwards.includes(code)) return [["#767676", 1]];
    const shares = data.microbatches[line.first[i]];
    if (!shares || !shares.length) return [[pale ? data.adapters[0].pale : data.adapters[0].colour, 1]];
    if (shares.length === 2) return [[pale ? data.adapters[shares[0]].pale : data.adapters[shares[0]].colour, 1]];
    let total = 0;
    for (let k = 1; k < shares.length; k += 2) total += shares[k];
    const found = [];
    for (let k = 0; k < shares.length; k += 2) {
      const adapter = data.adapters[shares[k]];
      found.push([pale ? adapter.pale : adapter.colour, shares[k + 1] / total]);
    }
    return found;
  }

  function after(line, row, ms) {
    // First span of a row that ends after a moment.
    let low = line.offsets[row], high = line.offsets[row + 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (line.start[middle] + line.length[middle] < ms) low = middle + 1; else high = middle;
    }
    return low;
  }

  function drawRow(line, row, y, height) {
    const scale = (width - gutter) / (view.to - view.from), end = line.offsets[row + 1];
    // Spans narrower than a pixel share their column: each colour gets the part of the height that is its part of time.
    let column = -1, sums = new Map();
    const flush = () => {
      let total = 0;
      for (const share of sums.values()) total += share;
      let top = y;
      for (const [colour, share] of [...sums].sort((a, b) => rank.get(a[0]) - rank.get(b[0]))) {
        const high = (height * share) / total;
        pen.fillStyle = colour;
        pen.fillRect(column, top, 1, high);
        top += high;
      }
      sums.clear();
    };
    const steps = [];
    for (let i = after(line, row, view.from); i < end && line.start[i] <= view.to; i++) {
      const x0 = gutter + (line.start[i] - view.from) * scale, x1 = x0 + line.length[i] * scale;
      if (line.code[i] === data.step) steps.push(x1);
      if (x1 - x0 >= 1.2) {
        if (sums.size) flush();
        const left = Math.max(x0, gutter), right = Math.min(x1, width);
        let top = y;
        for (const [colour, share, waits] of stripes(line, i)) {
          pen.fillStyle = waits ? hatch(colour) : colour;
          pen.fillRect(left, top, right - left - (x1 - x0 > 4 ? 0.5 : 0), height * share);
          top += height * share;
        }
        if (line.code[i] < WAIT && line.second[i] < 0 && x1 - x0 > 30 && height >= 14) {
          const label = [String(line.first[i]), Math.min(Math.max((x0 + x1) / 2, left + 12), right - 12), y + height / 2];
          pen.lineWidth = 2.5;
          pen.strokeStyle = "#fff";
          pen.strokeText(...label);
          pen.lineWidth = 1;
          pen.fillStyle = "#111";
          pen.fillText(...label);
        }
      } else {
        const at = Math.max(gutter, Math.floor(x0));
        if (at !== column) { if (sums.size) flush(); column = at; }
        for (const [colour, share] of stripes(line, i)) {
          const shown = line.code[i] === WAIT ? CROWDED_WAIT : colour;
          sums.set(shown, (sums.get(shown) || 0) + share * Math.max(x1 - x0, 1e-6));
        }
      }
    }
    if (sums.size) flush();
    // A step is too short to be seen: it gets a line, or a tick above the row where lines would hide the bars.
    const room = (width - gutter) / Math.max(1, steps.length), high = room > 18 ? height + 2 : 4;
    pen.fillStyle = "#000";
    for (const x of room > 4 ? steps : []) if (x >= gutter) pen.fillRect(x - 0.75, y - 2, 1.5, high);
  }

  function drawAxis(y) {
    const span = view.to - view.from, [factor, name] = unit(span);
    const rough = (span * factor) / Math.max(2, (width - gutter) / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
    pen.fillStyle = "#444";
    pen.strokeStyle = "#bbb";
    pen.textAlign = "center";
    for (let tick = Math.ceil((view.from * factor) / step) * step; tick <= view.to * factor; tick += step) {
      const x = gutter + (tick / factor - view.from) * ((width - gutter) / span);
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(x, y + 5);
      pen.stroke();
      const label = Number(tick.toPrecision(9)).toLocaleString("en", { maximumFractionDigits: 9 }) + " " + name;
      if (x < width - 24) pen.fillText(label, Math.max(x, gutter + 14), y + 15);
    }
  }

  function draw() {
    waiting = false;
    const ratio = window.devicePixelRatio || 1;
    width = canvas.clientWidth;
    gutter = width < 600 ? 34 : Math.min(150, 14 + 7 * Math.max(...timelines.flatMap((t) => t.rows.map((r) => r.length))));
    const rows = timelines.reduce((sum, t) => sum + t.rows.length, 0);
    rowHeight = Math.max(12, Math.min(30, 520 / rows));
    const height = timelines.length * (HEADER + GAP) + rows * rowHeight + AXIS;
    canvas.style.height = height + "px";
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, width, height);
    pen.textBaseline = "middle";
    places = [];
    let y = 0;
    timelines.forEach((line, t) => {
      pen.font = "bold 13px system-ui, sans-serif";
      pen.textAlign = "left";
      pen.fillStyle = "#222";
      pen.fillText(line.source + " (" + line.origin + ")", 2, y + HEADER / 2);
      y += HEADER;
      pen.font = "11px system-ui, sans-serif";
      line.rows.forEach((name, row) => {
        pen.textAlign = "right";
        pen.fillStyle = "#222";
        pen.fillText(gutter < 40 ? String(row) : name, gutter - 6, y + rowHeight / 2);
        pen.textAlign = "center";
        drawRow(line, row, y + 2, rowHeight - 4);
        places.push({ t, row, y });
        y += rowHeight;
      });
      y += GAP;
    });
    drawAxis(y - GAP + 2);
    if (selected) outline();
    range.textContent = "showing " + time(view.from) + " to " + time(view.to) + " of " + time(whole);
  }

  function outline() {
    const { t, row, i } = selected, line = timelines[t], scale = (width - gutter) / (view.to - view.from);
    const place = places.find((p) => p.t === t && p.row === row);
    const x0 = Math.max(gutter, gutter + (line.start[i] - view.from) * scale);
    const x1 = Math.min(width - 1, gutter + (line.start[i] + line.length[i] - view.from) * scale);
    if (x1 < gutter || x0 > width) return;
    pen.lineWidth = 2.5;
    pen.strokeStyle = "#c00000";
    pen.strokeRect(x0 - 1, place.y + 1, Math.max(x1 - x0, 2) + 2, rowHeight - 2);
    pen.lineWidth = 1;
  }

  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };

  // ---- moving ----
  function show(from, to) {
    const span = Math.min(whole, Math.max(shortest, to - from));
    view.from = Math.min(Math.max(0, from), whole - span);
    view.to = view.from + span;
    redraw();
  }
  const zoom = (factor, at = (view.from + view.to) / 2) =>
    show(at - (at - view.from) * factor, at + (view.to - at) * factor);
  const pan = (share) => show(view.from + share * (view.to - view.from), view.to + share * (view.to - view.from));
  const moment = (x) => view.from + ((x - gutter) / (width - gutter)) * (view.to - view.from);

  function select(found, follow) {
    selected = found;
    if (found) {
      details.textContent = describe(found).join(" · ");
      const line = timelines[found.t], start = line.start[found.i], end = start + line.length[found.i];
      if (follow && (start < view.from || end > view.to)) {
        const span = view.to - view.from, middle = (start + end) / 2;
        show(middle - span / 2, middle + span / 2);
      }
    }
    redraw();
  }

  function spanAt(x, y) {
    const place = places.find((p) => y >= p.y && y < p.y + rowHeight);
    if (!place || x < gutter) return null;
    const line = timelines[place.t], slack = (3 * (view.to - view.from)) / (width - gutter), ms = moment(x);
    let best = null, distance = slack;
    for (let i = after(line, place.row, ms - slack); i < line.offsets[place.row + 1] && line.start[i] <= ms + slack; i++) {
      const away = Math.max(line.start[i] - ms, ms - line.start[i] - line.length[i], 0);
      if (away < distance || best === null) { best = { ...place, i }; distance = away; }
      if (away === 0) break;
    }
    return best;
  }

  function showTip(x, y) {
    const found = spanAt(x, y);
    tip.hidden = !found;
    if (!found) return;
    tip.replaceChildren(...describe(found).map((text, k) => {
      const row = document.createElement(k ? "div" : "strong");
      row.textContent = text;
      return row;
    }));
    tip.style.left = Math.max(0, Math.min(x + 14, width - tip.offsetWidth - 4)) + "px";
    tip.style.top = y + 16 + "px";
  }

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const fingers = new Map();
  let moved = false;
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, at(event));
    moved = false;
    try { canvas.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone needs no capture */ }
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = at(event), before = fingers.get(event.pointerId);
    if (!before) { showTip(x, y); return; }
    if (Math.abs(x - before[0]) < 3 && !moved) return;
    moved = true;
    tip.hidden = true;
    const perPixel = (view.to - view.from) / (width - gutter);
    if (fingers.size === 1) {
      show(view.from - (x - before[0]) * perPixel, view.to - (x - before[0]) * perPixel);
    } else {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const apart = Math.max(8, Math.abs(before[0] - other[0])), now = Math.max(8, Math.abs(x - other[0]));
      zoom(apart / now, moment((x + other[0]) / 2));
    }
    fingers.set(event.pointerId, [x, y]);
  });
  canvas.addEventListener("pointerup", (event) => {
    fingers.delete(event.pointerId);
    if (!moved) select(spanAt(...at(event)), false);
  });
  canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", (event) => zoom(0.4, moment(at(event)[0])));
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), moment(at(event)[0]));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      pan((event.deltaX || event.deltaY) / (width - gutter));
    }
  }, { passive: false });

  function step(by) {
    if (!selected) { firstVisible(); return; }
    const offsets = timelines[selected.t].offsets, i = selected.i + by;
    if (i >= offsets[selected.row] && i < offsets[selected.row + 1]) select({ ...selected, i }, true);
  }
  function firstVisible() {
    for (const { t, row } of places) {
      const i = after(timelines[t], row, view.from);
      if (i < timelines[t].offsets[row + 1]) { select({ t, row, i }, true); return; }
    }
  }
  function otherRow(by) {
    if (!selected) { firstVisible(); return; }
    const here = timelines[selected.t], middle = here.start[selected.i] + here.length[selected.i] / 2;
    for (let k = places.findIndex((p) => p.t === selected.t && p.row === selected.row) + by; places[k]; k += by) {
      const { t, row } = places[k], line = timelines[t];
      if (line.offsets[row] === line.offsets[row + 1]) continue;
      select({ t, row, i: Math.min(after(line, row, middle), line.offsets[row + 1] - 1) }, true);
      return;
    }
  }
  function edge(last) {
    if (!selected) firstVisible();
    if (!selected) return;
    const offsets = timelines[selected.t].offsets;
    select({ ...selected, i: last ? offsets[selected.row + 1] - 1 : offsets[selected.row] }, true);
  }
  const focus = () => {
    if (!selected) return undefined;
    const line = timelines[selected.t];
    return line.start[selected.i] + line.length[selected.i] / 2;
  };
  const keys = {
    ArrowRight: () => step(1),
    ArrowLeft: () => step(-1),
    ArrowDown: () => otherRow(1),
    ArrowUp: () => otherRow(-1),
    Home: () => edge(false),
    End: () => edge(true),
    "+": () => zoom(0.5, focus()),
    "=": () => zoom(0.5, focus()),
    "-": () => zoom(2, focus()),
    0: () => show(0, whole),
    PageDown: () => pan(0.8),
    PageUp: () => pan(-0.8),
    Escape: () => { details.textContent = "No bar is chosen."; select(null, false); },
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  const buttons = { in: () => zoom(0.5, focus()), out: () => zoom(2, focus()), left: () => pan(-0.5), right: () => pan(0.5), whole: () => show(0, whole) };
  for (const button of document.querySelectorAll("button[data-move]")) {
    button.addEventListener("click", buttons[button.dataset.move]);
  }
  new ResizeObserver(redraw).observe(canvas.parentElement);
  draw();
})();
