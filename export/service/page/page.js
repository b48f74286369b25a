// Sends a scan, and shows the progress and the result.

import { anatomicalAxes, readVolume } from "./nifti.js";
import { Viewer } from "./viewer.js";

const POLL_MS = 400;
const $ = (id) => document.getElementById(id);
let current = null; // the request in progress
let token = "";
const ABOUT = $("about").textContent;

const authorised = () => (token ? { Authorization: `Bearer ${token}` } : {});

function show(id, visible) { $(id).hidden = !visible; }

function fail(message) {
  $("error").textContent = message;
  show("error", true);
}

function say(message, done, total) {
  if ($("state").textContent !== message) $("state").textContent = message;
  const bar = $("bar");
  if (total) { bar.max = total; bar.value = done; } else bar.removeAttribute("value");
}

function randomId() {
  // Browsers do not offer crypto.randomUUID to pages loaded over plain HTTP from another machine.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const MEGA = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

const STATE_MESSAGES = {
  receiving: () => ["The service is receiving the scan"],
  waiting: ({ position }) => [`Waiting: ${position === 1 ? "next" : `number ${position}`} in the queue`],
  reading: () => ["Reading the scan and interpolating it to 1 mm"],
  restoring: ({ slices_done: done, num_slices: total }) => [`Restoring: ${done} of ${total} slices`, done, total],
  writing: () => ["Writing the enhanced scan"],
};

async function follow(request) {
  while (current === request && !request.answered) {
    if (request.sent) {
      try {
        const response = await fetch(`progress/${request.id}`, { headers: authorised() });
        const progress = response.ok ? await response.json() : null;
        if (progress && current === request && !request.answered) say(...STATE_MESSAGES[progress.state](progress));
      } catch {
        // The scan's own request reports that the service is gone.
      }
    }
    await new Promise((resume) => setTimeout(resume, POLL_MS));
  }
}

// XMLHttpRequest, because fetch does not report how much of an upload has been sent.
function send(file, request) {
  return new Promise((resolve, reject) => {
    const xhr = (request.xhr = new XMLHttpRequest());
    xhr.open("POST", `enhance?id=${request.id}`);
    xhr.responseType = "blob";
    xhr.setRequestHeader("Accept", "multipart/form-data");
    if (token) xhr.setRequestHeader("Authorization", `Bearer ${token}`);
    xhr.upload.onprogress = ({ loaded, total }) => say(`Sending ${MEGA(loaded)} of ${MEGA(total)}`, loaded, total);
    xhr.upload.onload = () => { request.sent = true; };
    xhr.onprogress = ({ loaded, total }) => {
      if (xhr.status !== 200) return;
      request.answered = true;
      say(`Receiving ${MEGA(loaded)} of ${MEGA(total)}`, loaded, total);
    };
    xhr.onload = () => resolve(xhr);
    xhr.onabort = () => resolve(null);
    xhr.onerror = () => reject(new Error("The service cannot be reached or has closed the connection. Try again."));
    const form = new FormData();
    form.append("scan", file, file.name);
    if ($("contrast").value) form.append("contrast", $("contrast").value);
    xhr.send(form);
  });
}

async function errorOf(xhr) {
  try {
    const { error } = JSON.parse(await xhr.response.text());
    if (error) return `${error[0].toUpperCase()}${error.slice(1)}${error.endsWith(".") ? "" : "."}`;
  } catch {
    // The response is not the service's but a proxy's.
  }
  return `The service responded with status ${xhr.status} and no error message. Try again.`;
}

async function present(xhr, file, request) {
  const type = xhr.getResponseHeader("Content-Type");
  const form = await new Response(xhr.response, { headers: { "Content-Type": type } }).formData();
  if (current !== request) return;
  const [before, after] = await Promise.all(["before", "enhanced"].map((part) => readVolume(form.get(part))));
  // The user may have dropped another scan meanwhile.
  if (current !== request) return;
  const enhanced = form.get("enhanced");
  const link = $("download");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(enhanced);
  link.download = enhanced.name;
  $("name").textContent = file.name;
  $("facts").textContent = `${after.shape.join(" × ")} voxels of 1 mm, ${MEGA(enhanced.size)}`;
  const notes = decodeURIComponent(xhr.getResponseHeader("X-Upfield-Notes") ?? "");
  $("notes").textContent = `Please note: ${notes}${notes.endsWith(".") ? "" : "."}`;
  show("notes", notes !== "");
  show("result", true);
  new Viewer($("planes"), $("plane"), [before, after], anatomicalAxes(after));
  $("name").focus();
}

async function enhance(file) {
  current?.xhr?.abort();
  const request = (current = { id: randomId(), sent: false, answered: false });
  show("error", false);
  show("result", false);
  show("working", true);
  say(`Sending ${file.name}`);
  follow(request);
  try {
    const xhr = await send(file, request);
    request.answered = true;
    if (current !== request || xhr === null) return;
    if (xhr.status === 401) askForToken();
    if (xhr.status !== 200) {
      const message = await errorOf(xhr);
      if (current === request) fail(message);
    } else {
      say("Unpacking");
      await present(xhr, file, request);
    }
  } catch (error) {
    if (current === request) fail(error.message);
  } finally {
    request.answered = true;
    if (current === request) {
      current = null;
      show("working", false);
    }
  }
}

function askForToken() {
  show("token-line", true);
  $("token").focus();
}

async function introduce() {
  const response = await fetch("model", { headers: authorised() }).catch(() => null);
  if (response?.status === 401) {
    if (token) fail("This token was refused. The service's token file contains the right one.");
    askForToken();
  }
  if (!response?.ok) return;
  show("token-line", false);
  const { file, provider } = await response.json();
  $("about").textContent = `${ABOUT} Model: ${file}, on ${provider.replace("ExecutionProvider", "")}.`;
}

function useToken() {
  token = $("token").value.trim();
  show("error", false);
  introduce();
}

const drop = $("drop");
$("form").addEventListener("submit", (event) => { event.preventDefault(); useToken(); });
$("token-use").addEventListener("click", useToken);
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) enhance(file);
  // Without this, choosing the same file again would not fire an event.
  $("file").value = "";
});
$("cancel").addEventListener("click", () => current?.xhr?.abort());
for (const kind of ["dragover", "dragleave", "drop"]) {
  // The whole page accepts files, because the browser would open a file that is dropped beside the field.
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    const file = kind === "drop" ? event.dataTransfer.files[0] : null;
    if (file) enhance(file);
  });
}
introduce();
