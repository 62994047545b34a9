"use strict";
// Convenience only: the whole page works without this script.
try {
  const kept = localStorage.getItem("edgeprune-theme");
  const choice = kept && document.getElementById("theme-" + kept);
  if (choice) choice.checked = true;
} catch { /* this browser stores nothing for files */ }
for (const choice of document.querySelectorAll(".themes input"))
  choice.addEventListener("change", () => {
    try { localStorage.setItem("edgeprune-theme", choice.id.slice(6)); } catch { /* as above */ }
  });
if (navigator.clipboard)
  for (const command of document.querySelectorAll(".command")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy " + command.textContent);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command.textContent);
        button.textContent = "Copied";
      } catch { button.textContent = "Select and copy"; }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    const line = document.createElement("div");
    line.className = "line";
    command.replaceWith(line);
    line.append(command, button);
  }
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const part of folded) part.open = true;
});
addEventListener("afterprint", () => { for (const part of folded) part.open = false; });
