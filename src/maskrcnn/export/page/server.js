// The model in this browser, in the place of a server: the same requests as the service's page makes, the same answers.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const asked = new Map(); // number of a request to its {resolve, reject}
let number = 0;

worker.addEventListener("message", ({ data: { id, answer, error } }) => {
  const { resolve, reject } = asked.get(id);
  asked.delete(id);
  if (error === undefined) resolve(answer);
  else reject(new Error(error));
});
worker.addEventListener("error", (event) => {
  for (const { reject } of asked.values()) reject(new Error(event.message || "The model's worker has failed."));
  asked.clear();
});

document.getElementById("status").textContent = ""; // it said that a web server is needed

function ask(request) {
  return new Promise((resolve, reject) => {
    asked.set(++number, { resolve, reject });
    worker.postMessage({ id: number, ...request });
  });
}

export const models = () => ask({ what: "models" });
export const predict = (blob) => ask({ what: "predict", blob });
