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

async function refresh() {
  if (isBusy()) return;
  let answer;
  try {
    answer = await fetch(location.href, { credentials: "same-origin", headers: { Accept: "text/html" } });
  } catch {
    main.classList.add("stale");
    return;
  }
  main.classList.toggle("stale", !answer.ok);
  if (!answer.ok || answer.redirected || isBusy()) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
  if (!fresh || isBusy()) return;
  for (const opened of main.querySelectorAll("details[open][id]")) {
    fresh.querySelector(`#${CSS.escape(opened.id)}`)?.setAttribute("open", "");
  }
  fresh.querySelector(".done")?.remove();
  const places = [...main.querySelectorAll(".scroll")].map((box) => [box.scrollLeft, box.scrollTop]);
  main.replaceChildren(...fresh.childNodes);
  [...main.querySelectorAll(".scroll")].forEach((box, number) => {
    [box.scrollLeft, box.scrollTop] = places[number] ?? [0, 0];
  });
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
document.getElementById("app")?.addEventListener("change", (event) => event.target.form.requestSubmit());
prepare();
