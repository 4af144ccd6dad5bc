"use strict";
// Everything from the data becomes text nodes and attributes: no markup is ever parsed.
(() => {
  const PER_PAGE = 8;
  const NUM_COLOURS = 8;
  const [LONG_PIECE, KEPT_HEAD, KEPT_TAIL] = [900, 400, 200]; // characters
  const FOLDED_FRAMES = 6; // from so many on
  const LONGEST_SIDE = { single: 368, few: 280, many: 200, frame: 170 }; // CSS pixels
  const LARGEST_ZOOM = 2.5;

  const byId = (id) => document.getElementById(id);
  const samples = Array.from(document.querySelectorAll("script.sample-data"), (element) => JSON.parse(element.textContent));
  const turnStarts = new Set(JSON.parse(byId("gallery").dataset.turnStarts));
  const list = byId("samples");
  const state = { page: 0, found: samples };

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function makeSvg(tag, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

  // ---- which samples

  for (const sample of samples) {
    const text = sample.pieces.map((piece) => piece[0]).join("");
    const names = sample.shown_images.map((image) => image.file_name);
    sample.haystack = [text, sample.where, ...names, ...sample.remarks].join("\n").toLowerCase();
  }

  const tests = {
    "": () => true,
    remarks: (sample) => sample.remarks.length > 0,
    cut: (sample) => sample.is_truncated,
    boxes: (sample) => sample.shown_images.some((image) => image.boxes.length > 0),
    images: (sample) => sample.shown_images.some((image) => !image.is_frame),
    frames: (sample) => sample.shown_images.some((image) => image.is_frame),
    text: (sample) => sample.shown_images.length === 0,
  };

  let waiting = 0;
  function search() {
    clearTimeout(waiting);
    const words = byId("search").value.trim().toLowerCase();
    const dataset = byId("dataset").value;
    const test = tests[byId("only").value];
    state.found = samples.filter((sample) => (!dataset || sample.dataset === dataset) && test(sample) && sample.haystack.includes(words));
    const order = byId("order").value;
    if (order) {
      const sign = order === "short" ? 1 : -1;
      state.found.sort((a, b) => sign * (a.num_tokens - b.num_tokens));
    }
    show(0);
  }

  // ---- one sample

  // Line ends are shown by the style, so that the text is still the text.
  function linesOf(written) {
    return written.split("\n").flatMap((line, number) => (number ? [make("span", "newline"), "\n", line] : [line]));
  }

  // A button in place of what is hidden; the nodes stay in the text.
  function foldedNodes(nodes, told) {
    const middle = make("span", "middle");
    const hidden = make("span", "rest");
    hidden.append(...nodes);
    const button = make("button", "unfold");
    button.type = "button";
    button.dataset.label = `… ${told} …`;
    button.setAttribute("aria-label", `Show ${told} more`);
    button.addEventListener("click", () => {
      middle.classList.add("open");
      button.closest(".text").classList.add("open");
    });
    middle.append(button, hidden);
    return middle;
  }

  function foldedMiddle(written) {
    // Behind a character, not between the two halves of one.
    const behind = (place) => place + Number(/[\uDC00-\uDFFF]/.test(written[place]));
    const [first, last] = [behind(KEPT_HEAD), behind(written.length - KEPT_TAIL)];
    const [head, rest, tail] = [written.slice(0, first), written.slice(first, last), written.slice(last)];
    return [...linesOf(head), foldedNodes(linesOf(rest), count(rest.length, "character", "characters")), ...linesOf(tail)];
  }

  // Of a video's many frames the first two and the last: what is asked about them is in sight.
  function foldFrames(text, sample) {
    const starts = Array.from(text.children).filter((node) => node.matches(".special") && node.textContent === "<img>");
    if (starts.length < FOLDED_FRAMES || starts.length !== sample.shown_images.length) return;
    const [from, to] = [starts[2].previousSibling, starts.at(-1).previousSibling]; // what says which frame it is
    const nodes = [];
    for (let node = from; node !== to; node = node.nextSibling) nodes.push(node);
    const place = make("span");
    from.before(place);
    place.replaceWith(foldedNodes(nodes, count(starts.length - 3, "frame", "frames")));
  }

  function textOf(sample) {
    const text = make("div", "text");
    text.lang = "";
    for (const [written, kind, isSpecial, times, mark] of sample.pieces) {
      if (isSpecial && turnStarts.has(written) && text.childNodes.length) text.append(make("span", "turn"));
      const piece = make("span", kind + (isSpecial ? " special" : ""));
      if (mark >= 0) {
        piece.classList.add("marked", `colour-${mark % NUM_COLOURS}`);
        piece.dataset.mark = mark;
      }
      piece.append(...(written.length > LONG_PIECE ? foldedMiddle(written) : linesOf(written)));
      text.append(piece);
      if (times > 1) text.append(make("span", "times", `×${times.toLocaleString("en")}`));
    }
    if (sample.shown_images.some((image) => image.is_frame)) foldFrames(text, sample);
    if (sample.num_hidden_characters) {
      text.append(make("span", "hidden-rest", ` … ${count(sample.num_hidden_characters, "character", "characters")} more`));
    }
    return text;
  }

  function folded(text) {
    const place = make("div", "fold");
    const button = make("button", "more", "Show all of the text");
    button.type = "button";
    button.hidden = true;
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const open = text.classList.toggle("open");
      button.textContent = open ? "Show less" : "Show all of the text";
      button.setAttribute("aria-expanded", String(open));
    });
    place.append(text, button);
    return place;
  }

  function tileBorders(image) {
    const svg = makeSvg("svg", { viewBox: `0 0 ${image.columns} ${image.rows}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.classList.add("tile-borders");
    for (const name of ["", "dash"]) {
      for (let x = 1; x < image.columns; x += 1) svg.append(makeSvg("line", { x1: x, x2: x, y1: 0, y2: image.rows, class: name }));
      for (let y = 1; y < image.rows; y += 1) svg.append(makeSvg("line", { x1: 0, x2: image.columns, y1: y, y2: y, class: name }));
    }
    return svg;
  }

  function drawnBox(box) {
    const [x1, y1, x2, y2] = box.corners;
    const element = make("div", `box colour-${box.group % NUM_COLOURS}`);
    element.style.left = `${100 * x1}%`;
    element.style.top = `${100 * y1}%`;
    element.style.width = `${100 * (x2 - x1)}%`;
    element.style.height = `${100 * (y2 - y1)}%`;
    element.dataset.mark = box.group;
    element.title = box.label;
    if (box.label) {
      const label = make("span", "label", box.label);
      if (y1 < 0.12) label.classList.add("inside");
      if (x1 > 0.6) label.classList.add("leftwards");
      element.append(label);
    }
    return element;
  }

  function sizeClass(sample) {
    if (sample.shown_images[0].is_frame) return "frame";
    const number = sample.shown_images.length;
    return number === 1 ? "single" : number <= 4 ? "few" : "many";
  }

  function figureOf(image, number, sample) {
    const figure = make("figure");
    const frame = make("div", "frame");
    const picture = make("img");
    picture.src = image.address;
    picture.decoding = "async";
    const isOne = sample.shown_images.length === 1;
    const name = image.is_frame ? `Frame ${number + 1}` : isOne ? "Image" : `Image ${number + 1}`;
    picture.alt = `${name}: ${image.file_name}`;
    const longest = LONGEST_SIDE[sizeClass(sample)];
    picture.addEventListener("load", () => {
      const { naturalWidth: width, naturalHeight: height } = picture;
      const zoom = Math.min(longest / Math.max(width, height), LARGEST_ZOOM);
      frame.style.aspectRatio = `${width} / ${height}`;
      frame.style.width = `${Math.max(zoom * width, 24)}px`;
    });
    frame.append(picture, tileBorders(image), ...image.boxes.map(drawnBox));
    const caption = make("figcaption");
    if (image.is_frame) {
      caption.append(String(number + 1));
    } else {
      const cuts = image.columns * image.rows > 1 ? `, ${image.columns} × ${image.rows} tiles${image.has_thumbnail ? " and the whole" : ""}` : "";
      caption.append(make("code", "", image.file_name), ` ${image.width} × ${image.height}${cuts}`);
    }
    figure.append(frame, caption);
    return figure;
  }

  function imagesOf(sample) {
    const images = make("div", "images");
    if (sizeClass(sample) === "frame") {
      images.tabIndex = 0;
      images.setAttribute("role", "region");
      images.setAttribute("aria-label", `Frames of ${sample.shown_images[0].file_name}`);
    }
    images.append(...sample.shown_images.map((image, number) => figureOf(image, number, sample)));
    return images;
  }

  function factsOf(sample) {
    const facts = [
      count(sample.num_tokens, "token", "tokens"),
      `${sample.num_supervised.toLocaleString("en")} supervised`,
    ];
    if (sample.num_tiles) facts.push(count(sample.num_tiles, "tile", "tiles"));
    const images = sample.shown_images;
    if (images.length && images[0].is_frame) facts.push(`${count(images.length, "frame", "frames")} of ${images[0].file_name}, ${images[0].width} × ${images[0].height}`);
    return facts.join(" · ");
  }

  function cardOf(sample) {
    const card = make("article", "sample panel");
    const head = make("header");
    head.append(make("span", "chip", sample.dataset), make("code", "where", sample.where), make("span", "facts", factsOf(sample)));
    card.append(head);
    if (sample.remarks.length) {
      const remarks = make("ul", "remarks");
      remarks.append(...sample.remarks.map((remark) => make("li", "", remark)));
      card.append(remarks);
    }
    const body = make("div", "body");
    if (sample.shown_images.length) {
      body.classList.add(sizeClass(sample));
      body.append(imagesOf(sample));
    }
    body.append(folded(textOf(sample)));
    card.append(body);
    for (const [kind, on] of [["pointerover", true], ["pointerout", false]]) {
      card.addEventListener(kind, (event) => {
        const marked = event.target.closest("[data-mark]");
        if (!marked) return;
        for (const same of card.querySelectorAll(`[data-mark="${marked.dataset.mark}"]`)) same.classList.toggle("lit", on);
      });
    }
    return card;
  }

  // ---- pages

  function show(page) {
    const last = Math.max(Math.ceil(state.found.length / PER_PAGE) - 1, 0);
    state.page = Math.min(Math.max(page, 0), last);
    const first = state.page * PER_PAGE;
    const shown = state.found.slice(first, first + PER_PAGE);
    list.replaceChildren(...shown.map(cardOf));
    const of = state.found.length === samples.length ? count(samples.length, "sample", "samples") : `${state.found.length} found among ${samples.length}`;
    const position = shown.length ? `${first + 1}${shown.length > 1 ? `–${first + shown.length}` : ""} of ${of}` : samples.length ? "No sample is like that" : "No sample";
    for (const place of document.querySelectorAll(".position")) place.textContent = position;
    for (const button of document.querySelectorAll(".pager button")) {
      const to = state.page + Number(button.dataset.step);
      // Not "disabled": the key that brought somebody here would lose its button.
      button.setAttribute("aria-disabled", String(to < 0 || to > last));
    }
    for (const fold of list.querySelectorAll(".fold")) {
      const [text, button] = fold.children;
      button.hidden = text.scrollHeight <= text.clientHeight + 4;
      text.classList.toggle("short", button.hidden);
    }
  }

  for (const pager of document.querySelectorAll(".pager")) {
    pager.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button || button.getAttribute("aria-disabled") === "true") return;
      show(state.page + Number(button.dataset.step));
      if (pager !== document.querySelector(".pager")) byId("controls").scrollIntoView();
    });
  }

  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  for (const id of ["dataset", "only", "order"]) byId(id).addEventListener("change", search);
  byId("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  for (const kind of ["boxes", "tiles"]) {
    byId(`show-${kind}`).addEventListener("change", (event) => list.classList.toggle(`without-${kind}`, !event.target.checked));
  }
  search();
})();
