// Lets Material's search run on pages that a browser opens from a disk: browsers start no Worker from file://.
// The worker's script runs in a hidden frame instead; messages are passed as the events that it expects. Material looks
// for `IFrameWorker`, and its plugin `offline` adds no script of its own where one with this file's name is given.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const base = new URL(url, location.href);
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      inner.document.open(); // a browser may replace a frame's first, blank document; this one stays
      inner.document.write("<!doctype html><title></title>");
      inner.document.close();
      const load = (source) =>
        new Promise((done, failed) => {
          const script = inner.document.createElement("script");
          script.src = new URL(source, base).href;
          script.onload = done;
          script.onerror = () => failed(new Error(`${script.src} cannot be loaded`));
          inner.document.head.append(script);
        });
      const deliver = (target, data) => target.dispatchEvent(new MessageEvent("message", { data }));
      inner.postMessage = (data) => setTimeout(() => deliver(this, data));
      inner.importScripts = (...urls) => urls.reduce((before, next) => before.then(() => load(next)), Promise.resolve());
      const loaded = load(base);
      loaded.catch((error) => console.error(error));
      this.postMessage = (data) => loaded.then(() => deliver(inner, data), () => {});
      this.terminate = () => frame.remove();
    }
  };
}
