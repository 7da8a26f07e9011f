// Browsers start no worker for a page that was opened as a file, and the search runs in a worker.
// In such pages, this class takes the place of Worker: it runs the script in a hidden frame.
"use strict";
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      // What a worker's script finds in its global scope.
      const scope = `
        function postMessage(data) { parent.postMessage(data, "*"); }
        async function importScripts(...urls) {
          for (const url of urls) {
            await new Promise((loaded, failed) => {
              const script = document.createElement("script");
              Object.assign(script, { src: url, onload: loaded, onerror: failed });
              document.body.append(script);
            });
          }
        }`;
      const source = new URL(url, document.baseURI).href.replaceAll('"', "%22");
      frame.srcdoc = `<body><script>${scope}</script><script src="${source}"></script>`;
      this.ready = new Promise((loaded) => frame.addEventListener("load", loaded));
      window.addEventListener("message", (event) => {
        if (event.source === frame.contentWindow) {
          this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        }
      });
      this.frame = frame;
      document.body.append(frame);
    }

    postMessage(data) {
      // Not the frame's own postMessage, which is replaced above.
      const { postMessage } = window;
      this.ready.then(() => postMessage.call(this.frame.contentWindow, data, "*"));
    }
  };
  window.Worker = window.IFrameWorker;
}
