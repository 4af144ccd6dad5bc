// A button on every command. Without this script, or a clipboard, the text can still be selected.
"use strict";

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Absent (a page of another machine without TLS) or refused: as it was done before.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "unseen";
    area.setAttribute("readonly", "");
    document.body.append(area);
    area.select();
    try {
      return document.execCommand("copy");
    } catch {
      return false;
    } finally {
      area.remove();
    }
  }
}

for (const command of document.querySelectorAll(".command")) {
  const code = command.querySelector("code");
  const button = document.createElement("button");
  const told = document.createElement("span");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy the command: ${command.querySelector("h3").textContent}`);
  told.className = "unseen";
  told.setAttribute("role", "status");
  let timer = 0;
  button.addEventListener("click", async () => {
    const done = await toClipboard(code.textContent);
    if (!done) {
      getSelection().selectAllChildren(code);
    } else {
      button.focus();
    }
    button.textContent = done ? "Copied" : "Selected: Ctrl+C";
    told.textContent = done ? "Copied" : "The command is selected: press Ctrl+C";
    clearTimeout(timer);
    timer = setTimeout(() => {
      button.textContent = "Copy";
      told.textContent = "";
    }, 3000);
  });
  command.querySelector("header").append(told, button);
}
