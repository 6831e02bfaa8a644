// The form works without this script, which adds drag and drop, previews, checks before sending, and results in place.
"use strict";

const form = document.getElementById("form");
const input = document.getElementById("pictures");
const drop = document.getElementById("drop");
const previews = document.getElementById("previews");
const clear = document.getElementById("clear");
const go = document.getElementById("go");
const maxFile = Number(form.dataset.maxFile);
const maxFiles = Number(form.dataset.maxFiles);
const maxVideo = Number(form.dataset.maxVideo);
const isVideo = (file) => file.type.startsWith("video/") || file.name.toLowerCase().endsWith(".mkv");
const megabytes = (bytes) => (bytes / 1e6).toFixed(1) + " MB";

function results() {
  return document.getElementById("results");
}

function showProblem(text) {
  const problem = document.createElement("p");
  problem.className = "problem";
  problem.setAttribute("role", "alert");
  problem.textContent = text;
  results().replaceChildren(problem);
}

// Returns what is wrong with the selected files, or "".
function findProblem(files) {
  if (files.length > maxFiles) return `${files.length} pictures are too many: ${maxFiles} at most.`;
  if (files.length > 1 && files.some(isVideo)) return "A video is searched for alone: choose one file.";
  const limit = (file) => (isVideo(file) ? maxVideo : maxFile);
  const large = files.find((file) => file.size > limit(file));
  return large ? `${large.name} has ${megabytes(large.size)}: ${megabytes(limit(large))} at most.` : "";
}

function showChosen() {
  for (const image of previews.children) URL.revokeObjectURL(image.src);
  const files = [...input.files];
  const wrong = findProblem(files);
  if (wrong) {
    input.value = "";
    showProblem(wrong);
  }
  previews.replaceChildren(
    ...(wrong ? [] : files).map((file) => {
      const preview = document.createElement(isVideo(file) ? "video" : "img");
      preview.src = URL.createObjectURL(file);
      preview.alt = file.name;
      preview.muted = true;
      return preview;
    }),
  );
  if (!wrong && files.some(isVideo) && !form.querySelector("[name=domain][data-kind=clip]:checked")) {
    form.querySelector("[name=domain][data-kind=clip]")?.click();
  }
  clear.hidden = !input.files.length;
}

async function search(submitter) {
  const shown = submitter?.name === "top" ? document.querySelectorAll(".hit").length : 0;
  results().setAttribute("aria-busy", "true");
  go.disabled = true;
  try {
    const response = await fetch(form.action, { method: "POST", body: new FormData(form, submitter) });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const found = page.getElementById("results");
    if (!found) throw new Error(`the server answered ${response.status}`);
    results().replaceWith(document.adoptNode(found));
    if (shown) document.querySelectorAll(".hit .more")[shown]?.focus();
    else results().scrollIntoView({ block: "nearest" });
  } catch (error) {
    showProblem(`No response: ${error.message}. Is the server still running?`);
  } finally {
    results().removeAttribute("aria-busy");
    go.disabled = false;
  }
}

if (document.querySelector(".result")) results().scrollIntoView();  // the form may fill the screen
input.addEventListener("change", showChosen);
clear.addEventListener("click", () => {
  input.value = "";
  showChosen();
  input.focus();
});
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, () => drop.classList.add("over"));
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
// Plays a video from its moment on, in place of its pictures.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.play");
  if (!link || link.origin !== location.origin || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const video = Object.assign(document.createElement("video"), { src: link.href, controls: true, autoplay: true });
  const pictures = link.closest(".hit, .query").querySelector(".pictures");
  pictures.classList.remove("several");
  pictures.replaceChildren(video);
});
// Shows a picture in a dialog; without scripts, its link opens it.
const zoom = document.getElementById("zoom");
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.zoom");
  if (event.target === zoom) zoom.close();
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  zoom.querySelector("img")?.remove();
  zoom.append(Object.assign(document.createElement("img"), { src: link.href, alt: link.querySelector("img").alt }));
  zoom.showModal();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  search(event.submitter);
});
document.getElementById("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
