"use strict";
// The page stands without this: it adds zoom, hover and the windows of claims to drawings that are already there.
for (const root of document.querySelectorAll(".timeline")) {
  const data = JSON.parse(root.querySelector(".data").textContent);
  const bands = [...root.querySelectorAll(".band")], flags = [...root.querySelectorAll(".flag")];
  const streams = [...root.querySelectorAll(".stream")], nows = streams.map((s) => s.querySelector(".now"));
  const lane = root.querySelector(".flaglane"), axis = root.querySelector(".timeaxis"), head = root.querySelector(".head");
  const hint = root.querySelector(".hint"), time = root.querySelector(".time"), reset = root.querySelector(".reset");
  const pick = root.querySelector(".pick"), cursor = root.querySelector(".cursor");
  const svg = "http://www.w3.org/2000/svg", bin = data.streams[0].bins[0][1] / data.span;
  let from = 0, to = 1, at = null, drag = null, claim = null;
  root.classList.add("live");
  hint.textContent = matchMedia("(pointer: coarse)").matches ? "Tap to read a moment; tap a claim to see its window." : "Drag to zoom, point to read; or focus and use arrows, + and -.";

  const box = () => bands[0].getBoundingClientRect();
  const clamp = (v, a, b) => Math.min(Math.max(v, a), b);
  const fraction = (x) => { const b = box(); return from + clamp((x - b.left) / b.width, 0, 1) * (to - from); };
  const digits = (step) => Math.max(0, -Math.floor(Math.log10(step) + 1e-9));

  // place puts the cursor at a, or the pick from a to b; what lies outside the view is not shown.
  function place(el, a, b) {
    const r = root.getBoundingClientRect(), x = box(), last = bands[bands.length - 1].getBoundingClientRect();
    const left = clamp((a - from) / (to - from), 0, 1), right = clamp((b - from) / (to - from), 0, 1);
    el.style.top = x.top - r.top + "px";
    el.style.height = last.bottom - x.top + "px";
    el.style.left = x.left - r.left + left * x.width + "px";
    if (el === pick) el.style.width = Math.max(2, (right - left) * x.width) + "px";
    el.hidden = b < from || a > to;
  }

  // layFlags gives each flag in view the first row where it covers no other: with its name, else its number alone.
  function layFlags() {
    const width = lane.getBoundingClientRect().width, rows = Math.floor((lane.height.baseVal.value - 3) / 17), ends = Array(rows).fill(-Infinity);
    for (const f of flags) {
      const x = (f.dataset.f - from) / (to - from), name = f.querySelector(".name");
      let placed = false;
      if (x > -0.001 && x < 1.001) {
        f.setAttribute("visibility", "visible");
        for (const named of [true, false]) {
          name.style.display = named ? "" : "none";
          const w = f.getComputedTextLength() + 8, end = x * width + w > width, left = end ? x * width - w : x * width;
          const row = ends.findIndex((e) => e <= left);
          if (row < 0) continue;
          ends[row] = left + w;
          f.setAttribute("x", x * 100 + "%");
          f.setAttribute("y", row * 17 + 13);
          f.setAttribute("dx", end ? -3 : 3);
          f.setAttribute("text-anchor", end ? "end" : "start");
          placed = true;
          break;
        }
      }
      if (!placed) f.setAttribute("visibility", "hidden");
    }
  }

  function layAxis() {
    const span = (to - from) * data.span, most = box().width < 500 ? 5 : 10;
    let step = 10 ** Math.floor(Math.log10(span / most));
    for (const m of [1, 2, 5, 10]) if (span / (step * m) <= most) { step *= m; break; }
    axis.replaceChildren();
    for (let k = Math.ceil(from * data.span / step - 1e-9); k * step <= to * data.span + 1e-9; k++) {
      const x = (k * step / data.span - from) / (to - from), t = document.createElementNS(svg, "text");
      t.setAttribute("x", x * 100 + "%");
      t.setAttribute("y", "14");
      t.setAttribute("text-anchor", x < 0.03 ? "start" : x > 0.97 ? "end" : "middle");
      t.textContent = (k * step).toFixed(digits(step)) + " s";
      axis.append(t);
    }
  }

  function draw() {
    for (const b of bands) b.setAttribute("viewBox", `${from * 1000} 0 ${(to - from) * 1000} 100`);
    layFlags();
    layAxis();
    reset.hidden = from === 0 && to === 1 && !claim;
    root.dataset.from = from;
    root.dataset.to = to;
    if (at !== null) place(cursor, at, at);
    pick.hidden = true;
    if (claim) place(pick, claim.from, claim.to);
  }

  function zoom(a, b) {
    const least = Math.min(1, 0.2 / data.span);
    if (b - a < least) { const m = (a + b) / 2; a = m - least / 2; b = m + least / 2; }
    if (a < 0) { b -= a; a = 0; }
    if (b > 1) { a = Math.max(0, a - (b - 1)); b = 1; }
    from = a; to = b;
    draw();
  }

  function latency(ms) {
    const [v, unit] = ms < 1 ? [ms * 1e3, "µs"] : ms < 1e3 ? [ms, "ms"] : [ms / 1e3, "s"];
    return `${v >= 100 ? v.toFixed(0) : v.toPrecision(3)} ${unit}`;
  }

  // sum writes what the bins of a stream hold between two times in seconds, or the one bin at a time.
  function sum(s, a, b) {
    const bins = s.bins.filter(([t, w]) => a === b ? a >= t && a < t + w : t + w / 2 >= a && t + w / 2 <= b);
    const versions = s.versions.map(() => 0);
    let n = 0, failed = 0, answers = 0;
    for (const [, , requests, bad, , , , , ...counts] of bins) {
      n += requests; failed += bad;
      counts.forEach((v, i) => { versions[i] += v; answers += v; });
    }
    if (!n) return "no requests";
    const out = [`${n.toLocaleString("en-US")} requests`, `${failed.toLocaleString("en-US")} failed`];
    if (a === b) ["p50", "p90", "p99", "max"].forEach((q, i) => out.push(`${q} ${latency(bins[0][4 + i])}`));
    versions.forEach((v, i) => { if (v) out.push(`${s.versions[i]} ${(100 * v / answers).toFixed(1)}%`); });
    return out.join(", ");
  }

  function say(texts) {
    root.classList.toggle("said", texts.some((t) => t !== ""));
    nows.forEach((el, i) => { el.textContent = texts[i]; el.title = texts[i]; });
  }

  function read(f) {
    at = f;
    const t = f * data.span;
    const near = data.events.filter((e) => Math.abs(e.t - t) <= Math.max((to - from) * data.span * 0.006, 0.02)).map((e) => e.text);
    time.textContent = [t.toFixed(Math.max(2, digits((to - from) * data.span / 1000))) + " s", ...near].join(", ");
    hint.hidden = true;
    say(data.streams.map((s) => sum(s, t, t)));
    place(cursor, f, f);
  }

  function forget() {
    claim = null;
    for (const r of document.querySelectorAll("tr.chosen")) r.classList.remove("chosen");
    for (const s of streams) s.classList.remove("other");
  }

  function everything() {
    forget();
    at = null;
    cursor.hidden = true;
    time.textContent = "";
    hint.hidden = false;
    say(nows.map(() => ""));
    zoom(0, 1);
  }

  function show(row, scroll) {
    forget();
    row.classList.add("chosen");
    const a = clamp(+row.dataset.from, 0, 1), b = clamp(+row.dataset.to, 0, 1), margin = Math.max((b - a) * 0.25, 0.3 / data.span);
    const of = row.dataset.streams ? row.dataset.streams.split(" ").map(Number) : streams.map((_, i) => i);
    streams.forEach((s, i) => s.classList.toggle("other", !of.includes(i)));
    claim = { from: a, to: b };
    at = null;
    cursor.hidden = true;
    hint.hidden = true;
    time.textContent = `window of the claim, ${(a * data.span).toFixed(2)} s to ${(b * data.span).toFixed(2)} s`;
    say(data.streams.map((s, i) => of.includes(i) ? sum(s, a * data.span, b * data.span) : ""));
    zoom(Math.max(0, a - margin), Math.min(1, b + margin));
    const first = streams[of[0]], r = first.getBoundingClientRect();
    if (scroll && (r.top < head.offsetHeight || r.bottom > innerHeight)) scrollBy(0, r.top - head.offsetHeight - 4);
  }

  for (const b of bands) {
    b.addEventListener("pointerdown", (e) => {
      if (e.button !== 0 || e.pointerType === "touch") return;
      drag = fraction(e.clientX);
      b.setPointerCapture(e.pointerId);
      e.preventDefault();
      root.focus({ preventScroll: true });
    });
    b.addEventListener("pointermove", (e) => {
      const f = fraction(e.clientX);
      read(f);
      if (drag !== null) place(pick, Math.min(drag, f), Math.max(drag, f));
    });
    b.addEventListener("pointerup", (e) => {
      if (drag === null) { read(fraction(e.clientX)); return; }
      const f = fraction(e.clientX), a = Math.min(drag, f), z = Math.max(drag, f);
      drag = null;
      if ((z - a) / (to - from) > 0.01) zoom(a, z); else draw();
    });
    b.addEventListener("pointercancel", () => { drag = null; draw(); });
    b.addEventListener("dblclick", everything);
  }
  reset.addEventListener("click", () => { everything(); root.focus({ preventScroll: true }); });
  root.addEventListener("keydown", (e) => {
    if (e.target !== root || e.ctrlKey || e.metaKey || e.altKey) return;
    const w = to - from, here = at === null || at < from || at > to ? (from + to) / 2 : at;
    if (e.key === "ArrowLeft" || e.key === "ArrowRight") {
      const f = clamp(here + (e.key === "ArrowLeft" ? -bin : bin), 0, 1 - bin / 2);
      if (f < from) zoom(f, f + w); else if (f > to) zoom(f - w, f);
      read(f);
    } else if (e.key === "+" || e.key === "=") zoom(here - w / 4, here + w / 4);
    else if (e.key === "-") zoom(here - w, here + w);
    else if (e.key === "Escape" || e.key === "0") everything();
    else return;
    e.preventDefault();
  });
  for (const row of root.closest(".scenario").querySelectorAll("tr[data-from]")) {
    const cell = row.querySelector(".statement"), button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    button.title = "Show its window and samples on the timeline";
    cell.replaceChildren(button);
    button.addEventListener("click", () => { if (row.classList.contains("chosen")) everything(); else show(row, true); });
  }
  new ResizeObserver(draw).observe(root);
  addEventListener("beforeprint", everything);
}
