// Names for what Gradio gives none that a screen reader would find.
"use strict";

new MutationObserver(() => {
  const field = document.querySelector("#question textarea:not([aria-label])");
  if (field) field.setAttribute("aria-label", "Question");
  for (const button of document.querySelectorAll(".chat button:not([aria-label]):has(.image-frame img)")) {
    const image = button.querySelector("img");
    const name = decodeURIComponent(image.src.split("/").at(-1));
    const told = button.closest("[data-testid=bot]") ? "the answer's boxes drawn" : name;
    image.alt = `Image: ${told}`;
    button.setAttribute("aria-label", `${image.alt}. Show it large`);
  }
}).observe(document.documentElement, {childList: true, subtree: true});
