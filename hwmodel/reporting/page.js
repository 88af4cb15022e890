"use strict";
/* Sorts the tables of the page by the column that is clicked, and hands them out as CSV. */
(() => {
  const packed = document.getElementById("sheets").textContent;
  document.documentElement.classList.add("scripted");

  function order(column, down) {
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const numbers = [parseFloat(key(a)), parseFloat(key(b))];
      const numeric = a.cells[column].classList.contains("number");
      if (!numeric) return key(a).localeCompare(key(b), "en", { numeric: true }) * (down ? -1 : 1);
      if (numbers.some(Number.isNaN)) return Number.isNaN(numbers[0]) - Number.isNaN(numbers[1]); // without a number: last
      return (numbers[0] - numbers[1]) * (down ? -1 : 1);
    };
    return compare;
  }

  function sort(button) {
    const head = button.closest("th");
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    body.append(...[...body.rows].sort(order(head.cellIndex, down)));
  }

  async function sheet(name) {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    return JSON.parse(text)[name];
  }

  async function download(name) {
    const content = await sheet(name);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button));
  for (const button of document.querySelectorAll("[data-sheet]")) button.addEventListener("click", () => download(button.dataset.sheet));
})();
