// The socket to the server: wishes with replies, events, and a new try whenever it closes.

const FIRST_WAIT = 300; // milliseconds, doubled after each failure
const LONGEST_WAIT = 5000;

export class Connection {
  // onEvent(event), onOpen(server), onClosed(), onKey(message): a key is needed, onRefused(message).
  constructor(handlers) {
    this.handlers = handlers;
    this.isOpen = false;
    this.key = "";
    this.wait = FIRST_WAIT;
    this.number = 0;
    this.pending = new Map();
  }

  connect() {
    const address = new URL("talk", document.baseURI); // beside the page, which may stand behind a prefix
    address.protocol = address.protocol.replace("http", "ws");
    address.hash = "";
    this.socket = new WebSocket(address);
    this.socket.onopen = () => this.#greet();
    this.socket.onmessage = (message) => this.#take(JSON.parse(message.data));
    this.socket.onclose = () => this.#lose();
  }

  // One wish; gives what came of it, or throws an Error with the server's words.
  ask(what, fields = {}) {
    if (this.socket?.readyState !== WebSocket.OPEN) return Promise.reject(new Error("There is no connection to the server. Trying again…"));
    const id = this.number++;
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject });
      this.socket.send(JSON.stringify({ id, do: what, ...fields }));
    });
  }

  async #greet() {
    try {
      const server = await this.ask("hello", { key: this.key });
      this.isOpen = true;
      this.wait = FIRST_WAIT;
      this.handlers.onOpen(server);
    } catch (error) {
      if (error.status === 401) {
        this.needsKey = true;
        this.handlers.onKey(this.key ? error.message : "");
      } else this.handlers.onRefused(error.message);
    }
  }

  // After the user gave one.
  useKey(key) {
    this.key = key;
    this.needsKey = false;
    this.connect();
  }

  #take(message) {
    if (message.event) {
      this.handlers.onEvent(message);
      return;
    }
    const waiting = this.pending.get(message.id);
    this.pending.delete(message.id);
    if (!waiting) return;
    if (message.error) waiting.reject(Object.assign(new Error(message.error.message), message.error));
    else waiting.resolve(message.ok);
  }

  #lose() {
    for (const { reject } of this.pending.values()) reject(new Error("The connection to the server was lost."));
    this.pending.clear();
    const wasOpen = this.isOpen;
    this.isOpen = false;
    if (wasOpen) this.handlers.onClosed();
    if (this.needsKey) return;
    setTimeout(() => this.connect(), this.wait * (0.75 + Math.random() / 2));
    this.wait = Math.min(2 * this.wait, LONGEST_WAIT);
  }
}
