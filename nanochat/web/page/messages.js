// The conversation on the page. What a user can do with a message is told to `act(action, message, value)`.

import { fill, make } from "./dom.js";

const ENDS = {
  length: "Cut: the answer was as long as it may be, or the context was full.",
  cancelled: "Stopped.",
};

export class Messages {
  constructor(list, act) {
    this.list = list;
    this.act = act;
    this.items = new Map(); // id to its element
    this.aside = new Map(); // the same of questions that were being edited when another branch came: with what was typed
  }

  // Show these messages and no others. running: the id of the answer that is being said.
  show(messages, running, model) {
    const focus = this.#focused();
    const kept = new Map();
    messages.forEach((message, place) => {
      const item = this.items.get(message.id) ?? this.aside.get(message.id) ?? this.#build(message);
      this.aside.delete(message.id);
      kept.set(message.id, item);
      if (this.list.children[place] !== item) this.list.insertBefore(item, this.list.children[place] ?? null);
      this.#update(item, message, message.id === running, place === messages.length - 1, model);
    });
    for (const [id, item] of this.items) {
      if (kept.has(id)) continue;
      item.remove();
      if (item.classList.contains("editing")) this.aside.set(id, item);
    }
    this.items = kept;
    this.#focus(focus);
  }

  // Changes of an answer that is being said.
  grow(id, changes) {
    const body = this.items.get(id)?.querySelector(".body");
    if (!body) return;
    for (const { part, tool, keep, blocks } of changes) {
      if (tool) this.#showTool(body, part, tool);
      else this.#showBlocks(body, part, keep, blocks);
    }
  }

  // Turn a question into a field.
  edit(id) {
    const item = this.items.get(id);
    if (!item || item.classList.contains("editing")) return;
    const message = item.message;
    const field = make("textarea", { "aria-label": "Edit the question", rows: Math.min(10, message.text.split("\n").length) });
    field.value = message.text;
    const end = () => {
      form.remove();
      item.classList.remove("editing");
      item.querySelector('[data-do="edit"]')?.focus();
    };
    const form = make("form", { class: "edit" }, field, make("div", { class: "row" },
      make("button", { class: "primary", type: "submit" }, "Ask"), make("button", { type: "button", onclick: end }, "Leave as it was")));
    form.onsubmit = (event) => {
      event.preventDefault();
      if (!field.value.trim()) return;
      this.act("ask instead", message, field.value).then((done) => done && end());
    };
    field.onkeydown = (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        end();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
        event.preventDefault();
        form.requestSubmit();
      }
    };
    item.classList.add("editing");
    item.querySelector(".body").after(form);
    field.focus();
    item.scrollIntoView({ block: "nearest" });
  }

  #build(message) {
    const item = make("li", { class: `message ${message.role}` },
      make("h2", { class: "who" }), make("div", { class: "body", dir: "auto" }), make("p", { class: "end", hidden: true }),
      make("div", { class: "tools" }));
    item.tools = {};
    return item;
  }

  #update(item, message, isRunning, isLast, model) {
    item.message = message;
    const isAnswer = message.role === "assistant";
    item.querySelector(".who").textContent = isAnswer ? message.model || (isRunning ? model : "Assistant") : "You";
    const body = item.querySelector(".body");
    body.setAttribute("aria-busy", isRunning);
    if (isAnswer) {
      message.parts.forEach((part, place) => {
        if (part.blocks) this.#showBlocks(body, place, 0, part.blocks);
        else this.#showTool(body, place, part);
      });
      for (const extra of [...body.children].slice(message.parts.length)) extra.remove();
      body.classList.toggle("waiting", isRunning);
    } else if (body.textContent !== message.text) body.textContent = message.text;

    const end = item.querySelector(".end");
    const isCut = isAnswer && !isRunning && message.finish !== "stop";
    end.hidden = !isCut;
    const open = message.elsewhere ? "Being answered in another program…" : "This answer was never finished.";
    end.textContent = isCut ? (ENDS[message.finish] ?? open) : "";

    const place = message.siblings.indexOf(message.id);
    const kind = isAnswer ? "answer" : "question";
    this.#tools(item, [
      !isRunning && ["copy", "Copy", `Copy this ${kind}`],
      !isAnswer && ["edit", "Edit", "Edit this question"],
      isAnswer && !isRunning && ["again", "Again", "Answer again"],
      !isAnswer && isLast && !isRunning && ["answer", "Answer", "Answer this question"],
      isCut && isLast && !message.elsewhere && ["go on", "Go on", "Go on with this answer"],
      message.siblings.length > 1 && place > 0 && ["previous", "‹", `The ${kind} before this one`],
      message.siblings.length > 1 && `${place + 1}/${message.siblings.length}`,
      message.siblings.length > 1 && place + 1 < message.siblings.length && ["next", "›", `The ${kind} after this one`],
    ].filter(Boolean));
  }

  #tools(item, wanted) {
    const row = item.querySelector(".tools");
    const nodes = wanted.map((tool) => {
      if (typeof tool === "string") return make("span", { class: "place" }, tool);
      const [action, text, label] = tool;
      return item.tools[action] ??= make("button", { type: "button", "data-do": action, "aria-label": label, title: label,
        onclick: () => this.act(action, item.message, row.querySelector(`[data-do="${action}"]`)) }, text);
    });
    const before = [...row.childNodes];
    if (before.length === nodes.length && nodes.every((node, i) => node === before[i] || node.textContent === before[i].textContent)) return;
    row.replaceChildren(...nodes);
  }

  #part(body, place, name) {
    let part = body.children[place];
    if (!part?.classList.contains(name)) {
      const fresh = name === "tool" ? make("details", { class: name }, make("summary"), make("pre", { tabindex: 0 })) : make("div", { class: name });
      if (part) part.replaceWith(fresh);
      else body.append(fresh);
      part = fresh;
    }
    return part;
  }

  #showTool(body, place, { expression, result }) {
    const part = this.#part(body, place, "tool");
    const line = result == null ? expression : `${expression} = ${result}`;
    part.firstChild.textContent = line.length > 80 ? `${line.slice(0, 77)}…` : line;
    part.lastChild.textContent = `calculator: ${expression}\nresult: ${result ?? "none"}`;
  }

  #showBlocks(body, place, keep, blocks) {
    const part = this.#part(body, place, "text");
    blocks.forEach((html, number) => {
      let block = part.children[keep + number];
      if (!block) part.append(block = make("div", { class: "block" }, make("div")));
      if (block.html !== html) fill(block.firstChild, html);
      block.html = html;
      const code = block.firstChild.firstElementChild?.tagName === "PRE";
      if (code && block.children.length === 1) {
        block.append(make("button", { type: "button", class: "copy", "aria-label": "Copy this code", onclick: (event) =>
          this.act("copy code", block.querySelector("pre").textContent, event.currentTarget) }, "Copy"));
      } else if (!code && block.children.length > 1) block.lastChild.remove();
    });
    for (const extra of [...part.children].slice(keep + blocks.length)) extra.remove();
  }

  // The button that has the focus, by its place, for the message may be another one afterwards.
  #focused() {
    const action = document.activeElement?.dataset?.do;
    const item = document.activeElement?.closest?.(".message");
    return action && item?.parentNode === this.list ? { action, place: [...this.list.children].indexOf(item) } : null;
  }

  #focus(focus) {
    if (!focus || document.activeElement?.dataset?.do) return;
    const row = this.list.children[focus.place]?.querySelector(".tools");
    const found = row?.querySelector(`[data-do="${focus.action}"]`) ?? row?.querySelector("button");
    (found ?? document.querySelector("#prompt")).focus();
  }
}
