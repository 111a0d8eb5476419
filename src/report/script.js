"use strict";
// Read-outs for pictures: under the pointer, or with the arrow keys. Everything is in the tables too.
for (const plot of document.querySelectorAll("[data-read]")) {
  const said = plot.closest("figure").querySelector(".read");
  const places = plot.dataset.read.trim().split("\n").map((line) => {
    const blank = line.indexOf(" ");
    return { at: parseFloat(line), text: line.slice(blank + 1) };
  });
  const cursors = plot.querySelectorAll(".cursor");
  if (!places[0].text) continue;
  let here = -1;
  const show = (index) => {
    here = index;
    const place = places[index];
    for (const cursor of cursors) {
      const x = place ? 100 * place.at + "%" : "0";
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.classList.toggle("on", Boolean(place));
    }
    said.textContent = place ? place.text : said.dataset.idle;
  };
  // Said once a page.
  said.dataset.idle = document.querySelector("[data-idle]")
    ? "\u00a0"
    : "Point at a picture, or move through it with the arrow keys, to read its values.";
  show(-1);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.querySelector("svg").getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    let nearest = 0;
    places.forEach((place, index) => {
      if (Math.abs(place.at - x) < Math.abs(places[nearest].at - x)) nearest = index;
    });
    show(nearest);
  });
  plot.addEventListener("pointerleave", () => show(-1));
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", "Read values with the left and right arrow keys");
  plot.addEventListener("blur", () => show(-1));
  plot.addEventListener("keydown", (event) => {
    const last = places.length - 1;
    const to = {
      ArrowRight: Math.min(here + 1, last),
      ArrowLeft: Math.max(here - 1, 0),
      PageDown: Math.min(here + 20, last),
      PageUp: Math.max(here - 20, 0),
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
}
