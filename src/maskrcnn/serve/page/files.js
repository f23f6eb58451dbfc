// Files to download: COCO, LabelMe, and the picture with what is shown.

import { drawObjects } from "./objects.js";
import { drawPicture } from "./viewer.js";

export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export function jsonBlob(content) {
  return new Blob([JSON.stringify(content, null, 1)], { type: "application/json" });
}

export const stem = (name) => name.replace(/\.[^.]*$/, "") || "picture";

// `pictures`: [{name, width, height, objects}], objects being those shown.
export function coco(pictures) {
  const categories = new Map(), images = [], annotations = [];
  for (const { name, width, height, objects } of pictures) {
    const image = images.push({ id: images.length + 1, file_name: name, width, height });
    for (const { instance, area } of objects) {
      categories.set(instance.category_id, instance.category);
      const { bbox, score, category_id, segmentation, keypoints } = instance;
      const entry = { id: annotations.length + 1, image_id: image, category_id, bbox, area, iscrowd: 0, score };
      if (segmentation) entry.segmentation = segmentation;
      if (keypoints) Object.assign(entry, { keypoints, num_keypoints: keypoints.length / 3 });
      annotations.push(entry);
    }
  }
  const named = [...categories].map(([id, name]) => ({ id, name }));
  return { images, categories: named.sort((a, b) => (a.id > b.id ? 1 : -1)), annotations };
}

// Polygons in LabelMe's form; the parts of one object share a group.
export function labelme({ name, width, height, objects }) {
  const shapes = objects.flatMap(({ instance }, group) => {
    const [x, y, w, h] = instance.bbox, parts = instance.polygons ?? [];
    const common = { label: instance.category, description: `score ${instance.score.toFixed(4)}`, flags: {} };
    if (!parts.length) {
      return [{ ...common, points: [[x, y], [x + w, y + h]], group_id: null, shape_type: "rectangle" }];
    }
    return parts.map((part) => ({
      ...common, points: pairs(part), group_id: parts.length > 1 ? group + 1 : null, shape_type: "polygon",
    }));
  });
  return { version: "5.5.0", flags: {}, shapes, imagePath: name, imageData: null, imageHeight: height, imageWidth: width };
}

function pairs(flat) {
  return Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);
}

export function png(picture, objects, opacity) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d");
  drawPicture(context, picture);
  const line = Math.max(1, Math.max(picture.width, picture.height) / 800);
  drawObjects(context, objects, { opacity, line, chosen: null, texts: true });
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture is too large for this browser."))));
  });
}
