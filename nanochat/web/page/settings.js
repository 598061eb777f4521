// What answers are drawn with, the system prompt and the theme. They stay in this browser.

const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "seed"];
const $ = (id) => document.getElementById(id);

function read(name) {
  try {
    return localStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
}

function write(name, value) {
  try {
    if (value) localStorage.setItem(name, value);
    else localStorage.removeItem(name);
  } catch {
    // no storage in this browser: it holds until the page is left
  }
}

export class Settings {
  constructor() {
    for (const name of [...NUMBERS, "system", "theme"]) {
      const field = $(name);
      field.value = read(name);
      field.addEventListener("input", () => field.checkValidity() && write(name, field.value));
    }
    $("theme").addEventListener("change", () => this.#useTheme());
    $("reset").onclick = () => {
      for (const name of [...NUMBERS, "system", "theme"]) {
        $(name).value = "";
        write(name, "");
      }
      this.#useTheme();
    };
    $("settings-open").onclick = () => $("settings").showModal();
  }

  // As the server reads it: only what was chosen.
  get sampling() {
    const found = {};
    for (const name of NUMBERS) {
      if ($(name).value !== "" && $(name).checkValidity()) found[name] = Number($(name).value);
    }
    return found;
  }

  get system() {
    return $("system").value;
  }

  // Show what the server does where a field is empty.
  describe(server) {
    $("max_new_tokens").max = server.max_new_tokens;
    for (const name of NUMBERS) $(name).placeholder = server.default[name] ?? (name === "seed" ? "random" : "off");
    $("max_new_tokens").placeholder = Math.min(server.max_new_tokens, server.max_context);
  }

  // The system prompt of the conversation that is shown.
  describeChat(chat) {
    $("system-here").hidden = !chat?.system;
    $("system-here").textContent = chat?.system ? `This conversation has its own: ${chat.system}` : "";
  }

  #useTheme() {
    if ($("theme").value) document.documentElement.dataset.theme = $("theme").value;
    else delete document.documentElement.dataset.theme;
  }
}
