"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

  // --- patches that are alike ---------------------------------------------------------------------
  // Where a picture is drawn within its square, which may be wider or higher than it.
  const drawn = (picture) => {
    const box = picture.getBoundingClientRect();
    const scale = Math.min(box.width / picture.naturalWidth, box.height / picture.naturalHeight);
    const width = scale * picture.naturalWidth, height = scale * picture.naturalHeight;
    return { left: (box.width - width) / 2, top: (box.height - height) / 2, width, height, box };
  };
  const framed = (picture, [h, w], patch, text) => {
    const figure = document.createElement("figure"), frame = document.createElement("span");
    const shown = document.createElement("img"), caption = document.createElement("figcaption");
    shown.src = picture.src;
    shown.alt = text;
    frame.append(shown, Object.assign(document.createElement("i"), {
      style: `left:${100 * (patch % w) / w}%;top:${100 * Math.floor(patch / w) / h}%;width:${100 / w}%;height:${100 / h}%`,
    }));
    caption.textContent = text;
    figure.append(frame, caption);
    return figure;
  };
  const showAlike = (picture, patch) => {
    const about = JSON.parse(picture.dataset.patches);
    const bytes = Uint8Array.from(atob(about.near), (letter) => letter.charCodeAt(0));
    const near = new DataView(bytes.buffer);
    const item = picture.closest("li"), alike = $(".alike", item) || document.createElement("div");
    alike.className = "alike";
    alike.setAttribute("role", "status");
    alike.replaceChildren(framed(picture, about.grid, patch, "this patch"));
    for (let i = 0; i < about.shown; i++) {
      const at = 5 * (patch * about.shown + i);
      const row = about.rows[near.getUint16(at, true)];
      const other = $(`.cases img[data-row="${row}"]`);
      const cosine = (near.getInt8(at + 4) / 100).toFixed(2);
      if (other) alike.append(framed(other, about.grid, near.getUint16(at + 2, true), `row ${row}, ${cosine}`));
    }
    item.append(alike);
    picture.dataset.patch = patch;
  };
  $$(".cases img[data-patches]").forEach((picture) => {
    const [h, w] = JSON.parse(picture.dataset.patches).grid;
    picture.addEventListener("click", (event) => {
      const { left, top, width, height, box } = drawn(picture);
      const column = Math.floor(w * (event.clientX - box.left - left) / width);
      const row = Math.floor(h * (event.clientY - box.top - top) / height);
      if (row >= 0 && row < h && column >= 0 && column < w) showAlike(picture, row * w + column);
    });
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Enter: [0, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const middle = Math.floor(h / 2) * w + Math.floor(w / 2);
      const now = picture.dataset.patch === undefined ? middle : +picture.dataset.patch;
      const row = Math.min(h - 1, Math.max(0, Math.floor(now / w) + step[0]));
      const column = Math.min(w - 1, Math.max(0, now % w + step[1]));
      showAlike(picture, row * w + column);
    });
  });

  // --- the table --------------------------------------------------------------------------------
  const lines = $$("#scores tbody tr");
  if (lines.length) {
    const texts = lines.map((row) => row.textContent.replace(/\s+/g, " ").toLowerCase());
    $("#search").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      lines.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        shown += !row.hidden;
      });
      $("#shown").textContent = `${shown} of ${lines.length} lines`;
    });
  }
  $$("#scores table").forEach((table) => {
    const body = table.tBodies[0], rows = [...body.rows];
    const heads = $$("thead th", table);
    heads.forEach((head, column) => $("button", head).addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const first = numeric ? "descending" : "ascending", second = numeric ? "ascending" : "descending";
      const now = head.getAttribute("aria-sort") === first ? second : first;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", now);
      const sign = now === "ascending" ? 1 : -1;
      const key = (row) => numeric ? row.cells[column].dataset.v : row.cells[column].textContent.trim();
      const order = rows.map((row, i) => [key(row), i]).sort(([a, i], [b, j]) => {
        if ((a === "") !== (b === "")) return a === "" ? 1 : -1;  // nothing stands last
        const less = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return sign * less || i - j;
      });
      body.append(...order.map(([, i]) => rows[i]));
    }));
  });
  $$(".copy").forEach((button) => button.addEventListener("click", async () => {
    const text = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected: press Ctrl-C";
    }
  }));

  // --- where the reader is ----------------------------------------------------------------------
  const links = new Map($$(".contents a").map((a) => [a.getAttribute("href").slice(1), a]));
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting || !links.has(entry.target.id)) return;
    links.forEach((a) => a.removeAttribute("aria-current"));
    links.get(entry.target.id).setAttribute("aria-current", "true");
  }), { rootMargin: "0px 0px -75% 0px" });
  links.forEach((_, id) => seen.observe(document.getElementById(id)));

  // --- maps -------------------------------------------------------------------------------------
  const CIVIDIS = ["#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dfca58", "#fee838"];
  const unpack = (text, type) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new type(bytes.buffer);
  };
  const element = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };
  const mix = (a, b, t) => "#" + [1, 3, 5].map((i) => {
    const [x, y] = [a, b].map((c) => parseInt(c.slice(i, i + 2), 16));
    return Math.round(x + (y - x) * t).toString(16).padStart(2, "0");
  }).join("");
  const ramp = (t) => {
    const at = t * (CIVIDIS.length - 1), i = Math.min(Math.floor(at), CIVIDIS.length - 2);
    return mix(CIVIDIS[i], CIVIDIS[i + 1], at - i);
  };

  const MARGIN = 0.93;
  const start = (root) => {
    const data = JSON.parse(document.getElementById(root.dataset.map).textContent);
    const { n, k } = data;
    const rows = unpack(data.row, Uint32Array);
    const layouts = data.places.map((p) => ({ ...p, x: unpack(p.x, Uint16Array), y: unpack(p.y, Uint16Array) }));
    const columns = data.columns.map((c) => ({ ...c, codes: unpack(c.codes, Uint8Array) }));
    const scales = data.scales.map((c) => ({ ...c, codes: unpack(c.codes, Uint8Array), numeric: true }));
    const shades = [...columns, ...scales];
    const pictured = unpack(data.pictured, Uint32Array);
    const nearest = unpack(data.nearest, Uint16Array), cosine = unpack(data.cosine, Int16Array);

    const canvas = $("canvas", root), pen = canvas.getContext("2d");
    const chosen = $(".chosen", root), where = $(".where", root), legend = $(".legend", root);
    const colours = $("select.colour", root), rowInput = $("input.row", root);
    shades.forEach((shade, i) => colours.append(new Option(shade.name, i)));
    let layout = layouts[0], shade = shades[0], hidden = new Set(), selected = -1;
    let wide = canvas.clientWidth, high = canvas.clientHeight;
    const view = { zoom: 1, x: 0.5, y: 0.5 };

    const probe = element("span");
    root.append(probe);
    const colour = (name) => {
      probe.style.color = `var(${name})`;
      return getComputedStyle(probe).color;
    };
    // A point lies at (left + x * across, top - y * up).
    const frame = () => {
      const across = wide * MARGIN * view.zoom, up = high * MARGIN * view.zoom;
      return { left: wide / 2 - view.x * across, across: across / 65535, top: high / 2 + view.y * up, up: up / 65535 };
    };
    const place = (i, { left, across, top, up } = frame()) => [left + layout.x[i] * across, top - layout.y[i] * up];
    const draw = () => {
      const ratio = devicePixelRatio || 1;
      [wide, high] = [canvas.clientWidth, canvas.clientHeight];
      if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
        canvas.width = wide * ratio;
        canvas.height = high * ratio;
      }
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, wide, high);
      const dot = Math.max(1.5, Math.min(6, 90 / Math.sqrt(n)) * Math.sqrt(view.zoom));
      const { left, across, top, up } = frame(), { x: xs, y: ys } = layout, { codes } = shade;
      const steps = shade.numeric ? 255 : shade.values.length;
      const buckets = Array.from({ length: 256 }, () => []);
      for (let i = 0; i < n; i++) buckets[codes[i]].push(i);
      pen.globalAlpha = n > 5000 ? 0.6 : 0.85;
      for (const code of [255, ...Array(steps).keys()]) {
        if (!buckets[code].length || hidden.has(code)) continue;
        pen.fillStyle = code === 255 ? colour("--rule") : shade.numeric ? ramp(code / 254) : colour(`--c${code}`);
        pen.beginPath();
        for (const i of buckets[code]) {
          const x = left + xs[i] * across, y = top - ys[i] * up;
          if (x < 0 || y < 0 || x > wide || y > high) continue;
          if (dot < 3) {
            pen.fillRect(x - dot / 2, y - dot / 2, dot, dot);
          } else {
            pen.moveTo(x + dot / 2, y);
            pen.arc(x, y, dot / 2, 0, 7);
          }
        }
        pen.fill();
      }
      pen.globalAlpha = 1;
      if (selected < 0) return;
      const [sx, sy] = place(selected);
      pen.strokeStyle = colour("--soft");
      pen.lineWidth = 0.75;
      for (const [i] of neighbours(selected)) {
        const [x, y] = place(i);
        pen.beginPath();
        pen.moveTo(sx, sy);
        pen.lineTo(x, y);
        pen.stroke();
      }
      pen.strokeStyle = colour("--accent");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(sx, sy, Math.max(7, dot), 0, 7);
      pen.stroke();
    };
    const neighbours = (i) => Array.from({ length: k }, (_, j) =>
      [pictured[nearest[i * k + j]], cosine[i * k + j] / 32767]);
    const said = (column, i) => {
      const code = column.codes[i];
      if (code === 255) return "";
      if (!column.numeric) return column.values[code];
      return (column.low + (column.high - column.low) * code / 254).toPrecision(3);
    };
    const picture = (i, alt) => i in data.pictures
      ? element("img", { src: `data:image/webp;base64,${data.pictures[i]}`, alt })
      : element("div", { className: "none", textContent: "no picture" });

    const select = (i) => {
      selected = i;
      rowInput.value = rows[i];
      const facts = element("dl");
      const add = (name, value) => value !== "" && facts.append(element("div", {},
        element("dt", { textContent: name }), element("dd", { textContent: value })));
      shades.forEach((column) => add(column.name, said(column, i)));
      const list = element("ol");
      neighbours(i).forEach(([other, near]) => {
        const button = element("button", { type: "button" }, picture(other, ""),
          element("span", { textContent: near.toFixed(3), title: `cosine ${near.toFixed(4)}, row ${rows[other]}` }));
        button.addEventListener("click", () => { select(other); });
        list.append(element("li", {}, button));
      });
      chosen.replaceChildren(
        element("h3", { textContent: `Row ${rows[i]}` }), picture(i, `Slice of row ${rows[i]}`), facts,
        ...(k ? [element("h3", { textContent: "Nearest of other patients" }), list] : []));
      about();
      draw();
    };
    const visible = (i) => !hidden.has(shade.codes[i]);
    const at = (x, y, limit) => {
      const now = frame();
      let best = -1, least = limit * limit;
      for (let i = 0; i < n; i++) {
        if (!visible(i)) continue;
        const [px, py] = place(i, now), far = (px - x) ** 2 + (py - y) ** 2;
        if (far < least) [best, least] = [i, far];
      }
      return best;
    };
    const step = (dx, dy) => {
      if (selected < 0) {
        const first = at(wide / 2, high / 2, 1e9);
        if (first >= 0) select(first);
        return;
      }
      const now = frame(), [x, y] = place(selected, now);
      let best = -1, least = Infinity;
      for (let i = 0; i < n; i++) {
        if (i === selected || !visible(i)) continue;
        const [px, py] = place(i, now), along = (px - x) * dx + (py - y) * dy;
        const across = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
        if (along <= 0.5 || across > along * 1.5) continue;
        const far = along + 2 * across;
        if (far < least) [best, least] = [i, far];
      }
      if (best >= 0) select(best);
    };
    const zoom = (factor) => {
      view.zoom = Math.max(1, Math.min(60, view.zoom * factor));
      if (view.zoom === 1) Object.assign(view, { x: 0.5, y: 0.5 });
      else if (selected >= 0 && factor > 1) Object.assign(view, { x: layout.x[selected] / 65535, y: layout.y[selected] / 65535 });
      draw();
    };
    const all = () => { Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 }); draw(); };

    const showLegend = () => {
      hidden = new Set();
      if (shade.numeric) {
        const bar = element("b");
        bar.style.background = `linear-gradient(90deg, ${CIVIDIS.join(",")})`;
        legend.replaceChildren(element("li", { className: "ramp" },
          shade.low.toPrecision(3), bar, shade.high.toPrecision(3)));
        return;
      }
      const counts = new Array(256).fill(0);
      for (const code of shade.codes) counts[code]++;
      const codes = [...shade.values.keys(), ...(counts[255] ? [255] : [])];
      legend.replaceChildren(...codes.map((code) => {
        const dot = element("i");
        dot.style.setProperty("--dot", code === 255 ? "var(--rule)" : `var(--c${code})`);
        const name = code === 255 ? "not known" : shade.values[code];
        const button = element("button", { type: "button" }, dot, `${name} (${counts[code].toLocaleString("en")})`);
        button.setAttribute("aria-pressed", "true");
        button.addEventListener("click", () => {
          hidden.has(code) ? hidden.delete(code) : hidden.add(code);
          button.setAttribute("aria-pressed", String(!hidden.has(code)));
          draw();
        });
        return element("li", {}, button);
      }));
    };
    const about = () => { where.textContent = `${layout.name}: ${layout.note}.`; };

    colours.addEventListener("change", () => { shade = shades[colours.value]; showLegend(); draw(); });
    $("select.layout", root)?.addEventListener("change", (event) => {
      layout = layouts[event.target.value];
      about();
      all();
    });
    rowInput.addEventListener("change", () => {
      const i = rows.indexOf(Number(rowInput.value));
      if (i >= 0) select(i);
      else where.textContent = `No slice with features has the row ${rowInput.value}.`;
    });
    $$("[data-zoom]", root).forEach((button) => button.addEventListener("click", () => {
      ({ in: () => zoom(1.6), out: () => zoom(1 / 1.6), all })[button.dataset.zoom]();
    }));
    canvas.addEventListener("keydown", (event) => {
      const keys = {
        ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0),
        ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
        "+": () => zoom(1.6), "=": () => zoom(1.6), "-": () => zoom(1 / 1.6), 0: all,
      };
      if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      keys[event.key]();
    });
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      held = { x: event.offsetX, y: event.offsetY, from: { ...view }, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) return;
      const dx = event.offsetX - held.x, dy = event.offsetY - held.y;
      held.moved ||= Math.hypot(dx, dy) > 4;
      if (!held.moved) return;
      view.x = held.from.x - dx / (wide * MARGIN * view.zoom);
      view.y = held.from.y + dy / (high * MARGIN * view.zoom);
      draw();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (held && !held.moved) {
        const i = at(event.offsetX, event.offsetY, 24);
        if (i >= 0) select(i);
      }
      held = null;
    });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
    }, { passive: false });
    new ResizeObserver(draw).observe(canvas);
    document.addEventListener("theme", draw);
    showLegend();
    about();
    draw();
  };
  $$("[data-map]").forEach(start);
})();
