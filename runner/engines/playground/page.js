"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const ARMS = ["baseline", "steered"];
  const POSITIONS = ["all", "prompt", "response", "last_prompt_token"];

  let key = sessionStorage.getItem("subvene-key") || "";
  let running = null; // what stops the answers that are on their way
  let asked = ""; // the screen that the answers are of
  let columns = []; // projections, a vector each
  let tokens = {}; // of each arm
  const cards = []; // what each artifact's controls say

  // Everything that comes from elsewhere (names, answers, errors) goes in as text.
  const made = (tag, properties = {}, ...inside) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...inside);
    return element;
  };

  const ask = async (path, body, signal) => {
    const headers = { "Content-Type": "application/json" };
    if (key) headers.Authorization = `Bearer ${key}`;
    const how = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body), signal };
    const answer = await fetch(path, how);
    if (answer.ok) return answer;
    const said = await answer.json().catch(() => ({}));
    const error = new Error(said.error ? said.error.message : `${answer.status} ${answer.statusText}`);
    throw Object.assign(error, { status: answer.status });
  };

  const tell = (words, bad = false) => {
    $("status").textContent = words;
    $("status").classList.toggle("bad", bad);
  };

  // ---- controls

  const slider = (artifact, one, id) => {
    const limits = { min: -one.reach, max: one.reach, step: one.reach / 40, value: one.strength };
    const range = made("input", { type: "range", id, ...limits });
    const number = made("input", { type: "number", step: "any", value: one.strength, required: true });
    range.value = one.strength; // after its limits, which round it otherwise
    number.setAttribute("aria-label", `Strength of ${artifact} ${one.name}, exactly`);
    range.addEventListener("input", () => { number.value = range.value; });
    number.addEventListener("input", () => { range.value = number.value; });
    const places = one.where.length > 3 ? `${one.where[0]} and ${one.where.length - 1} more` : one.where.join(", ");
    const about = made("small", { textContent: `${one.kind} at ${places}` });
    const label = made("label", { htmlFor: id }, one.name, about);
    return { name: one.name, number, box: made("div", { className: "slider" }, label, made("div", {}, range, number)) };
  };

  const card = (artifact, i) => {
    const on = made("input", { type: "checkbox", checked: true });
    const sliders = artifact.interventions.map((one, j) => slider(artifact.name, one, `strength-${i}-${j}`));
    const said = [...new Set(artifact.interventions.map((one) =>
      typeof one.positions === "string" ? one.positions : JSON.stringify(one.positions)))];
    const where = made("select", {}, made("option", { value: "", textContent: `as declared: ${said.join(", ")}` }),
      ...POSITIONS.map((value) => made("option", { value, textContent: value })));
    const box = made("fieldset", {},
      made("legend", {}, made("label", { className: "inline" }, on, made("strong", { textContent: artifact.name }))),
      ...sliders.map((one) => one.box),
      made("div", { className: "row" }, made("label", { className: "inline" }, "Tokens edited", where)));
    on.addEventListener("change", () => box.classList.toggle("off", !on.checked));
    cards.push({ name: artifact.name, on, sliders, where });
    return box;
  };

  const screen = () => ({
    prompt: $("prompt").value,
    system: $("system").value,
    max_new_tokens: Number($("longest").value),
    artifacts: cards.filter((one) => one.on.checked).map((one) => ({
      artifact: one.name,
      strengths: Object.fromEntries(one.sliders.map(({ name, number }) => [name, Number(number.value)])),
      ...(one.where.value ? { positions: one.where.value } : {}),
    })),
  });

  const valid = () => [...document.querySelectorAll("main input, main textarea")].every((one) => one.reportValidity());

  const changed = () => {
    const stale = asked !== "" && asked !== JSON.stringify(screen());
    $("answers").classList.toggle("stale", stale);
    if (stale && !running) tell("The controls have changed since these answers.");
    $("yaml").hidden = $("download").hidden = true;
    $("copy").disabled = true;
    $("export").textContent = "Show as YAML";
  };

  // ---- answers

  const begin = () => {
    columns = [];
    tokens = {};
    $("legend").hidden = $("reading").hidden = $("receipts").hidden = true;
    $("answers").classList.remove("stale");
    for (const arm of ARMS) {
      $(arm).replaceChildren();
      $(`${arm}-note`).textContent = "";
      $(`${arm}-note`).classList.remove("bad");
      $(arm).setAttribute("aria-busy", "true");
    }
  };

  const end = (arm) => $(arm).setAttribute("aria-busy", "false");

  const take = (event) => {
    if (event.text !== undefined) $(event.arm).append(event.text);
    else if (event.tokens) done(event);
    else if (event.projections) offer(event.projections);
    else if (event.error) failed(event);
  };

  const failed = (event) => {
    const arm = event.arm || "steered";
    const words = typeof event.error === "string" ? event.error : event.error.message;
    $(`${arm}-note`).textContent = words;
    $(`${arm}-note`).classList.add("bad");
    end(arm);
  };

  const done = (event) => {
    const { arm } = event;
    tokens[arm] = event.tokens.map((text) => made("span", { textContent: text }));
    $(arm).replaceChildren(...tokens[arm]);
    const count = event.tokens.length;
    const why = event.finished === "stop" ? "it ended itself" : "cut off";
    $(`${arm}-note`).textContent = `${count} token${count === 1 ? "" : "s"}, ${why}`;
    end(arm);
    if (arm === "steered") $("lines").replaceChildren(...event.receipt.map(line));
    $("receipts").hidden = !$("lines").children.length;
  };

  const share = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)}%`);

  const line = (one) => made("tr", {},
    made("th", { scope: "row", textContent: `${one.artifact}: ${one.name}` }),
    ...[one.strengths.join(", "), one.edited.prompt, one.edited.cursor, one.edited.response,
      share(one.mean_relative), share(one.max_relative)].map((text) => made("td", { textContent: String(text) })));

  const run = async () => {
    if (!valid()) return;
    if (running) running.abort();
    const mine = running = new AbortController();
    const wanted = screen();
    asked = JSON.stringify(wanted);
    begin();
    if (!wanted.artifacts.length) {
      end("steered");
      $("steered-note").textContent = "No artifact is on.";
    }
    $("stop").disabled = false;
    tell("Answering…");
    try {
      const answer = await ask("playground/answers", wanted, mine.signal);
      await read(answer.body.getReader());
      tell("");
    } catch (error) {
      if (running === mine) tell(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
    } finally {
      if (running === mine) {
        running = null;
        $("stop").disabled = true;
        ARMS.forEach(end);
        changed();
      }
    }
  };

  const read = async (reader) => {
    const decoder = new TextDecoder();
    let rest = "", whole = false;
    for (;;) {
      const { value, done: over } = await reader.read();
      if (over) break;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const event = JSON.parse(part.slice("data: ".length));
        whole = whole || Boolean(event.end || event.error);
        take(event);
      }
    }
    if (!whole) throw new Error("The server has gone.");
  };

  // ---- colours

  const offer = (found) => {
    const before = $("vector").value;
    columns = found;
    const names = found.map((one) => `${one.artifact}: ${one.key}@${one.layer}`);
    $("vector").replaceChildren(...names.map((name) => made("option", { value: name, textContent: name })),
      made("option", { value: "", textContent: "nothing" }));
    if (names.includes(before)) $("vector").value = before;
    $("reading").hidden = false;
    paint();
  };

  const shown = () => {
    const column = columns[$("vector").selectedIndex];
    return column && column[$("how").value];
  };

  const paint = () => {
    const values = shown();
    $("legend").hidden = !values;
    if (!values) {
      for (const arm of ARMS) for (const span of tokens[arm] || []) span.removeAttribute("style");
      return;
    }
    // Around the baseline's mean, as far as any token of either answer lies from it.
    const base = values.baseline.length ? values.baseline : values.steered;
    const middle = base.reduce((sum, value) => sum + value, 0) / Math.max(base.length, 1);
    const reach = Math.max(1e-9, ...ARMS.flatMap((arm) => values[arm].map((value) => Math.abs(value - middle))));
    for (const arm of ARMS) {
      (tokens[arm] || []).forEach((span, i) => {
        const far = (values[arm][i] - middle) / reach;
        span.style.backgroundColor = `rgb(var(--${far < 0 ? "low" : "high"}) / ${(0.55 * Math.abs(far)).toFixed(3)})`;
      });
    }
    $("low").textContent = (middle - reach).toFixed(2);
    $("high").textContent = (middle + reach).toFixed(2);
  };

  const point = (arm, i) => {
    const values = shown();
    for (const other of ARMS) for (const span of tokens[other] || []) span.classList.remove("here");
    if (!values || i < 0 || i >= (tokens[arm] || []).length) return;
    tokens[arm][i].classList.add("here");
    $("token").textContent = `${arm}, token ${i + 1} of ${tokens[arm].length}: ${JSON.stringify(tokens[arm][i].textContent)} ${values[arm][i].toFixed(2)}`;
  };

  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -1e6, End: 1e6 };

  for (const arm of ARMS) {
    const here = () => (tokens[arm] || []).findIndex((span) => span.classList.contains("here"));
    $(arm).addEventListener("mouseover", (event) => {
      const i = (tokens[arm] || []).indexOf(event.target);
      if (i >= 0) point(arm, i);
    });
    $(arm).addEventListener("focus", () => point(arm, Math.max(here(), 0)));
    $(arm).addEventListener("keydown", (event) => {
      if (!(event.key in steps) || !shown()) return;
      event.preventDefault();
      point(arm, Math.min(Math.max(here() + steps[event.key], 0), tokens[arm].length - 1));
    });
  }

  // ---- the file

  let link = "";
  const exported = async () => {
    if (!valid()) return;
    try {
      const { yaml } = await (await ask("playground/export", screen())).json();
      $("yaml").textContent = yaml;
      URL.revokeObjectURL(link);
      link = URL.createObjectURL(new Blob([yaml], { type: "application/yaml" }));
      $("download").href = link;
      $("yaml").hidden = $("download").hidden = false;
      $("copy").disabled = false;
      $("export").textContent = "Show again";
    } catch (error) {
      tell(error.message, true);
    }
  };

  const copied = async () => {
    try {
      await navigator.clipboard.writeText($("yaml").textContent);
      tell("Copied.");
    } catch {
      getSelection().selectAllChildren($("yaml"));
      tell("The browser does not let this page copy: the text is selected.");
    }
  };

  // ---- the beginning

  const open = async () => {
    try {
      const contents = await (await ask("playground")).json();
      $("model").textContent = contents.model;
      $("artifacts").replaceChildren(...contents.artifacts.map(card));
      $("key").hidden = true;
      $("main").hidden = false;
      $("prompt").focus();
    } catch (error) {
      $("model").textContent = error.status === 401 && !key ? "" : error.message;
      $("key").hidden = error.status !== 401;
      if (error.status === 401) $("key-text").focus();
    }
  };

  $("key").addEventListener("submit", (event) => {
    event.preventDefault();
    key = $("key-text").value;
    sessionStorage.setItem("subvene-key", key);
    open();
  });
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("stop").addEventListener("click", () => running && running.abort());
  $("export").addEventListener("click", exported);
  $("copy").addEventListener("click", copied);
  $("vector").addEventListener("change", paint);
  $("how").addEventListener("change", paint);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
    if (event.key === "Escape" && running) running.abort();
  });
  for (const part of ["ask", "artifacts"]) {
    $(part).addEventListener("input", changed);
    $(part).addEventListener("change", (event) => {
      changed();
      if ($("again").checked && event.target !== $("again") && asked) run();
    });
  }
  open();
})();
