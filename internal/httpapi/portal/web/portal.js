// The pages are complete without this script. It moves the bars, takes in what has
// changed, checks what is typed, and asks in a dialog where otherwise a page asks.
// Whatever comes from a name or an event is put in as text, never as markup.

const words = document.getElementById("words").dataset;
const lang = document.documentElement.lang;
const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

/** word looks up a text of the page's language: word("state", "queued"). */
function word(group, name = "") {
  const key = group + name.charAt(0).toUpperCase() + name.slice(1);
  return words[key] ?? name;
}

const fill = (text, ...args) => text.replace(/\{(\d)\}/g, (_, i) => args[i]);

function setText(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

/** say has a screen reader speak, and only if there is something new. */
const say = (text) => setText(document.getElementById("say"), text);

// ---- Sizes, rates and times, as the server writes them

function size(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let unit = 0;
  while (n >= (unit ? 1023.5 : 1024) && unit < units.length - 1) { n /= 1024; unit++; }
  const digits = unit === 0 ? 0 : n < 9.995 ? 2 : n < 99.95 ? 1 : 0;
  const number = new Intl.NumberFormat(lang, { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: false });
  return `${number.format(n)} ${units[unit]}`;
}

/** timeLeft says it in words; nothing rather than nonsense. */
function timeLeft(seconds) {
  const minutes = Math.round(seconds / 60);
  if (!(seconds > 0) || seconds > 30 * 86400) return "";
  if (seconds < 60) return word("leftSeconds");
  if (minutes < 60) return fill(word("leftMinutes"), minutes);
  if (minutes < 24 * 60) return fill(word("leftHours"), Math.floor(minutes / 60), minutes % 60);
  return fill(word("leftDays"), Math.round(minutes / 1440));
}

/** localTimes puts times into the viewer's own zone and manner. */
function localTimes(within) {
  const manner = lang === "en" ? "en-GB" : lang; // as the server writes them
  const format = new Intl.DateTimeFormat(manner, { dateStyle: "medium", timeStyle: "short" });
  const full = new Intl.DateTimeFormat(manner, { dateStyle: "full", timeStyle: "long" });
  for (const time of all("time[datetime]", within)) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    setText(time, format.format(at));
    time.title = full.format(at);
  }
}

// ---- Progress

const stallAfter = 10_000; // without a byte
const steady = 10_000; // over which the rate is smoothed

/** seen is what is known of each task beyond what the page shows. */
const seen = new Map();

function meter(row, now) {
  const { task, done, rate, stalls } = row.dataset;
  let m = seen.get(task);
  if (!m) seen.set(task, m = { done: Number(done), at: now, moved: now, rate: Number(rate), stalls: Number(stalls), stalledAt: -Infinity });
  return m;
}

/** progress shows how a task stands. */
function progress(p, now) {
  for (const row of all(`[data-task="${CSS.escape(p.id)}"][data-kind="${CSS.escape(p.kind)}"]`)) {
    if (row.dataset.state !== p.state) refresh(); // the event of the new state says so as well
    const m = meter(row, now);
    const bytes = p.done_bytes - m.done;
    if (bytes < 0 || p.attempt !== Number(row.dataset.attempt)) {
      Object.assign(m, { rate: p.bytes_per_second, moved: now });
    } else if (bytes > 0) {
      const span = Math.max(now - m.at, 1);
      const weight = m.rate > 0 ? 1 - Math.exp(-span / steady) : 1;
      m.rate += weight * (((p.bytes_per_second || bytes * 1000 / span)) - m.rate);
      m.moved = now;
    }
    if (p.stalls > m.stalls && bytes <= 0) m.stalledAt = now;
    Object.assign(m, { done: p.done_bytes, at: now, stalls: p.stalls });
    Object.assign(row.dataset, { done: p.done_bytes, total: p.total_bytes, attempt: p.attempt, stalls: p.stalls, stage: p.stage });
    const bar = $("[data-part=bar]", row);
    const percent = Math.max(Number(bar?.value ?? 0), p.progress); // it never falls
    if (bar) bar.value = percent;
    setText($("[data-part=percent]", row), `${percent} %`);
    show(row, m, now);
    if (row.dataset.title) document.title = `${percent} % – ${row.dataset.title}`;
  }
}

/** show writes the figures of one task, and whether they stand still. */
function show(row, m, now) {
  const { state, stage } = row.dataset;
  const done = Number(row.dataset.done), total = Number(row.dataset.total);
  const running = state === "processing";
  const copies = running && stage === "copying" && total > 0 && done < total;
  const stalled = copies && online && (now - m.moved >= stallAfter || now - m.stalledAt < stallAfter);
  const part = (name) => $(`[data-part=${name}]`, row);
  setText(part("stage"), running ? word("stage", stage) : "");
  if (total > 0) setText(part("bytes"), fill(word("of"), size(done), size(total)));
  setText(part("rate"), copies && !stalled && m.rate > 0 ? fill(word("rate"), size(m.rate)) : "");
  setText(part("left"), copies && !stalled && m.rate > 0 ? timeLeft((total - done) / m.rate) : "");
  const note = part("stall");
  if (note && note.hidden === stalled) {
    note.hidden = !stalled;
    if (stalled) say(fill(word("changed"), row.dataset.name, note.textContent));
  }
}

/** tick finds stalls: while nothing comes, no event comes either. */
function tick() {
  const now = Date.now();
  for (const row of all('[data-kind][data-state="processing"]')) show(row, meter(row, now), now);
  // Nothing tells when the queue moves on.
  if (now - swapped > 20_000 && !document.hidden && $('[data-kind][data-state="queued"]')) refresh();
}

// ---- What has changed

/** changed takes in that a task has come to another state. */
function changed(s) {
  const row = $(`[data-task="${CSS.escape(s.id)}"][data-kind]`);
  if (!row) {
    if ($("#tasks")?.dataset.first === "true") refresh();
    return;
  }
  if (row.dataset.state === s.state && Number(row.dataset.attempt) === s.attempt) return;
  if (row.dataset.state !== s.state) say(fill(word("changed"), s.name || row.dataset.name, word("state", s.state)));
  row.dataset.state = s.state;
  const badge = $("[data-part=state]", row);
  if (badge) {
    badge.dataset.state = s.state;
    setText(badge, word("state", s.state));
  }
  if (row.matches("article") && final(s.state)) disconnect(); // no more is to come
  refresh();
}

let waiting = 0, again = false;

/** refresh asks for the page anew, at most once a second, and takes over what differs. */
function refresh() {
  if (waiting) { again = true; return; }
  waiting = setTimeout(async () => {
    try { await swap(); } catch { /* the stream notices when the server is away */ }
    waiting = 0;
    if (again) { again = false; refresh(); }
  }, Math.max(100, 1000 - (Date.now() - swapped)));
}

let swapped = Date.now();
const shownAs = new Map(all("[data-swap]").map((part) => [part.id, part.outerHTML])); // as the server made it

async function swap() {
  swapped = Date.now();
  const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
  if (answer.redirected) { location.replace(answer.url); return; } // to sign in, and why
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  if ($("#confirm")?.open) { again = true; return; } // not under somebody's hands
  for (const old of all("[data-swap]")) {
    const next = fresh.getElementById(old.id);
    if (!next || shownAs.get(old.id) === next.outerHTML) continue;
    shownAs.set(old.id, next.outerHTML);
    const focus = old.contains(document.activeElement) ? document.activeElement : null;
    old.replaceWith(document.adoptNode(next));
    prepare(next);
    if (focus) ((focus.id && document.getElementById(focus.id)) || document.getElementById("main")).focus({ preventScroll: true });
  }
  const article = $("article[data-task]");
  if (article) document.title = final(article.dataset.state) ? article.dataset.title : fresh.title;
  connect();
}

/** prepare makes what has come from the server ready for somebody with a script. */
function prepare(within) {
  localTimes(within);
  if (navigator.clipboard) for (const button of all("[data-copy]", within)) button.hidden = false;
}

// ---- The stream of events

let source = null, online = true, pause = 5000, lost = 0;

const final = (state) => ["succeeded", "failed", "canceled"].includes(state);

/** connect follows the page's tasks, as long as there is something to follow. */
function connect() {
  const live = $("[data-live]");
  if (!live || source || document.hidden || final($("article[data-task]")?.dataset.state)) return;
  source = new EventSource(live.dataset.live);
  const on = (name, f) => source.addEventListener(name, (e) => { alive(); f(JSON.parse(e.data)); });
  on("progress", (p) => progress(p, Date.now()));
  on("state", changed);
  on("reset", refresh);
  source.onopen = () => { if (!online) refresh(); alive(); pause = 5000; };
  source.onerror = () => {
    lost ||= setTimeout(() => lively(false), 5000); // a break that heals at once is none
    if (source?.readyState !== EventSource.CLOSED) return; // the browser tries again
    source = null; // refused, or nothing more to come: look at the page itself
    setTimeout(() => { refresh(); connect(); }, pause * (1 + Math.random() / 4));
    pause = Math.min(pause * 2, 60_000);
  };
}

function disconnect() {
  source?.close();
  source = null;
  clearTimeout(lost);
  lost = 0;
}

function alive() {
  clearTimeout(lost);
  lost = 0;
  lively(true);
}

// Browsers open few connections to a server at a time. A page that nobody looks at
// gives its own back, and is looked after now and then.
let hidden = 0;
document.addEventListener("visibilitychange", () => {
  clearInterval(hidden);
  if (document.hidden) hidden = setInterval(() => { disconnect(); refresh(); }, 60_000);
  else if (!source) { refresh(); connect(); }
});

/** lively says when the connection is lost, and when it is back. */
function lively(now) {
  if (now === online) return;
  online = now;
  const time = Date.now();
  for (const m of seen.values()) Object.assign(m, { moved: time, at: time });
  for (const note of all("[data-part=live]")) {
    note.hidden = now;
    setText(note, word("lost"));
  }
  say(word(now ? "back" : "lost"));
}

// ---- Checks while somebody types. The service decides; these only spare a try.

const shown = (element) => element && !element.closest("[hidden]");

function checkPath(value, prefix) {
  if (!value.startsWith(prefix)) return fill(word("checkPrefix"), prefix);
  if (/[?#]/.test(value)) return word("checkCharacters");
  if (/\p{Cc}/u.test(value)) return word("checkControl");
  return "";
}

function checkNames(parts, least) {
  return parts.length < least || parts.some((p) => p === "" || p === "." || p === "..") ? word("checkNames") : "";
}

function checkExtension(form, value) {
  const data = $("[name=disk]:checked", form)?.value === "data";
  const from = $("[name=image_from]:checked", form) ?? $("[data-extensions]", form);
  const list = (data ? $("[data-disk-extensions]", form).dataset.diskExtensions : from?.dataset.extensions ?? "").split(" ").filter(Boolean);
  return list.length === 0 || list.some((e) => value.endsWith(e)) ? "" : fill(word("checkExtension"), list.join(", "));
}

const exported = (form) => /\.(img|qcow2)\.gz$/.test($("#location", form).value.trim() || $("#s3_location", form)?.value.trim() || "")
  && $("[name=disk]:checked", form)?.value !== "data";

/** afterAccount are the parts of a location behind the project. */
const afterAccount = (value) => value.split("/").slice(3);

const checks = {
  location(value, field, form) {
    if (!value) return $("#s3_location", form)?.value.trim() ? "" : word("checkRequired");
    return checkPath(value, field.dataset.prefix) || checkNames(afterAccount(value), 2) || checkExtension(form, value);
  },
  s3(value, _, form) {
    if (!value) return "";
    if (!value.startsWith("/")) return word("checkSlash");
    return checkPath(value, "/") || checkNames(value.split("/").slice(1), 2) || checkExtension(form, value);
  },
  container(value, field) {
    if (!value) return word("checkRequired");
    const parts = afterAccount(value.replace(/\/$/, ""));
    return checkPath(value, field.dataset.prefix) || checkNames(parts, 1) || (parts.length > 1 ? word("checkContainer") : "");
  },
  name(_, field, form) {
    const value = field.value;
    if (value === "") return exported(form) ? "" : word("checkRequired");
    if (value.trim() === "" || [...value].length > 255) return word("checkName");
    return /\p{Cc}/u.test(value) ? word("checkControl") : "";
  },
  os: (value, _, form) => (value || exported(form) ? "" : word("checkRequired")),
  sha1: (value) => (value === "" || /^[0-9a-f]{40}$/i.test(value) ? "" : word("checkSha1")),
  uuid(value, field) {
    if (value === "") return field.hasAttribute("aria-required") ? word("checkRequired") : "";
    return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(value) ? "" : word("checkUuid");
  },
  number: (value) => (value === "" || (/^\d+$/.test(value) && Number(value) < 2 ** 31) ? "" : word("checkNumber")),
};

/** check shows what is wrong with a field, or that nothing is. */
function check(field) {
  if (!shown(field)) return "";
  const reason = checks[field.dataset.check](field.value.trim(), field, field.form);
  const note = document.getElementById(`${field.id}-wrong`);
  setText(note.firstElementChild, reason);
  note.firstElementChild.nextElementSibling?.remove(); // what the service said of an older value
  note.hidden = reason === "";
  if (reason) field.setAttribute("aria-invalid", "true");
  else field.removeAttribute("aria-invalid");
  field.dataset.checked = "";
  return reason;
}

function watchForm(form) {
  form.noValidate = true;
  const fields = all("[data-check]", form);
  const arrange = () => {
    const data = $("[name=disk]:checked", form)?.value === "data";
    for (const part of all("[data-system]", form)) part.hidden = data;
  };
  // A field is judged once it is left, and from then on with every key.
  form.addEventListener("focusin", ({ target }) => {
    // Nobody types a project's id by hand.
    if (target.dataset?.prefix?.split("/").length > 3 && target.value === "") target.value = target.dataset.prefix;
  });
  form.addEventListener("focusout", ({ target }) => { if (target.dataset?.prefix === target.value) target.value = ""; });
  form.addEventListener("focusout", (e) => { if (e.target.dataset?.check && e.target.value !== "") check(e.target); });
  form.addEventListener("input", (e) => {
    // Two slashes: a whole path was typed or pasted behind what had been put there.
    const { prefix } = e.target.dataset;
    if (prefix && e.target.value.startsWith(`${prefix}/`)) e.target.value = e.target.value.slice(prefix.length);
    if (e.target.type === "radio") arrange();
    const also = ["radio"].includes(e.target.type) || ["location", "s3_location"].includes(e.target.id);
    for (const field of fields) {
      if ("checked" in field.dataset && (field === e.target || also)) check(field);
    }
  });
  form.addEventListener("submit", (e) => {
    const button = $("button.primary", form);
    if (button.getAttribute("aria-disabled") === "true") { e.preventDefault(); return; } // sent already
    button.setAttribute("aria-disabled", "true");
    button.dataset.label ??= button.textContent;
    setText(button, word("sending"));
  });
  addEventListener("pageshow", (e) => {
    const button = $("button.primary", form);
    if (!e.persisted || !button.dataset.label) return;
    button.removeAttribute("aria-disabled");
    setText(button, button.dataset.label);
  });
  arrange();
  for (const field of all("[aria-invalid]", form)) field.dataset.checked = "";
}

// ---- Clicks

document.addEventListener("click", async (e) => {
  const ask = e.target.closest("[data-confirm]");
  const dialog = document.getElementById("confirm");
  if (ask && dialog?.showModal) {
    e.preventDefault();
    $("form", dialog).action = ask.href;
    setText($("[data-part=name]", dialog), ask.closest("[data-task]").dataset.name);
    dialog.showModal();
  }
  if (e.target.closest("[data-close]")) dialog.close();
  const copy = e.target.closest("[data-copy]");
  if (copy) {
    try { await navigator.clipboard.writeText(copy.dataset.copy); } catch { return; }
    say("");
    say(word("copied"));
    copy.classList.add("done");
    setTimeout(() => copy.classList.remove("done"), 1500);
  }
});

document.getElementById("confirm")?.addEventListener("close", () => document.getElementById("cancel")?.focus());

prepare(document);
for (const form of all("form[data-checked]")) watchForm(form);
($("[data-focus]") ?? null)?.focus();
connect();
setInterval(tick, 1000);
