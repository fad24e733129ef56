"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const picture = find("picture"), overlay = find("overlay"), controls = find("controls"), told = find("told");
  const field = (name) => controls.elements.namedItem(name);
  const names = {
    band: "attention, lower middle layers (band)", rollout: "rollout", contrast: "contrast to the background",
    difference: "what the method changes", encoder: "vision encoder alone", layer: "one layer", head: "one head",
  };
  const unpack = ({ bytes, bound, signed }) => {
    const codes = Uint8Array.from(atob(bytes), (each) => each.charCodeAt(0));
    return { values: Float64Array.from(codes, (code) => (signed ? code / 127.5 - 1 : code / 255) * bound), bound, signed };
  };
  const decimal = (value) => {
    const size = Math.abs(value);
    const text = size !== 0 && size < 0.01 ? value.toExponential(1) : value.toFixed(size < 10 ? 2 : 1);
    return text.replaceAll("-", "\u2212");
  };
  let pinned = { answer: 0, word: data.word }, shown = pinned;

  // Which maps there are for a word.
  const available = ({ answer, word }) => {
    const maps = Object.entries(data.answers[answer].maps);
    const found = maps.filter(([, own]) => own.length === 1 || own[word]).map(([kind]) => kind);
    if (answer === 0 && data.layered[word]) found.push("layer");
    if (answer === 0 && data.heads[word]) found.push("head");
    return found;
  };
  const kinds = [...new Set([
    ...Object.keys(data.answers[0].maps), ...(Object.keys(data.layered).length ? ["layer"] : []),
    ...(Object.keys(data.heads).length ? ["head"] : []),
  ])];
  for (const kind of kinds) field("map").add(new Option(names[kind], kind));
  field("layer").max = data.layers.length - 1;
  const headed = Object.values(data.heads)[0];
  field("head").max = headed ? headed[0].length - 1 : 0;

  // Every map of the kind that is chosen, for a common scale.
  const allOf = (kind, { answer, word }) => {
    const layer = Number(field("layer").value), head = Number(field("head").value);
    if (kind === "layer") return Object.fromEntries(Object.entries(data.layered).map(([at, own]) => [at, own[layer]]));
    if (kind === "head") return Object.fromEntries(Object.entries(data.heads).map(([at, own]) => [at, own[layer][head]]));
    const own = data.answers[answer].maps[kind];
    if (own.length === 1) return { [word]: own[0] };
    return Object.fromEntries(own.map((each, at) => [at, each]).filter(([, each]) => each));
  };
  const colour = (scale, share) => {
    const place = Math.min(Math.max(share, 0), 1) * (scale.length - 1);
    const low = Math.floor(place), rest = place - low;
    const channel = (text, at) => parseInt(text.slice(at, at + 2), 16);
    const [one, other] = [scale[low], scale[Math.min(low + 1, scale.length - 1)]];
    return [1, 3, 5].map((at) => channel(one, at) * (1 - rest) + channel(other, at) * rest);
  };
  // The border of an object, white on black so that it shows on any ground.
  const outline = (context, { bits, columns }) => {
    const codes = Uint8Array.from(atob(bits), (each) => each.charCodeAt(0));
    const rows = Math.floor((codes.length * 8) / columns);
    const inside = (x, y) => x >= 0 && y >= 0 && x < columns && y < rows
      && (codes[(y * columns + x) >> 3] >> (7 - ((y * columns + x) & 7))) & 1;
    const across = overlay.width / columns, down = overlay.height / rows;
    context.beginPath();
    for (let y = 0; y < rows; y += 1) {
      for (let x = 0; x < columns; x += 1) {
        if (!inside(x, y)) continue;
        const edges = [[0, -1, 0, 0, 1, 0], [0, 1, 0, 1, 1, 1], [-1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 1, 1]];
        for (const [right, below, x0, y0, x1, y1] of edges) {
          if (inside(x + right, y + below)) continue;
          context.moveTo((x + x0) * across, (y + y0) * down);
          context.lineTo((x + x1) * across, (y + y1) * down);
        }
      }
    }
    for (const [width, ink] of [[4, "#000000"], [2, "#ffffff"]]) {
      context.lineWidth = width * (devicePixelRatio || 1);
      context.strokeStyle = ink;
      context.stroke();
    }
  };
  const draw = () => {
    const [rows, columns] = data.cells, wanted = field("map").value;
    const there = available(shown), kind = there.includes(wanted) ? wanted : there[0];
    for (const label of controls.querySelectorAll("[data-for]")) {
      label.hidden = kind !== "head" && label.dataset.for !== kind;
      const input = label.querySelector("input");
      label.querySelector(".value").textContent = label.dataset.for === "layer" ? data.layers[input.value] : input.value;
    }
    const box = picture.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    overlay.width = Math.max(1, Math.round(box.width * ratio));
    overlay.height = Math.max(1, Math.round(box.height * ratio));
    const context = overlay.getContext("2d");
    find("scale").hidden = !kind;
    if (!kind) return null;
    const several = allOf(kind, shown), own = unpack(several[shown.word]);
    // One scale for the words that say something; what exceeds it gets its last colour.
    const words = data.answers[shown.answer].words;
    const common = Object.entries(several).filter(([at]) => words[at].content).map(([, each]) => each.bound);
    const bound = field("own").checked || common.length === 0 ? own.bound : Math.max(...common);
    const scale = data.colours[own.signed || kind === "difference" ? "RdBu_r" : "viridis"];
    const signed = own.signed || kind === "difference";
    const small = new OffscreenCanvas(columns, rows), painted = small.getContext("2d");
    const image = painted.createImageData(columns, rows);
    const opacity = Number(field("opacity").value) / 100;
    own.values.forEach((value, at) => {
      const share = bound ? value / bound : 0;
      const strength = Math.abs(share);
      image.data.set(colour(scale, signed ? (share + 1) / 2 : share), 4 * at);
      image.data[4 * at + 3] = 255 * opacity * (0.45 + 0.55 * Math.sqrt(Math.min(strength, 1)));
    });
    painted.putImageData(image, 0, 0);
    const [left, top, right, bottom] = data.box;
    const area = [left * overlay.width, top * overlay.height, (right - left) * overlay.width, (bottom - top) * overlay.height];
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(small, ...area);
    if (field("sinks").checked) {
      context.strokeStyle = "#ffffff";
      context.lineWidth = ratio;
      data.sinks.forEach((sink, at) => {
        if (!sink) return;
        const across = area[2] / columns, down = area[3] / rows, side = Math.min(across, down) * 0.3;
        const x = area[0] + ((at % columns) + 0.5) * across, y = area[1] + (Math.floor(at / columns) + 0.5) * down;
        context.strokeRect(x - side / 2, y - side / 2, side, side);
      });
    }
    const mask = data.masks[shown.answer][shown.word];
    field("outline").parentElement.hidden = !mask;
    if (mask && field("outline").checked) outline(context, mask);
    const ramp = find("ramp").getContext("2d");
    for (let at = 0; at < 132; at += 1) {
      ramp.fillStyle = `rgb(${colour(scale, at / 131).map(Math.round).join(" ")})`;
      ramp.fillRect(at, 0, 1, 10);
    }
    find("scale-low").textContent = signed ? decimal(-bound) : "0";
    find("scale-high").textContent = decimal(bound) + (own.bound > bound * 1.001 ? " and more" : "");
    return kind;
  };
  const say = (kind) => {
    const own = data.answers[shown.answer].words[shown.word];
    told.replaceChildren();
    const line = document.createElement("p"), strong = document.createElement("strong");
    strong.textContent = `\u201c${own.text}\u201d`;
    line.append(strong);
    const gain = own["image gain"];
    if (gain !== undefined && gain !== null) {
      const factor = Math.exp(Math.abs(gain));
      const times = factor >= 9.5 ? Math.round(factor).toLocaleString("en") : factor.toFixed(1);
      const rest = Math.abs(gain) < 0.1 ? " would be as likely without the picture."
        : ` is ${times} times as ${gain > 0 ? "likely" : "unlikely"} with the picture as without it.`;
      line.append(rest);
    }
    if (kind && kind !== field("map").value) line.append(` There is no such map of this word; shown: ${names[kind]}.`);
    told.append(line);
    const list = document.createElement("dl");
    const add = (name, value) => {
      if (typeof value !== "number") return;
      const row = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = name;
      text.textContent = decimal(value);
      row.append(term, text);
      list.append(row);
    };
    for (const name of ["image gain", "image share", "log p", "log p under the method", "log p without the method", "KL to the method", "margin", "entropy"]) add(name, own[name]);
    for (const [rule, change] of Object.entries(own.cuts ?? {})) add(`cut ${rule.replaceAll("_", " ")}`, change);
    told.append(list);
  };
  const buttons = [...document.querySelectorAll(".strip .word")];
  const placeOf = (button) => ({ answer: Number(button.closest(".answer").dataset.answer), word: Number(button.dataset.word) });
  const show = (place) => {
    shown = place;
    say(draw());
  };
  const pin = (button) => {
    pinned = placeOf(button);
    for (const each of buttons) {
      each.setAttribute("aria-pressed", String(each === button));
      each.tabIndex = each === button ? 0 : -1;
    }
    show(pinned);
  };
  for (const button of buttons) {
    button.addEventListener("click", () => pin(button));
    button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") show(placeOf(button)); });
    button.addEventListener("pointerleave", () => show(pinned));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
      const at = buttons.indexOf(button);
      const next = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : step ? at + step : -1;
      if (!buttons[next]) return;
      event.preventDefault();
      buttons[next].focus();
      pin(buttons[next]);
    });
  }

  // Colours of the words.
  const measures = ["image gain", "image share", "log p", "entropy", "KL to the method"]
    .filter((name) => data.answers.some(({ words }) => words.some((own) => typeof own[name] === "number")));
  const select = find("measure").querySelector("select");
  for (const name of measures) select.add(new Option(name, name));
  const paint = () => {
    const all = data.answers.flatMap(({ words }) => words.map((own) => own[select.value])).filter((each) => typeof each === "number");
    const bound = Math.max(1e-9, ...all.map(Math.abs));
    for (const button of buttons) {
      const { answer, word } = placeOf(button), value = data.answers[answer].words[word][select.value];
      const share = typeof value === "number" ? Math.round((Math.abs(value) / bound) * 55) : 0;
      const hue = value < 0 && select.value !== "log p" ? "--series-1" : "--accent";
      button.style.background = share ? `color-mix(in srgb, var(${hue}) ${share}%, transparent)` : "";
    }
  };
  select.addEventListener("input", paint);
  controls.addEventListener("input", () => show(pinned));
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
  find("measure").hidden = measures.length === 0;
  new ResizeObserver(() => draw()).observe(picture);
  paint();
  pin(buttons.find((button) => button.dataset.word === String(data.word)) ?? buttons[0]);
})();
