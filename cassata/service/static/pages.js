// Makes the pages livelier; they work without it. Reads the page anew every few seconds while somebody looks at it, keeps open what
// was opened, and never while something is being typed.
"use strict";

const main = document.getElementById("main");
const picker = document.getElementById("seconds");
const MEMORY = "cassata-refresh";

function remembered() {
  try {
    return localStorage.getItem(MEMORY);
  } catch {
    return null; // storage may be forbidden
  }
}

function isBusy() {
  const focused = document.activeElement;
  const isTyping = focused && main.contains(focused) && focused.matches("input, select, textarea, button");
  const isFilling = [...main.querySelectorAll("input:not([type=hidden]), select, textarea")].some((field) =>
    field.type === "checkbox" ? field.checked !== field.defaultChecked
    : field.tagName === "SELECT" ? ![...field.options].every((option) => option.selected === option.defaultSelected || !field.querySelector("[selected]"))
    : field.value !== field.defaultValue);
  const selection = document.getSelection();
  return document.hidden || isTyping || isFilling || (selection && !selection.isCollapsed);
}

let isAsking = false;

// One question at a time, however slow the service is. What is old is never shown as if it were new.
async function refresh() {
  if (isAsking || isBusy()) return;
  isAsking = true;
  try {
    const answer = await fetch(location.href, { credentials: "same-origin", signal: AbortSignal.timeout(20_000) });
    if (answer.redirected) tell("The session has ended: what stands here is old. Reload the page to log in.");
    else if (!answer.ok) tell(`The service answered ${answer.status}: what stands here is old.`);
    else {
      const text = await answer.text();
      tell("");
      show(text);
    }
  } catch {
    tell("The service does not answer: what stands here is old.");
  } finally {
    isAsking = false;
  }
}

function tell(words) {
  const notice = document.getElementById("stale");
  main.classList.toggle("stale", Boolean(words));
  if (notice.textContent !== words) notice.textContent = words;
  notice.hidden = !words;
}

const FOCUSABLE = "a[href], summary, [tabindex]";

// Where the keyboard is, so that it is there again: by the address, the name or the text of what had the focus.
function named(element) {
  return [element.tagName, element.getAttribute("href"), element.getAttribute("aria-label"), element.id, element.tagName === "PRE" ? "" : element.textContent].join();
}

function show(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("main");
  if (!fresh || isBusy()) return;
  const focused = main.contains(document.activeElement) && document.activeElement !== main ? document.activeElement : null;
  const alike = focused ? [...main.querySelectorAll(FOCUSABLE)].filter((each) => named(each) === named(focused)).indexOf(focused) : -1;
  for (const opened of main.querySelectorAll("details[open][id]")) {
    fresh.querySelector(`#${CSS.escape(opened.id)}`)?.setAttribute("open", "");
  }
  fresh.querySelector(".done")?.remove();
  const places = [...main.querySelectorAll(".scroll")].map((box) => [box.scrollLeft, box.scrollTop]);
  main.replaceChildren(...fresh.childNodes);
  [...main.querySelectorAll(".scroll")].forEach((box, number) => {
    [box.scrollLeft, box.scrollTop] = places[number] ?? [0, 0];
  });
  if (focused) {
    const twins = [...main.querySelectorAll(FOCUSABLE)].filter((each) => named(each) === named(focused));
    (twins[alike] ?? main).focus({ preventScroll: true });
  }
  prepare();
}

function prepare() {
  for (const button of main.querySelectorAll("[data-copies]")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent);
      button.textContent = "Copied";
    });
  }
}

if (main && picker && "refreshes" in main.dataset) {
  document.getElementById("refresh").hidden = false;
  picker.value = remembered() ?? "5";
  let timer = 0;
  const restart = () => {
    clearInterval(timer);
    const seconds = Number(picker.value);
    if (seconds) timer = setInterval(refresh, seconds * 1000);
  };
  picker.addEventListener("change", () => {
    try {
      localStorage.setItem(MEMORY, picker.value);
    } catch {
      // then it is asked for again on the next page
    }
    restart();
  });
  document.addEventListener("visibilitychange", () => document.hidden || (Number(picker.value) && refresh()));
  restart();
}
// A form is sent once, however often its button is pressed; it may be again when somebody comes back to the page.
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (event.target.dataset.sent) event.preventDefault();
  else event.target.dataset.sent = "yes";
});
addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach((form) => delete form.dataset.sent));
document.getElementById("app")?.addEventListener("change", (event) => event.target.form.requestSubmit());
prepare();
