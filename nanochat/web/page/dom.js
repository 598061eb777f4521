// Elements, and HTML from the server put in without disturbing what is there.

// The server's HTML is cleaned; this is the only place where a string becomes elements, and the policy says so.
const policy = globalThis.trustedTypes?.createPolicy("nanochat", { createHTML: (html) => html });

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = policy ? policy.createHTML(html) : html;
  for (const wide of template.content.querySelectorAll("pre, table")) wide.tabIndex = 0; // scrolled by keys
  return template.content;
}

// make("button", { class: "icon", onclick: f }, "text", element)
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element[name] = value;
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// Make an element hold this HTML, changing only what differs: a selection and the scrolling of code stay.
export function fill(element, html) {
  patchChildren(element, parse(html));
}

function patchChildren(old, fresh) {
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, place) => {
    if (place >= before.length) old.append(node);
    else patch(before[place], node);
  });
  for (const node of before.slice(after.length)) node.remove();
}

function patch(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE && fresh.nodeType === Node.TEXT_NODE) {
    if (fresh.data.startsWith(old.data)) {
      if (fresh.data.length > old.data.length) old.appendData(fresh.data.slice(old.data.length));
    } else old.data = fresh.data;
  } else if (old.nodeName !== fresh.nodeName || !sameAttributes(old, fresh)) old.replaceWith(fresh);
  else patchChildren(old, fresh);
}

function sameAttributes(a, b) {
  return a.attributes.length === b.attributes.length
    && [...a.attributes].every(({ name, value }) => b.getAttribute(name) === value);
}
