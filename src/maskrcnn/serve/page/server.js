// Requests to the service, at most two at a time; a full queue is asked again after the time that it tells.

const AT_A_TIME = 2, TRIES = 20;
const waiting = [];
let running = 0;

export async function models(token) {
  return (await ask("models", { headers: headers(token) })).json();
}

export function predict(blob, model, token) {
  return new Promise((resolve, reject) => {
    waiting.push({ blob, model, token, resolve, reject });
    next();
  });
}

function next() {
  if (running >= AT_A_TIME || !waiting.length) return;
  const { blob, model, token, resolve, reject } = waiting.shift();
  running++;
  post(blob, model, token).then(resolve, reject).finally(() => {
    running--;
    next();
  });
}

async function post(blob, model, token) {
  const query = new URLSearchParams({ segmentation: "both" });
  if (model) query.set("model", model);
  const body = new FormData();
  body.append("image", blob, "image");
  const options = { method: "POST", body, headers: headers(token) };
  return (await ask(`predict?${query}`, options)).json();
}

async function ask(address, options) {
  for (let tries = 1; ; tries++) {
    let response;
    try {
      response = await fetch(address, options);
    } catch {
      throw new Error("The server cannot be reached.");
    }
    if (response.ok) return response;
    if (response.status === 503 && tries < TRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 2;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      continue;
    }
    const detail = await response.json().then((content) => content.detail, () => null);
    const error = new Error(detail ?? `The server answered ${response.status}.`);
    error.status = response.status;
    throw error;
  }
}

function headers(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}
