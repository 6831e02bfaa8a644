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
  const large = files.find((file) => file.size > maxFile);
  return large ? `${large.name} has ${megabytes(large.size)}: ${megabytes(maxFile)} at most.` : "";
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
      const image = document.createElement("img");
      image.src = URL.createObjectURL(file);
      image.alt = file.name;
      return image;
    }),
  );
  clear.hidden = !input.files.length;
}

async function search() {
  results().setAttribute("aria-busy", "true");
  go.disabled = true;
  try {
    const response = await fetch(form.action, { method: "POST", body: new FormData(form) });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const found = page.getElementById("results");
    if (!found) throw new Error(`the server answered ${response.status}`);
    results().replaceWith(document.adoptNode(found));
    results().scrollIntoView({ block: "nearest" });
  } catch (error) {
    showProblem(`No response: ${error.message}. Is the server still running?`);
  } finally {
    results().removeAttribute("aria-busy");
    go.disabled = false;
  }
}

input.addEventListener("change", showChosen);
clear.addEventListener("click", () => {
  input.value = "";
  showChosen();
  input.focus();
});
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, () => drop.classList.add("over"));
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
document.getElementById("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
