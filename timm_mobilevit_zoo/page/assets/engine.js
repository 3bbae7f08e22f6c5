// A runtime in a worker of its own, as a thing with methods that answer later.

export class Engine {
  /** `progress` is called with `{ file, loaded, bytes }` while a file comes. */
  constructor(progress = () => {}) {
    this.waiting = new Map();
    this.count = 0;
    this.isClosed = false;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.progress) return progress(data.progress);
      const { resolve, reject } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if ("error" in data) reject(new Error(data.error));
      else resolve(data.result);
    };
    this.worker.onerror = (event) => this.fail(event.message || "The worker that runs the models could not be started");
  }

  fail(message) {
    for (const { reject } of this.waiting.values()) reject(new Error(message));
    this.waiting.clear();
  }

  call(call, args) {
    return new Promise((resolve, reject) => {
      if (this.isClosed) return reject(new Error("Stopped"));
      this.waiting.set(++this.count, { resolve, reject });
      this.worker.postMessage({ id: this.count, call, args });
    });
  }

  close() {
    this.isClosed = true;
    this.worker.terminate();
    this.fail("Stopped");
  }
}
