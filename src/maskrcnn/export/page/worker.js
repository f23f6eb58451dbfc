// A picture at a time through the model, away from the page, which stays at hand meanwhile.

import { ready, predict } from "./model.js";

let last = Promise.resolve(); // requests are answered in order

addEventListener("message", ({ data }) => {
  last = last.then(() => answer(data));
});

async function answer({ id, what, blob }) {
  try {
    const { facts } = await ready;
    const found = what === "models"
      ? [{ name: facts.config.name, score_threshold: facts.config.box_head.score_threshold }]
      : await predict(await pixelsOf(blob));
    postMessage({ id, answer: found });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
}

// RGBA of a picture, upright. Of a picture that is partly transparent the browser keeps rounded colours.
async function pixelsOf(blob) {
  let bitmap;
  try {
    const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
    bitmap = await createImageBitmap(blob, options);
  } catch {
    throw new Error("not an image, or of a format that this browser does not read.");
  }
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}
