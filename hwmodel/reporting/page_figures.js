"use strict";
/* Draws the interactive figures in the page's present colours; on paper and without scripts the drawn ones stand instead. */
(() => {
  const documents = document.getElementById("plots").textContent;
  const settings = { responsive: true, displayModeBar: false };

  function draw() {
    const page = getComputedStyle(document.documentElement);
    const coloured = (_, value) =>
      typeof value === "string" && value.startsWith("var(--") ? page.getPropertyValue(value.slice(4, -1)).trim() : value;
    for (const [place, plot] of Object.entries(JSON.parse(documents, coloured))) {
      Plotly.react(place, plot.data, plot.layout, settings);
    }
  }

  document.documentElement.classList.add("live");
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
