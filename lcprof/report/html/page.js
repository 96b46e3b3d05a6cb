// Draws the charts, hands out CSV files, and answers the selects and sliders, all from the tables
// in the page. Nothing is fetched, and nothing is computed that the tables do not hold.
(() => {
  "use strict";
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const tables = read("tables");
  const heads = read("heads");
  const specs = read("specs");
  const NARROW = 420; // pixels of a chart whose legend stands in one column

  // A table's columns, its axes repeated over the points that they span (the last axis fastest).
  const known = new Map();
  function expand(name) {
    if (known.has(name)) return known.get(name);
    const { axes = {}, columns } = tables[name];
    const size = Object.values(axes).reduce((n, values) => n * values.length, 1);
    const whole = {};
    let inner = size;
    for (const [axis, values] of Object.entries(axes)) {
      inner /= values.length;
      const step = inner;
      whole[axis] = Array.from({ length: size }, (_, i) => values[Math.floor(i / step) % values.length]);
    }
    Object.assign(whole, columns);
    known.set(name, whole);
    return whole;
  }
  function rows(name) {
    const columns = expand(name);
    const names = Object.keys(columns);
    const count = names.length ? columns[names[0]].length : 0;
    return Array.from({ length: count }, (_, i) => Object.fromEntries(names.map((n) => [n, columns[n][i]])));
  }

  // Values as text, by the unit that a column's name ends in.
  const group = (text) => {
    const [whole, part] = text.split(".");
    const spaced = whole.replace(/\B(?=(\d{3})+$)/g, ",");
    return part === undefined ? spaced : `${spaced}.${part}`;
  };
  // Three digits; of two that are as near the even one, as Python rounds.
  const near = (value) => {
    const [digits, power] = value.toExponential(40).split("e");
    if (/^-?\d\.\d[02468]50*$/.test(digits)) return Number(`${digits.slice(0, digits.indexOf(".") + 3)}e${power}`);
    return Number(value.toPrecision(3));
  };
  const three = (value) => {
    const rounded = near(value);
    if (Math.abs(rounded) >= 1000) return group(value.toFixed(0));
    return rounded.toFixed(Math.abs(rounded) >= 100 ? 0 : Math.abs(rounded) >= 10 ? 1 : 2);
  };
  const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  const plain = (value) => group(String(Number(value.toPrecision(10))));
  const short = (value) => plain(near(value));
  function money(value) {
    if (value >= 100) return short(value);
    if (value >= 1 || value <= 0) return value.toFixed(2);
    return near(value).toFixed(2 - Math.floor(Math.log10(value)));
  }
  const params = (value) => (value >= 1e9 ? `${short(value / 1e9)} B` : `${short(value / 1e6)} M`);
  function prefixed(value, unit) {
    const prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"];
    let rounded = near(value);
    let power = 0;
    while (Math.abs(rounded) >= 1000 && power < prefixes.length - 1) { rounded /= 1000; power += 1; }
    if (power === 0 && Number.isInteger(value)) return `${value} ${unit}`;
    const size = Math.abs(rounded);
    if (size > 1e-9 && size < 0.1) return `${rounded.toFixed(12).replace(/0+$/, "")} ${unit}`;
    return `${three(rounded)} ${prefixes[power]}${unit}`;
  }
  function seconds(value) {
    const rounded = near(Math.abs(value));
    const units = [[1e-3, "µs", 1e-6], [1, "ms", 1e-3], [600, "s", 1], [7200, "min", 60],
      [172800, "h", 3600], [Infinity, "d", 86400]];
    const [, unit, size] = units.find(([limit, name]) => rounded < limit && (rounded || name === "s"));
    return `${trimmed(three(value / size))} ${unit}`;
  }
  function tokens(value) {
    if (!Number.isInteger(value)) return group(value.toFixed(1));
    if (value && value % 1048576 === 0) return `${value / 1048576}M`;
    if (value && value % 1024 === 0) return `${value / 1024}K`;
    return group(String(value));
  }
  function show(name, value) {
    const column = name.replace(/_(predicted|measured)$/, "");
    if (value === null || value === undefined || value === "") return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value === "string") return value;
    if (column.endsWith("points")) return group(String(value));
    if (/(_error|change)$/.test(column)) {
      const percent = value * 100;
      return Math.abs(percent) < 1e-3 ? "0%" : `${percent > 0 ? "+" : ""}${short(percent)}%`;
    }
    if (/_over_(floor|burst)$/.test(column)) return `x${short(value)}`;
    if (/seconds_(low|high)$/.test(column)) return seconds(value);
    if (column.includes("bytes_per_s")) return prefixed(value, "B/s");
    if (column.includes("flops_per_s")) return prefixed(value, "FLOP/s");
    if (column.includes("flops_per_byte")) return short(value);
    if (column.includes("share") || column.includes("utilisation")) return `${short(value * 100)}%`;
    if (column.endsWith("params")) return params(value);
    if (column.includes("bytes")) return prefixed(value, "B");
    if (column.includes("flops")) return prefixed(value, "FLOP");
    if (column.includes("usd")) return `$${money(value)}`;
    if (/tokens_per_s(_per_gpu)?$/.test(column)) return short(value);
    if (/(_s|seconds)$/.test(column)) return seconds(value);
    if (column.endsWith("_tokens")) return tokens(value);
    if (column.endsWith("_j")) return prefixed(value, "J");
    if (/(_w|_w_per_gpu)$/.test(column)) return `${group(value.toFixed(0))} W`;
    if (column.endsWith("_hz")) return prefixed(value, "Hz");
    if (column.endsWith("_c")) return `${group(value.toFixed(0))} °C`;
    if (column.endsWith("distance")) return `x${short(value)}`;
    return plain(value);
  }
  const head = (column) => heads[column] || column.replaceAll("_", " ");

  // A figure that names the cell it comes from.
  function figure(table, column, row) {
    const element = document.createElement("data");
    element.dataset.cell = `${table}.${column}.${row}`;
    const value = expand(table)[column][row];
    element.value = value === null ? "" : String(value);
    element.textContent = show(column, value);
    return element;
  }

  function tooltip() {
    const tip = document.getElementById("tip");
    return (_, event, item, value) => {
      tip.hidden = !value;
      if (!value) return;
      const table = document.createElement("table");
      for (const [column, text] of Object.entries(value)) {
        const line = table.insertRow();
        line.insertCell().textContent = head(column);
        const number = text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
        line.insertCell().textContent = number === "null" ? "–" : show(column, number);
      }
      tip.replaceChildren(table);
      const box = tip.getBoundingClientRect();
      const left = Math.min(event.clientX + 12, window.innerWidth - box.width - 8);
      const below = event.clientY + 12 + box.height < window.innerHeight;
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${below ? event.clientY + 12 : Math.max(8, event.clientY - box.height - 12)}px`;
    };
  }

  function named(spec, found = new Set()) {
    if (spec && typeof spec === "object") {
      if (spec.data && spec.data.name) found.add(spec.data.name);
      Object.values(spec).forEach((part) => named(part, found));
    }
    return found;
  }
  function narrow(spec) {
    if (spec && typeof spec === "object") {
      if (spec.legend && spec.legend.columns) spec.legend.columns = 1;
      Object.values(spec).forEach(narrow);
    }
  }
  function draw(place) {
    const spec = specs[place.dataset.chart];
    if (place.clientWidth < NARROW) narrow(spec);
    const held = [...named(spec)].filter((name) => Object.hasOwn(tables, name));
    spec.datasets = { ...spec.datasets, ...Object.fromEntries(held.map((name) => [name, rows(name)])) };
    const options = { renderer: "svg", actions: false, defaultStyle: false, tooltip: tooltip() };
    return vegaEmbed(place, spec, options);
  }

  function save(name) {
    const columns = expand(name);
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const names = Object.keys(columns);
    const lines = rows(name).map((row) => names.map((n) => cell(row[n])).join(","));
    const text = `${[names.join(","), ...lines].join("\n")}\n`;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
    return text;
  }

  function interval(cell, table, stem, unit, row) {
    cell.append(figure(table, `${stem}_${unit}`, row));
    const columns = expand(table);
    if (columns[`${stem}_low_${unit}`]?.[row] != null) {
      const small = document.createElement("small");
      const ends = ["low", "high"].map((end) => figure(table, `${stem}_${end}_${unit}`, row));
      small.append(ends[0], " to ", ends[1]);
      cell.append(small);
    }
  }

  function compare(box) {
    const picks = box.querySelectorAll("select");
    const body = box.querySelector("tbody");
    const update = () => {
      for (const line of body.rows) {
        picks.forEach((pick, index) => {
          const cell = line.cells[index + 1];
          const column = line.dataset.column;
          cell.replaceChildren();
          const timed = column.match(/^(ttft|tpot)_s$/) || column.match(/^(prefill|output_token)_j$/);
          if (timed) interval(cell, "rows", timed[1], column.slice(-1), Number(pick.value));
          else cell.append(figure("rows", column, Number(pick.value)));
        });
      }
    };
    picks.forEach((pick) => pick.addEventListener("change", update));
    update();
  }

  function whatIf(box) {
    const axes = tables.grid_steps.axes;
    const names = ["label", "gpu", "context_tokens", "concurrency"];
    const inputs = names.map((name) => box.querySelector(`[data-axis="${name}"]`));
    const gpus = tables.grid_gpus.columns;
    const update = () => {
      const [label, gpu, context, batch] = inputs.map((input) => Number(input.value));
      const prompt = (label * axes.gpu.length + gpu) * axes.context_tokens.length + context;
      const step = prompt * axes.concurrency.length + batch;
      const held = tables.grid_steps.columns.total_bytes_per_gpu[step];
      const capacity = gpus.capacity_bytes_per_gpu[gpu];
      const fits = held <= capacity;
      for (const [axis, at] of [["context_tokens", context], ["concurrency", batch]]) {
        const text = show(axis, axes[axis][at]);
        box.querySelector(`output[data-of="${axis}"]`).textContent = text;
        box.querySelector(`[data-axis="${axis}"]`).setAttribute("aria-valuetext", text);
      }
      const answer = box.querySelector(".answer");
      const word = document.createElement("span");
      word.className = fits ? "yes" : "no";
      word.textContent = fits ? "Fits: " : "Does not fit: ";
      answer.replaceChildren(word, figure("grid_steps", "total_bytes_per_gpu", step), " of ",
        figure("grid_gpus", "capacity_bytes_per_gpu", gpu), " on each GPU.");
      const gauge = box.querySelector(".gauge");
      gauge.classList.toggle("over", !fits);
      gauge.firstElementChild.style.width = `${Math.min(1, held / capacity) * 100}%`;
      for (const line of box.querySelectorAll("tr[data-column]")) {
        const cell = line.cells[1];
        const { table, column } = line.dataset;
        const row = table === "grid_prompts" ? prompt : step;
        cell.replaceChildren();
        const sized = column.includes("bytes");
        if (!fits && !sized) { cell.textContent = "–"; continue; }
        const timed = column.match(/^(ttft|tpot)_s$/);
        if (timed) interval(cell, table, timed[1], "s", row);
        else cell.append(figure(table, column, row));
      }
    };
    inputs.forEach((input) => input.addEventListener("input", update));
    update();
  }

  document.documentElement.classList.add("script");
  document.querySelectorAll("button[data-csv]").forEach((button) => {
    button.addEventListener("click", () => save(button.dataset.csv));
  });
  document.querySelectorAll(".compare").forEach(compare);
  document.querySelectorAll(".what-if").forEach(whatIf);
  window.lcprof = { show, expand, save };
  const charts = [...document.querySelectorAll(".chart")].map(draw);
  Promise.all(charts).then(() => document.documentElement.setAttribute("data-drawn", charts.length));
})();
