// The page: which conversation is shown, and what the user and the server do to it.

import { Connection } from "./connection.js";
import { make } from "./dom.js";
import { Messages } from "./messages.js";
import { Settings } from "./settings.js";

const MAX_FILE = 3_000_000; // characters of a file that is taken in: it goes through the socket in one frame
const NARROW = matchMedia("(max-width: 48rem)");
const $ = (id) => document.getElementById(id);

const state = {
  server: null,
  chat: null, // {id, title, system, updated} of the conversation that is shown; null: a new one
  messages: [],
  running: null, // the id of the answer that is being said in it
  deleting: null, // the id of the conversation that this window deletes
  asking: false, // a question is on its way that begins a conversation
  isAtEnd: true, // the newest words are in sight
};

const settings = new Settings();
const messages = new Messages($("messages"), act);
const connection = new Connection({ onEvent: take, onOpen: greet, onClosed: lose, onKey: askForKey, onRefused: (why) => warn(why) });

// ---- what the server says

async function greet(server) {
  state.server = server;
  $("model").textContent = server.model;
  $("about-server").textContent = `nanochat ${server.version}, model ${server.model}, context ${server.max_context.toLocaleString("en")} tokens`
    + (server.is_kept ? "" : "; conversations are not kept here");
  settings.describe(server);
  dismiss("connection");
  refreshList();
  await open(location.hash.slice(1) || null); // takes older notices away, and may have one of its own
  if (!server.is_chat && $("notice").hidden) warn("This is a base model: it continues text and has not learned to chat.", "base");
  update();
}

function lose() {
  warn("The connection to the server was lost. Trying again…", "connection");
  say("The connection to the server was lost.");
  state.running = null; // an answer that was being said is marked as one that was never finished
  redraw();
}

function askForKey(message) {
  if (message) forgetKey();
  $("key-why").textContent = message || "This server needs a key. Whoever started it set it with --api-key.";
  $("key").showModal();
}

function take(event) {
  if (event.event === "chats") {
    refreshList();
  } else if (event.event === "deleted") {
    if (state.chat?.id === event.chat) leave(event.chat === state.deleting ? "" : "This conversation was deleted in another window.");
    refreshList();
  } else if (event.event === "shown" && isShown(event.chat.id)) {
    show(event);
    if (event.running != null) say("Answering.");
  } else if (event.event === "grew" && isShown(event.chat)) {
    remember(event);
    keepAtEnd(() => messages.grow(event.message, event.changes));
  } else if (event.event === "ended" && isShown(event.chat)) {
    if (!event.shown.chat) return leave("This conversation was deleted by another program.");
    show(event.shown);
    showStats(event.stats);
    if (event.error) warn(event.error);
    else if (event.notice) warn(event.notice);
    const answer = state.messages.find((message) => message.id === event.message);
    say(answer ? `Answer: ${answer.text.slice(0, 1000)}` : "The answer has ended.");
  }
}

// Keep the changes of an answer with its message, so that it can be drawn again.
function remember({ message: id, changes }) {
  const parts = state.messages.find((message) => message.id === id)?.parts;
  if (!parts) return;
  for (const { part, tool, keep, blocks } of changes) parts[part] = tool ?? { blocks: [...(parts[part]?.blocks ?? []).slice(0, keep), ...blocks] };
}

const isShown = (chat) => state.chat?.id === chat || (state.chat === null && state.asking);

// ---- the conversation

async function open(id, push = false) {
  if (push) history.pushState(null, "", id ? `#${id}` : location.pathname);
  closeSide();
  dismiss();
  $("stats").textContent = "";
  if (!id) {
    await attempt(() => connection.ask("open", { chat: null }));
    show({ chat: null, messages: [], running: null });
    $("prompt").focus();
    return;
  }
  try {
    show(await connection.ask("open", { chat: id }), true);
  } catch (error) {
    if (error.status === 404) await leave("That conversation is not there any more.");
    else warn(error.message);
  }
}

// The conversation is gone: show an empty one.
async function leave(why) {
  state.chat = null; // at once, for the list looks whether it is there
  history.replaceState(null, "", location.pathname);
  await open(null);
  if (why) warn(why);
}

function show(shown, toEnd = false) {
  if (shown.chat?.id !== state.chat?.id) $("stats").textContent = "";
  Object.assign(state, { chat: shown.chat, messages: shown.messages, running: shown.running });
  if (shown.chat && location.hash !== `#${shown.chat.id}`) history.replaceState(null, "", `#${shown.chat.id}`);
  redraw(toEnd);
}

function redraw(toEnd = false) {
  keepAtEnd(() => messages.show(state.messages, state.running, state.server?.model ?? ""), toEnd);
  update();
}

function update() {
  const title = state.chat?.title ?? "New chat";
  $("title").textContent = title;
  document.title = `${title} – nanochat`;
  $("about-open").disabled = !state.chat;
  $("welcome").hidden = state.messages.length > 0;
  $("welcome").textContent = state.server ? `Talk to ${state.server.model}.` : "Connecting…";
  $("send").hidden = state.running != null;
  $("stop").hidden = state.running == null;
  settings.describeChat(state.chat);
  for (const button of $("chats").querySelectorAll("button")) {
    if (button.dataset.chat === state.chat?.id) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

async function ask(text, parent) {
  state.asking = state.chat === null;
  const slow = setTimeout(() => warn("The server has not taken the question yet.", "slow"), 5000);
  try {
    await connection.ask("ask", { chat: state.chat?.id ?? null, parent, text, system: settings.system, sampling: settings.sampling });
    dismiss();
    return true;
  } catch (error) {
    warn(error.message);
    return false;
  } finally {
    clearTimeout(slow);
    dismiss("slow");
    state.asking = false;
  }
}

async function act(action, message, value) {
  const chat = state.chat?.id;
  const place = state.messages.findIndex((other) => other.id === message.id);
  if (action === "copy") copy(message.text, value);
  else if (action === "copy code") copy(message, value);
  else if (action === "edit") messages.edit(message.id);
  else if (action === "ask instead") return ask(value, state.messages[place - 1]?.id ?? null);
  else if (action === "again") await attempt(() => connection.ask("again", { chat, message: state.messages[place - 1].id, sampling: settings.sampling }));
  else if (action === "answer") await attempt(() => connection.ask("again", { chat, message: message.id, sampling: settings.sampling }));
  else if (action === "go on") await attempt(() => connection.ask("go on", { chat, message: message.id, sampling: settings.sampling }));
  else if (action === "previous" || action === "next") {
    const sibling = message.siblings[message.siblings.indexOf(message.id) + (action === "next" ? 1 : -1)];
    await attempt(async () => show(await connection.ask("choose", { chat, message: sibling })));
  }
}

function stop() {
  if (state.running != null && state.chat) attempt(() => connection.ask("stop", { chat: state.chat.id }));
}

async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    warn(error.message);
  }
}

// ---- the list

let listing = 0;

async function refreshList() {
  const number = ++listing;
  let found;
  try {
    found = await connection.ask("list", { search: $("search").value });
  } catch {
    return; // the connection says so itself
  }
  if (number !== listing) return; // a newer one is on its way
  const focused = document.activeElement?.dataset?.chat;
  const { chats, more } = found;
  $("chats").replaceChildren(...chats.map((chat) =>
    make("li", {}, make("button", { type: "button", "data-chat": chat.id, onclick: () => open(chat.id, true) },
      make("span", { class: "name", dir: "auto" }, chat.title), make("small", {}, chat.running ? "answering…" : when(chat.updated))))));
  if (focused) $("chats").querySelector(`[data-chat="${focused}"]`)?.focus();
  if (more) $("chats").append(make("li", { class: "muted" }, `The newest ${chats.length}; search finds older ones.`));
  $("no-chats").hidden = chats.length > 0;
  $("no-chats").textContent = $("search").value ? "No conversation holds these words." : "No conversations yet.";
  if (state.chat && found.watched === state.chat.id && state.running == null) {
    const { current } = found;
    if (!current) return state.chat.id === state.deleting ? undefined : leave("This conversation was deleted by another program.");
    if (current.updated !== state.chat.updated) await open(current.id); // another program wrote to it
    else state.chat.title = current.title;
  }
  update();
}

function when(seconds) {
  const date = new Date(seconds * 1000);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : date.toLocaleDateString();
}

// ---- small things

// Run a change, and stay at the newest words if they were in sight.
function keepAtEnd(change, toEnd = false) {
  const stays = toEnd || state.isAtEnd;
  change();
  if (stays) $("log").scrollTop = $("log").scrollHeight;
  showDown();
}

function showDown() {
  const log = $("log");
  const below = log.scrollHeight - log.scrollTop - log.clientHeight;
  state.isAtEnd = below < 48;
  $("down").hidden = below < 120;
}

function showStats({ tokens, tokens_per_second: speed, first_seconds: first, context }) {
  const said = [`· ${tokens} tokens`];
  if (speed) said.push(`${speed.toFixed(1)} tokens/s`);
  if (first != null) said.push(`first after ${first.toFixed(2)} s`);
  said.push(`${context.toLocaleString("en")} / ${state.server.max_context.toLocaleString("en")} of the context`);
  $("stats").textContent = said.join(" · ");
}

function warn(text, kind = "") {
  $("notice").hidden = false;
  $("notice").dataset.kind = connection.isOpen ? kind : "connection"; // gone when it is back
  $("notice").firstChild.textContent = text;
}

// kind: only a notice of this kind; none: any but that the connection is lost.
function dismiss(kind = "") {
  if (kind ? $("notice").dataset.kind === kind : $("notice").dataset.kind !== "connection") $("notice").hidden = true;
}

const say = (text) => ($("status").textContent = text);

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = make("textarea", {}); // without a secure context there is no clipboard but this one
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button?.focus();
  }
  say("Copied.");
  if (!button || button.dataset.text) return;
  button.dataset.text = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => {
    button.textContent = button.dataset.text;
    delete button.dataset.text;
  }, 1200);
}

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function takeIn(file) {
  if (!file) return;
  if (file.size > MAX_FILE) {
    warn(`${file.name} is too large for the page: nanochat chats import ${file.name}`);
    return;
  }
  const chats = await attempt(async () => connection.ask("import", { text: await file.text(), name: file.name.slice(0, 300) }));
  if (chats) {
    await open(chats[0], true);
    say(chats.length === 1 ? "One conversation was taken in." : `${chats.length} conversations were taken in.`);
  }
}

function openSide() {
  document.body.classList.add("side-open");
  $("side-open").setAttribute("aria-expanded", "true");
  $("side").inert = false;
  $("new").focus();
}

function closeSide() {
  if (!document.body.classList.contains("side-open")) return;
  document.body.classList.remove("side-open");
  $("side-open").setAttribute("aria-expanded", "false");
  $("side").inert = NARROW.matches;
  $("side-open").focus();
}

function fitPrompt() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

// What is typed outlives a reload, in this window only; so does the key.
const storage = {
  get: (name) => { try { return sessionStorage.getItem(name) ?? ""; } catch { return ""; } },
  set: (name, value) => { try { sessionStorage.setItem(name, value); } catch { /* no storage in this browser */ } },
};
const forgetKey = () => storage.set("key", "");

// ---- what the user does

$("ask").onsubmit = async (event) => {
  event.preventDefault();
  const text = $("prompt").value;
  if (!text.trim() || $("send").disabled) return;
  if (state.running != null) return warn("Still answering: Esc or Stop ends it.");
  $("send").disabled = true;
  const last = state.messages.at(-1);
  const parent = last?.role === "user" ? state.messages.at(-2)?.id ?? null : last?.id ?? null;
  if (await ask(text, parent)) {
    if ($("prompt").value === text) $("prompt").value = "";
    storage.set("draft", $("prompt").value);
    fitPrompt();
    $("log").scrollTop = $("log").scrollHeight;
  }
  $("send").disabled = false;
};
$("prompt").onkeydown = (event) => {
  if (event.isComposing || event.keyCode === 229) return; // Enter chooses a word in an input method
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("ask").requestSubmit();
  } else if (event.key === "ArrowUp" && !$("prompt").value) {
    const last = state.messages.findLast((message) => message.role === "user");
    if (last && state.running == null) {
      event.preventDefault();
      messages.edit(last.id);
    }
  }
};
$("prompt").oninput = () => {
  storage.set("draft", $("prompt").value);
  fitPrompt();
};
$("stop").onclick = stop;
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("side-open")) closeSide();
  else stop();
});
$("new").onclick = () => open(null, true);
$("search").oninput = refreshList;
$("import").onclick = () => $("file").click();
$("file").onchange = () => {
  takeIn($("file").files[0]);
  $("file").value = "";
};
$("side-open").onclick = openSide;
$("side-close").onclick = closeSide;
$("down").onclick = () => ($("log").scrollTop = $("log").scrollHeight);
$("log").onscroll = showDown;
new ResizeObserver(() => keepAtEnd(() => {})).observe($("log"));
$("notice").querySelector("button").onclick = () => ($("notice").hidden = true);
$("help-open").onclick = () => $("help").showModal();
$("about-open").onclick = () => {
  $("rename").value = state.chat.title;
  $("delete").textContent = "Delete";
  $("about").showModal();
};
$("rename-do").onclick = async () => {
  if (await attempt(async () => { await connection.ask("rename", { chat: state.chat.id, title: $("rename").value }); return true; })) $("about").close();
};
$("rename").onkeydown = (event) => {
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  $("rename-do").click();
};
for (const button of $("about").querySelectorAll("[data-form]")) {
  button.onclick = async () => {
    const file = await attempt(() => connection.ask("export", { chat: state.chat.id, form: button.dataset.form }));
    $("about").close();
    if (file) download(file.name, file.text);
  };
}
$("delete").onclick = async () => {
  if ($("delete").textContent === "Delete") {
    $("delete").textContent = "Delete for good";
    return;
  }
  const chat = (state.deleting = state.chat.id);
  $("about").close();
  await attempt(() => connection.ask("delete", { chat }));
};
$("key").addEventListener("close", () => {
  storage.set("key", $("key-text").value.trim());
  connection.useKey($("key-text").value.trim());
});
addEventListener("popstate", () => open(location.hash.slice(1) || null));
NARROW.onchange = () => ($("side").inert = NARROW.matches && !document.body.classList.contains("side-open"));
$("side").inert = NARROW.matches;

connection.key = storage.get("key");
$("prompt").value = storage.get("draft");
fitPrompt();
update();
connection.connect();
