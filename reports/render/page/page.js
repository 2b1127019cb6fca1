"use strict";
// The page stands without this: it adds zoom, hover and the windows of claims to drawings that are already there.
for (const root of document.querySelectorAll(".timeline")) {
  const data = JSON.parse(root.querySelector(".data").textContent);
  const bands = [...root.querySelectorAll(".band")], flags = [...root.querySelectorAll(".flag")];
  const axis = root.querySelector(".timeaxis"), out = root.querySelector(".readout"), reset = root.querySelector(".reset");
  const pick = root.querySelector(".pick"), cursor = root.querySelector(".cursor");
  const text = document.createElement("div"), hint = out.querySelector(".hint");
  const svg = "http://www.w3.org/2000/svg";
  let from = 0, to = 1, at = null, drag = null;
  root.classList.add("live");
  hint.textContent = "Drag to zoom, point to read; or focus and use the arrows, + and -.";
  out.prepend(text);

  const box = () => bands[0].getBoundingClientRect();
  const clamp = (v, a, b) => Math.min(Math.max(v, a), b);
  const fraction = (x) => { const b = box(); return from + clamp((x - b.left) / b.width, 0, 1) * (to - from); };

  function place(el, a, b) {
    const r = root.getBoundingClientRect(), x = box(), w = to - from;
    const last = bands[bands.length - 1].getBoundingClientRect();
    const left = clamp((a - from) / w, 0, 1), right = clamp((b - from) / w, 0, 1);
    el.style.top = x.top - r.top + "px";
    el.style.height = last.bottom - x.top + "px";
    el.style.left = x.left - r.left + left * x.width + "px";
    if (el === pick) el.style.width = (right - left) * x.width + "px";
    el.hidden = false;
  }

  function draw() {
    for (const b of bands) b.setAttribute("viewBox", `${from * 1000} 0 ${(to - from) * 1000} 100`);
    for (const f of flags) {
      const x = (f.dataset.f - from) / (to - from);
      f.setAttribute("x", x * 100 + "%");
      f.setAttribute("visibility", x < -0.001 || x > 1.001 ? "hidden" : "visible");
    }
    const span = (to - from) * data.span, narrow = box().width < 500;
    let step = 10 ** Math.floor(Math.log10(span / (narrow ? 4 : 8)));
    for (const m of [1, 2, 5, 10]) if (span / (step * m) <= (narrow ? 5 : 10)) { step *= m; break; }
    axis.replaceChildren();
    for (let k = Math.ceil(from * data.span / step - 1e-9); k * step <= to * data.span + 1e-9; k++) {
      const x = (k * step / data.span - from) / (to - from), t = document.createElementNS(svg, "text");
      t.setAttribute("x", x * 100 + "%");
      t.setAttribute("y", "14");
      t.setAttribute("text-anchor", x < 0.02 ? "start" : x > 0.97 ? "end" : "middle");
      t.textContent = (k * step).toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9))) + " s";
      axis.append(t);
    }
    reset.hidden = from === 0 && to === 1;
    root.dataset.from = from;
    root.dataset.to = to;
    if (at !== null) read(at);
  }

  function zoom(a, b) {
    const least = Math.min(1, 0.2 / data.span);
    if (b - a < least) { const m = (a + b) / 2; a = m - least / 2; b = m + least / 2; }
    if (a < 0) { b -= a; a = 0; }
    if (b > 1) { a = Math.max(0, a - (b - 1)); b = 1; }
    from = a; to = b;
    pick.hidden = true;
    draw();
  }

  function read(f) {
    at = f;
    const t = f * data.span, rows = [`${t.toFixed(2)} s`];
    for (const s of data.streams) {
      const b = s.bins.find((b) => t >= b.t && t < b.t + b.w);
      if (!b || !b.n) continue;
      const total = Object.values(b.v || {}).reduce((x, y) => x + y, 0);
      const v = Object.keys(b.v || {}).sort().map((k) => `${k} ${(100 * b.v[k] / total).toFixed(1)}%`);
      rows.push(`${s.name}: ${b.n} requests, ${b.f} failed, ${b.l}${v.length ? ", " + v.join(", ") : ""}`);
    }
    const near = data.events.filter((e) => Math.abs(e.t - t) <= (to - from) * data.span * 0.008).map((e) => e.text);
    if (near.length) rows[0] += "  " + near.join(", ");
    text.textContent = rows.join("\n");
    hint.hidden = true;
    place(cursor, f, f);
    cursor.hidden = f < from || f > to;
  }

  for (const b of bands) {
    b.addEventListener("pointerdown", (e) => { if (e.button === 0 && e.pointerType !== "touch") { drag = fraction(e.clientX); b.setPointerCapture(e.pointerId); e.preventDefault(); root.focus({ preventScroll: true }); } });
    b.addEventListener("pointermove", (e) => { const f = fraction(e.clientX); read(f); if (drag !== null) place(pick, Math.min(drag, f), Math.max(drag, f)); });
    b.addEventListener("pointerup", (e) => { if (drag === null) return; const f = fraction(e.clientX), a = Math.min(drag, f), z = Math.max(drag, f); drag = null; pick.hidden = true; if ((z - a) / (to - from) > 0.01) zoom(a, z); });
    b.addEventListener("pointercancel", () => { drag = null; pick.hidden = true; });
    b.addEventListener("dblclick", () => zoom(0, 1));
  }
  reset.addEventListener("click", () => { zoom(0, 1); root.focus({ preventScroll: true }); });
  root.addEventListener("keydown", (e) => {
    if (e.target !== root || e.ctrlKey || e.metaKey || e.altKey) return;
    const w = to - from, here = at === null || at < from || at > to ? (from + to) / 2 : at;
    const bin = data.streams[0].bins[0].w / data.span;
    if (e.key === "ArrowLeft" || e.key === "ArrowRight") {
      const f = clamp(here + (e.key === "ArrowLeft" ? -bin : bin), 0, 1 - bin / 2);
      if (f < from) zoom(f, f + w); else if (f > to) zoom(f - w, f);
      read(f);
    } else if (e.key === "+" || e.key === "=") zoom(here - w / 4, here + w / 4);
    else if (e.key === "-") zoom(here - w, here + w);
    else if (e.key === "Escape" || e.key === "0") zoom(0, 1);
    else return;
    e.preventDefault();
  });
  for (const row of root.closest(".scenario").querySelectorAll("tr[data-from]")) {
    const cell = row.querySelector(".statement"), button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    button.title = "Show its window on the timeline";
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const a = clamp(+row.dataset.from, 0, 1), b = clamp(+row.dataset.to, 0, 1), m = Math.max((b - a) * 0.25, 0.3 / data.span);
      for (const r of document.querySelectorAll("tr.chosen")) r.classList.remove("chosen");
      row.classList.add("chosen");
      root.scrollIntoView({ block: "nearest" });
      zoom(Math.max(0, a - m), Math.min(1, b + m));
      place(pick, a, b);
    });
  }
  addEventListener("resize", () => { pick.hidden = true; cursor.hidden = true; draw(); });
  addEventListener("beforeprint", () => { cursor.hidden = true; pick.hidden = true; });
  draw();
}
