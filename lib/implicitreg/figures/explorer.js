((root, d) => {
  if (!root) return;
  const find = s => root.querySelector(s), all = (s, of = root) => [...of.querySelectorAll(s)];
  const input = find("input"), output = find("output"), told = find(".ir-told"), canvas = find("canvas");
  const say = v => String(Number.isInteger(v) ? v : Number(v.toPrecision(3))).replaceAll("-", "\u2212");
  const bend = log => log ? Math.log : v => v;
  // The piece that v lies in, and how far along it, as the axis shows it.
  const piece = (at, v) => {
    let k = 0;
    while (k < at.length - 2 && at[k + 1] <= v) k++;
    const f = bend(d.log), wide = f(at[k + 1]) - f(at[k]);
    return [k, wide ? Math.min(1, Math.max(0, (f(v) - f(at[k])) / wide)) : 0];
  };
  const between = (y, [k, r], log) => {
    const mix = (1 - r) * bend(log)(y[k]) + r * bend(log)(y[k + 1]);
    return log ? Math.exp(mix) : mix;
  };
  const read = (c, v, log) => {
    const p = piece(c.at, v);
    return c.step ? c.y[p[0]] : between(c.y, p, log);
  };
  const place = (v, [low, high, log], first, last) => {
    const f = bend(log);
    return (first + (f(v) - f(low)) / (f(high) - f(low)) * (last - first)).toFixed(1);
  };
  const [left, right, top] = d.plane, charts = all(".ir-chart");
  let waiting;
  const move = () => {
    const v = d.stops[input.value], now = `${d.symbol} = ${say(v)}`, words = [now];
    output.textContent = now;
    input.setAttribute("aria-valuetext", now);
    all(".ir-beside b").forEach((b, i) => {
      b.textContent = say(read(d.readouts[i], v));
      words.push(`${d.readouts[i].label}: ${b.textContent}`);
    });
    d.panels.forEach((p, i) => {
      const dots = all("circle", charts[i]), line = charts[i].querySelector(".ir-at");
      const across = u => place(u, p.x, left + p.pad, right - p.pad);
      if (line) line.setAttribute("transform", `translate(${across(v)} 0)`);
      words.push(charts[i].querySelector(".ir-title").textContent);
      all("b", charts[i]).forEach((b, j) => {
        const c = p.curves[j], y = read(c, v, p.y[2]), x = c.x ? between(c.x, piece(c.at, v), false) : v;
        b.textContent = c.x ? `${say(x)}, ${say(y)}` : say(y);
        dots[j].setAttribute("cx", across(x));
        dots[j].setAttribute("cy", place(y, p.y, p.low, top + 4));
        words.push(`${c.label}: ${b.textContent}`);
      });
    });
    if (d.frames) {
      const [h, w] = d.frames.size, [k, r] = piece(d.frames.at, v), ink = canvas.getContext("2d");
      const image = ink.createImageData(w, h), [a, b] = [d.frames.grey[k], d.frames.grey[k + 1]];
      a.forEach((g, i) => {
        const level = Math.round((1 - r) * g + r * b[i]);
        image.data.set([level, level, level, 255], 4 * i);
      });
      ink.putImageData(image, 0, 0);
    }
    // All numbers at once, but only when the slider rests.
    clearTimeout(waiting);
    waiting = setTimeout(() => { told.textContent = words.join("; "); }, 700);
  };
  find(".ir-control").hidden = false;
  root.classList.add("ir-live");
  find(".ir-note").hidden = true;
  input.addEventListener("input", move);
  move();
})
