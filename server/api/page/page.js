"use strict";
// Lists the fleet's tasks and lets one be tried. Text from the server is only ever set as
// textContent, never as HTML.

const $ = (selector) => document.querySelector(selector);
let chosen = null;
let asking = null;

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

async function watchHealth() {
  const health = $("#health");
  try {
    const response = await fetch("/health/tasks");
    const { tasks } = await response.json();
    const missing = tasks.filter((task) => !task.ready);
    health.className = response.ok ? "ready" : "unready";
    health.textContent = response.ok
      ? `${tasks.length} tasks ready`
      : `not ready: ${missing.map((task) => task.task).join(", ")}`;
    health.title = missing
      .flatMap((task) => Object.values(task.missing).map((one) => one.reason)).join("\n");
  } catch {
    health.className = "unready";
    health.textContent = "the gateway does not answer";
  }
  setTimeout(watchHealth, 3000);
}

async function listTasks() {
  const { tasks } = await (await fetch("/v1/tasks")).json();
  for (const task of tasks) {
    const button = element("button", { type: "button" }, task.name,
      element("small", { textContent: task.description }));
    button.addEventListener("click", () => choose(task, button));
    $("#tasks").append(element("li", {}, button));
    if (location.hash === `#${task.name}`) choose(task, button);
  }
  if (!chosen) $("#tasks button")?.click();
}

function choose(task, button) {
  chosen = task;
  asking?.abort();
  history.replaceState(null, "", `#${task.name}`);
  for (const other of document.querySelectorAll("#tasks button")) {
    other.setAttribute("aria-current", other === button);
  }
  $("#task").hidden = false;
  $("#task h2").textContent = task.name;
  $("#description").textContent = task.description;
  $("#facts").textContent = facts(task).join(" · ");
  $("#fields").replaceChildren(...fields(task.input_schema));
  $("#examples").replaceChildren(...(task.input_schema.examples ?? []).map(example));
  clear();
  if (task.input_schema.examples) fill(task.input_schema.examples[0]);
}

function facts(task) {
  const metrics = Object.entries(task.quality?.metrics ?? {})
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${Number(value.toPrecision(3))}`);
  return [task.kind, task.specialist, ...metrics.slice(0, 3)];
}

// One control a field: a list for closed choices, a text box otherwise.
function fields(schema) {
  const properties = schema.type === "object" ? schema.properties : { input: schema };
  return Object.entries(properties).map(([name, property]) => {
    const control = property.enum
      ? element("select", { name }, ...property.enum.map((value) => new Option(value)))
      : element("textarea", { name, required: true, spellcheck: false });
    control.addEventListener("input", showCurl);
    return element("label", {}, element("span", { textContent: name }), control);
  });
}

function example(value) {
  const text = typeof value === "string" ? value : Object.values(value).join(", ");
  const button = element("button", { type: "button", textContent: text.slice(0, 80), title: text });
  button.addEventListener("click", () => fill(value));
  return button;
}

function fill(value) {
  const values = typeof value === "string" ? { input: value } : value;
  for (const [name, text] of Object.entries(values)) {
    const control = $(`#fields [name="${CSS.escape(name)}"]`);
    if (control) control.value = text;
  }
  showCurl();
}

function body() {
  const values = Object.fromEntries(new FormData($("form")));
  const input = chosen.input_schema.type === "object" ? values : values.input;
  return chosen.kind === "generate" ? { input, stream: true } : { input };
}

function showCurl() {
  const quoted = JSON.stringify(body()).replaceAll("'", `'"'"'`);
  $("#curl").textContent = `curl -sN ${location.origin}/v1/tasks/${chosen.name} -d '${quoted}'`;
}

function clear() {
  $("#answer").replaceChildren();
  $("#raw").textContent = "";
  $("#took").textContent = "";
}

async function ask(event) {
  event.preventDefault();
  asking?.abort();
  const mine = (asking = new AbortController());
  clear();
  $("form button[type=submit]").disabled = true;
  try {
    const response = await fetch(`/v1/tasks/${chosen.name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body()),
      signal: mine.signal,
    });
    const streamed = response.headers.get("Content-Type")?.startsWith("text/event-stream");
    if (streamed) await readStream(response);
    else show(await response.json());
  } catch (error) {
    if (error.name !== "AbortError") showError("the gateway does not answer");
  } finally {
    if (asking === mine) $("form button[type=submit]").disabled = false;
  }
}

async function readStream(response) {
  const text = element("div", { className: "text" });
  $("#answer").replaceChildren(text);
  let pending = "";
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
    const events = (pending + piece).split("\n\n");
    pending = events.pop();
    for (const one of events) {
      const [, kind, data] = /^event: (\w+)\ndata: (.*)$/s.exec(one);
      const value = JSON.parse(data);
      if (kind === "delta") text.textContent += value.text;
      else if (kind === "answer") finish(value);
      else showError(value.error.message);
    }
  }
}

function show(answer) {
  if (answer.error) {
    $("#raw").textContent = JSON.stringify(answer, null, 2);
    showError(`${answer.error.code}: ${answer.error.message}`);
    return;
  }
  finish(answer);
  const output = answer.output;
  if (output.scores) $("#answer").append(...scores(output));
  else if (output.data !== undefined) $("#answer").append(table(output.data));
  else $("#answer").append(element("div", { className: "text", textContent: output.text }));
}

function finish(answer) {
  $("#raw").textContent = JSON.stringify(answer, null, 2);
  const { timing_ms: timing, usage } = answer;
  $("#took").textContent = `${timing.total.toFixed(1)} ms, ` +
    `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ` +
    `$${usage.cost_dollars.toExponential(1)}`;
}

function scores({ label, labels = [label], scores: all }) {
  const sorted = Object.entries(all).sort((one, other) => other[1] - one[1]);
  return sorted.map(([name, score]) => element("div", {
    className: labels.includes(name) ? "score top" : "score",
  }, element("span", { textContent: name }), element("meter", { value: score, max: 1 }),
  element("span", { textContent: `${(score * 100).toFixed(1)} %` })));
}

function table(data) {
  const rows = Object.entries(data).map(([name, value]) => element("tr", {},
    element("th", { textContent: name, scope: "row" }),
    element("td", { textContent: typeof value === "string" ? value : JSON.stringify(value) })));
  return element("table", {}, ...rows);
}

function showError(message) {
  $("#answer").append(element("p", { className: "error", textContent: message }));
}

$("form").addEventListener("submit", ask);
listTasks().catch(() => showError("the gateway does not answer"));
watchHealth();
